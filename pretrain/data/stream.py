"""The examples of every step: a pure function of (corpus, seed, config), whatever the ranks, workers and resumes.

A lane is an endless reader of blocks; lane l of L takes the blocks l, l + L, l + 2L … of a source's endless order,
which is one permutation per epoch after another. A position says how many blocks a lane has finished and how many
examples it has used of the next: nothing else needs to be known to go on.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pretrain.data.blocks import Arrays, Block, Examples
from pretrain.data.shards import Shards, read_block
from pretrain.data.store import Store
from pretrain.errors import DataError
from pretrain.runtime.seeding import generator, seed_of

StreamPosition = list[tuple[int, int]]
"""Per lane: blocks finished, examples used of the next."""

FRUITLESS = 32
"""Blocks in a row that may give no example: of a small source, a lane may meet the same block in several epochs."""


class Maker(Protocol):
    """The part of an example maker that a stream needs."""

    def make(self, block: Block, rng: np.random.Generator, *, pad: bool = False) -> Examples:
        """The examples of a block."""

    def counts(self, examples: Arrays) -> dict[str, int]:
        """Predictions per loss term, and tokens."""


@dataclass(frozen=True)
class PreparedSource:
    """One source of a prepared corpus."""

    name: str
    store: Store
    shards: Shards
    weight: float = 1.0

    def block(self, number: int) -> Block:
        """One of its blocks."""
        return read_block(self.store, self.shards, number)


def training_sources(store: Store, manifest: dict[str, Any], weights: Sequence[float]) -> list[PreparedSource]:
    """The sources to train on, with their weights."""
    return [
        PreparedSource(entry["name"], store, Shards(entry["shards"]), weight)
        for entry, weight in zip(manifest["train"], weights, strict=True)
    ]


def held_out_sources(store: Store, manifest: dict[str, Any]) -> list[PreparedSource]:
    """The sources that are never trained on."""
    return [PreparedSource(entry["name"], store, Shards(entry["shards"])) for entry in manifest["held_out"]]


def held_out_blocks(sources: Sequence[PreparedSource], limit: int | None) -> list[tuple[int, int]]:
    """(source, block) of the held-out text, in a fixed order; at most `limit`, the same every time."""
    every = [(s, b) for s, source in enumerate(sources) for b in range(source.shards.blocks)]
    return every[:limit]


def held_out_examples(sources: Sequence[PreparedSource], place: tuple[int, int], maker: Maker) -> Examples:
    """The examples of one held-out block: always the same ones, whatever the run."""
    source, block = place
    return maker.make(sources[source].block(block), held_out_generator(place), pad=True)


def held_out_generator(place: tuple[int, int]) -> np.random.Generator:
    """What is drawn for one held-out block, (source, block)."""
    return generator("held out", *place)


class Corpus:
    """All sources of a run, and the order in which lanes read their blocks."""

    def __init__(self, sources: Sequence[PreparedSource], maker: Maker, seed: int, lanes: int) -> None:
        self.sources = sources
        self.maker = maker
        self.seed = seed
        self.lanes = lanes
        self._permutations: dict[tuple[int, int], np.ndarray[Any, np.dtype[np.int64]]] = {}
        weights = np.array([source.weight for source in sources])
        self._thresholds = np.cumsum(weights / weights.sum())

    def source_of(self, lane: int, k: int) -> int:
        """The source of the lane's k-th block, drawn by weight."""
        if len(self.sources) == 1:
            return 0
        draw = seed_of("source", self.seed, lane, k) / 2**63
        return min(int(np.searchsorted(self._thresholds, draw, side="right")), len(self.sources) - 1)

    def examples(self, source: int, number: int) -> Examples:
        """The examples of a block by its number in the source's endless order."""
        epoch, place = divmod(number, self.sources[source].shards.blocks)
        block = int(self._permutation(source, epoch)[place])
        rng = generator("examples", self.seed, source, epoch, block)
        return self.maker.make(self.sources[source].block(block), rng)

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

    def __init__(self, corpus: Corpus, lane: int, position: tuple[int, int]) -> None:
        self._corpus = corpus
        self._lane = lane
        self.finished, self.used = position
        self._read = [0] * len(corpus.sources)  # blocks of each source that the lane has finished
        for k in range(self.finished):
            self._read[corpus.source_of(lane, k)] += 1
        self._examples: Examples | None = None
        self._fruitless = [0] * len(corpus.sources)

    def take(self, count: int) -> list[Arrays]:
        """The next `count` examples, in one piece or several."""
        pieces = []
        while count:
            examples = self._current()
            stop = min(self.used + count, len(examples))
            if stop > self.used:
                pieces.append(examples.take(self.used, stop))
                count -= stop - self.used
                self.used = stop
            if self.used == len(examples):
                self._next_block()
        return pieces

    def _current(self) -> Examples:
        if self._examples is None:
            source = self._corpus.source_of(self._lane, self.finished)
            number = self._lane + self._read[source] * self._corpus.lanes
            self._examples = self._corpus.examples(source, number)
            self._guard(source, len(self._examples))
        return self._examples

    def _guard(self, source: int, count: int) -> None:
        """A source that never yields an example would spin for ever."""
        self._fruitless[source] = 0 if count else self._fruitless[source] + 1
        blocks = self._corpus.sources[source].shards.blocks
        if self._fruitless[source] > max(blocks, FRUITLESS):
            name = self._corpus.sources[source].name
            raise DataError(
                f"source {name}: no example in {self._fruitless[source]} blocks read (it has {blocks}): "
                "too little text for data.block_tokens and the model's lengths, or a single document"
            )

    def _next_block(self) -> None:
        self._read[self._corpus.source_of(self._lane, self.finished)] += 1
        self.finished += 1
        self.used = 0
        self._examples = None


@dataclass
class Share:
    """What one reader hands over for one step: the examples of some lanes, `rows` of each, in lane order."""

    arrays: dict[str, np.ndarray[Any, Any]]
    counts: dict[str, int]
    digest: int
    positions: dict[int, tuple[int, int]]


def read_shares(corpus: Corpus, lanes: Sequence[int], rows: int, positions: StreamPosition) -> Iterator[Share]:
    """Endless: the share of `lanes` in one step after another, from `positions` on."""
    readers = {lane: Lane(corpus, lane, positions[lane]) for lane in lanes}
    while True:
        pieces = [piece for reader in readers.values() for piece in reader.take(rows)]
        arrays = {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]} if pieces else {}
        yield Share(
            arrays=arrays,
            counts=corpus.maker.counts(arrays) if pieces else {},
            digest=digest(arrays) if pieces else 0,
            positions={lane: (reader.finished, reader.used) for lane, reader in readers.items()},
        )


def join_shares(shares: Sequence[Share], rows: int) -> Share:
    """One share of several, its lanes in order, whoever read them."""
    shares = [share for share in shares if share.positions]
    lanes = sorted(lane for share in shares for lane in share.positions)
    place = {lane: i for i, lane in enumerate(lanes)}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for key, first in shares[0].arrays.items():
        joined = np.empty((len(lanes), rows, *first.shape[1:]), first.dtype)
        for share in shares:
            joined[[place[lane] for lane in share.positions]] = share.arrays[key].reshape(-1, rows, *first.shape[1:])
        arrays[key] = joined.reshape(-1, *first.shape[1:])
    return Share(
        arrays=arrays,
        counts={key: sum(share.counts[key] for share in shares) for key in shares[0].counts},
        digest=sum(share.digest for share in shares) % 2**64,
        positions={lane: share.positions[lane] for lane in lanes for share in shares if lane in share.positions},
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
