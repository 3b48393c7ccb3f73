"""Sentence pairs with masked words, from blocks of text (Devlin et al. 2018, §3.1 and appendix A.1-A.2).

Pairs are made as the original's `create_pretraining_data.py` makes them, with these differences: a random second
segment is never of the first one's document; the ids that replace words at random are never special tokens; and the
masks are drawn anew every time that a block is read.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.config.models import BertConfig
from pretrain.data.blocks import Arrays, Block
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.family import Batch, Tokenizer

NEXT, RANDOM = 0, 1
"""The classes of `is_next`, as published models number them: the second segment follows the first, or is random."""
IGNORED = -100
"""The label of a position without loss."""
SPECIAL_TOKENS = 3
"""[CLS] first segment [SEP] second segment [SEP]."""
MASKED, REPLACED = 0.8, 0.1
"""Shares of the predicted words that become [MASK] and a random word; the rest stay as they are."""


@dataclass(frozen=True)
class Pairs:
    """The sentence pairs of a block, as spans of its tokens; int64 [pairs] each."""

    first_start: NDArray[np.int64]
    first_length: NDArray[np.int64]
    second_start: NDArray[np.int64]
    second_length: NDArray[np.int64]
    is_next: NDArray[np.int64]


@dataclass(frozen=True)
class BertSequences:
    """The examples of a block, one row each.

    `input_ids`, `labels` int32 and `segment_ids` int8 [pairs, max_sequence_length]; `lengths` int32 [pairs], in
    tokens; `is_next` int8 [pairs], of class `NEXT` or `RANDOM`.
    """

    arrays: Arrays

    def __len__(self) -> int:
        return len(self.arrays["lengths"])

    def take(self, start: int, stop: int) -> Arrays:
        """Examples `start` to `stop`."""
        return {name: array[start:stop] for name, array in self.arrays.items()}


class BertExamples:
    """Makes pairs, masks them, and batches them."""

    def __init__(self, config: BertConfig, tokenizer: WordPieceTokenizer) -> None:
        self._length = config.max_sequence_length
        self._short_sequence_probability = config.short_sequence_probability
        self._mask_probability = config.mask_probability
        self._ordinary_ids = tokenizer.ordinary_ids
        self._padding_id = tokenizer.padding_id
        self._cls_id = tokenizer.cls_id
        self._sep_id = tokenizer.sep_id
        self._mask_id = tokenizer.mask_id

    def make(self, block: Block, rng: np.random.Generator, *, pad: bool = False) -> BertSequences:
        """The examples of a block, in random order; `pad` changes nothing, since no text is left over.

        A sentence that has none after it and no other document in the block to be paired with is left out.
        """
        budget = self._length - SPECIAL_TOKENS
        pairs = truncate(draw_pairs(block, rng, budget, self._short_sequence_probability), rng, budget)
        arrays = self._lay_out(block.tokens, pairs)
        self._mask(arrays, rng)
        order = rng.permutation(len(pairs.is_next))
        return BertSequences({name: array[order] for name, array in arrays.items()})

    def _lay_out(self, tokens: NDArray[np.int32], pairs: Pairs) -> dict[str, NDArray[np.integer]]:
        """[CLS] first [SEP] second [SEP], padded, without labels yet."""
        first_sep = pairs.first_length[:, None] + 1
        last_sep = first_sep + pairs.second_length[:, None] + 1
        place = np.arange(self._length)
        in_first = (place > 0) & (place < first_sep)
        in_second = (place > first_sep) & (place < last_sep)
        source = place + np.where(in_first, pairs.first_start[:, None] - 1, pairs.second_start[:, None] - first_sep - 1)
        input_ids = np.full(source.shape, self._padding_id, dtype=np.int32)
        words = in_first | in_second
        input_ids[words] = tokens[source[words]]
        input_ids[:, :1] = self._cls_id
        input_ids[(place == first_sep) | (place == last_sep)] = self._sep_id
        return {
            "input_ids": input_ids,
            "segment_ids": ((place > first_sep) & (place <= last_sep)).astype(np.int8),
            "lengths": (last_sep[:, 0] + 1).astype(np.int32),
            "labels": np.where(words, input_ids, np.int32(IGNORED)),
            "is_next": pairs.is_next.astype(np.int8),
        }

    def _mask(self, arrays: dict[str, NDArray[np.integer]], rng: np.random.Generator) -> None:
        """Chooses the predicted words and replaces them, in place.

        Exactly `max(1, round(length * mask_probability))` of a sequence, whose length counts the special tokens.
        """
        input_ids, labels = arrays["input_ids"], arrays["labels"]
        words = labels != IGNORED
        wanted = np.maximum(1, np.rint(arrays["lengths"] * self._mask_probability).astype(np.int64))
        wanted = np.minimum(wanted, words.sum(axis=1))
        keys = np.where(words, rng.random(words.shape), 2.0)
        rank = np.empty(words.shape, dtype=np.int64)
        np.put_along_axis(rank, keys.argsort(axis=1, kind="stable"), np.arange(self._length)[None], axis=1)
        chosen = rank < wanted[:, None]
        labels[~chosen] = IGNORED
        originals = input_ids[chosen]
        fate = rng.random(len(originals))
        replacements = rng.choice(self._ordinary_ids, len(originals))
        kept_or_replaced = np.where(fate < MASKED + REPLACED, replacements, originals)
        input_ids[chosen] = np.where(fate < MASKED, self._mask_id, kept_or_replaced)

    def counts(self, examples: Arrays) -> dict[str, int]:
        """Predictions of each loss, and `tokens`, special ones included."""
        return {
            "mlm": int((examples["labels"] != IGNORED).sum()),
            "nsp": len(examples["lengths"]),
            "tokens": int(examples["lengths"].sum(dtype=np.int64)),
        }

    def collate(self, examples: Arrays) -> Batch:
        """A micro-batch of int64 tensors, as long as its longest sequence needs, rounded up to a multiple of 8.

        `input_ids`, `segment_ids`, `attention_mask` [batch, token]; `is_next` [batch]; `masked_positions` [masked],
        which index the flattened [batch * token]; `masked_labels` [masked].
        """
        longest = int(examples["lengths"].max())
        length = min(self._length, -(-longest // 8) * 8)
        labels = examples["labels"][:, :length].reshape(-1)
        masked = np.flatnonzero(labels != IGNORED)
        arrays = {
            "input_ids": examples["input_ids"][:, :length],
            "segment_ids": examples["segment_ids"][:, :length],
            "attention_mask": np.arange(length) < examples["lengths"][:, None],
            "is_next": examples["is_next"],
            "masked_positions": masked,
            "masked_labels": labels[masked],
        }
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}


def draw_pairs(block: Block, rng: np.random.Generator, budget: int, short_sequence_probability: float) -> Pairs:
    """Pairs of segments, not cut to `budget` tokens yet, in the order of the text.

    A chunk of sentences of about the wanted length is split at random. The rest of it is the second segment, or a
    random other document's sentences are, and the rest is used again; a single sentence always gets a random one.
    """
    starts = block.sentence_starts.tolist()
    documents = block.document_starts.tolist()
    rows: list[tuple[int, int, int, int, int]] = []
    for document, (sentence, end) in enumerate(pairwise(documents)):
        others = np.flatnonzero(block.document_numbers != block.document_numbers[document]).tolist()
        # Once per document, not per chunk: the original's choice.
        wanted = int(rng.integers(2, budget + 1)) if rng.random() < short_sequence_probability else budget
        while sentence < end:
            stop = _reach(starts, sentence, end, wanted)
            alone = stop == sentence + 1
            split = stop if alone else int(rng.integers(sentence + 1, stop))
            if others and (alone or rng.random() < 0.5):
                other = others[rng.integers(len(others))]
                start = int(rng.integers(documents[other], documents[other + 1]))
                left = wanted - (starts[split] - starts[sentence])
                stop = _reach(starts, start, documents[other + 1], left)
                rows.append((starts[sentence], starts[split], starts[start], starts[stop], RANDOM))
                sentence = split
            else:
                if not alone:
                    rows.append((starts[sentence], starts[split], starts[split], starts[stop], NEXT))
                sentence = stop
    first_start, first_stop, second_start, second_stop, is_next = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    return Pairs(first_start, first_stop - first_start, second_start, second_stop - second_start, is_next)


def _reach(starts: Sequence[int], sentence: int, end: int, wanted: int) -> int:
    """Where to stop so that the sentences from `sentence` hold `wanted` tokens: one at least, none from `end` on."""
    return bisect_left(starts, starts[sentence] + wanted, sentence + 1, end)


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


def build_examples(config: BertConfig, tokenizer: Tokenizer, rows: int) -> BertExamples:
    """The example maker; `rows` is 1, as for every family whose examples are not ordered."""
    assert isinstance(tokenizer, WordPieceTokenizer)
    return BertExamples(config, tokenizer)
