"""The primed start state: against numpy, beside the weights in a file of its own, and refused where it is no good."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.embedding.embedder import Embedder
from pretrain.errors import ExportError
from pretrain.models.elmo import FAMILY
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.start_state import make_start_state
from pretrain.models.elmo.tokens import SPECIAL_WORDS, WordTokenizer
from pretrain.models.family import ModelFolder
from pretrain.models.start_state import START_STATE_FILE, StartState, fingerprint, read_start_state, write_start_state
from tests.models.elmo.reference import ReferenceBilm, State

WORDS = ["a", "bc", "naïve", "d", "cat", "longer-than-others"]
TEXT = [(WORDS * 67)[n : n + 20] for n in range(0, 400, 20)]
SENTENCES = [["a", "cat", "unseen"], [], ["d"], ["bc", "a", "naïve", "cat", "d"]]


@pytest.fixture
def folder(config: ElmoConfig, tmp_path: Path) -> Path:
    """A model folder whose clips are at work."""
    torch.manual_seed(0)
    config = config.model_copy(update={"cell_clip": 0.5, "projection_clip": 0.3})
    tokenizer = WordTokenizer((*SPECIAL_WORDS, *WORDS))
    model = ElmoModel(config, tokenizer.vocabulary_size).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    FAMILY.format.write(tmp_path / "model", ModelFolder(model, tokenizer, config, ElmoObjectiveConfig(softmax="full")))
    return tmp_path / "model"


def flat(states: tuple[State, State]) -> np.ndarray:
    """The reference's states as one vector: of each direction, layer by layer, output and cell."""
    return np.concatenate([part for state in states for layer in state for part in layer])


def keep(folder: Path, **changes: object) -> StartState:
    """Puts the model's primed state into its folder, by default with losses that speak for it."""
    read = FAMILY.format.read(folder)
    values = {"loss": 1.0, "zero_loss": 2.0, "default": True} | changes
    made = replace(make_start_state(read), **values)  # type: ignore[arg-type]
    write_start_state(folder / START_STATE_FILE, made, read.model.encoder)
    return made


def test_against_numpy(folder: Path) -> None:
    """The state, and the losses of sentences from it and from zero."""
    made = make_start_state(FAMILY.format.read(folder))
    bilm = ReferenceBilm(folder)
    states = bilm.states_after(TEXT)
    np.testing.assert_allclose(made.state.numpy(), flat(states), rtol=1e-5, atol=1e-6)
    ranks = np.floor(np.exp(np.random.default_rng(0).random(400) * np.log(7))).astype(int) - 1
    assert np.bincount(ranks, minlength=6)[0] > np.bincount(ranks, minlength=6)[-1] > 0, "the first are the frequent"
    sentences = [[WORDS[rank] for rank in ranks[n : n + 10]] for n in range(0, 400, 10)]
    for loss, start in ((made.loss, states), (made.zero_loss, None)):
        both = [bilm.sentence_losses(words, start) for words in sentences]
        expected = np.mean([(forward.mean() + backward.mean()) / 2 for forward, backward in both])
        assert loss == pytest.approx(expected, rel=1e-5)
    assert not made.default and made.made_of == "the 6 most frequent words, in 20 sentences of 20"
    again = make_start_state(FAMILY.format.read(folder))
    assert torch.equal(again.state, made.state) and (again.loss, again.zero_loss) == (made.loss, made.zero_loss)


def test_vectors_from_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, in batches, and with states carried on."""
    monkeypatch.setattr(StartState, "check", lambda *_: None)
    plain = Embedder.load(folder, "cpu")
    embedder = Embedder.load(folder, "cpu", start="primed")
    bilm = ReferenceBilm(folder)
    states = bilm.states_after(TEXT)
    for batch_size in (1, 3, 32):
        vectors = embedder.encode(SENTENCES, layers="all", is_split_into_words=True, batch_size=batch_size)
        for words, ours in zip(SENTENCES, vectors, strict=True):
            np.testing.assert_allclose(ours, bilm.layers(words, states)[0], rtol=1e-4, atol=1e-5)
    away = np.abs(vectors[0] - plain.encode([SENTENCES[0]], layers="all", is_split_into_words=True)[0])
    assert away[1:].max() > 0.01 and away[0].max() < 1e-6, "context starts elsewhere, the token layer does not"

    rows = [states, states, states]
    for batch_size, texts in ((1, SENTENCES[:2]), (2, SENTENCES[1:4]), (2, SENTENCES[:3])):
        vectors = embedder.encode(texts, layers="all", is_split_into_words=True, stateful=True, batch_size=batch_size)
        for row, (words, ours) in enumerate(zip(texts, vectors, strict=True)):
            expected, rows[row] = bilm.layers(words, rows[row])
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    embedder.reset_states()
    (ours,) = embedder.encode(SENTENCES[:1], layers="all", is_split_into_words=True, stateful=True)
    np.testing.assert_allclose(ours, bilm.layers(SENTENCES[0], states)[0], rtol=1e-4, atol=1e-5)


def test_what_a_folder_says(folder: Path) -> None:
    """`auto` starts from the file's state where that is the default; `zero` and a folder without one, from zero."""
    text = "a cat d"
    zero = Embedder.load(folder, "cpu").encode(text)
    made = keep(folder)
    read = FAMILY.format.read(folder).start_state
    assert read is not None and torch.equal(read.state, made.state)
    assert replace(read, state=made.state) == made
    assert np.array_equal(Embedder.load(folder, "cpu", start="zero").encode(text), zero)
    auto, primed = (Embedder.load(folder, "cpu", start=start).encode(text) for start in ("auto", "primed"))
    assert np.array_equal(auto, primed) and np.abs(auto - zero).max() > 0.01
    keep(folder, default=False)
    assert np.array_equal(Embedder.load(folder, "cpu").encode(text), zero)
    assert np.array_equal(Embedder.load(folder, "cpu", start="primed").encode(text), primed)
    with pytest.raises(ValueError, match="start is 'warm', not one of 'auto', 'zero', 'primed'"):
        Embedder.load(folder, "cpu", start="warm")  # type: ignore[arg-type]


