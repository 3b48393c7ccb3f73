"""The stream: every step's examples are a pure function of (corpus, seed, config)."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.data.blocks import Arrays, Block, ExampleMaker
from pretrain.data.corpus import PreparedCorpus, PreparedSource
from pretrain.data.loader import StepLoader
from pretrain.data.prepare import ensure_prepared
from pretrain.data.shards import Shards, write_shards
from pretrain.data.shuffle_buckets import ShuffleBuckets
from pretrain.data.store import Store
from pretrain.data.stream import (
    BlockOrder,
    StepExamples,
    StreamPosition,
    digest,
    held_out_blocks,
    held_out_examples,
    join_step_examples,
    read_step_examples,
)
from pretrain.errors import DataError
from pretrain.models import FAMILIES, get_family

Configure = Callable[..., RunConfig]
LANES = 8


@dataclass(frozen=True)
class Pairs:
    """Two tokens an example, or another number."""

    tokens: np.ndarray[tuple[int, ...], np.dtype[np.int32]]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, start: int, stop: int) -> Arrays:
        return {"tokens": self.tokens[start:stop], "first": self.tokens[start:stop, 0]}


@dataclass(frozen=True)
class PairMaker:
    """Shuffled tokens in pairs, or in groups of another `size`.

    A block without even one of them, or of fewer than `least` tokens, gives no example.
    """

    least: int = 0
    size: int = 2

    def make(self, block: Block, rng: np.random.Generator, *, pad: bool = False) -> Pairs:
        tokens = rng.permutation(block.tokens) if len(block.tokens) >= self.least else block.tokens[:0]
        return Pairs(tokens[: len(tokens) // self.size * self.size].reshape(-1, self.size))

    def counts(self, examples: Arrays) -> dict[str, int]:
        return {"tokens": examples["tokens"].size}

    def collate(self, examples: Arrays) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array) for name, array in examples.items()}


def source(folder: Path, name: str, first: int, documents: int, weight: float = 1.0) -> PreparedSource:
    """Documents of three sentences of four tokens, all tokens distinct; blocks of 48 tokens."""
    store = Store(str(folder))
    with ShuffleBuckets(16) as buckets:
        for number in range(documents):
            start = first + 12 * number
            buckets.add(number, [list(range(start + s, start + s + 4)) for s in (0, 4, 8)])
        shards = Shards(write_shards(store, f"train/{name}", buckets, 48))
    return PreparedSource(name, store, shards, weight)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedSource]:
    folder = tmp_path_factory.mktemp("stream")
    return [source(folder, "a", 0, 90, weight=2.0), source(folder, "b", 100_000, 41)]


@pytest.fixture
def order_of_pairs(sources: list[PreparedSource]) -> BlockOrder:
    return BlockOrder(sources, {0: PairMaker()}, seed=3, lanes=LANES)


START = StreamPosition.start(LANES)


def steps_of(
    order: BlockOrder, rows: int, position: StreamPosition, steps: int, ranks: int, workers: int, first: int = 0
) -> list[StepExamples]:
    """The join over all ranks of every step from `first` on, read as `ranks` loaders of `workers` processes would."""
    per_rank = order.lanes // ranks
    readers = []
    for rank in range(ranks):
        lanes = range(rank * per_rank, (rank + 1) * per_rank)
        split = max(1, workers)
        readers.append([read_step_examples(order, lanes[w::split], rows, position, first) for w in range(split)])
    found = []
    for _ in range(steps):
        ours = [join_step_examples([next(reader) for reader in mine], rows) for mine in readers]
        found.append(join_step_examples(ours, rows))
    return found


def assert_equal(first: Sequence[StepExamples], second: Sequence[StepExamples]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert (one.digest, one.counts, one.position) == (other.digest, other.counts, other.position)
        assert one.arrays.keys() == other.arrays.keys()
        for key, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[key])


def position_after(step: StepExamples) -> StreamPosition:
    """As a checkpoint keeps it."""
    return StreamPosition.from_json(json.loads(json.dumps(step.position.to_json())))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_examples_do_not_depend_on_ranks_and_workers(ranks: int, workers: int, order_of_pairs: BlockOrder) -> None:
    expected = steps_of(order_of_pairs, 3, START, 40, 1, 0)
    assert_equal(steps_of(order_of_pairs, 3, START, 40, ranks, workers), expected)
    assert len({step.digest for step in expected}) == 40
    assert all(step.counts == {"tokens": 2 * 3 * LANES} for step in expected)


def test_resuming_from_any_step_goes_on_with_the_same_stream(order_of_pairs: BlockOrder) -> None:
    whole = steps_of(order_of_pairs, 3, START, 60, 1, 0)
    for step, ranks, workers in ((1, 2, 2), (17, 4, 0), (33, 1, 3), (59, 8, 1)):
        rest = steps_of(order_of_pairs, 3, position_after(whole[step - 1]), 60 - step, ranks, workers)
        assert_equal(rest, whole[step:])


def test_a_chain_of_resumes_loses_and_repeats_nothing(order_of_pairs: BlockOrder) -> None:
    whole = steps_of(order_of_pairs, 5, START, 24, 1, 0)
    position, chained = START, []
    for ranks, workers, steps in ((2, 2, 7), (1, 0, 1), (4, 1, 9), (1, 3, 7)):
        chained += steps_of(order_of_pairs, 5, position, steps, ranks, workers)
        position = position_after(chained[-1])
    assert_equal(chained, whole)


def test_a_step_is_in_lane_order_whoever_reads_it(order_of_pairs: BlockOrder) -> None:
    step = steps_of(order_of_pairs, 2, START, 1, 1, 3)[0]
    for lane in range(LANES):
        alone = next(read_step_examples(order_of_pairs, [lane], 2, START))
        np.testing.assert_array_equal(step.arrays["tokens"][2 * lane : 2 * lane + 2], alone.arrays["tokens"])
    assert step.digest == sum(next(read_step_examples(order_of_pairs, [n], 2, START)).digest for n in range(8)) % 2**64


@pytest.mark.parametrize("lanes", [1, 3, 8, 64])
def test_every_block_is_used_once_per_epoch_over_all_lanes(lanes: int, sources: list[PreparedSource]) -> None:
    """Also where there are more lanes than blocks."""
    order = BlockOrder(sources[:1], {0: PairMaker()}, seed=1, lanes=lanes)
    blocks = sources[0].shards.blocks
    tokens = Counter(t for b in range(blocks) for t in sources[0].block(b).tokens.tolist())
    for epoch in range(3):
        read = Counter(
            token
            for number in range(epoch * blocks, (epoch + 1) * blocks)
            for token in order.examples(0, number).take(0, 10**6)["tokens"].ravel().tolist()
        )
        assert read == tokens
    steps = steps_of(order, 1, StreamPosition.start(lanes), 30, 1, 0)
    assert all(len(step.arrays["tokens"]) == lanes for step in steps)


def test_a_lane_takes_every_so_manieth_block(sources: list[PreparedSource]) -> None:
    order = BlockOrder(sources[:1], {0: PairMaker()}, seed=1, lanes=4)
    reader = read_step_examples(order, [1], 24, StreamPosition.start(4))  # a block is 24 pairs
    for k in range(5):
        expected = order.examples(0, 1 + 4 * k).take(0, 24)["tokens"]
        np.testing.assert_array_equal(next(reader).arrays["tokens"][: len(expected)], expected)


def test_epochs_and_seeds_differ(sources: list[PreparedSource]) -> None:
    order, other = (BlockOrder(sources[:1], {0: PairMaker()}, seed=seed, lanes=1) for seed in (1, 2))
    blocks = sources[0].shards.blocks
    first = [order.examples(0, number).take(0, 1)["first"][0] for number in range(2 * blocks)]
    assert first[:blocks] != first[blocks:]
    assert first[:blocks] != [other.examples(0, number).take(0, 1)["first"][0] for number in range(blocks)]


def test_the_order_of_sources_decides_nothing(sources: list[PreparedSource]) -> None:
    """A weight goes with its source's name."""
    orders = [BlockOrder(listed, {0: PairMaker()}, seed=3, lanes=LANES) for listed in (sources, sources[::-1])]
    first, second = (steps_of(order, 3, START, 40, 1, 0) for order in orders)
    assert_equal(first, second)


