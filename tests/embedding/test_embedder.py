"""The embedder: shapes, batches, texts in every form, and folders that hold no one model."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.embedding.embedder import Embedder, TextTooLong
from pretrain.errors import CheckpointError, ConfigError, ExportError
from pretrain.models import get_family
from tests.tiny import tiny_config

LAYERS = {"elmo": 3, "bert": 4}


def test_shapes(embedder: Embedder, sentences: list[str]) -> None:
    layers, width = LAYERS[embedder.kind], 24
    assert (embedder.num_layers, embedder.width) == (layers, width)
    text = sentences[0]
    words = len(embedder.words(text))
    assert words == 13
    pieces = len(embedder.encode(text, "pieces"))
    assert pieces == words if embedder.kind == "elmo" else pieces > words
    for output, shape in (("words", (words, width)), ("pieces", (pieces, width)), ("sentence", (width,))):
        one = embedder.encode(text, output)
        every = embedder.encode(text, output, layers="all")
        assert one.shape == shape and every.shape == (layers, *shape)
        assert one.dtype == every.dtype == np.float32
        assert np.array_equal(one, every[-1])
        assert np.array_equal(embedder.encode(text, output, layers=[-1, 0]), every[[-1, 0]])
        assert np.array_equal(embedder.encode(text, output, layers=[1]), every[[1]])
        assert np.array_equal(embedder.encode(text, output, layers=np.int64(-1)), every[-1])  # type: ignore[arg-type]
        assert np.array_equal(embedder.encode(text, output, layers=-layers), every[0])


def test_outputs_are_means_of_the_pieces(bert: Embedder) -> None:
    text = "The dog did't, not on façades."
    assert bert.words(text) == ["The", "dog", "did", "'", "t", ",", "not", "on", "façades", "."]
    word_of = bert.tokenizer.pieces(text).word_of
    assert word_of[0] == word_of[-1] == -1
    assert len(word_of) > len(bert.words(text)) + 2  # some words have several pieces
    pieces, words = bert.encode(text, "pieces"), bert.encode(text)
    for word, vector in enumerate(words):
        assert np.allclose(vector, pieces[word_of[1:-1] == word].mean(axis=0), atol=1e-6)
    whole, _ = get_family("bert").encode(bert._encoder, [bert.tokenizer.pieces(text)])
    assert np.allclose(bert.encode(text, "sentence"), whole.layers[-1][0].mean(dim=0), atol=1e-6)
    plain = Embedder(get_family("bert"), torch.nn.ModuleDict({"encoder": bert._encoder}), bert.tokenizer, "cpu")
    assert np.allclose(plain.encode(text, "sentence"), pieces.mean(axis=0), atol=1e-6)


def test_texts_of_any_kind_of_iterable(embedder: Embedder, sentences: list[str]) -> None:
    expected = embedder.encode(sentences)
    assert isinstance(expected, list) and len(expected) == len(sentences)
    for texts in ((text for text in sentences), tuple(sentences)):
        for one, other in zip(embedder.encode(texts), expected, strict=True):
            assert np.array_equal(one, other)
    assert embedder.encode([]) == []
    assert embedder.encode([], is_split_into_words=True) == []


def test_words_given(embedder: Embedder, sentences: list[str]) -> None:
    split = [embedder.words(text) for text in sentences]
    given = embedder.encode(split, is_split_into_words=True)
    for raw, words, vectors in zip(embedder.encode(sentences), split, given, strict=True):
        assert vectors.shape == (len(words), 24)
        assert np.allclose(vectors, raw, atol=1e-5)
    single = embedder.encode(split[0], is_split_into_words=True)
    assert isinstance(single, np.ndarray)
    assert np.allclose(single, given[0], atol=1e-5)
    assert embedder.words(["don't", "stop now"]) == ["don't", "stop now"]
    assert embedder.encode([["don't", "stop now"]], is_split_into_words=True)[0].shape == (2, 24)


@pytest.mark.parametrize("output", ["words", "pieces", "sentence"])
def test_vectors_do_not_depend_on_the_batch(output: Any, embedder: Embedder, sentences: list[str]) -> None:
    alone = embedder.encode(sentences, output, layers="all", batch_size=1)
    shuffled = np.random.default_rng(0).permutation(len(sentences))
    together = embedder.encode(sentences, output, layers="all", batch_size=32)
    mixed = embedder.encode([sentences[i] for i in shuffled], output, layers="all", batch_size=3)
    for i, vectors in enumerate(alone):
        assert np.abs(vectors - together[i]).max(initial=0) <= 1e-5
    for vectors, i in zip(mixed, shuffled, strict=True):
        assert np.abs(vectors - alone[i]).max(initial=0) <= 1e-5
    assert np.abs(alone[0]).max() > 0.1


def test_texts_without_words(embedder: Embedder) -> None:
    for text in ("", " \t "):
        assert embedder.encode(text).shape == (0, 24)
        assert embedder.encode(text, "pieces", layers="all").shape == (embedder.num_layers, 0, 24)
        sentence = embedder.encode(text, "sentence", layers=[0, 1])
        assert sentence.shape == (2, 24) and sentence.any() == (embedder.kind == "bert"), "the mean of [CLS] and [SEP]"
    assert embedder.encode([[]], is_split_into_words=True)[0].shape == (0, 24)


def test_words_without_piece_are_zeros_and_counted(bert: Embedder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        vectors = bert.encode([["cat", "\x00", "sat"], ["\u200b"]], is_split_into_words=True)
    assert [bool(vector.any()) for vector in vectors[0]] == [True, False, True]
    assert np.array_equal(vectors[1], np.zeros((1, 24)))
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("2 of 4 words have no piece")


def test_layers_are_those_of_transformers(bert: Embedder, folders: dict[str, Path], sentences: list[str]) -> None:
    from transformers import AutoTokenizer, BertModel

    model = BertModel.from_pretrained(folders["bert"]).eval()
    inputs = AutoTokenizer.from_pretrained(folders["bert"])(sentences, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = torch.stack(model(**inputs, output_hidden_states=True).hidden_states, dim=1).numpy()
    lengths = inputs["attention_mask"].sum(dim=1)
    for row, ours in enumerate(bert.encode(sentences, "pieces", layers="all")):
        assert np.allclose(ours, expected[row][:, 1 : lengths[row] - 1], atol=5e-5)


def test_states_go_on_by_row(elmo: Embedder, sentences: list[str]) -> None:
    fresh = elmo.encode(sentences[:3])
    first = elmo.encode(sentences[:3], stateful=True, batch_size=2)
    for one, other in zip(fresh, first, strict=True):
        assert np.allclose(one, other, atol=1e-6)
    # the empty third text has moved row 2's state too: it was read between its boundaries
    short = elmo.encode(sentences[:1], stateful=True)
    assert not np.allclose(short[0], fresh[0], atol=1e-3)
    after = elmo.encode([sentences[0], sentences[1], sentences[0], sentences[0]], stateful=True, batch_size=1)
    assert not np.allclose(after[1], fresh[1], atol=1e-3)
    assert not np.allclose(after[2], fresh[0], atol=1e-3)
    assert np.allclose(after[3], fresh[0], atol=1e-6)
    assert np.allclose(elmo.encode(sentences[0]), fresh[0], atol=1e-6)  # not stateful: as ever
    elmo.reset_states()
    assert np.allclose(elmo.encode(sentences[:1], stateful=True)[0], fresh[0], atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ("cat", {"output": "word"}, "output is 'word', not one of 'words', 'pieces', 'sentence'"),
        ("cat", {"layers": 9}, "layer 9 does not exist: the model has [34] layers"),
        ("cat", {"layers": [0, -9]}, "layer -9 does not exist"),
        ("cat", {"layers": "top"}, "layers is 'top', not a number"),
        ("cat", {"layers": True}, "layers is True, not a number"),
        ("cat", {"layers": [0, 1.5]}, r"layers is \[0, 1.5\], not a number"),
        ("cat", {"layers": []}, r"layers is \[\], not a number"),
        ("cat", {"batch_size": 0}, "batch_size is 0"),
        ("cat", {"long": "cut"}, "long is 'cut', not one of 'error', 'split', 'truncate', 'skip'"),
        ([["the", "cat"]], {}, "text 0 is a list, not a string; .* need is_split_into_words=True"),
        (["cat", None], {}, "text 1 is a NoneType, not a string"),
        ("cat", {"is_split_into_words": True}, "texts is a string"),
        (["cat", "the cat"], {"is_split_into_words": True}, "string 1 is more than one word"),
        ([["cat"], "cat"], {"is_split_into_words": True}, "text 1 is no list of words"),
        ([["cat"], [1]], {"is_split_into_words": True}, "text 1 is no list of words"),
    ],
)
def test_mistakes_are_named(texts: Any, options: dict[str, Any], message: str, embedder: Embedder) -> None:
    with pytest.raises(ValueError, match=message):
        embedder.encode(texts, **options)


LONG = "The cat sat. On the mat, the dog did not! " * 9
SHORT = "The dog sat."


def test_a_text_that_is_too_long(bert: Embedder, elmo: Embedder) -> None:
    long = ". " * 70
    with pytest.raises(TextTooLong, match="text 1 has 72 pieces, special tokens included; the model reads at most 64"):
        bert.encode(["cat", long])
    assert (bert.max_length, elmo.max_length) == (64, None)
    for choice in ("error", "split", "truncate", "skip"):
        assert elmo.encode(long, long=choice).shape == (70, 24)


def parts(bert: Embedder) -> list[list[str]]:
    """The words of each window that `LONG` is split into."""
    (fitted,) = bert.fit([LONG], "split")
    words = bert.words(LONG)
    return [[words[w] for w in np.unique(part.word_of[part.word_of >= 0])] for part in fitted.windows]


@pytest.mark.parametrize("layers", ["all", -1])
@pytest.mark.parametrize("output", ["words", "pieces"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_a_text_in_windows(
    batch_size: int, output: Any, layers: Any, bert: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = bert.encode([SHORT, LONG], output, layers=layers, long="split", batch_size=batch_size)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == "texts of more pieces than the model reads (64): 1 of 2, read in 3 windows"
    assert np.allclose(vectors[0], bert.encode(SHORT, output, layers=layers), atol=1e-5)
    assert [word for part in parts(bert) for word in part] == bert.words(LONG)
    assert all(part[-1] in ".!" for part in parts(bert))
    alone = bert.encode(parts(bert), output, layers=layers, is_split_into_words=True)
    assert np.allclose(vectors[1], np.concatenate(alone, axis=-2), atol=1e-5)
    split = bert.encode([bert.words(LONG)], output, layers=layers, long="split", is_split_into_words=True)
    assert np.allclose(split[0], vectors[1], atol=1e-5)


@pytest.mark.parametrize("layers", ["all", -1])
def test_the_sentence_of_a_text_in_windows(layers: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    """Pooled as if the windows' vectors were one text's: of special tokens, the first and the last count."""
    shutil.copytree(folders["bert"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    bert = Embedder.load(tmp_path, device="cpu")
    first = bert.encode([parts(bert)[0]], "sentence", layers=layers, is_split_into_words=True)[0]
    assert np.allclose(bert.encode([LONG], "sentence", layers=layers, long="split")[0], first, atol=1e-5)
    (tmp_path / "modules.json").unlink()
    bert = Embedder.load(tmp_path, device="cpu")
    pieces = bert.encode([LONG], "pieces", layers=layers, long="split")[0]
    sentence = bert.encode([LONG], "sentence", layers=layers, long="split")[0]
    assert np.allclose(sentence, pieces.mean(axis=-2), atol=1e-5)


@pytest.mark.parametrize("layers", ["all", -1])
@pytest.mark.parametrize("output", ["words", "pieces", "sentence"])
def test_a_text_cut_short(output: Any, layers: Any, bert: Embedder, caplog: pytest.LogCaptureFixture) -> None:
    short, long = bert.encode([SHORT, LONG], output, layers=layers, long="truncate")
    (message,) = [record.getMessage() for record in caplog.records]
    kept = len(bert.fit([LONG], "truncate")[0].pieces.words)
    assert f", cut short; {len(bert.words(LONG)) - kept} words have no vector" in message
    assert np.allclose(short, bert.encode(SHORT, output, layers=layers), atol=1e-5)
    words = bert.words(LONG)[:kept]
    assert 62 - 8 < len(bert.encode([words], "pieces", is_split_into_words=True)[0]) <= 62
    expected = bert.encode([words], output, layers=layers, is_split_into_words=True)[0]
    assert expected.shape == long.shape and np.allclose(long, expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", None])
def test_a_text_that_is_skipped(
    pooling: str | None, folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folders["bert"], tmp_path, dirs_exist_ok=True)
    if pooling is None:
        (tmp_path / "modules.json").unlink()
    else:
        (tmp_path / "1_Pooling" / "config.json").write_text(f'{{"pooling_mode": "{pooling}"}}')
    bert = Embedder.load(tmp_path, device="cpu")
    for output, shape in (("words", (4, 0, 24)), ("pieces", (4, 0, 24)), ("sentence", (4, 24))):
        caplog.clear()
        skipped, short = bert.encode([LONG, SHORT], output, layers="all", long="skip")  # type: ignore[arg-type]
        assert skipped.shape == shape and not skipped.any()
        assert np.allclose(short, bert.encode(SHORT, output, layers="all"), atol=1e-5)  # type: ignore[arg-type]
        (message,) = [record.getMessage() for record in caplog.records]
        assert message.endswith(f"skipped; {len(bert.words(LONG))} words have no vector")
    assert bert.encode([LONG], long="skip")[0].shape == (0, 24)  # no text is left to read


def test_no_state_to_carry(bert: Embedder) -> None:
    with pytest.raises(ValueError, match="bert models carry no state"):
        bert.encode("cat", stateful=True)


def test_folders_that_hold_no_one_model(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"nothing: no such folder"):
        Embedder.load(tmp_path / "nothing")
    (tmp_path / "file").write_text("text")
    with pytest.raises(ExportError, match=r"file is a file, not a model folder"):
        Embedder.load(tmp_path / "file")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ExportError, match=r"no model folder: looked for elmo \(bilm format\) and bert \(transformers"):
        Embedder.load(empty)
    for name in ("bert_config.json", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"):
        (empty / name).write_text("{}")
    with pytest.raises(ExportError, match=r"TensorFlow checkpoint \(bert_model.ckpt.index\).*transformers format"):
        Embedder.load(empty)
    for folder in folders.values():
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(
        ExportError, match=r"two families, elmo \(bilm format\) and bert \(transformers format\)"
    ) as raised:
        Embedder.load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_two_published_models_in_a_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["elmo"], tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "options.json", tmp_path / "large_options.json")
    with pytest.raises(ExportError, match=r"large_options\.json and options\.json"):
        Embedder.load(tmp_path)


def test_a_model_without_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folders["bert"] / name, tmp_path)
    with pytest.raises(ExportError, match="holds a bert model but no tokenizer"):
        Embedder.load(tmp_path)


def test_what_training_needs_is_not_imported() -> None:
    code = (
        "import sys; from pretrain import Embedder; import pretrain.embed; "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    imported = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "torch" in imported
    unwanted = {"lightning", "pytorch_lightning", "deepspeed", "datasets", "pyarrow", "wandb", "transformers"}
    assert not unwanted & set(imported)


@pytest.fixture(scope="module", params=["elmo", "bert"])
def run(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, each of which has a checkpoint."""
    from pretrain.train import train

    root = tmp_path_factory.mktemp("runs")
    one = ["sharding.ranks=1", "sharding.zero_stage=0", "schedule.total_steps=2", "checkpoint.every_steps=1"]
    train(tiny_config(request.param, corpus, root, *one, "name=run"))
    return root / "run"


