"""A rank's micro-batches, read by 0 to n worker processes, in the same order whatever their number."""

import itertools
from collections.abc import Iterator, Mapping

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pretrain.data.stream import (
    BlockOrder,
    StepExamples,
    StreamPosition,
    join_step_examples,
    read_step_examples,
)
from pretrain.errors import PretrainError


class MicroBatch:
    """One forward and backward pass of one rank; a plain object, so that Lightning leaves it as it is.

    `tensors` by name; `index`, its number in the step, of which 0 is the first; `last`, whether the step ends with it;
    and `step_examples`, what the rank's whole step holds: counts, digest, and the position after it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], index: int, last: bool, step_examples: StepExamples) -> None:
        self.tensors = tensors
        self.index = index
        self.last = last
        self.step_examples = step_examples


class _Lanes(IterableDataset[StepExamples | PretrainError]):
    """The lanes of one rank, divided among its workers."""

    def __init__(self, order: BlockOrder, lanes: range, rows: int, position: StreamPosition, step: int) -> None:
        self._order, self._lanes, self._rows, self._position, self._step = order, lanes, rows, position, step

    def __iter__(self) -> Iterator[StepExamples | PretrainError]:
        info = get_worker_info()
        first, workers = (info.id, info.num_workers) if info else (0, 1)
        try:
            lanes = self._lanes[first::workers]
            yield from read_step_examples(self._order, lanes, self._rows, self._position, self._step)
        except PretrainError as error:  # raised here, it would reach the user inside a worker's traceback
            yield error


class StepLoader:
    """Endless micro-batches of one rank; iterating starts at `position`, where `step` begins: give others to resume.

    `rows` examples are taken from every lane of `lanes` per step, and cut into micro-batches of `micro_size`.
    """

    def __init__(
        self,
        order: BlockOrder,
        lanes: range,
        rows: int,
        micro_size: int,
        *,
        position: StreamPosition,
        step: int = 0,
        workers: int = 0,
    ) -> None:
        self._order = order
        self._step = step
        self._lanes = _Lanes(order, lanes, rows, position, step)
        self._rows = rows
        self._micro_size = micro_size
        self._workers = workers
        self._micro_batches = len(lanes) * rows // micro_size

    def __iter__(self) -> Iterator[MicroBatch]:
        loader = DataLoader(
            self._lanes,
            batch_size=None,
            num_workers=self._workers,
            multiprocessing_context="fork" if self._workers else None,
        )
        parts = iter(loader)
        for number in itertools.count(self._step):
            # A DataLoader returns its workers' items in turn: one item of each makes a step.
            read = [_checked(next(parts)) for _ in range(max(1, self._workers))]
            step = join_step_examples(read, self._rows)
            collate = self._order.maker(number).collate
            for index in range(self._micro_batches):
                start = index * self._micro_size
                part = {key: array[start : start + self._micro_size] for key, array in step.arrays.items()}
                yield MicroBatch(collate(part), index, index == self._micro_batches - 1, step)


def _checked(part: StepExamples | PretrainError) -> StepExamples:
    if isinstance(part, PretrainError):
        raise part
    return part
