"""The stream: every step's examples are a pure function of (corpus, seed, config)."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.run import RunConfig
from pretrain.data.blocks import Arrays, Block
from pretrain.data.loader import StepLoader
from pretrain.data.prepare import ensure_prepared
from pretrain.data.shards import Shards, write_shards
from pretrain.data.spool import Spool
from pretrain.data.store import Store
from pretrain.data.stream import (
    Corpus,
    Maker,
    PreparedSource,
    Share,
    StreamPosition,
    digest,
    held_out_blocks,
    held_out_examples,
    held_out_sources,
    join_shares,
    read_shares,
    training_sources,
)
from pretrain.errors import DataError
from pretrain.models import FAMILIES, get_family

Configure = Callable[..., RunConfig]
LANES = 8


@dataclass(frozen=True)
class Pairs:
    """Two tokens an example."""

    tokens: np.ndarray[tuple[int, ...], np.dtype[np.int32]]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, start: int, stop: int) -> Arrays:
        return {"tokens": self.tokens[start:stop], "first": self.tokens[start:stop, 0]}


@dataclass(frozen=True)
class PairMaker:
    """Shuffled tokens in pairs; a block without even one pair, or of fewer than `least` tokens, gives no example."""

    least: int = 0

    def make(self, block: Block, rng: np.random.Generator, *, pad: bool = False) -> Pairs:
        tokens = rng.permutation(block.tokens) if len(block.tokens) >= self.least else block.tokens[:0]
        return Pairs(tokens[: len(tokens) // 2 * 2].reshape(-1, 2))

    def counts(self, examples: Arrays) -> dict[str, int]:
        return {"tokens": examples["tokens"].size}


def source(folder: Path, name: str, first: int, documents: int, weight: float = 1.0) -> PreparedSource:
    """Documents of three sentences of four tokens, all tokens distinct; blocks of 48 tokens."""
    store = Store(str(folder))
    with Spool(16) as spool:
        for number in range(documents):
            start = first + 12 * number
            spool.add(number, [list(range(start + s, start + s + 4)) for s in (0, 4, 8)])
        shards = Shards(write_shards(store, f"train/{name}", spool, 48))
    return PreparedSource(name, store, shards, weight)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedSource]:
    folder = tmp_path_factory.mktemp("stream")
    return [source(folder, "a", 0, 90, weight=2.0), source(folder, "b", 100_000, 41)]


@pytest.fixture
def corpus_of_pairs(sources: list[PreparedSource]) -> Corpus:
    return Corpus(sources, PairMaker(), seed=3, lanes=LANES)


START: StreamPosition = [(0, 0)] * LANES


def step_shares(
    corpus: Corpus, rows: int, positions: StreamPosition, steps: int, ranks: int, workers: int
) -> list[Share]:
    """The join over all ranks of every step, read as `ranks` loaders of `workers` processes would."""
    per_rank = corpus.lanes // ranks
    readers = []
    for rank in range(ranks):
        lanes = range(rank * per_rank, (rank + 1) * per_rank)
        split = max(1, workers)
        readers.append([read_shares(corpus, lanes[w::split], rows, positions) for w in range(split)])
    found = []
    for _ in range(steps):
        ours = [join_shares([next(reader) for reader in mine], rows) for mine in readers]
        found.append(join_shares(ours, rows))
    return found


def assert_equal(first: Sequence[Share], second: Sequence[Share]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert (one.digest, one.counts, one.positions) == (other.digest, other.counts, other.positions)
        assert one.arrays.keys() == other.arrays.keys()
        for key, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[key])


def positions_after(share: Share) -> StreamPosition:
    """As a checkpoint keeps them."""
    gathered = json.loads(json.dumps([share.positions[lane] for lane in range(LANES)]))
    return [(finished, used) for finished, used in gathered]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_examples_do_not_depend_on_ranks_and_workers(ranks: int, workers: int, corpus_of_pairs: Corpus) -> None:
    expected = step_shares(corpus_of_pairs, 3, START, 40, 1, 0)
    assert_equal(step_shares(corpus_of_pairs, 3, START, 40, ranks, workers), expected)
    assert len({share.digest for share in expected}) == 40
    assert all(share.counts == {"tokens": 2 * 3 * LANES} for share in expected)


def test_resuming_from_any_step_goes_on_with_the_same_stream(corpus_of_pairs: Corpus) -> None:
    whole = step_shares(corpus_of_pairs, 3, START, 60, 1, 0)
    for step, ranks, workers in ((1, 2, 2), (17, 4, 0), (33, 1, 3), (59, 8, 1)):
        rest = step_shares(corpus_of_pairs, 3, positions_after(whole[step - 1]), 60 - step, ranks, workers)
        assert_equal(rest, whole[step:])


def test_a_chain_of_resumes_loses_and_repeats_nothing(corpus_of_pairs: Corpus) -> None:
    whole = step_shares(corpus_of_pairs, 5, START, 24, 1, 0)
    positions, chained = START, []
    for ranks, workers, steps in ((2, 2, 7), (1, 0, 1), (4, 1, 9), (1, 3, 7)):
        chained += step_shares(corpus_of_pairs, 5, positions, steps, ranks, workers)
        positions = positions_after(chained[-1])
    assert_equal(chained, whole)


def test_a_share_is_in_lane_order_whoever_reads_it(corpus_of_pairs: Corpus) -> None:
    share = step_shares(corpus_of_pairs, 2, START, 1, 1, 3)[0]
    for lane in range(LANES):
        alone = next(read_shares(corpus_of_pairs, [lane], 2, START))
        np.testing.assert_array_equal(share.arrays["tokens"][2 * lane : 2 * lane + 2], alone.arrays["tokens"])
    assert share.digest == sum(next(read_shares(corpus_of_pairs, [n], 2, START)).digest for n in range(8)) % 2**64


@pytest.mark.parametrize("lanes", [1, 3, 8, 64])
def test_every_block_is_used_once_per_epoch_over_all_lanes(lanes: int, sources: list[PreparedSource]) -> None:
    """Also where there are more lanes than blocks."""
    corpus = Corpus(sources[:1], PairMaker(), seed=1, lanes=lanes)
    blocks = sources[0].shards.blocks
    tokens = Counter(t for b in range(blocks) for t in sources[0].block(b).tokens.tolist())
    for epoch in range(3):
        read = Counter(
            token
            for number in range(epoch * blocks, (epoch + 1) * blocks)
            for token in corpus.examples(0, number).take(0, 10**6)["tokens"].ravel().tolist()
        )
        assert read == tokens
    steps = step_shares(corpus, 1, [(0, 0)] * lanes, 30, 1, 0)
    assert all(len(share.arrays["tokens"]) == lanes for share in steps)


def test_a_lane_takes_every_so_manieth_block(sources: list[PreparedSource]) -> None:
    corpus = Corpus(sources[:1], PairMaker(), seed=1, lanes=4)
    reader = read_shares(corpus, [1], 24, [(0, 0)] * 4)  # a block is 24 pairs
    for k in range(5):
        expected = corpus.examples(0, 1 + 4 * k).take(0, 24)["tokens"]
        np.testing.assert_array_equal(next(reader).arrays["tokens"][: len(expected)], expected)


def test_epochs_and_seeds_differ(sources: list[PreparedSource]) -> None:
    corpus, other = (Corpus(sources[:1], PairMaker(), seed=seed, lanes=1) for seed in (1, 2))
    blocks = sources[0].shards.blocks
    first = [corpus.examples(0, number).take(0, 1)["first"][0] for number in range(2 * blocks)]
    assert first[:blocks] != first[blocks:]
    assert first[:blocks] != [other.examples(0, number).take(0, 1)["first"][0] for number in range(blocks)]


def test_weights_are_shares_of_tokens(corpus_of_pairs: Corpus) -> None:
    """Weights 2 and 1, although source b has half as many documents and is thus read as often per document."""
    steps = step_shares(corpus_of_pairs, 24, START, 150, 1, 0)
    tokens = np.concatenate([share.arrays["tokens"].ravel() for share in steps])
    assert np.mean(tokens < 100_000) == pytest.approx(2 / 3, abs=0.03)


def test_a_source_that_gives_no_example_is_named(sources: list[PreparedSource]) -> None:
    corpus = Corpus(sources, PairMaker(least=1000), seed=1, lanes=2)
    with pytest.raises(DataError, match=r"source [ab]: no example in 33 blocks read \(it has \d+\)"):
        next(read_shares(corpus, [0], 1, [(0, 0)] * 2))


def test_blocks_without_examples_are_passed_over(tmp_path: Path) -> None:
    few = source(tmp_path, "few", 0, 9)  # blocks of 48 and 60 tokens
    sizes = [len(few.block(number).tokens) for number in range(few.shards.blocks)]
    assert len(set(sizes)) > 1
    corpus = Corpus([few], PairMaker(least=max(sizes)), seed=1, lanes=4)
    allowed = {t for b, size in enumerate(sizes) if size == max(sizes) for t in few.block(b).tokens.tolist()}
    for share in step_shares(corpus, 3, [(0, 0)] * 4, 40, 2, 0):
        assert set(share.arrays["tokens"].ravel().tolist()) <= allowed


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


def real(config: RunConfig) -> tuple[Corpus, Maker, Store]:
    family = get_family(config.model.kind)
    store = ensure_prepared(config, family)
    manifest = store.read_manifest()
    tokenizer = family.load_tokenizer(store.fetch_folder("tokenizer"))
    assert manifest is not None
    assert tokenizer is not None
    maker = family.build_examples(config.model, tokenizer, config.rows_per_lane if family.ordered else 1)
    sources = training_sources(store, manifest, [source.weight for source in config.data.sources])
    return Corpus(sources, maker, config.seed, config.data.lanes), maker, store


@pytest.mark.parametrize("family", FAMILIES)
def test_real_examples_do_not_depend_on_ranks_workers_and_resumes(family: str, configure: Configure) -> None:
    config = configure("data.block_tokens=512", family=family)
    corpus, _, _ = real(config)
    rows = config.rows_per_lane
    whole = step_shares(corpus, rows, START, 30, 1, 0)
    assert max(finished for finished, _ in whole[-1].positions.values()) > 0
    assert_equal(step_shares(corpus, rows, START, 30, 4, 2), whole)
    assert_equal(step_shares(corpus, rows, positions_after(whole[12]), 17, 2, 3), whole[13:])


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_examples_are_each_there_once_and_always_the_same(family: str, configure: Configure) -> None:
    config = configure("data.held_out=0.3", family=family)
    _, maker, store = real(config)
    manifest = store.read_manifest()
    assert manifest is not None
    sources = held_out_sources(store, manifest)
    places = held_out_blocks(sources, None)
    assert places == [(0, block) for block in range(sources[0].shards.blocks)]
    assert len(places) > 1
    assert held_out_blocks(sources, 1) == places[:1]
    for place in places:
        first, again = (held_out_examples(sources, place, maker) for _ in range(2))
        assert len(first) > 0
        assert digest(first.take(0, len(first))) == digest(again.take(0, len(again)))
    other = real(configure("data.held_out=0.3", "seed=99", family=family))[1]
    ours, theirs = (held_out_examples(sources, places[0], m) for m in (maker, other))
    assert digest(ours.take(0, len(ours))) == digest(theirs.take(0, len(theirs)))


def test_held_out_words_are_each_predicted_once(configure: Configure) -> None:
    """Padded windows leave no word out: every direction predicts every word and sentence mark."""
    _, maker, store = real(configure("data.held_out=0.3"))
    manifest = store.read_manifest()
    assert manifest is not None
    sources = held_out_sources(store, manifest)
    predicted = 0
    for place in held_out_blocks(sources, None):
        examples = held_out_examples(sources, place, maker)
        taken = examples.take(0, len(examples))
        assert (taken["forward_targets"] >= 0).sum() == (taken["backward_targets"] >= 0).sum()
        predicted += int((taken["forward_targets"] >= 0).sum())
    counts = manifest["held_out"][0]["counts"]
    assert predicted == counts["tokens"] + counts["sentences"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch counts the cores
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_the_loader_cuts_the_joined_share_into_micro_batches(workers: int, corpus_of_pairs: Corpus) -> None:
    """Two ranks of four lanes; real loader processes."""
    expected = step_shares(corpus_of_pairs, 3, START, 6, 2, 0)
    for rank in range(2):
        lanes = range(4 * rank, 4 * rank + 4)
        loader = StepLoader(corpus_of_pairs, lanes, 3, 4, lambda part: part, positions=START, workers=workers)
        batches = iter(loader)
        for step in range(6):
            micro_batches = [next(batches) for _ in range(3)]
            assert [batch.index for batch in micro_batches] == [0, 1, 2]
            assert [batch.last for batch in micro_batches] == [False, False, True]
            rows = np.concatenate([np.asarray(batch.tensors["tokens"]) for batch in micro_batches])
            np.testing.assert_array_equal(rows, expected[step].arrays["tokens"][12 * rank : 12 * rank + 12])
            assert list(micro_batches[-1].share.positions) == list(lanes)
        del batches


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_found_by_a_worker_is_one_line(sources: list[PreparedSource], workers: int) -> None:
    corpus = Corpus(sources, PairMaker(least=1000), seed=1, lanes=2)
    loader = StepLoader(corpus, range(2), 4, 4, dict, positions=[(0, 0)] * 2, workers=workers)
    with pytest.raises(DataError, match=r"^source [ab]: no example in 33 blocks read [^\n]*$"):
        next(iter(loader))
