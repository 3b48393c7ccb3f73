"""The published formats in their breadth: what exists is read, what is written is what published readers ask for."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from pretrain.models.elmo.tokens import WordTokenizer
from pretrain.models.family import ModelFolder

Shapes = dict[str, tuple[int, ...]]


def write(folder: Path, config: ElmoConfig, tokenizer: WordTokenizer) -> ElmoModel:
    """A random model of the config, written."""
    torch.manual_seed(3)
    model = ElmoModel(config, tokenizer.vocabulary_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    FAMILY.format.write(folder, ModelFolder(model, tokenizer, config, ElmoObjectiveConfig()))
    return model


def datasets(path: Path) -> dict[str, h5py.Dataset]:
    """The datasets of a file that stays open, by name."""
    found = {}
    h5py.File(path).visititems(lambda name, item: found.update({name: item} if isinstance(item, h5py.Dataset) else {}))
    return found


def variables_of_the_original(options: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The variables of the original's graph and their shapes, made from options alone as its reader makes them."""
    characters, lstm = options["char_cnn"], options["lstm"]
    size, filters = characters["embedding"]["dim"], characters["filters"]
    width, projection, cell = sum(n for _, n in filters), lstm["projection_dim"], lstm["dim"]
    yield "char_embed", (characters["n_characters"], size)
    for i, (w, n) in enumerate(filters):
        yield f"CNN/W_cnn_{i}", (1, w, size, n)
        yield f"CNN/b_cnn_{i}", (n,)
    for i, kind in itertools.product(range(characters.get("n_highway") or 0), ("carry", "transform")):
        yield f"CNN_high_{i}/W_{kind}", (width, width)
        yield f"CNN_high_{i}/b_{kind}", (width,)
    if width != projection:
        yield "CNN_proj/W_proj", (width, projection)
        yield "CNN_proj/b_proj", (projection,)
    for direction, layer in itertools.product(range(2), range(lstm["n_layers"])):
        scope = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/rnn/lstm_cell"
        yield f"{scope}/kernel", (2 * projection, 4 * cell)
        yield f"{scope}/bias", (4 * cell,)
        if cell != projection:
            yield f"{scope}/projection/kernel", (cell, projection)


def name_in_file(variable: str) -> str:
    """Where the original's reader looks for a variable."""
    for theirs, stored in (("projection/kernel", "W_P_0"), ("kernel", "W_0"), ("bias", "B")):
        if variable.endswith(f"/rnn/lstm_cell/{theirs}"):
            return variable.replace(f"/rnn/lstm_cell/{theirs}", f"/LSTMCell/{stored}")
    return variable


def load_as_the_original(folder: Path) -> dict[str, NDArray[Any]]:
    """All variables, of the shapes that the original's graph has."""
    options = json.loads((folder / "options.json").read_text())
    held = datasets(folder / "weights.hdf5")
    loaded = {}
    for variable, shape in variables_of_the_original(options):
        array = held.pop(name_in_file(variable))[...]
        if variable == "char_embed":
            array = np.concatenate([np.zeros((1, array.shape[1]), array.dtype), array])
        assert (array.shape, array.dtype) == (shape, np.float32), variable
        loaded[variable] = array
    assert not held, "nothing else is written"
    return loaded


@pytest.mark.parametrize("num_highways", range(4))
@pytest.mark.parametrize("num_layers", range(1, 5))
def test_every_shape(
    num_layers: int, num_highways: int, config: ElmoConfig, tokenizer: WordTokenizer, tmp_path: Path
) -> None:
    """Read, written and read again bit for bit; and the original's reader finds every one of its variables."""
    for number, (skips, activation) in enumerate(itertools.product([True, False], ["relu", "tanh"])):
        changes = {"num_layers": num_layers, "num_highways": num_highways}
        changes |= {"skip_connections": skips, "activation": activation, "cell_clip": float(skips)}
        first, second = tmp_path / f"{number}-1", tmp_path / f"{number}-2"
        model = write(first, config.model_copy(update=changes), tokenizer)
        read = FAMILY.format.read(first)
        assert {key: getattr(read.config, key) for key in changes} == changes
        assert model.state_dict().keys() == read.model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.equal(value, read.model.state_dict()[name]), name
        FAMILY.format.write(second, read)
        for path in first.iterdir():
            assert path.read_bytes() == (second / path.name).read_bytes(), path.name
        loaded = load_as_the_original(first)
        assert len(loaded) == 1 + 2 * 3 + 4 * num_highways + 2 + 2 * 3 * num_layers
        assert not loaded["char_embed"][0].any()


