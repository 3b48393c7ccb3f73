"""Runs in which an example becomes something else at given steps: still a pure function of (corpus, seed, config)."""

from collections.abc import Callable

import numpy as np
import pytest

from pretrain.config.run import RunConfig
from pretrain.data.loader import MicroBatch, StepLoader
from pretrain.data.prepare import ensure_prepared
from pretrain.data.stream import BlockOrder, StepExamples, StreamPosition, digest
from pretrain.errors import DataError
from pretrain.models import get_family
from pretrain.runs.trained import read_tokenizer
from pretrain.runtime.world import World
from pretrain.training.steps import build_loader
from tests.data.test_stream import PairMaker, PreparedSource, assert_equal, position_after, source, steps_of

Configure = Callable[..., RunConfig]
LANES = 4
START = StreamPosition.start(LANES)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedSource]:
    folder = tmp_path_factory.mktemp("stages")
    return [source(folder, "a", 0, 60, weight=2.0), source(folder, "b", 100_000, 31)]


def order_of(sources: list[PreparedSource], sizes: dict[int, int]) -> BlockOrder:
    """Examples of so many tokens from each step on."""
    return BlockOrder(sources, {first: PairMaker(size=size) for first, size in sizes.items()}, seed=3, lanes=LANES)


def blocks_of(order: BlockOrder, lane: int, step: int, blocks: int) -> list[np.ndarray[tuple[int, ...], np.dtype]]:
    """The examples of the lane's first blocks, if all were read as `step` reads them."""
    seen = [0] * len(order.sources)
    found = []
    for k in range(blocks):
        drawn = order.source_of(lane, k)
        examples = order.examples(drawn, lane + seen[drawn] * LANES, step)
        found.append(examples.take(0, len(examples))["tokens"])
        seen[drawn] += 1
    return found


def expected_rows(
    order: BlockOrder, lane: int, rows: int, lengths: list[tuple[int, int]]
) -> list[np.ndarray[tuple[int, ...], np.dtype]]:
    """What a lane gives to the steps of each stage, (first step, steps): a slice of its blocks end to end.

    A stage takes up the blocks where those end of which the one before has used anything.
    """
    found, begin = [], 0
    for first, steps in lengths:
        blocks = blocks_of(order, lane, first, begin + rows * steps)[begin:]
        found.append(np.concatenate(blocks)[: rows * steps])
        ends = np.cumsum([len(block) for block in blocks])
        begin += int(np.searchsorted(ends, rows * steps)) + 1
    return found


def test_a_stage_begins_with_the_next_block_of_every_lane(sources: list[PreparedSource]) -> None:
    """Against slices of whole blocks, whether the last one of a stage is used up or not."""
    sizes = {0: 2, 7: 3, 15: 6, 16: 2}  # blocks of 48 tokens hold 24, 16 and 8 examples; the last, of fewer, less
    order, rows, steps = order_of(sources, sizes), 4, 30
    read = steps_of(order, rows, START, steps, 1, 0)
    lengths = [(first, end - first) for first, end in zip(sizes, [*list(sizes)[1:], steps], strict=True)]
    for lane in range(LANES):
        stages = expected_rows(order, lane, rows, lengths)
        for (first, count), expected in zip(lengths, stages, strict=True):
            tokens = [step.arrays["tokens"][rows * lane : rows * (lane + 1)] for step in read[first : first + count]]
            np.testing.assert_array_equal(np.concatenate(tokens), expected)


def test_a_position_says_nothing_of_stages(sources: list[PreparedSource]) -> None:
    """It is that after the last step: also of a step before which lanes will go on to other blocks, or need not."""
    order = order_of(sources[:1], {0: 2, 5: 3})
    assert sources[0].shards.blocks > LANES
    read = steps_of(order, 24, START, 7, 1, 0)  # a block a step
    assert read[4].position.lanes == dict.fromkeys(range(LANES), (5, 0))
    assert read[5].position.lanes == dict.fromkeys(range(LANES), (6, 8)), "5 blocks, one of 16 examples, and 8 more"
    order = order_of(sources[:1], {0: 2, 5: 3})
    read = steps_of(order, 5, START, 6, 1, 0)
    assert read[4].position.lanes == dict.fromkeys(range(LANES), (1, 1))
    assert read[5].position.lanes == dict.fromkeys(range(LANES), (2, 5)), "the second block is left for the third"


