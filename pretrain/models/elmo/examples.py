"""Windows of continuous text for the two language models.

Shapes: n examples, T unroll_length, C max_characters, M text positions of a block.
A text position is a word of the block's text or the boundary of a sentence, which counts as one more word of it: the
forward model predicts `</S>` there, after the last word, and the backward model `<S>`, before the first.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.data.blocks import Arrays, Block
from pretrain.models.elmo.tokens import (
    SENTENCE_BEGIN,
    SENTENCE_END,
    UNKNOWN,
    WordTokenizer,
    character_ids,
    trim_characters,
)
from pretrain.models.family import Tokenizer
from pretrain.models.loss import IGNORE_INDEX, Batch

NOWHERE = -1
"""Place of such a position."""


@dataclass(frozen=True)
class _Direction:
    """What one direction reads and predicts at each text position, and in which order."""

    inputs: NDArray[np.int32]
    """[M + 1]: rows of the character table; the last is what is read behind the text."""
    labels: NDArray[np.int32]
    """[M + 1]: vocabulary ids; the last is `IGNORE_INDEX`."""
    text_positions: NDArray[np.int32]
    """[n, T], `NOWHERE` behind the text."""


@dataclass(frozen=True)
class ElmoExamples:
    """The windows of one block; words are spelled out only when taken."""

    characters: NDArray[np.int16]
    """[distinct words + 2, C]: the block's words, then `<S>` and `</S>`."""
    forward: _Direction
    backward: _Direction
    begins: NDArray[np.int8] | None = None
    """[n]: 1 for a window that its row starts from zero state; None where that never happens in a block."""

    def __len__(self) -> int:
        return len(self.forward.text_positions)

    def take(self, start: int, stop: int) -> Arrays:
        """Characters int16 [n, T, C] and labels int32 [n, T] of each direction; and `begins`, where there is one."""
        arrays: dict[str, NDArray[np.integer]] = {}
        for name, direction in (("forward", self.forward), ("backward", self.backward)):
            text_positions = direction.text_positions[start:stop]
            arrays[f"{name}_characters"] = self.characters[direction.inputs[text_positions]]
            arrays[f"{name}_targets"] = direction.labels[text_positions]  # the name is part of the data digest
        return arrays if self.begins is None else arrays | {"begins": self.begins[start:stop]}

    def text_positions(self, start: int, stop: int) -> Arrays:
        """Of each direction, int32 [n, T]: where in the block's text the predictions of `take(start, stop)` stand."""
        return {
            "forward": self.forward.text_positions[start:stop],
            "backward": self.backward.text_positions[start:stop],
        }


