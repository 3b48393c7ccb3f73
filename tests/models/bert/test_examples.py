import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.models import BertConfig
from pretrain.data.blocks import Arrays, Block
from pretrain.models.bert.examples import (
    IGNORED,
    NEXT,
    RANDOM,
    BertExamples,
    Pairs,
    build_examples,
    draw_pairs,
    truncate,
)
from pretrain.models.bert.tokens import WordPieceTokenizer, load_tokenizer

MakeBlock = Callable[[list[int], list[int]], Block]
LENGTH = 64
CONFIG = BertConfig(max_sequence_length=LENGTH)


@pytest.fixture(scope="module")
def maker(tokenizer: WordPieceTokenizer) -> BertExamples:
    return build_examples(CONFIG, tokenizer, 1)


@pytest.fixture(scope="module")
def block(make_block: MakeBlock) -> Block:
    """40 parts of 20 documents."""
    return make_block([50] * 40, [i // 2 for i in range(40)])


@pytest.fixture(scope="module")
def arrays(maker: BertExamples, block: Block) -> Arrays:
    """The examples of twenty readings of the block."""
    readings = [maker.make(block, np.random.default_rng(seed)) for seed in range(20)]
    taken = [reading.take(0, len(reading)) for reading in readings]
    return {name: np.concatenate([arrays[name] for arrays in taken]) for name in taken[0]}


def test_shapes_and_types(arrays: Arrays) -> None:
    count = len(arrays["lengths"])
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        "input_ids": ((count, LENGTH), "int32"),
        "segment_ids": ((count, LENGTH), "int8"),
        "lengths": ((count,), "int32"),
        "labels": ((count, LENGTH), "int32"),
        "is_next": ((count,), "int8"),
    }


def test_special_tokens_stand_where_they_should_and_are_never_predicted(
    arrays: Arrays, tokenizer: WordPieceTokenizer
) -> None:
    ids, segments, lengths = arrays["input_ids"], arrays["segment_ids"], arrays["lengths"]
    rows = np.arange(len(ids))
    assert lengths.max() == LENGTH
    assert (ids[:, 0] == tokenizer.cls_id).all()
    assert ((ids == tokenizer.sep_id).sum(axis=1) == 2).all()
    assert (ids[rows, lengths - 1] == tokenizer.sep_id).all()
    first_sep = (ids == tokenizer.sep_id).argmax(axis=1)
    place = np.arange(LENGTH)
    second = (place > first_sep[:, None]) & (place < lengths[:, None])
    np.testing.assert_array_equal(segments, second)
    assert (second.sum(axis=1) > 1).all() and (first_sep > 1).all(), "no segment is empty"
    padding = place >= lengths[:, None]
    np.testing.assert_array_equal(ids == tokenizer.padding_id, padding)
    special = padding | np.isin(ids, [tokenizer.cls_id, tokenizer.sep_id])
    assert (arrays["labels"][special] == IGNORED).all()


def test_masked_counts_are_exact(arrays: Arrays) -> None:
    masked = (arrays["labels"] != IGNORED).sum(axis=1)
    words = arrays["lengths"] - 3
    expected = [min(max(1, round(length * 0.15)), words[i]) for i, length in enumerate(arrays["lengths"].tolist())]
    np.testing.assert_array_equal(masked, expected)


def test_masking_is_80_10_10_with_ordinary_ids(arrays: Arrays, tokenizer: WordPieceTokenizer) -> None:
    chosen = arrays["labels"] != IGNORED
    labels, ids = arrays["labels"][chosen], arrays["input_ids"][chosen]
    assert len(labels) > 20_000
    masked = ids == tokenizer.mask_id
    kept = ids == labels
    replaced = ~masked & ~kept
    # Three standard errors; a random word is the same one in 195.
    error = 3 * (0.25 / len(labels)) ** 0.5
    assert masked.mean() == pytest.approx(0.8, abs=error)
    assert kept.mean() == pytest.approx(0.1 + 0.1 / 195, abs=error)
    assert replaced.mean() == pytest.approx(0.1 - 0.1 / 195, abs=error)
    assert np.isin(ids[replaced], tokenizer.ordinary_ids).all()
    assert len(np.unique(ids[replaced])) > 180
    assert tokenizer.mask_id not in arrays["input_ids"][~chosen]


def test_every_place_is_as_likely_to_be_masked(arrays: Arrays) -> None:
    full = arrays["lengths"] == LENGTH
    share = (arrays["labels"][full] != IGNORED).mean(axis=0)
    # Two places of 64 are special in every sequence, and the first [SEP] anywhere; ten words of 61 are chosen.
    assert share[0] == share[-1] == 0
    assert share[2:40].max() - share[2:40].min() < 6 * (0.16 * 0.84 / full.sum()) ** 0.5 + 0.02


def test_random_segments_come_from_other_documents(block: Block) -> None:
    pairs = draw_pairs(block, np.random.default_rng(0), LENGTH - 3, 0.1)
    first, second = _documents(block, pairs.first_start), _documents(block, pairs.second_start)
    random = pairs.is_next == RANDOM
    assert 0 < random.sum() < len(random)
    assert (first[random] != second[random]).all()
    assert (first[~random] == second[~random]).all()
    np.testing.assert_array_equal((pairs.first_start + pairs.first_length)[~random], pairs.second_start[~random])


def _documents(block: Block, tokens: np.ndarray) -> np.ndarray:
    starts = block.sentence_starts[block.document_starts]
    return block.document_numbers[np.searchsorted(starts, tokens, side="right") - 1]


def test_share_of_random_segments(arrays: Arrays) -> None:
    # Half of the chunks of several sentences, and all of one: the original's 56 to 59 per cent on other text.
    assert 0.5 < (arrays["is_next"] == RANDOM).mean() < 0.65
    assert set(np.unique(arrays["is_next"])) == {NEXT, RANDOM}


def test_first_segments_use_all_text_in_order(block: Block) -> None:
    """What a random second segment displaces is used again: every sentence is in a first segment or a real second."""
    pairs = draw_pairs(block, np.random.default_rng(0), LENGTH - 3, 0.1)
    stop = np.where(
        pairs.is_next == NEXT, pairs.second_start + pairs.second_length, pairs.first_start + pairs.first_length
    )
    np.testing.assert_array_equal(pairs.first_start, [0, *stop[:-1]])
    assert stop[-1] == len(block.tokens)


def test_without_another_document_there_are_no_random_segments(maker: BertExamples, make_block: MakeBlock) -> None:
    examples = maker.make(make_block([30, 30], [7, 7]), np.random.default_rng(0))
    assert len(examples) > 0
    assert (examples.take(0, len(examples))["is_next"] == NEXT).all()


def test_a_block_without_pairs_has_no_examples(maker: BertExamples, make_block: MakeBlock) -> None:
    examples = maker.make(make_block([1], [0]), np.random.default_rng(0))
    assert len(examples) == 0
    assert maker.counts(examples.take(0, 0)) == {"mlm": 0, "nsp": 0, "tokens": 0}


def test_single_sentences_are_paired_with_random_ones(make_block: MakeBlock) -> None:
    pairs = draw_pairs(make_block([1, 1, 1], [0, 1, 2]), np.random.default_rng(0), LENGTH - 3, 0.1)
    assert pairs.is_next.tolist() == [RANDOM] * 3


def test_truncation_shortens_the_longer_segment_at_both_ends() -> None:
    count = 4000
    zeros = np.zeros(count, dtype=np.int64)
    pairs = Pairs(zeros, zeros + 50, zeros + 100, zeros + 31, zeros)
    cut = truncate(pairs, np.random.default_rng(0), 61)
    # 19 tokens level them, and 1 more comes off the second; tie after tie, as in the original.
    assert set(cut.first_length) == {31} and set(cut.second_length) == {30}
    assert cut.first_start.mean() == pytest.approx(19 / 2, abs=0.2)
    assert set(cut.second_start) == {100, 101}
    short = truncate(pairs, np.random.default_rng(0), 81)
    np.testing.assert_array_equal(short.first_length, pairs.first_length)


@pytest.mark.parametrize("lengths", [(50, 31), (31, 50), (40, 40), (1, 80), (80, 1), (3, 4)])
def test_truncation_agrees_with_the_original_loop(lengths: tuple[int, int]) -> None:
    first, second = lengths
    for budget in range(5, 90):
        a, b = first, second
        while a + b > budget:
            if a > b:
                a -= 1
            else:
                b -= 1
        pairs = Pairs(*(np.array([n]) for n in (0, first, 0, second, 0)))
        cut = truncate(pairs, np.random.default_rng(0), budget)
        assert (cut.first_length[0], cut.second_length[0]) == (a, b)


def test_short_sequences_are_drawn_once_per_document(tokenizer: WordPieceTokenizer, make_block: MakeBlock) -> None:
    block = make_block([100] * 20, list(range(20)))
    always = build_examples(CONFIG.model_copy(update={"short_sequence_probability": 1.0}), tokenizer, 1)
    never = build_examples(CONFIG.model_copy(update={"short_sequence_probability": 0.0}), tokenizer, 1)
    rng = np.random.default_rng
    long, short = never.make(block, rng(0)), always.make(block, rng(0))
    mean = [examples.take(0, len(examples))["lengths"].mean() for examples in (long, short)]
    assert mean[0] > 58 > 45 > mean[1]
    assert len(short) > 1.3 * len(long)


def test_the_same_generator_gives_identical_arrays(maker: BertExamples, block: Block) -> None:
    first, again, other = (maker.make(block, np.random.default_rng(seed), pad=seed == 1) for seed in (0, 0, 1))
    for name, array in first.take(0, len(first)).items():
        np.testing.assert_array_equal(array, again.take(0, len(again))[name])
    assert len(first) != len(other) or (first.take(0, 5)["input_ids"] != other.take(0, 5)["input_ids"]).any()


def test_examples_are_shuffled(maker: BertExamples, block: Block) -> None:
    taken = maker.make(block, np.random.default_rng(0)).take(0, 400)
    originals = np.where(taken["labels"] != IGNORED, taken["labels"], taken["input_ids"])
    text = block.tokens.astype("<i4").tobytes()
    places = np.array([text.find(row[1:4].astype("<i4").tobytes()) for row in originals])
    assert abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.2


def test_counts_and_collate_agree(maker: BertExamples, block: Block) -> None:
    examples = maker.make(block, np.random.default_rng(0))
    taken = examples.take(3, 11)
    batch, counts = maker.collate(taken), maker.counts(taken)
    assert counts == {
        "mlm": len(batch["masked_labels"]),
        "nsp": 8,
        "tokens": int(batch["attention_mask"].sum()),
    }
    assert batch["input_ids"].shape[1] % 8 == 0 or batch["input_ids"].shape[1] == LENGTH
    positions = batch["masked_positions"].numpy()
    length = batch["input_ids"].shape[1]
    np.testing.assert_array_equal(
        taken["labels"][positions // length, positions % length], batch["masked_labels"].numpy()
    )
    assert all(tensor.dtype.is_signed and not tensor.is_floating_point() for tensor in batch.values())


def test_batches_are_no_longer_than_they_need_to_be(maker: BertExamples, block: Block) -> None:
    examples = maker.make(block, np.random.default_rng(0))
    everything = examples.take(0, len(examples))
    shortest = int(everything["lengths"].argmin())
    length = int(everything["lengths"][shortest])
    assert maker.collate(examples.take(shortest, shortest + 1))["input_ids"].shape == (1, -(-length // 8) * 8)


def test_statistics_of_the_original_generator(shared_data: Callable[[str], Path]) -> None:
    """Its sample text, five readings of which gave it the 60 instances of the shared file."""
    folder = shared_data("bert/google_sample_L128_dupe5_seed12345.jsonl").parent
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    text = (folder / "google_sample_text.txt").read_text(encoding="utf-8")
    documents = [lines for part in text.split("\n\n") if (lines := [line for line in part.split("\n") if line.strip()])]
    encoded = tokenizer.encode([line for lines in documents for line in lines])
    block = Block(
        tokens=encoded.ids.astype(np.int32),
        sentence_starts=np.cumsum([0, *map(len, encoded.tokens)], dtype=np.int64),
        document_starts=np.cumsum([0, *map(len, documents)], dtype=np.int64),
        document_numbers=np.arange(len(documents)),
    )
    lines = (folder / "google_sample_L128_dupe5_seed12345.jsonl").read_text(encoding="utf-8").splitlines()
    instances = [json.loads(line) for line in lines]
    lengths = [len(instance["tokens"]) for instance in instances]
    masked = sum(len(instance["masked_lm_positions"]) for instance in instances)

    maker = build_examples(BertConfig(max_sequence_length=128), tokenizer, 1)
    readings = [maker.make(block, np.random.default_rng(seed)) for seed in range(200)]
    ours = [reading.take(0, len(reading)) for reading in readings]
    counts = [maker.counts(arrays) for arrays in ours]
    tokens, pairs = sum(count["tokens"] for count in counts), sum(count["nsp"] for count in counts)
    random = sum(int((arrays["is_next"] == RANDOM).sum()) for arrays in ours)
    # Sixty instances have standard errors of 5 tokens of length and 0.07 of random segments.
    assert pairs / 200 == pytest.approx(len(instances) / 5, abs=0.5)
    assert tokens / pairs == pytest.approx(np.mean(lengths), abs=8)
    assert random / pairs == pytest.approx(np.mean([i["is_random_next"] for i in instances]), abs=0.14)
    assert sum(count["mlm"] for count in counts) / tokens == pytest.approx(masked / sum(lengths), abs=0.002)
