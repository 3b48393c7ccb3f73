"""The examples of every step: a pure function of (corpus, seed, config), whatever the ranks, workers and resumes.

A lane is an endless reader of blocks; lane l of L takes the blocks l, l + L, l + 2L … of a source's endless order,
which is one permutation per epoch after another. A position says how many blocks a lane has finished and how many
examples it has used of the next: nothing else needs to be known to go on.

What an example is may change at given steps. There every lane goes on to its next block, so that a block's examples are
all alike, and a position stays two numbers.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pretrain.data.blocks import Arrays, ExampleMaker, Examples
from pretrain.data.corpus import PreparedSource
from pretrain.errors import DataError
from pretrain.runtime.seeding import generator, seed_of

MAX_EMPTY_BLOCKS = 32
"""Blocks in a row that may give no example: of a small source, a lane may meet the same block in several epochs."""

BlockId = tuple[int, int]
"""A block: the number of its source, in the order of names, and its own number in there."""


@dataclass(frozen=True)
class StreamPosition:
    """Where some lanes stand: all of a run's, or a rank's own. Only this module looks inside."""

    lanes: Mapping[int, tuple[int, int]]
    """Per lane: blocks finished, examples used of the next."""

    @classmethod
    def start(cls, lanes: int) -> Self:
        """The beginning of a run of so many lanes."""
        return cls(dict.fromkeys(range(lanes), (0, 0)))

    @classmethod
    def join(cls, parts: Iterable["StreamPosition"]) -> Self:
        """The lanes of all parts."""
        return cls({lane: stand for part in parts for lane, stand in part.lanes.items()})

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """What `to_json` gave; raises ValueError for anything else."""
        if not isinstance(value, list) or not all(map(_is_stand, value)):
            raise ValueError("not a position: expected [blocks finished, examples used of the next] for every lane")
        return cls({lane: (finished, used) for lane, (finished, used) in enumerate(value)})

    def to_json(self) -> list[list[int]]:
        """The position of all lanes of a run, to write down."""
        if sorted(self.lanes) != list(range(len(self.lanes))):
            raise ValueError(f"the position of only some lanes, {sorted(self.lanes)}: join those of all ranks first")
        return [list(self.lanes[lane]) for lane in sorted(self.lanes)]

    @property
    def blocks_finished(self) -> int:
        """Blocks that these lanes have read to the end, from the beginning of the run."""
        return sum(finished for finished, _ in self.lanes.values())


def _is_stand(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and n >= 0 for n in value)


def held_out_blocks(sources: Sequence[PreparedSource], limit: int | None = None) -> list[BlockId]:
    """The blocks of the held-out text in a fixed order, from all sources in turn; at most `limit`.

    Their text is in random order, so the first blocks of a source stand for all of it.
    """
    every = [(s, b) for s, source in enumerate(sources) for b in range(source.shards.blocks)]
    return sorted(every, key=lambda block_id: (block_id[1], block_id[0]))[:limit]


def held_out_examples(sources: Sequence[PreparedSource], block_id: BlockId, maker: ExampleMaker) -> Examples:
    """The examples of one held-out block: always the same ones, whatever the run."""
    source, block = block_id
    return maker.make(sources[source].block(block), held_out_generator(block_id), pad=True)


def held_out_generator(block_id: BlockId) -> np.random.Generator:
    """What is drawn for one held-out block."""
    return generator("held out", *block_id)


class BlockOrder:
    """The blocks of all sources of a run, in the order in which lanes read them.

    Sources count in the order of their names, so that the order in which a config lists them decides nothing. `makers`
    make the examples, each from its step on, up to the next one's; the first of these steps is 0.
    """

    def __init__(
        self, sources: Sequence[PreparedSource], makers: Mapping[int, ExampleMaker], seed: int, lanes: int
    ) -> None:
        self.sources = sorted(sources, key=lambda source: source.name)
        self.makers = makers
        self.seed = seed
        self.lanes = lanes
        self._permutations: dict[tuple[int, int], np.ndarray[Any, np.dtype[np.int64]]] = {}
        weights = np.array([source.weight for source in self.sources])
        self._thresholds = np.cumsum(weights / weights.sum())

    def source_of(self, lane: int, k: int) -> int:
        """The source of the lane's k-th block, drawn by weight."""
        if len(self.sources) == 1:
            return 0
        draw = seed_of("source", self.seed, lane, k) / 2**63
        return min(int(np.searchsorted(self._thresholds, draw, side="right")), len(self.sources) - 1)

    def maker(self, step: int) -> ExampleMaker:
        """What makes the examples of a step."""
        return self.makers[max(first for first in self.makers if first <= step)]

    def changes_at(self, step: int) -> bool:
        """Whether an example is something else in `step` than in the step before."""
        return step > 0 and step in self.makers

    def examples(self, source: int, number: int, step: int = 0) -> Examples:
        """The examples that `step` takes of a block, by its number in the source's endless order."""
        epoch, index = divmod(number, self.sources[source].shards.blocks)
        block = int(self._permutation(source, epoch)[index])
        rng = generator("examples", self.seed, source, epoch, block)
        return self.maker(step).make(self.sources[source].block(block), rng)

    def _permutation(self, source: int, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        key = (source, epoch)
        if key not in self._permutations:
            if len(self._permutations) > 4 * len(self.sources):
                self._permutations.clear()
            blocks = self.sources[source].shards.blocks
            self._permutations[key] = generator("block order", self.seed, source, epoch).permutation(blocks)
        return self._permutations[key]


class Lane:
    """One endless reader."""

    def __init__(self, order: BlockOrder, lane: int, position: tuple[int, int]) -> None:
        self._order = order
        self._lane = lane
        self.finished, self.used = position
        self._read = [0] * len(order.sources)  # blocks of each source that the lane has finished
        for k in range(self.finished):
            self._read[order.source_of(lane, k)] += 1
        self._examples: Examples | None = None
        self._empty = [0] * len(order.sources)

    def take(self, count: int, step: int) -> list[Arrays]:
        """The `count` examples that it gives to `step`, the one after the last step, in one piece or several."""
        if self.used and self._order.changes_at(step):
            self._next_block()
        pieces = []
        while count:
            examples = self._current(step)
            stop = min(self.used + count, len(examples))
            if stop > self.used:
                pieces.append(examples.take(self.used, stop))
                count -= stop - self.used
                self.used = stop
            if self.used == len(examples):
                self._next_block()
        return pieces

    def _current(self, step: int) -> Examples:
        if self._examples is None:
            source = self._order.source_of(self._lane, self.finished)
            number = self._lane + self._read[source] * self._order.lanes
            self._examples = self._order.examples(source, number, step)
            self._guard(source, len(self._examples))
            if self.used > len(self._examples):
                raise DataError(
                    f"lane {self._lane}: {self.used} examples are used of a block that gives {len(self._examples)}: "
                    "the position is that of another stream; was it written by another version?"
                )
        return self._examples

    def _guard(self, source: int, count: int) -> None:
        """A source that never yields an example would spin for ever."""
        self._empty[source] = 0 if count else self._empty[source] + 1
        blocks = self._order.sources[source].shards.blocks
        if self._empty[source] > max(blocks, MAX_EMPTY_BLOCKS):
            name = self._order.sources[source].name
            raise DataError(
                f"source {name}: no example in {self._empty[source]} blocks read (it has {blocks}): "
                "too little text for data.block_tokens and the model's lengths, or a single document"
            )

    def _next_block(self) -> None:
        self._read[self._order.source_of(self._lane, self.finished)] += 1
        self.finished += 1
        self.used = 0
        self._examples = None


@dataclass
class StepExamples:
    """The examples that some lanes, a rank's or a worker's, give to one step: `rows` of each, in lane order."""

    arrays: dict[str, np.ndarray[Any, Any]]
    counts: dict[str, int]
    digest: int
    position: StreamPosition
    """Of these lanes, after the step."""


def read_step_examples(
    order: BlockOrder, lanes: Sequence[int], rows: int, position: StreamPosition, step: int = 0
) -> Iterator[StepExamples]:
    """Endless: the examples that `lanes` give to one step after another; the first is `step`, begun at `position`."""
    readers = {lane: Lane(order, lane, position.lanes[lane]) for lane in lanes}
    for number in itertools.count(step):
        pieces = [piece for reader in readers.values() for piece in reader.take(rows, number)]
        arrays = {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]} if pieces else {}
        yield StepExamples(
            arrays=arrays,
            counts=order.maker(number).counts(arrays) if pieces else {},
            digest=digest(arrays) if pieces else 0,
            position=StreamPosition({lane: (reader.finished, reader.used) for lane, reader in readers.items()}),
        )