def test_a_run_is_a_model(run: Path, tmp_path: Path) -> None:
    from pretrain.export import export

    texts = ["one two three", ""]
    for step in ("1", "2"):
        exported = Embedder.load(export(run, tmp_path / step, checkpoint=step), device="cpu")
        embedder = Embedder.load(run, device="cpu", checkpoint=step)
        assert embedder.kind == exported.kind
        for one, other in zip(embedder.encode(texts), exported.encode(texts), strict=True):
            assert np.array_equal(one, other)
    first, newest, best = (Embedder.load(run, "cpu", which).encode(texts[0]) for which in ("1", "newest", "best"))
    assert np.array_equal(newest, Embedder.load(run, "cpu", "2").encode(texts[0]))
    assert not np.array_equal(newest, first)
    assert np.array_equal(best, first) or np.array_equal(best, newest)


def test_checkpoints_that_are_not_there(run: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    for which, error, message in (
        ("7", CheckpointError, "no checkpoint of step 7; there are 1, 2"),
        ("last", ConfigError, "--checkpoint last: expected best, newest or the number of a step"),
    ):
        with pytest.raises(error, match=message):
            Embedder.load(run, checkpoint=which)
    with pytest.raises(ConfigError, match="not a run folder, so that there is no checkpoint newest to choose"):
        Embedder.load(folders["bert"], checkpoint="newest")
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    with pytest.raises(CheckpointError, match="no checkpoint: nothing was saved yet") as raised:
        Embedder.load(tmp_path)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_progress_bar(elmo: Embedder, sentences: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    elmo.encode(sentences, show_progress_bar=True)
    assert "7/7" in capsys.readouterr().err
    elmo.encode(sentences)
    assert capsys.readouterr().err == ""
