"""Model folders: what the field publishes is read, what is written is the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.errors import DataError, ExportError
from pretrain.models.elmo import FAMILY
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.tokens import WordTokenizer
from pretrain.models.family import ModelFolder

SharedData = Callable[[str], Path]


@pytest.fixture
def folder(tmp_path: Path, config: ElmoConfig, tokenizer: WordTokenizer) -> Path:
    """A small model, written."""
    torch.manual_seed(0)
    FAMILY.format.write(
        tmp_path / "model",
        ModelFolder(ElmoModel(config, tokenizer.vocabulary_size), tokenizer, config, ElmoObjectiveConfig()),
    )
    return tmp_path / "model"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 1, "num_highways": 0, "activation": "tanh"},
        {"cell_clip": 0.0, "projection_clip": 2.5, "skip_connections": False, "max_characters": 20, "cell_size": 9},
    ],
)
@pytest.mark.parametrize("softmax", [True, False])
def test_round_trip(
    tmp_path: Path, config: ElmoConfig, tokenizer: WordTokenizer, changes: dict[str, Any], softmax: bool
) -> None:
    config = config.model_copy(update=changes)
    model = ElmoModel(config, tokenizer.vocabulary_size if softmax else None)
    cutter = WordTokenizer(tokenizer.vocabulary, words="unicode", lowercase=True)
    FAMILY.format.write(tmp_path, ModelFolder(model, cutter, config, ElmoObjectiveConfig()))
    assert FAMILY.format.recognises(tmp_path)
    state = torch.get_rng_state()
    read = FAMILY.format.read(tmp_path)
    assert torch.equal(state, torch.get_rng_state()) and not read.model.training
    assert read.config == config.model_copy(update={"dropout": 0.1})
    ours, theirs = model.state_dict(), read.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert isinstance(read.tokenizer, WordTokenizer)
    assert (read.tokenizer.vocabulary, read.tokenizer.words) == (tokenizer.vocabulary, "unicode")
    assert read.tokenizer.lowercase
    assert isinstance(FAMILY.tokenizer.load(tmp_path), WordTokenizer)


def test_files_are_as_published(folder: Path, shared_data: SharedData, tmp_path: Path) -> None:
    """The same files, keys, datasets, shapes and types as the fixture's, for a model of its sizes."""
    published = shared_data("elmo_fixtures/skip_and_clips")
    ours = tmp_path / "ours"
    FAMILY.format.write(ours, FAMILY.format.read(published))
    assert sorted(path.name for path in ours.iterdir()) == ["options.json", "vocabulary.txt", "weights.hdf5"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "options.json", "softmax_weights.hdf5", "vocabulary.txt", "weights.hdf5",
    ]  # fmt: skip
    options = json.loads((ours / "options.json").read_text())
    assert options.pop("tokenizer") == {"words": "whitespace", "lowercase": False}
    assert options == json.loads((published / "options.json").read_text())
    with h5py.File(ours / "weights.hdf5") as written, h5py.File(published / "lm_weights.hdf5") as original:
        names: list[str] = []
        original.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        copied: list[str] = []
        written.visititems(lambda name, item: copied.append(name) if isinstance(item, h5py.Dataset) else None)
        assert names == copied and len(names) == 33
        for name in names:
            assert written[name].dtype == np.float32
            assert np.array_equal(written[name], original[name])


def test_what_the_original_trainer_writes(shared_data: SharedData) -> None:
    read = FAMILY.format.read(shared_data("elmo_fixtures/untrained_es"))
    assert (read.config.cell_size, read.config.projection_size, read.config.num_layers) == (64, 16, 2)
    assert (read.model.encoder.token_encoder.highways[0].carry.bias == -2).all()
    assert read.model.softmax is None
    assert read.tokenizer is not None and read.tokenizer.vocabulary_size == 3
    assert FAMILY.tokenizer.load(shared_data("elmo_fixtures/untrained_es")) is None


def test_softmax_file(shared_data: SharedData, tmp_path: Path) -> None:
    for name in ("options.json", "lm_weights.hdf5", "vocab_test.txt"):
        shutil.copy(shared_data("elmo_fixtures/skip_and_clips") / name, tmp_path)
    shutil.copy(shared_data("elmo_fixtures/softmax") / "elmo_softmax_weights.hdf5", tmp_path)
    read = FAMILY.format.read(tmp_path)
    with h5py.File(tmp_path / "elmo_softmax_weights.hdf5") as file:
        assert np.array_equal(read.model.softmax.weight.detach(), file["softmax/W"])
        assert np.array_equal(read.model.softmax.bias.detach(), file["softmax/b"])
    assert read.tokenizer is not None and read.tokenizer.sentence_end == 224


@pytest.mark.parametrize("n_characters", [261, 262, None])
def test_counts_of_characters(folder: Path, n_characters: int | None) -> None:
    edit(folder, "char_cnn", "n_characters", n_characters)
    FAMILY.format.read(folder)