@pytest.mark.parametrize("seed", range(8))
def test_random_stages_and_interruptions(seed: int, sources: list[PreparedSource]) -> None:
    """A run of random stages, stopped at random steps, at, before and after a stage's begin: the examples are equal."""
    rng = np.random.default_rng(seed)
    steps, rows = int(rng.integers(10, 40)), int(rng.integers(1, 12))
    firsts = sorted({0, *rng.integers(1, steps + 3, rng.integers(1, 5)).tolist()})
    sizes = {first: int(size) for first, size in zip(firsts, rng.integers(2, 9, len(firsts)), strict=True)}
    order = order_of(sources, sizes)
    whole = steps_of(order, rows, START, steps, 1, 0)
    assert {step.arrays["tokens"].shape[1] for step in whole} == {s for first, s in sizes.items() if first < steps}
    near = [first + around for first in firsts for around in (-1, 0, 1)]
    stops = sorted({stop for stop in [*near, *rng.integers(1, steps, 4).tolist()] if 0 < stop < steps})
    chained: list[StepExamples] = []
    for begin, end in zip([0, *stops], [*stops, steps], strict=True):
        position = position_after(chained[-1]) if chained else START
        ranks, workers = (int(n) for n in (rng.choice([1, 2, 4]), rng.integers(0, 4)))
        again = order_of(sources, sizes)
        chained += steps_of(again, rows, position, end - begin, ranks, workers, first=begin)
    assert_equal(chained, whole)


def test_a_stage_that_changes_nothing_but_blocks(sources: list[PreparedSource]) -> None:
    """What came before a stage does not depend on it, nor on how many follow."""
    plain, staged, longer = (order_of(sources, sizes) for sizes in ({0: 2}, {0: 2, 9: 2}, {0: 2, 9: 2, 20: 5}))
    one, two, three = (steps_of(order, 5, START, 20, 1, 0) for order in (plain, staged, longer))
    assert_equal(one[:9], two[:9])
    assert_equal(two, three)
    assert [step.digest for step in one[9:]] != [step.digest for step in two[9:]]


def test_a_position_of_another_stream_is_refused(sources: list[PreparedSource]) -> None:
    """The last block of a stage, read as what comes after it, has fewer examples than were used of it."""
    order = order_of(sources, {0: 2, 5: 6})
    position = steps_of(order, 9, START, 5, 1, 0)[-1].position
    assert position.lanes[0][1] > 8
    with pytest.raises(DataError, match=r"^lane 0: \d+ examples are used of a block that gives \d: the position is"):
        steps_of(order, 9, position, 1, 1, 0, first=6)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch counts the cores
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [0, 2, 3, 4])
def test_the_loader_changes_with_the_step(first: int, workers: int, sources: list[PreparedSource]) -> None:
    """Real loader processes that read ahead, begun before, at and after the third step, where a stage begins."""
    order = order_of(sources, {0: 2, 3: 5})
    expected = steps_of(order, 3, START, 6, 1, 0)
    position = position_after(expected[first - 1]) if first else START
    batches = iter(StepLoader(order, range(LANES), 3, 6, position=position, step=first, workers=workers))
    for step in range(first, 6):
        rows = [np.asarray(next(batches).tensors["tokens"]) for _ in range(2)]
        np.testing.assert_array_equal(np.concatenate(rows), expected[step].arrays["tokens"])
    del batches


STAGES = (
    "objective.stages=[{until_step: 3, max_sequence_length: 8, mask_probability: 0.3, shift_positions: true}, "
    "{until_step: 5, max_sequence_length: 16}]"
)


