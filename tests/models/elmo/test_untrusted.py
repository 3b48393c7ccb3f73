"""Model folders from anyone: nothing outside them is read, and no more memory is taken than they fill."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.errors import ExportError
from pretrain.models.elmo import FAMILY
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.tokens import WordTokenizer
from pretrain.models.family import ModelFolder

BIAS = "CNN/b_cnn_0"
HUGE = 300_000


@pytest.fixture
def folder(tmp_path: Path, config: ElmoConfig, tokenizer: WordTokenizer) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model"
    FAMILY.format.write(
        path, ModelFolder(ElmoModel(config, tokenizer.vocabulary_size), tokenizer, config, ElmoObjectiveConfig())
    )
    return path


def replace(folder: Path, put: Callable[[h5py.File, Path], None], name: str = BIAS) -> None:
    """Puts something else in a dataset's place; `secret` is a file outside the folder."""
    secret = folder.parent / "secret"
    secret.write_bytes(np.arange(1000, dtype=np.float32).tobytes())
    with h5py.File(folder.parent / "secret.hdf5", "w") as other:
        other["x"] = np.arange(4, dtype=np.float32)
    with h5py.File(folder / "weights.hdf5", "r+") as file:
        del file[name]
        put(file, secret)


def external(file: h5py.File, secret: Path) -> None:
    file.create_dataset(BIAS, (4,), np.float32, external=[(str(secret), 0, 16)])


def external_link(file: h5py.File, secret: Path) -> None:
    file[BIAS] = h5py.ExternalLink(f"{secret}.hdf5", "x")


def external_group(file: h5py.File, secret: Path) -> None:
    """The whole group lies elsewhere."""
    with h5py.File(f"{secret}.hdf5", "r+") as other:
        file.copy("CNN", other)
        other["CNN/b_cnn_0"] = np.arange(4, dtype=np.float32)
    del file["CNN"]
    file["CNN"] = h5py.ExternalLink(f"{secret}.hdf5", "CNN")


def soft_link(file: h5py.File, secret: Path) -> None:
    file["elsewhere"] = np.arange(4, dtype=np.float32)
    file[BIAS] = h5py.SoftLink("/elsewhere")


def virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource(f"{secret}.hdf5", "x", (4,))
    file.create_virtual_dataset(BIAS, layout)


def unstored(file: h5py.File, secret: Path) -> None:
    file.create_dataset(BIAS, (4,), np.float32)


def text(file: h5py.File, secret: Path) -> None:
    file[BIAS] = np.array([b"abcd"] * 4)


def numbers(file: h5py.File, secret: Path) -> None:
    file[BIAS] = np.arange(4)


def nothing(file: h5py.File, secret: Path) -> None:
    file[BIAS] = h5py.Empty("f")


def group(file: h5py.File, secret: Path) -> None:
    file.create_group(BIAS)


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (external, "CNN/b_cnn_0 lies in other files"),
        (virtual, "CNN/b_cnn_0 lies in other files"),
        (external_link, r"CNN/b_cnn_0 is reached by a link \(external: b_cnn_0\), which is not followed"),
        (external_group, r"reached by a link \(external: CNN\), which is not followed"),
        (soft_link, r"CNN/b_cnn_0 is reached by a link \(soft: b_cnn_0\), which is not followed"),
        (unstored, r"CNN/b_cnn_0 is \(4,\), more values than are stored of it"),
        (text, r"CNN/b_cnn_0 holds no floating-point numbers \(\|S4\)"),
        (numbers, r"CNN/b_cnn_0 holds no floating-point numbers \(int64\)"),
        (nothing, r"CNN/b_cnn_0 holds no floating-point numbers"),
        (group, "has no dataset CNN/b_cnn_0"),
    ],
)
def test_datasets_that_are_not_plain(put: Callable[[h5py.File, Path], None], message: str, folder: Path) -> None:
    replace(folder, put)
    with pytest.raises(ExportError, match=message) as raised:
        FAMILY.format.read(folder)
    assert "\n" not in str(raised.value) and str(folder / "weights.hdf5") in str(raised.value)


