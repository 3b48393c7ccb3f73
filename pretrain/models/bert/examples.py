"""Examples and batches from blocks of text: pairs or full sentences, masked, one to a row or several to a pack.

Shapes: n examples; L tokens of one, which is `max_sequence_length`, or `pack_length`; S sequences and M predicted
tokens of a pack, at most.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.config.models import BertConfig
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.data.blocks import Arrays, Block
from pretrain.models.bert import pairs, sentences
from pretrain.models.bert.masking import Masked, Masking
from pretrain.models.bert.packing import Budgets, Placement, pack_sequences
from pretrain.models.bert.sequences import Sequences, Spans, join
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.family import Tokenizer
from pretrain.models.loss import IGNORE_INDEX, Batch


@dataclass(frozen=True)
class BertExamples:
    """The examples of a block, one row each.

    Unpacked: `input_ids` and `labels` int32, `segment_ids` int8 [n, L]; `lengths` int32 [n], in tokens; `is_next` int8
    [n], of class `NEXT` or `RANDOM`. Packed: `input_ids` int32 and `segment_ids` int8 [n, L]; `lengths` int32 [n, S], 0
    where there is no sequence, of sequences that follow each other; `is_next` int8 [n, S]; `masked_positions`, in the
    row, and `labels` int32 [n, M]. Labels and classes that are not there are `IGNORE_INDEX`; without next-sentence
    prediction there is no `is_next`. Where positions are shifted, `first_positions` int32, of the shape of `lengths`,
    are those of the sequences' first tokens; elsewhere sequences begin at position 0.
    """

    arrays: Arrays

    def __len__(self) -> int:
        return len(self.arrays["input_ids"])

    def take(self, start: int, stop: int) -> Arrays:
        """Examples `start` to `stop`."""
        return {name: array[start:stop] for name, array in self.arrays.items()}


class BertExampleMaker:
    """Makes sequences, masks them, puts them into rows, and batches those."""

    def __init__(self, config: BertObjectiveConfig, tokenizer: WordPieceTokenizer) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._masking = Masking(config, tokenizer)
        self._length = config.tokens_per_example
        self._budgets = None
        if config.packing:
            self._budgets = Budgets(self._length, config.sequences_per_pack, config.masked_per_pack)

    def make(self, block: Block, rng: np.random.Generator, *, pad: bool = False) -> BertExamples:
        """The examples of a block, in random order; `pad` changes nothing, since no text is left over.

        Packed or not, the sequences and their masks are the same. A sentence that has none after it and no other
        document in the block to be paired with is left out. Shifted or not, they are the same sequences, too.
        """
        sequences = join(block.tokens, self._draw(block, rng), self._tokenizer)
        masked = self._masking.mask(sequences, rng)
        order = rng.permutation(len(sequences.lengths))
        if self._budgets is None:
            rows = self._rows(sequences, masked, order)
            if (first_positions := self._shift(sequences, rng)) is not None:
                rows["first_positions"] = first_positions[order]
            return BertExamples(rows)
        placement = pack_sequences(sequences.lengths, masked.counts, order, self._budgets)
        packs = self._packs(sequences, masked, placement, self._budgets)
        shuffled = rng.permutation(placement.packs)
        if (first_positions := self._shift(sequences, rng)) is not None:
            slots = self._budgets.sequences * placement.pack + placement.number
            packs["first_positions"] = _filled(packs["lengths"].shape, 0, slots, first_positions, np.int32)
        return BertExamples({name: array[shuffled] for name, array in packs.items()})

    def _shift(self, sequences: Sequences, rng: np.random.Generator) -> NDArray[np.int32] | None:
        """[sequences]: a random first position of each, such that its last one is there; None where all begin at 0."""
        positions = self._config.shifted_within
        if positions is None:
            return None
        draws = rng.spawn(1)[0]  # a stream of its own: whatever else is drawn stays as it is
        return draws.integers(0, positions - sequences.lengths + 1, dtype=np.int32)

    def _draw(self, block: Block, rng: np.random.Generator) -> Spans:
        length = self._config.max_sequence_length
        if not self._config.next_sentence:
            return sentences.fill_sentences(block, length - sentences.SPECIAL_TOKENS)
        budget = length - pairs.SPECIAL_TOKENS
        drawn = pairs.draw_pairs(block, rng, budget, self._config.short_sequence_probability)
        return pairs.truncate(drawn, rng, budget).spans()

    def _rows(self, sequences: Sequences, masked: Masked, order: NDArray[np.int64]) -> dict[str, NDArray[np.integer]]:
        """One sequence a row, in `order`."""
        count = len(order)
        starts = np.empty(count, dtype=np.int64)
        starts[order] = self._length * np.arange(count)
        arrays, token_slots = self._scatter(sequences, masked, starts, count)
        labels = np.full((count, self._length), IGNORE_INDEX, dtype=np.int32)
        labels.reshape(-1)[token_slots[masked.positions]] = masked.labels
        arrays |= {"lengths": sequences.lengths[order].astype(np.int32), "labels": labels}
        return arrays if sequences.is_next is None else arrays | {"is_next": sequences.is_next[order]}

    def _packs(
        self, sequences: Sequences, masked: Masked, placement: Placement, most: Budgets
    ) -> dict[str, NDArray[np.integer]]:
        """Sequences where `placement` puts them."""
        starts = most.tokens * placement.pack + placement.offset
        arrays, token_slots = self._scatter(sequences, masked, starts, placement.packs)
        slots = most.sequences * placement.pack + placement.number
        arrays["lengths"] = _filled((placement.packs, most.sequences), 0, slots, sequences.lengths, np.int32)
        if sequences.is_next is not None:
            arrays["is_next"] = _filled(arrays["lengths"].shape, IGNORE_INDEX, slots, sequences.is_next, np.int8)
        # A pack's predicted tokens, in order: the number of each is its distance to the pack's first.
        positions = token_slots[masked.positions]
        order = positions.argsort()
        packs, within = np.divmod(positions[order], most.tokens)
        counts = np.bincount(packs, minlength=placement.packs)
        slots = most.masked * packs + np.arange(len(packs)) - np.repeat(counts.cumsum() - counts, counts)
        shape = (placement.packs, most.masked)
        arrays["masked_positions"] = _filled(shape, 0, slots, within, np.int32)
        arrays["labels"] = _filled(shape, IGNORE_INDEX, slots, masked.labels[order], np.int32)
        return arrays

    def _scatter(
        self, sequences: Sequences, masked: Masked, starts: NDArray[np.int64], count: int
    ) -> tuple[dict[str, NDArray[np.integer]], NDArray[np.int64]]:
        """Ids and segments in `count` rows, and where each token went, if each sequence begins at its `starts`.

        `starts` [sequences] and the token slots [tokens] index the flattened rows.
        """
        token_slots = np.arange(len(masked.input_ids)) + np.repeat(starts - sequences.starts, sequences.lengths)
        shape = (count, self._length)
        return {
            "input_ids": _filled(shape, self._tokenizer.padding_id, token_slots, masked.input_ids, np.int32),
            "segment_ids": _filled(shape, 0, token_slots, sequences.segment_ids, np.int8),
        }, token_slots

    def counts(self, examples: Arrays) -> dict[str, int]:
        """Predictions of each loss, and the `nsp.random` among them; `tokens`, special ones included.

        `token_slots` are tokens and padding. `attended` are the pairs of tokens of which one attends to the other.
        """
        lengths = examples["lengths"].reshape(-1).astype(np.int64)
        counts = {
            "mlm": int((examples["labels"] != IGNORE_INDEX).sum()),
            "tokens": int(lengths.sum()),
            "token_slots": examples["input_ids"].size,
            "sequences": int(np.count_nonzero(lengths)),
            "attended": int(lengths @ lengths),
        }
        if "is_next" in examples:
            counts["nsp"] = int((examples["is_next"] != IGNORE_INDEX).sum())
            counts["nsp.random"] = int((examples["is_next"] == pairs.RANDOM).sum())
        return counts

    def collate(self, examples: Arrays) -> Batch:
        """A micro-batch of int64 tensors.

        `input_ids`, `segment_ids`, `attention_mask` [batch, token]; `masked_positions` [masked], which index the
        flattened [batch * token], and `masked_labels` [masked]; `is_next` [sequences], unless there are no pairs.

        Unpacked, the batch is as long as its longest sequence needs, rounded up to a multiple of 8, and has as many
        predicted tokens as there are. Packed, all shapes are constant, empty slots are labelled `IGNORE_INDEX`, and
        there are `sequence_lengths` [batch, S]. There are `positions` [batch, token] in packs, and wherever not every
        sequence begins at 0.
        """
        arrays = _collate_rows(examples) if self._budgets is None else _collate_packs(examples)
        if "is_next" in examples:
            arrays["is_next"] = examples["is_next"].reshape(-1)
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}


def _filled(
    shape: tuple[int, ...], value: int, slots: NDArray[np.int64], values: NDArray[np.integer], dtype: type[np.integer]
) -> NDArray[np.integer]:
    """An array of `value`, with `values` at `slots` of its flattened form."""
    array = np.full(shape, value, dtype=dtype)
    array.reshape(-1)[slots] = values
    return array


def _collate_rows(examples: Arrays) -> dict[str, NDArray[np.integer]]:
    longest = int(examples["lengths"].max())
    length = min(examples["input_ids"].shape[1], -(-longest // 8) * 8)
    labels = examples["labels"][:, :length].reshape(-1)
    masked = np.flatnonzero(labels != IGNORE_INDEX)
    mask = (np.arange(length) < examples["lengths"][:, None]).astype(np.int8)
    shifted = {}
    if "first_positions" in examples:
        shifted["positions"] = (np.arange(length) + examples["first_positions"][:, None]) * mask
    return shifted | {
        "input_ids": examples["input_ids"][:, :length],
        "segment_ids": examples["segment_ids"][:, :length],
        "attention_mask": mask,
        "masked_positions": masked,
        "masked_labels": labels[masked],
    }


def _collate_packs(examples: Arrays) -> dict[str, NDArray[np.integer]]:
    lengths = examples["lengths"].astype(np.int64)
    count, length = examples["input_ids"].shape
    used = lengths.sum(axis=1, keepdims=True)
    # What is left of a row is one more sequence, whose tokens all have position 0.
    sequences = np.concatenate([lengths, length - used], axis=1).reshape(-1)
    positions = np.arange(count * length) - np.repeat(sequences.cumsum() - sequences, sequences)
    if "first_positions" in examples:
        first_positions = np.pad(examples["first_positions"], ((0, 0), (0, 1))).reshape(-1)
        positions += np.repeat(first_positions, sequences)
    mask = (np.arange(length) < used).astype(np.int8)
    return {
        "input_ids": examples["input_ids"],
        "segment_ids": examples["segment_ids"],
        "attention_mask": mask,
        "positions": positions.reshape(count, length) * mask,
        "sequence_lengths": lengths,
        "masked_positions": (examples["masked_positions"] + length * np.arange(count)[:, None]).reshape(-1),
        "masked_labels": examples["labels"].reshape(-1),
    }


def build_examples(
    model: BertConfig, objective: BertObjectiveConfig, tokenizer: Tokenizer, rows: int
) -> BertExampleMaker:
    """The example maker, the same for every model; `rows` is 1, as for every family whose examples are not ordered."""
    assert isinstance(tokenizer, WordPieceTokenizer)
    return BertExampleMaker(objective, tokenizer)