def test_datasets_are_plain(config: ElmoConfig, tokenizer: WordTokenizer, tmp_path: Path) -> None:
    write(tmp_path, config, tokenizer)
    for name in ("weights.hdf5", "softmax_weights.hdf5"):
        found = datasets(tmp_path / name)
        for dataset in found.values():
            assert dataset.dtype == np.dtype("<f4") and not dataset.attrs
            assert dataset.chunks is None and dataset.compression is None and dataset.maxshape == dataset.shape
    assert {key: value.shape for key, value in found.items()} == {"softmax/W": (9, 4), "softmax/b": (9,)}


def change_options(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    options = json.loads((folder / "options.json").read_text())
    change(options)
    (folder / "options.json").write_text(json.dumps(options))


@pytest.mark.parametrize("absent", [0, 0.0, None, "no key"])
def test_no_clips(absent: object, config: ElmoConfig, tokenizer: WordTokenizer, tmp_path: Path) -> None:
    write(tmp_path, config, tokenizer)

    def change(options: dict[str, Any]) -> None:
        for key in ("cell_clip", "proj_clip"):
            options["lstm"][key] = absent
            if absent == "no key":
                del options["lstm"][key]

    change_options(tmp_path, change)
    read = FAMILY.format.read(tmp_path).config
    assert (read.cell_clip, read.projection_clip) == (0.0, 0.0)


def test_options_of_training(config: ElmoConfig, tokenizer: WordTokenizer, tmp_path: Path) -> None:
    """The original's trainer leaves its own keys in the file; TensorFlow checkpoints come with yet others."""
    write(tmp_path, config, tokenizer)
    expected = FAMILY.format.read(tmp_path).config

    def change(options: dict[str, Any]) -> None:
        more = {"bidirectional": True, "dropout": 0.5, "all_clip_norm_val": 10.0, "n_epochs": 10, "batch_size": 128}
        more |= {"n_train_tokens": 768648884, "n_tokens_vocab": 793471, "unroll_steps": 7, "learning_rate": 0.2}
        options |= more | {"n_negative_samples_batch": 8192, "sample_softmax": True}
        options["lstm"]["reverse"] = True
        options["char_cnn"] |= {"projection_after_highway": True, "n_characters": 261}

    change_options(tmp_path, change)
    assert FAMILY.format.read(tmp_path).config == expected


def rename(folder: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(folder / "weights.hdf5", "r+") as file:
        change(file)


def equal(first: ModelFolder, second: ModelFolder) -> bool:
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("n_characters", [261, 262, None])
def test_a_stored_row_for_padding(
    n_characters: int | None, config: ElmoConfig, tokenizer: WordTokenizer, tmp_path: Path
) -> None:
    """Written by who had read the file into a model for use, in which id 0 is padding; any other first row is data."""
    write(tmp_path, config, tokenizer)
    expected = FAMILY.format.read(tmp_path)

    def pad(file: h5py.File, value: float = 0.0) -> None:
        rows = file["char_embed"][...][-261:]
        del file["char_embed"]
        file["char_embed"] = np.concatenate([np.full((1, rows.shape[1]), value, np.float32), rows])

    rename(tmp_path, pad)
    change_options(tmp_path, lambda options: options["char_cnn"].update(n_characters=n_characters))
    assert equal(FAMILY.format.read(tmp_path), expected)
    rename(tmp_path, lambda file: pad(file, 0.5))
    with pytest.raises(ExportError, match=r"weights.hdf5: char_embed has 262 rows, of which the first is not 0"):
        FAMILY.format.read(tmp_path)


def test_the_only_layer_of_a_stack(config: ElmoConfig, tokenizer: WordTokenizer, tmp_path: Path) -> None:
    """As the original's trainer names it, which the original's reader cannot read; ours are named as that one asks."""
    write(tmp_path, config.model_copy(update={"num_layers": 1}), tokenizer)
    expected = FAMILY.format.read(tmp_path)

    def shorten(file: h5py.File) -> None:
        for direction in ("RNN_0/RNN", "RNN_1/RNN"):
            file.move(f"{direction}/MultiRNNCell/Cell0/LSTMCell", f"{direction}/LSTMCell")
            del file[f"{direction}/MultiRNNCell"]

    rename(tmp_path, shorten)
    assert equal(FAMILY.format.read(tmp_path), expected)
    FAMILY.format.write(tmp_path / "again", FAMILY.format.read(tmp_path))
    load_as_the_original(tmp_path / "again")


def test_a_softmax_among_the_weights(config: ElmoConfig, tokenizer: WordTokenizer, tmp_path: Path) -> None:
    """The original's writer leaves the softmax out; those who needed it changed a line of it."""
    write(tmp_path, config, tokenizer)
    expected = FAMILY.format.read(tmp_path)

    def add(file: h5py.File) -> None:
        with h5py.File(tmp_path / "softmax_weights.hdf5") as softmax:
            softmax.copy("softmax", file)

    rename(tmp_path, add)
    (tmp_path / "softmax_weights.hdf5").unlink()
    assert equal(FAMILY.format.read(tmp_path), expected)
