"""Which tokens are predicted, and what replaces them (Devlin et al. 2018, §3.1, appendix A.1).

Counts are the original's. Unlike there, the ids that replace tokens at random are never special, an unknown word is
never predicted, and every reading of a block draws anew.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.config.objectives import BertObjectiveConfig
from pretrain.models.bert.sequences import Sequences
from pretrain.models.bert.tokens import WordPieceTokenizer

MASKED, REPLACED = 0.8, 0.1
"""Shares of the predicted tokens that become [MASK] and a random token; the rest stay as they are."""


@dataclass(frozen=True)
class Masked:
    """What is predicted of sequences, and what the model reads."""

    input_ids: NDArray[np.int32]
    """[tokens]"""
    positions: NDArray[np.int64]
    """[masked], ascending: where the predicted tokens stand."""
    labels: NDArray[np.int32]
    """[masked]: what they are."""
    counts: NDArray[np.int64]
    """[sequences]: how many each sequence has."""


class Masking:
    """Masks the sequences of a block.

    `max(1, round(length * mask_probability))` tokens of a sequence are predicted, special ones counting as length, or
    all that are not special. With `whole_word_masking` words are taken in random order as long as there is room for
    all their pieces, so that sometimes fewer tokens are predicted.
    """

    def __init__(self, config: BertObjectiveConfig, tokenizer: WordPieceTokenizer) -> None:
        self._probability = config.mask_probability
        self._whole_words = config.whole_word_masking
        self._mask_id = tokenizer.mask_id
        self._ordinary_ids = tokenizer.ordinary_ids.astype(np.int32)
        self._is_ordinary = np.zeros(tokenizer.vocabulary_size, dtype=bool)
        self._is_ordinary[tokenizer.ordinary_ids] = True
        self._goes_on = tokenizer.continuations

    def mask(self, sequences: Sequences, rng: np.random.Generator) -> Masked:
        """The sequences with some of their tokens to be predicted."""
        input_ids = sequences.input_ids.copy()
        candidates = np.flatnonzero(self._is_ordinary[input_ids])
        owners = np.repeat(np.arange(len(sequences.lengths)), sequences.lengths)[candidates]
        wanted = np.maximum(1, np.rint(sequences.lengths * self._probability).astype(np.int64))
        if self._whole_words:
            begins = ~self._goes_on[input_ids[candidates]] | ~self._is_ordinary[input_ids[candidates - 1]]
            chosen = choose_words(owners, begins, wanted, rng)
        else:
            chosen = choose(owners, wanted, rng)
        positions = candidates[chosen]
        labels = input_ids[positions]
        replacement_draw = rng.random(len(labels))
        random = self._ordinary_ids[rng.integers(0, len(self._ordinary_ids), len(labels))]
        input_ids[positions] = np.where(
            replacement_draw < MASKED,
            np.int32(self._mask_id),
            np.where(replacement_draw < MASKED + REPLACED, random, labels),
        )
        return Masked(input_ids, positions, labels, np.bincount(owners[chosen], minlength=len(wanted)))


def choose(owners: NDArray[np.int64], wanted: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """[candidates]: whether each is among the `wanted[o]` drawn of owner o's; `owners` [candidates] is ascending."""
    order = shuffle_within(owners, rng)
    chosen = np.zeros(len(owners), dtype=bool)
    chosen[order[_ranks(owners, len(wanted)) < wanted[owners]]] = True
    return chosen


def choose_words(
    owners: NDArray[np.int64], begins: NDArray[np.bool_], wanted: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """As `choose`, but all pieces of a word or none, at most `wanted[o]`; `begins` says where words begin."""
    firsts = np.flatnonzero(begins)
    sizes = np.diff(firsts, append=len(owners))
    order = shuffle_within(owners[firsts], rng)
    words = np.bincount(owners[firsts], minlength=len(wanted))
    ends = words.cumsum()
    next_word, left = ends - words, wanted.copy()
    taken = np.zeros(len(firsts), dtype=bool)
    # A word of every owner at a time: each is taken if it fits into what its predecessors left.
    active = np.flatnonzero(words)
    while len(active):
        word = order[next_word[active]]
        fits = sizes[word] <= left[active]
        taken[word[fits]] = True
        left[active[fits]] -= sizes[word[fits]]
        next_word[active] += 1
        active = active[(left[active] > 0) & (next_word[active] < ends[active])]
    return np.repeat(taken, sizes)


def shuffle_within(owners: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """The numbers 0 to n - 1 with those of one owner in random order; `owners` [n] is ascending."""
    # One sort of owner, random bits and number in 64 bits is three times as fast as sorting by keys.
    count = len(owners)
    low = np.uint64(count.bit_length())
    high = np.uint64(64 - int(owners[-1] if count else 0).bit_length())
    keys = rng.integers(0, 2 ** int(high), count, dtype=np.uint64, endpoint=False) >> low << low
    keys |= np.arange(count, dtype=np.uint64)
    keys |= owners.astype(np.uint64) << high
    keys.sort()
    return (keys & ((np.uint64(1) << low) - np.uint64(1))).astype(np.int64)


def _ranks(owners: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """[n]: how many of the same owner, of `count` owners, come before; `owners` [n] is ascending."""
    sizes = np.bincount(owners, minlength=count)
    return np.arange(len(owners)) - np.repeat(sizes.cumsum() - sizes, sizes)