def edit(folder: Path, section: str, key: str, value: object) -> None:
    """Sets a key of options.json; None removes it."""
    path = folder / "options.json"
    options = json.loads(path.read_text())
    options.setdefault(section, {})[key] = value
    if value is None:
        del options[section][key]
    path.write_text(json.dumps(options))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("char_cnn", "n_characters", 300, r"options.json: char_cnn.n_characters is 300, not 261"),
        ("char_cnn", "filters", None, r"options.json lacks char_cnn.filters: only models that read characters"),
        ("char_cnn", "activation", "selu", r"options.json: activation: .*'relu' or 'tanh', not 'selu'"),
        ("char_cnn", "n_highway", 3, r"weights.hdf5 has no dataset CNN_high_2/W_transform"),
        ("lstm", "dim", 8, r"weights.hdf5: RNN_0/.*/W_0 is \(8, 28\), the options ask for \(8, 32\)"),
        ("tokenizer", "words", "syllables", r"options.json: tokenizer.word_split: .*'syllables'"),
    ],
)
def test_options_that_do_not_fit(folder: Path, section: str, key: str, value: object, message: str) -> None:
    edit(folder, section, key, value)
    with pytest.raises(ExportError, match=message) as caught:
        FAMILY.format.read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("options.json", r"model holds no options \(\*options.json\)"),
        ("weights.hdf5", r"model holds no weights: there must be one \*weights.hdf5"),
    ],
)
def test_missing_files(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ExportError, match=message):
        FAMILY.format.read(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("options.json", "more_options.json and options.json: leave one"),
        ("weights.hdf5", "more_weights.hdf5 and weights.hdf5: there must be one"),
        ("softmax_weights.hdf5", "more_softmax_weights.hdf5 and softmax_weights.hdf5: leave one"),
    ],
)
def test_ambiguous_files(folder: Path, name: str, message: str) -> None:
    shutil.copy(folder / name, folder / f"more_{name}")
    with pytest.raises(ExportError, match=message):
        FAMILY.format.read(folder)


def test_vocabularies_that_do_not_fit(folder: Path) -> None:
    shutil.copy(folder / "vocabulary.txt", folder / "vocab-2016.txt")
    with pytest.raises(ExportError, match=r"vocab-2016.txt and vocabulary.txt: leave one"):
        FAMILY.format.read(folder)
    (folder / "vocabulary.txt").unlink()
    with (folder / "vocab-2016.txt").open("a", encoding="utf-8") as file:
        file.write("more\n")
    with pytest.raises(ExportError, match=r"softmax_weights.hdf5 predicts 9 words, the vocabulary beside it has 10"):
        FAMILY.format.read(folder)
    (folder / "vocab-2016.txt").write_text("<S>\nword\n")
    with pytest.raises(DataError, match=r"vocab-2016.txt lacks </S>, <UNK>"):
        FAMILY.format.read(folder)


def test_damaged_files(folder: Path) -> None:
    weights = folder / "weights.hdf5"
    weights.write_bytes(weights.read_bytes()[:3000])
    with pytest.raises(ExportError, match=r"weights.hdf5 is not an HDF5 file, or is cut short"):
        FAMILY.format.read(folder)
    (folder / "options.json").write_text("{")
    with pytest.raises(ExportError, match=r"options.json is not JSON"):
        FAMILY.format.read(folder)


def test_initialize(folder: Path, config: ElmoConfig, tokenizer: WordTokenizer) -> None:
    model = ElmoModel(config, 9)
    held = FAMILY.format.read(folder).model.state_dict()
    assert FAMILY.format.initialize(model, folder, tokenizer) == []
    assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())


def test_initialize_with_another_vocabulary(folder: Path, config: ElmoConfig, tokenizer: WordTokenizer) -> None:
    """Words that both have bring their row and bias along, wherever they stand; the others keep fresh ones."""
    words = ["new", "b", "</S>", "<UNK>", "f", "other", "<S>", "more"]
    model = ElmoModel(config, len(words))
    assert model.softmax is not None
    torch.nn.init.normal_(model.softmax.bias)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    new = FAMILY.format.initialize(model, folder, WordTokenizer(words))
    assert new == ["the softmax of 3 of 8 words, which the folder's vocabulary lacks"]
    held = FAMILY.format.read(folder).model.state_dict()
    for name, value in model.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(value, held[name]), name
            continue
        for row, word in enumerate(words):
            known = word in tokenizer.vocabulary
            expected = held[name][tokenizer.vocabulary.index(word)] if known else fresh[name][row]
            assert torch.equal(value[row], expected), (name, word)


@pytest.mark.parametrize(
    ("without", "new"),
    [
        ("softmax_weights.hdf5", "the softmax, since the folder holds none"),
        ("vocabulary.txt", "the softmax, since the folder holds no vocab*.txt that names the words of its own"),
    ],
)
def test_initialize_without_a_softmax(
    folder: Path, config: ElmoConfig, tokenizer: WordTokenizer, without: str, new: str
) -> None:
    (folder / without).unlink()
    model = ElmoModel(config, 9)
    assert model.softmax is not None
    fresh = model.softmax.weight.detach().clone()
    assert FAMILY.format.initialize(model, folder, tokenizer) == [new]
    assert torch.equal(model.softmax.weight, fresh)
    held = FAMILY.format.read(folder).model.encoder.state_dict()
    assert all(torch.equal(value, held[name]) for name, value in model.encoder.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell_size": 8}, r"model: model.cell_size is 7 there and 8 in this run"),
        ({"num_layers": 1}, r"model.num_layers is 2 there and 1 in"),
        ({"filters": ((1, 4), (2, 4), (3, 3))}, r"model.filters is \(\(1, 4\), \(2, 4\), \(4, 3\)\) there and"),
        ({"skip_connections": False}, r"model.skip_connections is True there and False in"),
        ({"activation": "tanh"}, r"model.activation is relu there and tanh in"),
        ({"cell_clip": 0.0}, r"model.cell_clip is 3.0 there and 0.0 in"),
    ],
)
def test_initialize_another_encoder(
    folder: Path, config: ElmoConfig, tokenizer: WordTokenizer, change: dict[str, Any], message: str
) -> None:
    """Also where its weights would fit, and mean something else."""
    with pytest.raises(ExportError, match=message):
        FAMILY.format.initialize(ElmoModel(config.model_copy(update=change), 9), folder, tokenizer)
