"""A rank's micro-batches, read by 0 to n worker processes, in the same order whatever their number."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pretrain.data.blocks import Arrays
from pretrain.data.stream import Corpus, Share, StreamPosition, join_shares, read_shares
from pretrain.errors import PretrainError


@dataclass
class MicroBatch:
    """One forward and backward pass of one rank; a plain object, so that Lightning leaves it as it is."""

    tensors: dict[str, Tensor]
    index: int
    """Its place in the step; 0 is the first."""
    last: bool
    """Whether the step ends with it."""
    share: Share
    """What the rank's whole step holds: counts, digest, and the positions after it."""


class _Lanes(IterableDataset[Share | PretrainError]):
    """The lanes of one rank, shared out over its workers."""

    def __init__(self, corpus: Corpus, lanes: range, rows: int, positions: StreamPosition) -> None:
        self._corpus, self._lanes, self._rows, self._positions = corpus, lanes, rows, positions

    def __iter__(self) -> Iterator[Share | PretrainError]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        try:
            yield from read_shares(self._corpus, self._lanes[first::step], self._rows, self._positions)
        except PretrainError as error:  # raised here, it would reach the user inside a worker's traceback
            yield error


class StepLoader:
    """Endless micro-batches of one rank; iterating starts at the positions given, so give new ones to resume.

    `rows` examples are taken from every lane of `lanes` per step, and cut into micro-batches of `micro_size`.
    """

    def __init__(
        self,
        corpus: Corpus,
        lanes: range,
        rows: int,
        micro_size: int,
        collate: Callable[[Arrays], Any],
        *,
        positions: StreamPosition,
        workers: int = 0,
    ) -> None:
        self._lanes = _Lanes(corpus, lanes, rows, positions)
        self._rows = rows
        self._micro_size = micro_size
        self._collate = collate
        self._workers = workers
        self._micro_batches = len(lanes) * rows // micro_size

    def __iter__(self) -> Iterator[MicroBatch]:
        loader = DataLoader(
            self._lanes,
            batch_size=None,
            num_workers=self._workers,
            multiprocessing_context="fork" if self._workers else None,
        )
        shares = iter(loader)
        while True:
            # A DataLoader returns its workers' items in turn: one item of each makes a step.
            share = join_shares([_checked(next(shares)) for _ in range(max(1, self._workers))], self._rows)
            for index in range(self._micro_batches):
                start = index * self._micro_size
                part = {key: array[start : start + self._micro_size] for key, array in share.arrays.items()}
                last = index == self._micro_batches - 1
                yield MicroBatch(self._collate(part), index, last, share)


def _checked(share: Share | PretrainError) -> Share:
    if isinstance(share, PretrainError):
        raise share
    return share
