"""Pairs of segments, of which the second follows the first or is random (Devlin et al. 2018, §3.1, appendix A.2).

They are made as the original's `create_pretraining_data.py` makes them, except that a random second segment is never of
the first one's document: the original tries ten times, and then calls a segment of the same document random.
"""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pretrain.data.blocks import Block
from pretrain.models.bert.sequences import Spans

NEXT, RANDOM = 0, 1
"""The classes of `is_next`, as published models number them: the second segment follows the first, or is random."""
SPECIAL_TOKENS = 3
"""[CLS] first segment [SEP] second segment [SEP]."""


@dataclass(frozen=True)
class Pairs:
    """The sentence pairs of a block, as spans of its tokens; int64 [pairs] each."""

    first_start: NDArray[np.int64]
    first_length: NDArray[np.int64]
    second_start: NDArray[np.int64]
    second_length: NDArray[np.int64]
    is_next: NDArray[np.int64]

    def spans(self) -> Spans:
        """The pairs as sequences of two spans."""
        count = len(self.is_next)
        return Spans(
            starts=np.stack([self.first_start, self.second_start], axis=1).reshape(-1),
            lengths=np.stack([self.first_length, self.second_length], axis=1).reshape(-1),
            segments=np.tile(np.array([0, 1], dtype=np.int8), count),
            first=2 * np.arange(count),
            is_next=self.is_next.astype(np.int8),
        )


def draw_pairs(block: Block, rng: np.random.Generator, budget: int, short_sequence_probability: float) -> Pairs:
    """Pairs of segments, not cut to `budget` tokens yet, in the order of the text.

    A chunk of sentences of about the wanted length is split at random. The rest of it is the second segment, or a
    random other document's sentences are, and the rest is used again; a single sentence always gets a random one.
    """
    # Where a chunk ends depends on what became of the last one: this is the one thing done pair by pair, in Python.
    starts: list[int] = block.sentence_starts.tolist()
    draws: list[list[float]] = rng.random((len(starts), 2)).tolist()
    wanted_lengths = _wanted_lengths(len(block.document_starts) - 1, rng, budget, short_sequence_probability)
    single_document = (block.document_numbers == block.document_numbers[:1]).all()
    rows: list[tuple[int, int, int, int]] = []
    """Document, first sentence, the sentence where the second segment would begin, and where it would end; or -1."""
    for document, (sentence, end) in enumerate(pairwise(block.document_starts.tolist())):
        wanted = wanted_lengths[document]
        while sentence < end:
            stop = bisect_left(starts, starts[sentence] + wanted, sentence + 1, end)
            alone = stop == sentence + 1
            split_draw, random_draw = draws[len(rows)]
            split = stop if alone else sentence + 1 + int(split_draw * (stop - sentence - 1))
            if (alone or random_draw < 0.5) and not single_document:
                rows.append((document, sentence, split, -1))
                sentence = split
            else:
                if not alone:
                    rows.append((document, sentence, split, stop))
                sentence = stop
    documents, firsts, splits, stops = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    random = stops < 0
    first_start = block.sentence_starts[firsts]
    first_length = block.sentence_starts[splits] - first_start
    left = np.array(wanted_lengths, dtype=np.int64)[documents] - first_length
    begins, ends = splits.copy(), stops.copy()
    begins[random], ends[random] = _draw_elsewhere(block, rng, documents[random], left[random])
    second_start = block.sentence_starts[begins]
    second_length = block.sentence_starts[ends] - second_start
    return Pairs(first_start, first_length, second_start, second_length, np.where(random, RANDOM, NEXT))


def _wanted_lengths(documents: int, rng: np.random.Generator, budget: int, short: float) -> list[int]:
    """What a document's pairs are to hold: drawn once for all of them, not for each, as the original does."""
    lengths: list[int] = np.where(
        rng.random(documents) < short, rng.integers(2, budget + 1, documents), budget
    ).tolist()
    return lengths


def _draw_elsewhere(
    block: Block, rng: np.random.Generator, documents: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sentences (first, end) of a random other document for each of `documents`: of `wanted` tokens, one at least."""
    by_number = block.document_numbers.argsort(kind="stable")
    numbers = block.document_numbers[by_number]
    own = block.document_numbers[documents]
    own_first = numbers.searchsorted(own)
    own_count = numbers.searchsorted(own, side="right") - own_first
    choice = rng.integers(0, len(numbers) - own_count)
    other = by_number[np.where(choice < own_first, choice, choice + own_count)]
    end = block.document_starts[other + 1]
    first = rng.integers(block.document_starts[other], end)
    stop = block.sentence_starts.searchsorted(block.sentence_starts[first] + wanted)
    return first, stop.clip(first + 1, end)


def truncate(pairs: Pairs, rng: np.random.Generator, budget: int) -> Pairs:
    """Pairs of at most `budget` tokens: the longer segment (the second, of two alike) loses a token until they fit.

    Every token is lost at the front or at the back with equal chances.
    """
    excess = np.maximum(0, pairs.first_length + pairs.second_length - budget)
    levelling = np.minimum(excess, np.abs(pairs.first_length - pairs.second_length))
    first_is_longer = pairs.first_length > pairs.second_length
    shared = excess - levelling
    first_lost = np.where(first_is_longer, levelling, 0) + shared // 2
    second_lost = excess - first_lost
    return Pairs(
        pairs.first_start + rng.binomial(first_lost, 0.5),
        pairs.first_length - first_lost,
        pairs.second_start + rng.binomial(second_lost, 0.5),
        pairs.second_length - second_lost,
        pairs.is_next,
    )