def read_steps(config: RunConfig, position: StreamPosition, first: int, stop: int, ranks: int) -> list[StepExamples]:
    """Steps `first` to `stop` as the loaders of a run's ranks give them; checks that micro-batches make them up."""
    corpus = ensure_prepared(config, get_family("bert"), log_report=False)
    tokenizer = read_tokenizer(config, corpus.fetch_tokenizer())
    loaders = [
        iter(build_loader(config, tokenizer, corpus, position, World(rank, rank, ranks, ranks), step=first))
        for rank in range(ranks)
    ]
    found = []
    for _ in range(first, stop):
        parts: list[list[MicroBatch]] = []
        for loader in loaders:
            parts.append([next(loader) for _ in range(config.accumulation(ranks))])
            step = parts[-1][-1].step_examples
            assert sum(int(batch.tensors["attention_mask"].sum()) for batch in parts[-1]) == step.counts["tokens"]
        mine = [batches[-1].step_examples for batches in parts]
        arrays = {name: np.concatenate([step.arrays[name] for step in mine]) for name in mine[0].arrays}
        counts = {name: sum(step.counts[name] for step in mine) for name in mine[0].counts}
        joined = StreamPosition.join(step.position for step in mine)
        found.append(StepExamples(arrays, counts, sum(step.digest for step in mine) % 2**64, joined))
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("packing", [True, False])
def test_stages_of_bert(packing: bool, configure: Configure) -> None:
    """Ranks, workers, micro-batches and resumes at, before and after the begin of a stage."""
    more = [STAGES, "data.block_tokens=512", f"objective.packing={str(packing).lower()}"]
    config = configure(*more, "batch={global_size: 16, micro_size: 16}", family="bert")
    start = StreamPosition.start(config.data.lanes)
    whole = read_steps(config, start, 0, 8, 1)
    lengths = [int(step.arrays["lengths"].max()) for step in whole]
    assert max(lengths[:3]) <= 8 < min(lengths[3:5]) <= max(lengths[3:5]) <= 16 < min(lengths[5:])
    assert (
        [step.arrays["input_ids"].shape[1] for step in whole] == [32] * 8 if packing else [8] * 3 + [16] * 2 + [32] * 3
    )
    assert ["first_positions" in step.arrays for step in whole] == [True] * 3 + [False] * 5
    for ranks, workers, micro_size, begin in ((2, 0, 4, 0), (1, 2, 8, 2), (2, 2, 2, 3), (4, 0, 1, 4), (1, 0, 2, 6)):
        other = configure(
            *more, f"batch={{global_size: 16, micro_size: {micro_size}}}", f"data.workers={workers}", family="bert"
        )
        position = position_after(whole[begin - 1]) if begin else start
        assert_equal(read_steps(other, position, begin, 8, ranks), whole[begin:])


def test_what_a_stage_reads_is_what_such_a_run_reads(configure: Configure) -> None:
    """Of a run whose whole objective has the options of the stage, from the same position on."""
    staged = configure(STAGES, "data.block_tokens=512", family="bert")
    same = "objective={max_sequence_length: 8, mask_probability: 0.3, pack_length: 32}"
    short, last = (configure(option, "data.block_tokens=512", family="bert") for option in (same, "seed=1"))
    start = StreamPosition.start(staged.data.lanes)
    whole = read_steps(staged, start, 0, 8, 1)
    for one, other in zip(whole[:3], read_steps(short, start, 0, 3, 1), strict=True):
        arrays = {name: array for name, array in one.arrays.items() if name != "first_positions"}
        assert digest(arrays) == other.digest != one.digest, "shifting leaves the sequences as they are"
        assert one.counts == other.counts
    moved = StreamPosition({lane: (done + (used > 0), 0) for lane, (done, used) in whole[4].position.lanes.items()})
    assert_equal(whole[5:], read_steps(last, moved, 0, 3, 1))
