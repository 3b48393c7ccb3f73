"""Vectors of a published ELMo: what AllenNLP and bilm-tf agree on (the fixture's README)."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pretrain.embedding.embedder import Embedder

Expected = list[list[np.ndarray]]


@pytest.fixture
def folder(shared_data: Callable[[str], Path]) -> Path:
    return shared_data("elmo_fixtures/skip_and_clips")


@pytest.fixture
def rows(folder: Path) -> list[list[str]]:
    """Three rows of ten sentences, words separated by spaces."""
    texts: list[list[str]] = json.loads((folder / "sentences.json").read_text(encoding="utf-8"))
    return texts


@pytest.fixture
def expected(folder: Path) -> Expected:
    """[row][sentence] -> top layer, (words, 32): forward and backward side by side."""
    vectors: Expected = []
    for row in range(3):
        with h5py.File(folder / f"lm_embeddings_{row}.hdf5") as file:
            vectors.append([np.concatenate(file[str(number)][:], axis=-1) for number in range(10)])
    return vectors


def agree(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [32, 2])
@pytest.mark.parametrize("split", [False, True])
def test_stateful(batch_size: int, split: bool, folder: Path, rows: list[list[str]], expected: Expected) -> None:
    embedder = Embedder.load(folder, device="cpu")
    compared = 0
    for number in range(10):
        texts = [row[number].split() if split else row[number] for row in rows]
        vectors = embedder.encode(texts, stateful=True, is_split_into_words=split, batch_size=batch_size)
        for ours, theirs in zip(vectors, expected, strict=True):
            assert agree(ours, theirs[number])
            compared += 1
    assert compared == 30


def test_stateless(folder: Path, rows: list[list[str]], expected: Expected) -> None:
    """Only the first sentence of each row was read from zero state."""
    embedder = Embedder.load(folder, device="cpu")
    for _ in range(2):
        first, second = (embedder.encode([row[number] for row in rows]) for number in range(2))
        assert all(agree(ours, theirs[0]) for ours, theirs in zip(first, expected, strict=True))
        assert not any(agree(ours, theirs[1]) for ours, theirs in zip(second, expected, strict=True))


def test_layer_0(folder: Path) -> None:
    words = (folder / "vocab_test.txt").read_text(encoding="utf-8").split("\n")
    with h5py.File(folder / "elmo_token_embeddings.hdf5") as file:
        expected = file["embedding"][:]
    assert len(words) == len(expected) == 458
    embedder = Embedder.load(folder, device="cpu")
    ours = embedder.encode(words, layers=0, is_split_into_words=True)
    assert isinstance(ours, np.ndarray)
    assert agree(ours, np.concatenate([expected, expected], axis=1))
