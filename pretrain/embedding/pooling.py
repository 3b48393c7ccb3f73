"""Pieces to words, and pieces to one vector of the whole text."""

import numpy as np
from numpy.typing import NDArray

from pretrain.models.family import Pieces

Vectors = NDArray[np.float32]


def pool_words(vectors: Vectors, word_of: NDArray[np.int64], num_words: int) -> Vectors:
    """The mean of each word's pieces: [..., pieces, width] -> [..., words, width].

    `word_of` [pieces] is the word of each piece, in ascending order; pieces with -1 belong to none. A word without a
    piece gets zeros.
    """
    real = word_of >= 0
    words, starts, counts = np.unique(word_of[real], return_index=True, return_counts=True)
    pooled = np.zeros((*vectors.shape[:-2], num_words, vectors.shape[-1]), np.float32)
    if len(words):  # reduceat gives something even for nothing
        pooled[..., words, :] = np.add.reduceat(vectors[..., real, :], starts, axis=-2) / counts[:, None]
    return pooled


def pool_sentence(vectors: Vectors, word_of: NDArray[np.int64]) -> Vectors:
    """The mean of the pieces that belong to words: [..., pieces, width] -> [..., width]; zeros where there is none.

    Special tokens are left out, so that the vector does not depend on how many of them a family adds. This is for
    models that do not say otherwise (`SentenceModules`).
    """
    real = vectors[..., word_of >= 0, :]
    total: Vectors = real.sum(axis=-2)
    return total / np.float32(max(1, real.shape[-2]))


def count_words_without_piece(pieces: Pieces) -> int:
    """Words that no piece belongs to (a control character, for instance), whose vectors are zeros."""
    return len(pieces.words) - len(np.unique(pieces.word_of[pieces.word_of >= 0]))
