from collections.abc import Callable

import numpy as np
import pytest

from pretrain.data.blocks import Block
from pretrain.models.bert.pairs import NEXT, RANDOM, Pairs, draw_pairs, truncate

MakeBlock = Callable[[list[int], list[int]], Block]
BUDGET = 61


@pytest.fixture(scope="module")
def block(make_block: MakeBlock) -> Block:
    """40 parts of 20 documents."""
    return make_block([50] * 40, [i // 2 for i in range(40)])


@pytest.fixture(scope="module")
def pairs(block: Block) -> Pairs:
    return draw_pairs(block, np.random.default_rng(0), BUDGET, 0.1)


def documents(block: Block, tokens: np.ndarray) -> np.ndarray:
    """The number of the document that each token is of."""
    starts = block.sentence_starts[block.document_starts]
    return block.document_numbers[np.searchsorted(starts, tokens, side="right") - 1]


def test_random_segments_come_from_other_documents(block: Block, pairs: Pairs) -> None:
    first, second = documents(block, pairs.first_start), documents(block, pairs.second_start)
    random = pairs.is_next == RANDOM
    assert 0 < random.sum() < len(random)
    assert (first[random] != second[random]).all()
    assert (first[~random] == second[~random]).all()
    np.testing.assert_array_equal((pairs.first_start + pairs.first_length)[~random], pairs.second_start[~random])


def test_segments_are_whole_sentences_of_one_document(block: Block, pairs: Pairs) -> None:
    for start, length in ((pairs.first_start, pairs.first_length), (pairs.second_start, pairs.second_length)):
        assert (length > 0).all()
        assert np.isin(start, block.sentence_starts).all()
        assert np.isin(start + length, block.sentence_starts).all()
        np.testing.assert_array_equal(documents(block, start), documents(block, start + length - 1))


def test_random_segments_are_long_enough_and_no_longer(block: Block) -> None:
    pairs = draw_pairs(block, np.random.default_rng(0), BUDGET, 0.0)
    random = pairs.is_next == RANDOM
    last = block.sentence_starts[np.searchsorted(block.sentence_starts, pairs.second_start + pairs.second_length) - 1]
    wanted = BUDGET - pairs.first_length
    assert (last - pairs.second_start < wanted.clip(1))[random].all(), "the sentence before the last was not enough"
    ends = block.sentence_starts[block.document_starts[1:]]
    reached = (pairs.second_length >= wanted) | np.isin(pairs.second_start + pairs.second_length, ends)
    assert reached[random].all()


def test_other_documents_are_drawn_evenly(make_block: MakeBlock) -> None:
    """Nine parts, three of which are one document's: each other part is as likely."""
    block = make_block([20] * 9, [0, 1, 2, 1, 3, 4, 1, 5, 6])
    counts = np.zeros((9, 9), dtype=np.int64)
    parts = block.sentence_starts[block.document_starts]
    for seed in range(200):
        pairs = draw_pairs(block, np.random.default_rng(seed), BUDGET, 0.1)
        random = pairs.is_next == RANDOM
        first, second = (
            np.searchsorted(parts, at[random], side="right") - 1 for at in (pairs.first_start, pairs.second_start)
        )
        np.add.at(counts, (first, second), 1)
    own = block.document_numbers[:, None] == block.document_numbers
    assert not counts[own].any()
    share = counts / counts.sum(axis=1, keepdims=True)
    even = 1 / (~own).sum(axis=1, keepdims=True)
    error = np.sqrt(even * (1 - even) / counts.sum(axis=1, keepdims=True))
    assert (abs(share - even)[~own] < np.broadcast_to(4.5 * error, own.shape)[~own]).all()


def test_first_segments_use_all_text_in_order(block: Block, pairs: Pairs) -> None:
    """What a random second segment displaces is used again: every sentence is in a first segment or a real second."""
    stop = np.where(
        pairs.is_next == NEXT, pairs.second_start + pairs.second_length, pairs.first_start + pairs.first_length
    )
    np.testing.assert_array_equal(pairs.first_start, [0, *stop[:-1]])
    assert stop[-1] == len(block.tokens)


def test_without_another_document_there_are_no_random_segments(make_block: MakeBlock) -> None:
    pairs = draw_pairs(make_block([30, 30], [7, 7]), np.random.default_rng(0), BUDGET, 0.1)
    assert len(pairs.is_next) > 0 and (pairs.is_next == NEXT).all()


def test_a_single_sentence_has_no_pair(make_block: MakeBlock) -> None:
    pairs = draw_pairs(make_block([1], [0]), np.random.default_rng(0), BUDGET, 0.1)
    assert len(pairs.is_next) == len(truncate(pairs, np.random.default_rng(0), BUDGET).spans().starts) == 0


def test_single_sentences_are_paired_with_random_ones(make_block: MakeBlock) -> None:
    pairs = draw_pairs(make_block([1, 1, 1], [0, 1, 2]), np.random.default_rng(0), BUDGET, 0.1)
    assert pairs.is_next.tolist() == [RANDOM] * 3


def test_short_pairs_are_drawn_once_per_document(make_block: MakeBlock) -> None:
    block = make_block([100] * 20, list(range(20)))
    spread = {}
    for probability in (0.0, 1.0):
        pairs = draw_pairs(block, np.random.default_rng(0), BUDGET, probability)
        lengths, document = pairs.first_length + pairs.second_length, documents(block, pairs.first_start)
        means, deviations = zip(
            *((of.mean(), of.std()) for of in (lengths[document == number] for number in range(20))), strict=True
        )
        spread[probability] = np.std(means), np.mean(deviations)
    assert spread[0.0][0] < 2, "documents are alike"
    assert spread[1.0][0] > 10 > spread[1.0][1], "documents differ more than the pairs of one do"


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
