"""A block of text: the unit of shuffling, of next-sentence negatives, of packing and of resuming."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor  # preparing text needs no torch

Arrays = Mapping[str, NDArray[np.integer]]
"""Examples as a few large arrays, each with one row per example."""


@dataclass(frozen=True)
class Block:
    """Documents, or parts of documents, as sentences of tokens.

    `tokens` is int32 [tokens]: vocabulary ids, or, when `words` is given, indexes into `words`, the block's
    distinct words. Sentence s is `tokens[sentence_starts[s]:sentence_starts[s + 1]]`; document d holds the sentences
    `document_starts[d]` to `document_starts[d + 1]`. Parts of one document share its number.
    """

    tokens: NDArray[np.int32]
    sentence_starts: NDArray[np.int64]
    document_starts: NDArray[np.int64]
    document_numbers: NDArray[np.int64]
    words: tuple[str, ...] | None = None


class Examples(Protocol):
    """The examples of one block, in the order in which they are used; possibly none."""

    def __len__(self) -> int:
        """Number of examples."""

    def take(self, start: int, stop: int) -> Arrays:
        """Examples `start` to `stop` as arrays, one row each."""


class ExampleMaker(Protocol):
    """Turns blocks into examples and examples into batches; pure functions of their arguments."""

    def make(self, block: Block, rng: np.random.Generator, *, pad: bool = False) -> Examples:
        """The examples of a block; `pad` (held-out text) keeps what does not fill the last ones, without a loss."""

    def counts(self, examples: Arrays) -> dict[str, int]:
        """Predictions per loss term, and `tokens`: the real (unpadded) tokens.

        There may also be `token_slots`: tokens and padding, and `<term>.<kind>`: how many of a term's predictions are
        of a kind. Their ratios are logged. And `sequences`, and what else the config's `flops_per_token` asks for.
        """

    def collate(self, examples: Arrays) -> "Mapping[str, Tensor]":
        """A micro-batch: integer tensors by name."""