def test_held_out_blocks_come_from_all_sources_in_turn(sources: list[PreparedSource]) -> None:
    """A loss over some of them is one over all sources."""
    a, b = (one.shards.blocks for one in sources)
    assert a > b + 2 > 5
    assert held_out_blocks(sources, 5) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    every = held_out_blocks(sources)
    assert sorted(every) == [(0, block) for block in range(a)] + [(1, block) for block in range(b)]
    assert every[-2:] == [(0, a - 2), (0, a - 1)]
    assert held_out_blocks(sources[:1], 3) == [(0, 0), (0, 1), (0, 2)]


def test_a_position_is_written_down_whole(order_of_pairs: BlockOrder) -> None:
    """Of one rank's lanes alone it is not; and what is no position is refused."""
    parts = [next(read_step_examples(order_of_pairs, lanes, 30, START)).position for lanes in (range(4, 8), range(4))]
    whole = StreamPosition.join(parts)
    assert whole.to_json()[0] == [1, 6], "a block of 24 pairs, and 6 of the next"
    assert whole.blocks_finished == LANES
    assert StreamPosition.from_json(whole.to_json()) == whole
    with pytest.raises(ValueError, match=r"only some lanes, \[4, 5, 6, 7\]"):
        parts[0].to_json()
    for wrong in (None, {"0": [1, 6]}, [[1]], [[1, -6]], [[1, "6"]], [1, 6], [[True, 6]]):
        with pytest.raises(ValueError, match="not a position"):
            StreamPosition.from_json(wrong)


