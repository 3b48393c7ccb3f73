"""Windows of continuous text for the two language models.

Shapes: n examples, T unroll_length, C max_characters, M positions of a block.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.config.models import ElmoConfig
from pretrain.data.blocks import Arrays, Block, Examples
from pretrain.models.elmo.tokens import SENTENCE_BEGIN, SENTENCE_END, WordTokenizer, character_ids, trim_characters
from pretrain.models.family import Batch

IGNORED = -100
"""Target of a position without loss."""


@dataclass(frozen=True)
class _Stream:
    """What one direction reads and predicts, int32 [n, T]: rows of the character table, and vocabulary ids."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]


@dataclass(frozen=True)
class ElmoExamples:
    """The windows of one block; words are spelled out only when taken."""

    characters: NDArray[np.int16]
    """[distinct words + 2, C]: the block's words, then `<S>` and `</S>`."""
    forward: _Stream
    backward: _Stream

    def __len__(self) -> int:
        return len(self.forward.inputs)

    def take(self, start: int, stop: int) -> Arrays:
        """Characters int16 [n, T, C] and targets int32 [n, T] of each direction."""
        return {
            "forward_characters": self.characters[self.forward.inputs[start:stop]],
            "forward_targets": self.forward.targets[start:stop],
            "backward_characters": self.characters[self.backward.inputs[start:stop]],
            "backward_targets": self.backward.targets[start:stop],
        }


class ElmoExampleMaker:
    """Cuts a block into windows of `unroll_length` positions for `rows` rows of continuous text.

    As Peters et al. train it, a sentence of n words has n + 1 positions: the forward model reads `<S> w1 … wn` and
    predicts `w1 … wn </S>`; the backward model reads `</S> wn … w1` and predicts `wn … w1 <S>`.
    """

    def __init__(self, config: ElmoConfig, tokenizer: WordTokenizer, rows: int) -> None:
        self._unroll_length = config.unroll_length
        self._max_characters = config.max_characters
        self._widest_filter = max(width for width, _ in config.filters)
        self._tokenizer = tokenizer
        self._rows = rows

    def make(self, block: Block, rng: np.random.Generator, *, pad: bool = False) -> Examples:
        """Windows in the order (window 0, every row), (window 1, every row) …; nothing is drawn from `rng`.

        Each row has a contiguous piece of the block, the same one for both directions, which the backward model reads
        from its end. Without `pad`, what fills no window of every row is left out.
        """
        assert block.words is not None
        distinct = len(block.words)
        ids = self._tokenizer.ids(block.words)[block.tokens].astype(np.int32)
        starts, stops = block.sentence_starts[:-1], block.sentence_starts[1:]
        # The backward model reads the text "w1 … wn </S>" of all sentences from its end.
        forward = np.insert(block.tokens, starts, distinct), np.insert(ids, stops, self._tokenizer.sentence_end)
        backward = np.insert(block.tokens, stops, distinct + 1), np.insert(ids, starts, self._tokenizer.sentence_begin)
        bounds = self._bounds(len(forward[0]), pad=pad)
        length = len(forward[0])
        return ElmoExamples(
            characters=character_ids((*block.words, SENTENCE_BEGIN, SENTENCE_END), self._max_characters),
            forward=self._windows(*forward, bounds, padding=distinct, pad=pad),
            backward=self._windows(
                backward[0][::-1], backward[1][::-1], length - bounds[:, ::-1], padding=distinct + 1, pad=pad
            ),
        )

    def _bounds(self, length: int, *, pad: bool) -> NDArray[np.int64]:
        """[rows, 2]: where in the text each row's piece starts and stops."""
        piece = -(-length // self._rows) if pad else length // self._rows
        starts = np.arange(self._rows) * piece
        return np.minimum(np.stack([starts, starts + piece], axis=1), length)

    def _windows(
        self,
        inputs: NDArray[np.int32],
        targets: NDArray[np.int32],
        bounds: NDArray[np.int64],
        *,
        padding: int,
        pad: bool,
    ) -> _Stream:
        """Cuts [M] into windows [windows * rows, T]; what lies behind a row's piece has no loss."""
        unroll = self._unroll_length
        piece = int((bounds[:, 1] - bounds[:, 0]).max())
        windows = -(-piece // unroll) if pad else piece // unroll
        positions = bounds[:, :1] + np.arange(windows * unroll)  # [rows, windows * T]
        real = positions < bounds[:, 1:]
        positions = np.where(real, positions, 0)
        rows = np.where(real, inputs[positions], padding), np.where(real, targets[positions], IGNORED)
        shape = self._rows, windows, unroll
        cut = [row.reshape(shape).swapaxes(0, 1).reshape(-1, unroll).astype(np.int32) for row in rows]
        return _Stream(*cut)

    def counts(self, examples: Arrays) -> dict[str, int]:
        """Predictions of each direction; `tokens` are positions of text, which both directions read."""
        forward = int((examples["forward_targets"] != IGNORED).sum())
        backward = int((examples["backward_targets"] != IGNORED).sum())
        return {"forward": forward, "backward": backward, "tokens": forward}

    def collate(self, examples: Arrays) -> Batch:
        """Spells each distinct word of the batch once, for both directions.

        `characters` is int64 [distinct words, characters], trimmed without loss; `forward_index` and `backward_index`
        are its rows, int64 [n, T]; `forward_targets` and `backward_targets` are vocabulary ids, int64 [n, T].
        """
        spelled = np.stack([examples["forward_characters"], examples["backward_characters"]])
        rows = np.ascontiguousarray(spelled, np.int16).reshape(-1, spelled.shape[-1])
        distinct, index = np.unique(rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))), return_inverse=True)
        characters = trim_characters(distinct.view(np.int16).reshape(-1, rows.shape[1]), self._widest_filter)
        forward, backward = index.reshape(spelled.shape[:-1])
        arrays = {
            "characters": characters,
            "forward_index": forward,
            "backward_index": backward,
            "forward_targets": examples["forward_targets"],
            "backward_targets": examples["backward_targets"],
        }
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}
