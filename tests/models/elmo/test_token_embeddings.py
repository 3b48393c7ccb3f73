"""The file of token embeddings: the published one is read, ours is the same, and neither disturbs a model folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.errors import ExportError
from pretrain.models.elmo import FAMILY
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.token_embeddings import write_token_embeddings
from pretrain.models.elmo.tokens import SPECIAL_WORDS, WordTokenizer
from pretrain.models.family import ModelFolder

SharedData = Callable[[str], Path]


@pytest.fixture
def folder(tmp_path: Path, config: ElmoConfig) -> Path:
    """A model and its token embeddings; more words than are embedded at once."""
    torch.manual_seed(0)
    tokenizer = WordTokenizer((*SPECIAL_WORDS, *(f"word{number}" for number in range(1200))))
    made = ModelFolder(ElmoModel(config, tokenizer.vocabulary_size), tokenizer, config, ElmoObjectiveConfig())
    FAMILY.format.write(tmp_path, made)
    write_token_embeddings(tmp_path, made)
    return tmp_path


def rows_of(path: Path) -> NDArray[np.float32]:
    with h5py.File(path) as file:
        rows: NDArray[np.float32] = file["embedding"][...]
        return rows


def test_the_published_file(shared_data: SharedData, tmp_path: Path) -> None:
    published = shared_data("elmo_fixtures/skip_and_clips")
    model = FAMILY.format.read(published)  # which holds the file
    assert model.tokenizer is not None
    expected = rows_of(published / "elmo_token_embeddings.hdf5")
    write_token_embeddings(tmp_path, model)
    ours = rows_of(tmp_path / "token_embeddings.hdf5")
    assert ours.shape == expected.shape == (model.tokenizer.vocabulary_size, 16)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_rows_are_layer_0(folder: Path) -> None:
    """Layer 0 of every word in the order of the vocabulary, `<S>` and `</S>` as the marks they are in a sentence."""
    model = FAMILY.format.read(folder)
    assert isinstance(model.tokenizer, WordTokenizer)
    words = model.tokenizer.vocabulary
    rows = rows_of(folder / "token_embeddings.hdf5")
    assert len(rows) == len(words)
    vectors, _ = FAMILY.encode(model.model.encoder, [model.tokenizer.pieces(words)])
    np.testing.assert_allclose(rows, vectors.layers[0][0, :, :4], rtol=1e-5, atol=1e-6)
    with h5py.File(folder / "token_embeddings.hdf5") as file:
        assert list(file) == ["embedding"] and not file["embedding"].attrs
        assert (file["embedding"].dtype, file["embedding"].chunks) == (np.dtype("<f4"), None)


def test_what_is_written_again_is_the_same(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    model = FAMILY.format.read(folder)
    FAMILY.format.write(again, model)
    write_token_embeddings(again, model)
    name = "token_embeddings.hdf5"
    assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_files_that_do_not_fit(folder: Path) -> None:
    path = folder / "token_embeddings.hdf5"
    with h5py.File(path, "r+") as file:
        rows = file["embedding"][...]
        del file["embedding"]
        file["embedding"] = rows[:-1]
    with pytest.raises(ExportError, match=r"embedding is \(1202, 4\), the model beside it asks for \(1203, 4\)"):
        FAMILY.format.read(folder)
    (folder / "vocabulary.txt").unlink()
    (folder / "softmax_weights.hdf5").unlink()
    FAMILY.format.read(folder)
    with h5py.File(path, "r+") as file:
        del file["embedding"]
        file["embedding"] = rows[:, 0]
    with pytest.raises(ExportError, match=r"embedding is \(1203,\), the model beside it asks for \(1203, 4\)"):
        FAMILY.format.read(folder)
    with h5py.File(path, "r+") as file:
        del file["embedding"]
    with pytest.raises(ExportError, match=r"token_embeddings.hdf5 has no dataset embedding"):
        FAMILY.format.read(folder)
    shutil.copy(path, folder / "elmo_token_embeddings.hdf5")
    with pytest.raises(ExportError, match=r"elmo_token_embeddings.hdf5 and token_embeddings.hdf5: leave one"):
        FAMILY.format.read(folder)