def test_weights_are_shares_of_tokens(order_of_pairs: BlockOrder) -> None:
    """Weights 2 and 1, although source b has half as many documents and is thus read as often per document."""
    steps = steps_of(order_of_pairs, 24, START, 150, 1, 0)
    tokens = np.concatenate([step.arrays["tokens"].ravel() for step in steps])
    assert np.mean(tokens < 100_000) == pytest.approx(2 / 3, abs=0.03)


def test_a_source_that_gives_no_example_is_named(sources: list[PreparedSource]) -> None:
    order = BlockOrder(sources, {0: PairMaker(least=1000)}, seed=1, lanes=2)
    with pytest.raises(DataError, match=r"source [ab]: no example in 33 blocks read \(it has \d+\)"):
        next(read_step_examples(order, [0], 1, StreamPosition.start(2)))


def test_blocks_without_examples_are_passed_over(tmp_path: Path) -> None:
    few = source(tmp_path, "few", 0, 9)  # blocks of 48 and 60 tokens
    sizes = [len(few.block(number).tokens) for number in range(few.shards.blocks)]
    assert len(set(sizes)) > 1
    order = BlockOrder([few], {0: PairMaker(least=max(sizes))}, seed=1, lanes=4)
    allowed = {t for b, size in enumerate(sizes) if size == max(sizes) for t in few.block(b).tokens.tolist()}
    for step in steps_of(order, 3, StreamPosition.start(4), 40, 2, 0):
        assert set(step.arrays["tokens"].ravel().tolist()) <= allowed


def examples(rng: np.random.Generator) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int32]]]:
    return {
        "ids": rng.integers(-100, 30_000, (20, 6), dtype=np.int32),
        "is_next": rng.integers(0, 2, 20, dtype=np.int32),
        "characters": rng.integers(0, 262, (20, 3, 4), dtype=np.int32),
    }