def test_a_state_that_is_no_better_is_refused(folder: Path) -> None:
    keep(folder, loss=2.5, measured_on="held-out text")
    message = (
        r"model: sentences are no better from the primed state \(loss 2.5000 on held-out text\) than from zero \(2.0"
    )
    with pytest.raises(ExportError, match=message):
        Embedder.load(folder, "cpu", start="primed")
    for loss, gains in ((1.97, True), (1.99, False), (2.1, False)):
        assert keep(folder, loss=loss).gains == gains


def test_without_a_softmax_it_is_not_checked(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = make_start_state(FAMILY.format.read(folder)).state
    (folder / "softmax_weights.hdf5").unlink()
    read = FAMILY.format.read(folder)
    made = make_start_state(read)
    assert torch.equal(made.state, expected) and made.loss is None and not made.gains
    write_start_state(folder / START_STATE_FILE, made, read.model.encoder)
    found = FAMILY.format.read(folder).start_state
    assert found is not None and (found.loss, found.zero_loss) == (None, None)
    with caplog.at_level(logging.WARNING):
        Embedder.load(folder, "cpu", start="primed")
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: the primed state could not be checked, since the model has no softmax"
    ]


def test_without_a_vocabulary(folder: Path) -> None:
    (folder / "vocabulary.txt").unlink()
    (folder / "softmax_weights.hdf5").unlink()
    Embedder.load(folder, "cpu")
    with pytest.raises(ExportError, match=r"made of the most frequent words, and the folder has no vocab\*.txt"):
        Embedder.load(folder, "cpu", start="primed")


def test_other_readers_do_not_see_it(folder: Path) -> None:
    """No name of theirs matches, and no file of theirs is another."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    keep(folder)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before == {name: content for name, content in after.items() if name != START_STATE_FILE}
    with safe_open(folder / START_STATE_FILE, "pt") as file:
        assert set(file.metadata()) == {"weights", "made_of", "default", "measured_on", "loss", "zero_loss"}


def rewritten(folder: Path) -> None:
    with h5py.File(folder / "weights.hdf5", "r+") as file:
        file["CNN_proj/b_proj"][0] += 1e-3


def replaced(tensors: dict[str, torch.Tensor], **metadata: str) -> Callable[[Path], None]:
    """Puts another file in its place, which names the right weights."""

    def change(folder: Path) -> None:
        weights = fingerprint(FAMILY.format.read(folder).model.encoder)
        save_file(tensors, folder / START_STATE_FILE, {"weights": weights} | metadata)

    return change


SIZE = 2 * 2 * (7 + 4)
STATE = torch.zeros(SIZE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rewritten, r"belongs to other weights \([0-9a-f]{16}\) than those beside it \([0-9a-f]{16}\): remove it"),
        (lambda folder: save_file({"state": STATE}, folder / START_STATE_FILE), r"other weights \(it does not say"),
        (replaced({"other": STATE}), "has no tensor state"),
        (replaced({"state": torch.zeros(SIZE + 1)}), r"state is F32 \[45\], the model beside it asks for F32 \[44\]"),
        (replaced({"state": STATE[None]}), r"state is F32 \[1, 44\], the model"),
        (replaced({"state": STATE.double()}), r"state is F64 \[44\], the model"),
        (replaced({"state": STATE + torch.nan}), "state holds values that are NaN or infinite"),
        (replaced({"state": STATE}, default="perhaps"), "default is 'perhaps', not true or false"),
        (replaced({"state": STATE}, loss="low"), "loss is 'low', not a number"),
        (replaced({"state": STATE}, zero_loss="nan"), "zero_loss is 'nan', not a number"),
        (lambda folder: (folder / START_STATE_FILE).write_bytes(b""), "is empty"),
        (lambda folder: (folder / START_STATE_FILE).write_bytes(b"<!DOCTYPE html>"), "is an HTML page"),
        (lambda folder: (folder / START_STATE_FILE).write_bytes(b"\xff" * 99), "is no safetensors file, or is damaged"),
        (lambda folder: shutil.copy(folder / "weights.hdf5", folder / START_STATE_FILE), "is no safetensors file"),
    ],
)
def test_files_from_anyone(change: Callable[[Path], None], message: str, folder: Path) -> None:
    keep(folder)
    (folder / START_STATE_FILE).rename(folder / "good")
    if change is rewritten:
        (folder / "good").rename(folder / START_STATE_FILE)
    change(folder)
    with pytest.raises(ExportError, match=message) as raised:
        FAMILY.format.read(folder)
    assert "\n" not in str(raised.value) and START_STATE_FILE in str(raised.value)


def test_weights_have_a_fingerprint(folder: Path) -> None:
    """Of every parameter's name, shape and values."""
    encoder = FAMILY.format.read(folder).model.encoder
    first = fingerprint(encoder)
    assert fingerprint(encoder) == first and len(first) == 16
    for parameter in encoder.parameters():
        kept = parameter.detach().clone()
        parameter.data.view(-1)[-1] += 1e-4
        assert fingerprint(encoder) != first
        parameter.data.copy_(kept)
    assert fingerprint(encoder) == first
    keep(folder)
    assert read_start_state(folder / START_STATE_FILE, encoder).default