class ElmoExampleMaker:
    """Cuts a block into windows of `unroll_length` positions for `rows` rows of text.

    As Peters et al. train it, a sentence of n words has n + 1 positions: the forward model reads `<S> w1 … wn` and
    predicts `w1 … wn </S>`; the backward model reads `</S> wn … w1` and predicts `wn … w1 <S>`.

    A row is continuous text, of which each window starts from zero state with `reset_probability`, unless it is padded;
    or, with `reset`, a new window begins with every sentence, from zero state.
    """

    def __init__(
        self,
        model: ElmoConfig,
        objective: ElmoObjectiveConfig,
        tokenizer: WordTokenizer,
        rows: int,
        *,
        reset: bool = False,
    ) -> None:
        self._unroll_length = objective.unroll_length
        self._max_characters = model.max_characters
        self._widest_filter = max(width for width, _ in model.filters)
        self._independent = objective.backward_text == "independent"
        self._reset_probability = objective.reset_probability
        self._tokenizer = tokenizer
        self._rows = rows
        self._reset = reset

    def make(self, block: Block, rng: np.random.Generator, *, pad: bool = False) -> ElmoExamples:
        """Windows in the order (window 0, every row), (window 1, every row) …

        Each row has a contiguous piece of the block, which the backward model reads from its end. With `backward_text:
        same` it is the same piece for both directions; with `independent`, the backward model's are cut from the
        documents in an order drawn from `rng`. Without `pad`, what fills no window of every row is left out; with it,
        directions always have the same pieces, no row starts anew, and nothing is drawn.
        """
        assert block.words is not None
        distinct = len(block.words)  # whose row in the character table is <S>'s; </S>'s follows
        ids = self._tokenizer.ids(block.words)[block.tokens]
        starts, stops = block.sentence_starts[:-1], block.sentence_starts[1:]
        begins = None
        if self._reset:
            forward, backward, begins = self._sentences(stops - starts + 1)
        else:
            forward, backward = self._pieces(len(ids) + len(starts), pad=pad)
            if self._independent and not pad:
                backward = _shuffle_documents(block, rng)[backward]
            if self._reset_probability and not pad:  # the last draw: without it, examples are what they were
                begins = (rng.random(len(forward)) < self._reset_probability).astype(np.int8)
        return ElmoExamples(
            characters=character_ids((*block.words, SENTENCE_BEGIN, SENTENCE_END), self._max_characters),
            forward=_Direction(
                inputs=np.append(np.insert(block.tokens, starts, distinct), distinct).astype(np.int32),
                labels=np.append(np.insert(ids, stops, self._tokenizer.sentence_end), IGNORE_INDEX).astype(np.int32),
                text_positions=forward,
            ),
            backward=_Direction(
                inputs=np.append(np.insert(block.tokens, stops, distinct + 1), distinct + 1).astype(np.int32),
                labels=np.append(np.insert(ids, starts, self._tokenizer.sentence_begin), IGNORE_INDEX).astype(np.int32),
                text_positions=backward,
            ),
            begins=begins,
        )

    def _pieces(self, length: int, *, pad: bool) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Text positions [n, T] of each direction: a text of `length` of them in `rows` equal pieces."""
        piece = -(-length // self._rows) if pad else length // self._rows
        windows = -(-piece // self._unroll_length) if pad else piece // self._unroll_length
        starts = np.minimum(np.arange(self._rows)[:, None] * piece, length)
        stops = np.minimum(starts + piece, length)
        steps = np.arange(windows * self._unroll_length)
        real = steps < stops - starts
        orders = np.where(real, starts + steps, NOWHERE), np.where(real, stops - 1 - steps, NOWHERE)
        shape = self._rows, windows, self._unroll_length
        cut = [order.reshape(shape).swapaxes(0, 1).reshape(-1, self._unroll_length) for order in orders]
        return cut[0].astype(np.int32), cut[1].astype(np.int32)

    def _sentences(self, lengths: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int8]]:
        """Text positions [n, T] of each direction, and where a row begins anew [n]; sentences have `lengths` of them.

        Rows take the sentences in order, about equally many windows each; all windows of a sentence are one row's.
        """
        unroll = self._unroll_length
        needed = -(-lengths // unroll)
        first = np.cumsum(needed) - needed  # windows before each sentence
        row = first * self._rows // max(1, needed.sum())
        first_of_row = first[np.searchsorted(row, row)]
        sentence = np.repeat(np.arange(len(lengths)), needed)
        number = np.arange(needed.sum()) - first[sentence]  # of a window within its sentence
        window = first[sentence] - first_of_row[sentence] + number
        shape = (int(window.max(initial=-1)) + 1, self._rows)
        stops = np.cumsum(lengths)[sentence, None]
        starts = stops - lengths[sentence, None]
        steps = number[:, None] * unroll + np.arange(unroll)
        real = steps < stops - starts
        forward, backward = np.full((2, *shape, unroll), NOWHERE, np.int32)
        forward[window, row[sentence]] = np.where(real, starts + steps, NOWHERE)
        backward[window, row[sentence]] = np.where(real, stops - 1 - steps, NOWHERE)
        begins = np.zeros(shape, np.int8)
        begins[window, row[sentence]] = number == 0
        return forward.reshape(-1, unroll), backward.reshape(-1, unroll), begins.reshape(-1)

    def unknown(self, block: Block) -> NDArray[np.bool_]:
        """[tokens]: whether the vocabulary lacks the word, so that its prediction is that of `<UNK>`."""
        assert block.words is not None
        missing: NDArray[np.bool_] = self._tokenizer.ids(block.words) == self._tokenizer.ids([UNKNOWN])
        return missing[block.tokens]

    def counts(self, examples: Arrays) -> dict[str, int]:
        """Predictions of each direction; `tokens` are positions of text, which both directions read."""
        forward = int((examples["forward_targets"] != IGNORE_INDEX).sum())
        backward = int((examples["backward_targets"] != IGNORE_INDEX).sum())
        return {"forward": forward, "backward": backward, "tokens": forward}

    def collate(self, examples: Arrays) -> Batch:
        """Spells each distinct word of the batch once, for both directions.

        `characters` is int64 [distinct words, characters], trimmed without loss; `forward_index` and `backward_index`
        are its rows, int64 [n, T]; `forward_labels` and `backward_labels` are vocabulary ids, int64 [n, T]; `begins`,
        where there is one, is int64 [n].
        """
        spelled = np.stack([examples["forward_characters"], examples["backward_characters"]])
        rows = np.ascontiguousarray(spelled, np.int16).reshape(-1, spelled.shape[-1])
        distinct, index = np.unique(rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))), return_inverse=True)
        characters = trim_characters(distinct.view(np.int16).reshape(-1, rows.shape[1]), self._widest_filter)
        forward, backward = index.reshape(spelled.shape[:-1])
        arrays = {"characters": characters, "forward_index": forward, "backward_index": backward}
        arrays |= {f"{name}_labels": examples[f"{name}_targets"] for name in ("forward", "backward")}
        arrays |= {"begins": examples["begins"]} if "begins" in examples else {}
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}


def _shuffle_documents(block: Block, rng: np.random.Generator) -> NDArray[np.int32]:
    """[M]: the text positions of a block, its documents in an order drawn from `rng`."""
    bounds = block.sentence_starts[block.document_starts] + block.document_starts
    order = rng.permutation(len(bounds) - 1)
    lengths = np.diff(bounds)[order]
    shift = bounds[:-1][order] - (np.cumsum(lengths) - lengths)
    text_positions: NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(shift, lengths)
    return text_positions.astype(np.int32)


def build_examples(
    model: ElmoConfig, objective: ElmoObjectiveConfig, tokenizer: Tokenizer, rows: int
) -> ElmoExampleMaker:
    """The example maker for `rows` rows of continuous text."""
    return build_sentences(model, objective, tokenizer, rows, reset=False)


def build_sentences(
    model: ElmoConfig, objective: ElmoObjectiveConfig, tokenizer: Tokenizer, rows: int, *, reset: bool
) -> ElmoExampleMaker:
    """As `build_examples`; with `reset`, every sentence of a row starts from zero state."""
    return ElmoExampleMaker(model, objective, cast(WordTokenizer, tokenizer), rows, reset=reset)
