from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from pretrain.config.objectives import BertObjectiveConfig
from pretrain.data.blocks import Block
from pretrain.models.bert.masking import Masked, Masking, choose, choose_words, shuffle_within
from pretrain.models.bert.sentences import fill_sentences
from pretrain.models.bert.sequences import Sequences, join
from pretrain.models.bert.tokens import WordPieceTokenizer

MakeBlock = Callable[[list[int], list[int]], Block]


@pytest.fixture(scope="module")
def sequences(make_block: MakeBlock, tokenizer: WordPieceTokenizer) -> Sequences:
    """About 250 sequences of 50 to 64 tokens, in which a token of 50 is unknown."""
    block = make_block([50] * 40, list(range(40)))
    block.tokens[::50] = tokenizer.unknown_id
    return join(block.tokens, fill_sentences(block, 62), tokenizer)


def mask(sequences: Sequences, tokenizer: WordPieceTokenizer, seed: int = 0, **options: object) -> Masked:
    return Masking(BertObjectiveConfig.model_validate(options), tokenizer).mask(sequences, np.random.default_rng(seed))


def owners_of(sequences: Sequences, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.searchsorted(sequences.starts, positions, side="right") - 1


@pytest.mark.parametrize("probability", [0.001, 0.15, 0.4, 0.99])
def test_counts_are_exact(probability: float, sequences: Sequences, tokenizer: WordPieceTokenizer) -> None:
    masked = mask(sequences, tokenizer, mask_probability=probability)
    special = np.isin(sequences.input_ids, [tokenizer.cls_id, tokenizer.sep_id, tokenizer.unknown_id])
    ordinary = np.add.reduceat(~special, sequences.starts)
    expected = [
        min(max(1, round(length * probability)), most)
        for length, most in zip(sequences.lengths.tolist(), ordinary.tolist(), strict=True)
    ]
    assert masked.counts.tolist() == expected
    np.testing.assert_array_equal(np.bincount(owners_of(sequences, masked.positions)), expected)
    assert (np.diff(masked.positions) > 0).all()


@pytest.mark.parametrize("whole_words", [False, True])
def test_only_what_is_predicted_changes_and_nothing_special_is(
    whole_words: bool, sequences: Sequences, tokenizer: WordPieceTokenizer
) -> None:
    masked = mask(sequences, tokenizer, whole_word_masking=whole_words)
    np.testing.assert_array_equal(masked.labels, sequences.input_ids[masked.positions])
    assert np.isin(masked.labels, tokenizer.ordinary_ids).all()
    kept = np.ones(len(masked.input_ids), dtype=bool)
    kept[masked.positions] = False
    np.testing.assert_array_equal(masked.input_ids[kept], sequences.input_ids[kept])


def test_80_10_10_with_ordinary_ids(sequences: Sequences, tokenizer: WordPieceTokenizer) -> None:
    readings = [mask(sequences, tokenizer, seed) for seed in range(12)]
    labels = np.concatenate([masked.labels for masked in readings])
    ids = np.concatenate([masked.input_ids[masked.positions] for masked in readings])
    assert len(labels) > 20_000
    hidden = ids == tokenizer.mask_id
    same = ids == labels
    replaced = ~hidden & ~same
    # Three standard errors; a random word is the same one in 195.
    error = 3 * (0.25 / len(labels)) ** 0.5
    assert hidden.mean() == pytest.approx(0.8, abs=error)
    assert same.mean() == pytest.approx(0.1 + 0.1 / 195, abs=error)
    assert replaced.mean() == pytest.approx(0.1 - 0.1 / 195, abs=error)
    assert np.isin(ids[replaced], tokenizer.ordinary_ids).all()
    assert len(np.unique(ids[replaced])) > 180


def test_every_candidate_is_as_likely() -> None:
    owners = np.repeat([0, 2, 3], [5, 20, 1])
    wanted = np.array([2, 7, 4, 3])
    counts = np.zeros(len(owners))
    for seed in range(4000):
        chosen = choose(owners, wanted, np.random.default_rng(seed))
        assert np.bincount(owners, weights=chosen, minlength=4).tolist() == [2, 0, 4, 1]
        counts += chosen
    expected = np.repeat([2 / 5, 4 / 20, 1], [5, 20, 1])
    assert (abs(counts / 4000 - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000) + 1e-9).all()


def test_shuffling_keeps_owners_apart_and_is_even() -> None:
    owners = np.repeat([1, 4], [3, 2])
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(6000):
        order = shuffle_within(owners, np.random.default_rng(seed))
        assert (owners[order] == owners).all()
        seen[tuple(order.tolist())] = seen.get(tuple(order.tolist()), 0) + 1
    assert len(seen) == 12
    assert max(abs(count - 500) for count in seen.values()) < 4.5 * 500**0.5
    assert shuffle_within(owners[:0], np.random.default_rng(0)).shape == (0,)
    assert sorted(shuffle_within(np.zeros(9, dtype=np.int64), np.random.default_rng(0))) == list(range(9))


def test_words_are_predicted_whole(sequences: Sequences, tokenizer: WordPieceTokenizer) -> None:
    masked = mask(sequences, tokenizer, whole_word_masking=True)
    chosen = np.zeros(len(sequences.input_ids), dtype=bool)
    chosen[masked.positions] = True
    continues = tokenizer.continuations[sequences.input_ids]
    assert continues.mean() > 0.2, "the text has words of several pieces"
    ordinary = np.isin(sequences.input_ids, tokenizer.ordinary_ids)
    joined = continues[1:] & ordinary[:-1]
    np.testing.assert_array_equal(chosen[1:][joined], chosen[:-1][joined])
    wanted = np.maximum(1, np.rint(sequences.lengths * 0.15))
    assert (masked.counts <= wanted).all()
    # Now and then what is left is less than any word that is not taken yet.
    assert masked.counts.sum() > 0.97 * wanted.sum()


def test_words_are_taken_in_random_order_as_long_as_they_fit() -> None:
    """Owner 0 has words of 1, 2 and 3 pieces and 3 places: what is taken follows from the order of the words."""
    begins = np.array([True, True, False, True, False, False, True])
    owners = np.array([0, 0, 0, 0, 0, 0, 1])
    seen = {
        tuple(choose_words(owners, begins, np.array([3, 0]), np.random.default_rng(seed)).astype(int).tolist())
        for seed in range(60)
    }
    assert seen == {(1, 1, 1, 0, 0, 0, 0), (0, 0, 0, 1, 1, 1, 0)}
    none = choose_words(owners[3:6], begins[3:6], np.array([2]), np.random.default_rng(0))
    assert not none.any(), "no room for the only word"


def test_a_piece_after_a_separator_begins_a_word(tokenizer: WordPieceTokenizer) -> None:
    """A segment cut at its front may begin within a word; that word does not reach back into the other segment."""
    piece = int(np.flatnonzero(tokenizer.continuations)[0])
    other = int(np.setdiff1d(tokenizer.ordinary_ids, np.flatnonzero(tokenizer.continuations))[0])
    ids = [tokenizer.cls_id, other, tokenizer.sep_id, piece, tokenizer.sep_id]
    one = Sequences(np.array(ids, dtype=np.int32), np.zeros(5, dtype=np.int8), np.array([0]), np.array([5]), None)
    seen = {tuple(mask(one, tokenizer, seed, whole_word_masking=True).positions.tolist()) for seed in range(30)}
    assert seen == {(1,), (3,)}


def test_text_of_unknown_words_has_no_prediction(tokenizer: WordPieceTokenizer) -> None:
    ids = [tokenizer.cls_id, tokenizer.unknown_id, tokenizer.sep_id]
    one = Sequences(np.array(ids, dtype=np.int32), np.zeros(3, dtype=np.int8), np.array([0]), np.array([3]), None)
    for whole_words in (False, True):
        masked = mask(one, tokenizer, whole_word_masking=whole_words)
        assert masked.counts.tolist() == [0] and len(masked.positions) == 0