def test_the_digest_does_not_depend_on_order_or_split() -> None:
    arrays = examples(np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(20)
    whole = digest(arrays)
    assert 0 < whole < 2**64
    assert digest({name: array[order] for name, array in reversed(arrays.items())}) == whole
    assert digest({name: array.astype(np.int64) for name, array in arrays.items()}) == whole
    assert sum(digest({n: a[i : i + 7] for n, a in arrays.items()}) for i in (0, 7, 14)) % 2**64 == whole


def test_the_digest_changes_with_every_value() -> None:
    arrays = examples(np.random.default_rng(0))
    whole = digest(arrays)
    for name, array in arrays.items():
        for place in np.ndindex(array.shape):
            changed = array.copy()
            changed[place] += 1
            assert digest(arrays | {name: changed}) != whole
    swapped = arrays["ids"].copy()
    swapped[0, 0], swapped[0, 1] = swapped[0, 1], swapped[0, 0]
    assert digest(arrays | {"ids": swapped}) != whole
    exchanged = arrays["is_next"][::-1].copy()
    assert digest(arrays | {"is_next": exchanged}) != whole
    assert digest({"other" if name == "ids" else name: array for name, array in arrays.items()}) != whole


def real(config: RunConfig) -> tuple[BlockOrder, ExampleMaker, PreparedCorpus]:
    family = get_family(config.model.kind)
    corpus = ensure_prepared(config, family)
    tokenizer = family.tokenizer.load(corpus.fetch_tokenizer())
    assert tokenizer is not None
    rows = config.rows_per_lane if family.training.ordered else 1
    maker = family.training.build_examples(config.model, config.objective, tokenizer, rows)
    return BlockOrder(corpus.training, {0: maker}, config.seed, config.data.lanes), maker, corpus


@pytest.mark.parametrize("family", FAMILIES)
def test_real_examples_do_not_depend_on_ranks_workers_and_resumes(family: str, configure: Configure) -> None:
    config = configure("data.block_tokens=512", family=family)
    order, _, _ = real(config)
    rows = config.rows_per_lane
    whole = steps_of(order, rows, START, 30, 1, 0)
    assert whole[-1].position.blocks_finished > 0
    assert_equal(steps_of(order, rows, START, 30, 4, 2), whole)
    assert_equal(steps_of(order, rows, position_after(whole[12]), 17, 2, 3), whole[13:])


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_examples_are_each_there_once_and_always_the_same(family: str, configure: Configure) -> None:
    config = configure("data.held_out=0.3", family=family)
    _, maker, corpus = real(config)
    sources = corpus.held_out
    ids = held_out_blocks(sources)
    assert ids == [(0, block) for block in range(sources[0].shards.blocks)]
    assert len(ids) > 1
    assert held_out_blocks(sources, 1) == ids[:1]
    for block_id in ids:
        first, again = (held_out_examples(sources, block_id, maker) for _ in range(2))
        assert len(first) > 0
        assert digest(first.take(0, len(first))) == digest(again.take(0, len(again)))
    other = real(configure("data.held_out=0.3", "seed=99", family=family))[1]
    ours, theirs = (held_out_examples(sources, ids[0], m) for m in (maker, other))
    assert digest(ours.take(0, len(ours))) == digest(theirs.take(0, len(theirs)))


def test_held_out_words_are_each_predicted_once(configure: Configure) -> None:
    """Padded windows leave no word out: every direction predicts every word and sentence mark."""
    _, maker, corpus = real(configure("data.held_out=0.3"))
    sources = corpus.held_out
    predicted = 0
    for block_id in held_out_blocks(sources):
        examples = held_out_examples(sources, block_id, maker)
        taken = examples.take(0, len(examples))
        assert (taken["forward_targets"] >= 0).sum() == (taken["backward_targets"] >= 0).sum()
        predicted += int((taken["forward_targets"] >= 0).sum())
    counts = sources[0].counts
    assert predicted == counts["tokens"] + counts["sentences"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch counts the cores
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_the_loader_cuts_the_joined_step_into_micro_batches(workers: int, order_of_pairs: BlockOrder) -> None:
    """Two ranks of four lanes; real loader processes."""
    expected = steps_of(order_of_pairs, 3, START, 6, 2, 0)
    for rank in range(2):
        lanes = range(4 * rank, 4 * rank + 4)
        loader = StepLoader(order_of_pairs, lanes, 3, 4, position=START, workers=workers)
        batches = iter(loader)
        for step in range(6):
            micro_batches = [next(batches) for _ in range(3)]
            assert [batch.index for batch in micro_batches] == [0, 1, 2]
            assert [batch.last for batch in micro_batches] == [False, False, True]
            rows = np.concatenate([np.asarray(batch.tensors["tokens"]) for batch in micro_batches])
            np.testing.assert_array_equal(rows, expected[step].arrays["tokens"][12 * rank : 12 * rank + 12])
            assert list(micro_batches[-1].step_examples.position.lanes) == list(lanes)
        del batches


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_found_by_a_worker_is_one_line(sources: list[PreparedSource], workers: int) -> None:
    order = BlockOrder(sources, {0: PairMaker(least=1000)}, seed=1, lanes=2)
    loader = StepLoader(order, range(2), 4, 4, position=StreamPosition.start(2), workers=workers)
    with pytest.raises(DataError, match=r"^source [ab]: no example in 33 blocks read [^\n]*$"):
        next(iter(loader))