def join_step_examples(parts: Sequence[StepExamples], rows: int) -> StepExamples:
    """The examples of one step in the order of lanes, whoever read them."""
    parts = [part for part in parts if part.position.lanes]
    lanes = sorted(lane for part in parts for lane in part.position.lanes)
    index_of = {lane: index for index, lane in enumerate(lanes)}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for key, first in parts[0].arrays.items():
        joined = np.empty((len(lanes), rows, *first.shape[1:]), first.dtype)
        for part in parts:
            indexes = [index_of[lane] for lane in part.position.lanes]
            joined[indexes] = part.arrays[key].reshape(-1, rows, *first.shape[1:])
        arrays[key] = joined.reshape(-1, *first.shape[1:])
    position = StreamPosition.join(part.position for part in parts)
    return StepExamples(
        arrays=arrays,
        counts={key: sum(part.counts[key] for part in parts) for key in parts[0].counts},
        digest=sum(part.digest for part in parts) % 2**64,
        position=StreamPosition({lane: position.lanes[lane] for lane in lanes}),
    )


@functools.cache
def _weights(name: str, size: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Odd 64-bit multipliers, one per column of an array."""
    return generator("digest", name, size).integers(0, 2**63, size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def digest(arrays: Arrays) -> int:
    """An order-independent 64-bit sum of a hash of each example; equal data, equal digest, however it is split."""
    total: np.ndarray[Any, np.dtype[np.uint64]] | None = None
    for name in sorted(arrays):
        values = arrays[name].reshape(len(arrays[name]), -1).astype(np.int64).view(np.uint64)
        hashed = _mix((values + np.uint64(1)) @ _weights(name, values.shape[1]))
        total = hashed if total is None else _mix(total * np.uint64(0x9E3779B97F4A7C15) + hashed)
    return 0 if total is None else int(total.sum(dtype=np.uint64))


def _mix(values: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The finaliser of splitmix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray[Any, np.dtype[np.uint64]] = values ^ (values >> np.uint64(31))
    return mixed
