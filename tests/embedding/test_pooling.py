"""Pooling against means made by hand."""

import numpy as np
import pytest

from pretrain.embedding.pooling import count_words_without_piece, pool_sentence, pool_words
from pretrain.models.family import Pieces

# [CLS] un ##believ ##able , [SEP] with a word 2 of which nothing is left
WORD_OF = np.array([-1, 0, 0, 0, 1, 3, -1])
VECTORS = np.array([[100, 100], [1, 2], [2, 4], [6, 0], [5, 7], [8, 9], [100, 100]], np.float32)
WORDS = np.array([[3, 2], [5, 7], [0, 0], [8, 9]], np.float32)


def test_words_are_means_of_their_pieces() -> None:
    pooled = pool_words(VECTORS, WORD_OF, 4)
    assert pooled.dtype == np.float32
    assert np.array_equal(pooled, WORDS)


def test_layers_are_pooled_alike() -> None:
    pooled = pool_words(np.stack([VECTORS, -VECTORS]), WORD_OF, 4)
    assert np.array_equal(pooled, np.stack([WORDS, -WORDS]))
    assert np.array_equal(pool_sentence(np.stack([VECTORS, -VECTORS]), WORD_OF)[1], -VECTORS[1:6].mean(axis=0))


def test_a_sentence_is_the_mean_of_the_words_pieces() -> None:
    pooled = pool_sentence(VECTORS, WORD_OF)
    assert pooled.dtype == np.float32
    assert np.allclose(pooled, VECTORS[1:6].mean(axis=0))


@pytest.mark.parametrize("word_of", [np.array([], np.int64), np.array([-1, -1])])
def test_nothing_to_pool(word_of: np.ndarray) -> None:
    vectors = np.ones((3, len(word_of), 2), np.float32)
    assert pool_words(vectors, word_of, 0).shape == (3, 0, 2)
    assert np.array_equal(pool_words(vectors, word_of, 1), np.zeros((3, 1, 2)))
    assert np.array_equal(pool_sentence(vectors, word_of), np.zeros((3, 2)))


def test_words_without_piece_are_counted() -> None:
    assert count_words_without_piece(Pieces([0] * 7, WORD_OF, ["unbelievable", ",", "\x00", "no"])) == 1
    assert count_words_without_piece(Pieces([0, 0], np.array([-1, -1]), [])) == 0