def test_a_softmax_that_lies_elsewhere(folder: Path) -> None:
    """Looking whether there is one must not open the file that a link names."""
    (folder / "softmax_weights.hdf5").unlink()
    with h5py.File(folder / "weights.hdf5", "r+") as file:
        file["softmax"] = h5py.ExternalLink("/nothing/there.hdf5", "softmax")
    with pytest.raises(ExportError, match=r"softmax/W is reached by a link \(external: softmax\)"):
        FAMILY.format.read(folder)


def test_token_embeddings_that_lie_elsewhere(folder: Path) -> None:
    with h5py.File(folder / "token_embeddings.hdf5", "w") as file:
        file["embedding"] = h5py.SoftLink("/x")
    with pytest.raises(ExportError, match=r"embedding is reached by a link \(soft: embedding\)"):
        FAMILY.format.read(folder)


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"chunks": True}, {"dtype": np.float16}])
def test_plain_datasets_of_other_writers(options: dict[str, Any], folder: Path) -> None:
    """Compressed, chunked or of another precision: the values are all there."""
    values = np.zeros(4, np.float32)
    replace(folder, lambda file, secret: file.create_dataset(BIAS, data=values, **options) and None)
    read = FAMILY.format.read(folder)
    assert not read.model.encoder.token_encoder.convolutions[0].bias.any()


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "options.json"
    options = json.loads(path.read_text())
    path.write_text(json.dumps(change(options) or options))


def sized(folder: Path) -> None:
    """Options and a file that agree on 335 GiB, of which nothing is stored."""
    edit(folder, lambda options: options["lstm"].update(dim=HUGE, projection_dim=HUGE // 4))
    with h5py.File(folder / "weights.hdf5", "r+") as file:
        for direction, layer in ((0, 0), (0, 1), (1, 0), (1, 1)):
            cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            del file[cell]
            file.create_dataset(f"{cell}/W_0", (HUGE // 2, 4 * HUGE), np.float32)
            file.create_dataset(f"{cell}/B", (4 * HUGE,), np.float32)
            file.create_dataset(f"{cell}/W_P_0", (HUGE, HUGE // 4), np.float32)
        width = file["CNN_proj/W_proj"].shape[0]
        del file["CNN_proj"]
        file["CNN_proj/W_proj"] = np.zeros((width, HUGE // 4), np.float32)
        file["CNN_proj/b_proj"] = np.zeros(HUGE // 4, np.float32)
    (folder / "softmax_weights.hdf5").unlink()


def softmax(folder: Path) -> None:
    with h5py.File(folder / "softmax_weights.hdf5", "w") as file:
        file.create_dataset("softmax/W", (10**10, 4), np.float32)
        file.create_dataset("softmax/b", (10**10,), np.float32)
    (folder / "vocabulary.txt").unlink()


def compressed(folder: Path) -> None:
    with h5py.File(folder / "softmax_weights.hdf5", "w") as file:
        file.create_dataset("softmax/W", (10**10, 4), np.float32, compression="gzip", chunks=(10**6, 4))
        file.create_dataset("softmax/b", (10**10,), np.float32)
    (folder / "vocabulary.txt").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sized, r"W_0 is \(150000, 1200000\), more values than are stored of it"),
        (softmax, r"softmax/W is \(10000000000, 4\), more values than are stored"),
        (compressed, r"softmax/W is \(10000000000, 4\), more values than are stored"),
        (
            lambda folder: edit(folder, lambda o: o["lstm"].update(dim=10**15)),
            r"the options ask for \(8, 4000000000000000\)",
        ),
        (
            lambda folder: edit(folder, lambda o: o["lstm"].update(n_layers=10**12)),
            "has no dataset RNN_0/RNN/MultiRNNCell/Cell2",
        ),
        (
            lambda folder: edit(folder, lambda o: o["char_cnn"].update(n_highway=10**12)),
            "has no dataset CNN_high_2/W_transform",
        ),
        (
            lambda folder: edit(folder, lambda o: o["char_cnn"].update(max_characters_per_token=10**12)),
            "max_characters_per_token is 1000000000000, more than 4096",
        ),
    ],
)
def test_sizes_are_believed_as_far_as_they_are_stored(
    change: Callable[[Path], None], message: str, folder: Path
) -> None:
    change(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ExportError, match=message) as raised:
        FAMILY.format.read(folder)
    assert "\n" not in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.update(lstm=[]), "lacks lstm.n_layers, lstm.dim, lstm.projection_dim"),
        (lambda o: o.update(char_cnn="relu"), "lacks char_cnn.embedding.dim"),
        (lambda o: o["lstm"].update(dim="wide"), "cell_size: .*'wide'"),
        (lambda o: o["lstm"].update(dim={}), "cell_size: "),
        (lambda o: o["lstm"].update(cell_clip=[3]), "cell_clip: "),
        (lambda o: o["lstm"].update(use_skip_connections="perhaps"), "skip_connections: "),
        (lambda o: o["char_cnn"].update(filters=7), "filters: "),
        (lambda o: o["char_cnn"].update(filters=[[1]]), "filters.0"),
        (lambda o: o["char_cnn"].update(n_characters=[]), r"n_characters is \[\], not 261"),
        (lambda o: o.update(tokenizer=[]), "tokenizer"),
        (lambda o: o.update(tokenizer={"words": 3}), r"tokenizer\.word_split"),
        (lambda o: o.update(language=3), "language is 3, not a language's code"),
        (lambda o: [o], "options.json holds no JSON object"),
    ],
)
def test_options_of_wrong_types(change: Callable[[dict[str, Any]], Any], message: str, folder: Path) -> None:
    edit(folder, change)
    with pytest.raises(ExportError, match=message) as raised:
        FAMILY.format.read(folder)
    assert "\n" not in str(raised.value) and "options.json" in str(raised.value)


@pytest.mark.parametrize("key", ["words", "word_split"])
def test_both_names_of_the_rule_for_words(key: str, folder: Path) -> None:
    """That of the files, and that of the config."""
    edit(folder, lambda options: options.update(tokenizer={key: "unicode", "lowercase": True}))
    tokenizer = FAMILY.format.read(folder).tokenizer
    assert isinstance(tokenizer, WordTokenizer) and (tokenizer.words, tokenizer.lowercase) == ("unicode", True)


def test_options_nested_too_deeply(folder: Path) -> None:
    (folder / "options.json").write_text("[" * 100_000)
    with pytest.raises(ExportError, match=r"options.json is not JSON"):
        FAMILY.format.read(folder)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0f1e\nsize 440473133\n"


@pytest.mark.parametrize("name", ["weights.hdf5", "softmax_weights.hdf5", "vocabulary.txt", "options.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(POINTER, "is a Git LFS pointer"), (b"<!DOCTYPE html><html>Not found", "is an HTML page"), (b"", "is empty")],
)
def test_files_that_were_not_downloaded(name: str, content: bytes, message: str, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ExportError, match=f"{name} {message}"):
        FAMILY.format.read(folder)


def test_a_tensorflow_checkpoint(folder: Path) -> None:
    (folder / "weights.hdf5").unlink()
    for name in ("model.ckpt-935588.index", "model.ckpt-935588.data-00000-of-00001", "model.ckpt-935588.meta"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(ExportError, match=r"TensorFlow checkpoint \(model.ckpt-935588.index\).*to a \*weights.hdf5"):
        FAMILY.format.read(folder)


def test_the_language_is_written_and_read(
    folder: Path, config: ElmoConfig, tokenizer: WordTokenizer, tmp_path: Path
) -> None:
    assert FAMILY.format.read(folder).language is None
    assert "language" not in json.loads((folder / "options.json").read_text())
    made = ModelFolder(ElmoModel(config, None), tokenizer, config, ElmoObjectiveConfig(), language="is")
    FAMILY.format.write(tmp_path / "icelandic", made)
    assert json.loads((tmp_path / "icelandic/options.json").read_text())["language"] == "is"
    assert FAMILY.format.read(tmp_path / "icelandic").language == "is"
