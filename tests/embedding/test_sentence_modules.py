"""Folders of sentence-transformers: its own vectors, or a line that names the module."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain.embedding.embedder import Embedder, TextTooLong
from pretrain.errors import ExportError

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of our own folder, to change."""
    return Path(shutil.copytree(folders["bert"], tmp_path / "model"))


def put(folder: Path, name: str, content: Any) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def set_modules(folder: Path, *modules: tuple[str, str]) -> None:
    """`modules.json`: (path, type) each."""
    types = [kind if "." in kind else f"sentence_transformers.models.{kind}" for _, kind in modules]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": name}
        for i, ((path, _), name) in enumerate(zip(modules, types, strict=True))
    ]
    put(folder, "modules.json", listed)


def vectors_of_sentence_transformers(folder: Path, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return np.asarray(model.encode(texts, show_progress_bar=False))


def agrees(folder: Path, sentences: list[str]) -> None:
    """With a text without words, and with what padding would change."""
    expected = vectors_of_sentence_transformers(folder, sentences)
    embedder = Embedder.load(folder, device="cpu")
    ours = np.stack(embedder.encode(sentences, "sentence"))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
    every = embedder.encode(sentences[0], "sentence", layers="all")
    assert every.shape == (4, expected.shape[1])
    np.testing.assert_allclose(every[-1], expected[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", [*MODES, ["mean"], ["max", "cls"], ["cls", "max", "lasttoken"]])
def test_pooling(mode: str | list[str], folder: Path, sentences: list[str]) -> None:
    put(folder, "1_Pooling/config.json", {"embedding_dimension": 24, "pooling_mode": mode, "include_prompt": True})
    agrees(folder, sentences)


@pytest.mark.parametrize(
    "modes",
    [
        ["pooling_mode_cls_token"], ["pooling_mode_max_tokens"], ["pooling_mode_mean_sqrt_len_tokens"],
        ["pooling_mode_weightedmean_tokens"], ["pooling_mode_lasttoken"], [],
        ["pooling_mode_mean_tokens", "pooling_mode_cls_token"],
    ],
)  # fmt: skip
def test_pooling_as_it_was_written_first(modes: list[str], folder: Path, sentences: list[str]) -> None:
    put(folder, "1_Pooling/config.json", {
        "word_embedding_dimension": 24, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
    } | dict.fromkeys(modes, True))  # fmt: skip
    agrees(folder, sentences)


def add_dense(folder: Path, activation: str, bias: bool = True, file: str = "model.safetensors") -> None:
    torch.manual_seed(1)
    options = {"in_features": 24, "out_features": 10, "bias": bias, "activation_function": activation}
    put(folder, "2_Dense/config.json", options)
    tensors = {"linear.weight": torch.randn(10, 24)} | ({"linear.bias": torch.randn(10)} if bias else {})
    if file.endswith(".bin"):
        torch.save(tensors, folder / "2_Dense" / file)
    else:
        save_file(tensors, folder / "2_Dense" / file)
    set_modules(
        folder, ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("activation", ["activation.Tanh", "linear.Identity", "activation.GELU"])
def test_dense_and_normalize(activation: str, file: str, bias: bool, folder: Path, sentences: list[str]) -> None:
    add_dense(folder, f"torch.nn.modules.{activation}", bias, file)
    (folder / "3_Normalize").mkdir()
    agrees(folder, sentences)


def test_normalize_and_dropout(folder: Path, sentences: list[str]) -> None:
    put(folder, "3_Dropout/config.json", {"dropout": 0.5})
    set_modules(
        folder, ("", "Transformer"), ("1_Pooling", "Pooling"), ("3_Dropout", "Dropout"), ("2_Normalize", "Normalize")
    )
    (folder / "2_Normalize").mkdir()
    agrees(folder, sentences)


def test_a_model_in_a_folder_of_its_own(folder: Path, sentences: list[str]) -> None:
    """As the first versions of sentence-transformers wrote them."""
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(inner / path.name)
    put(folder, "config.json", {"__version__": "0.2.5"})
    set_modules(folder, ("0_Transformer", "Transformer"), ("1_Pooling", "Pooling"))
    agrees(folder, sentences)


def test_the_shared_case(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("cases/published/sentence_cls_pooling")
    texts = ["the river bank", "Keys, locked!", ""]
    expected = vectors_of_sentence_transformers(folder, texts)
    ours = Embedder.load(folder, device="cpu").encode(texts, "sentence")
    np.testing.assert_allclose(np.stack(ours), expected, atol=1e-5, rtol=0)


def test_a_folder_that_says_nothing_has_no_special_tokens_in_the_mean(folder: Path, sentences: list[str]) -> None:
    (folder / "modules.json").unlink()
    embedder = Embedder.load(folder, device="cpu")
    pieces, sentence = (embedder.encode(sentences[0], output) for output in ("pieces", "sentence"))
    np.testing.assert_allclose(sentence, np.asarray(pieces).mean(axis=0), atol=1e-6)


def _odd() -> Iterator[tuple[str, Callable[[Path], object]]]:
    pooling = "1_Pooling/config.json"
    yield r"pooling_mode is \['median'\]; can be read: cls, max", lambda f: put(f, pooling, {"pooling_mode": "median"})
    yield r"pooling_mode is 3; can be read", lambda f: put(f, pooling, {"pooling_mode": 3})
    yield r"1_Pooling/config.json is missing", lambda f: (f / pooling).unlink()
    yield (
        r"module '2' is 'sentence_transformers.models.CNN'; can be read: Pooling",
        lambda f: set_modules(f, ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_CNN", "CNN")),
    )
    yield (
        r"module '2' is 'mine.Pooling'",
        lambda f: set_modules(f, ("", "Transformer"), ("1_Pooling", "Pooling"), ("2", "mine.Pooling")),
    )
    yield (
        r"module '1' is '.*WeightedLayerPooling'",
        lambda f: set_modules(f, ("", "Transformer"), ("1_W", "WeightedLayerPooling"), ("1_Pooling", "Pooling")),
    )
    yield r"the second module is not a Pooling", lambda f: set_modules(f, ("", "Transformer"))
    yield r"activation_function is 'mine.Act'", lambda f: add_dense(f, "mine.Act")
    yield (
        r"use_residual is True",
        lambda f: (
            add_dense(f, "torch.nn.modules.activation.Tanh"),
            put(f, "2_Dense/config.json", {"in_features": 24, "out_features": 10, "use_residual": True}),
        ),
    )
    yield (
        r"does not hold the linear.weight and linear.bias",
        lambda f: (
            add_dense(f, "torch.nn.modules.activation.Tanh"),
            save_file({"linear.weight": torch.zeros(10, 24)}, f / "2_Dense/model.safetensors"),
        ),
    )
    yield (
        r"modules do not fit vectors of 24",
        lambda f: (
            add_dense(f, "torch.nn.modules.activation.Tanh"),
            put(f, "1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}),
        ),
    )
    yield (
        r"module_input_name is 'token_embeddings'",
        lambda f: (
            set_modules(f, ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")),
            put(f, "2_Normalize/config.json", {"module_input_name": "token_embeddings"}),
        ),
    )
    yield (
        r"transformer_task is 'fill-mask'",
        lambda f: put(f, "sentence_bert_config.json", {"transformer_task": "fill-mask"}),
    )
    yield (
        r"do_lower_case is true, and the tokenizer keeps case",
        lambda f: put(f, "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": True}),
    )


@pytest.mark.parametrize(("message", "change"), list(_odd()))
def test_what_is_not_read_is_named(message: str, change: Callable[[Path], object], folder: Path) -> None:
    """Where a text's vector is asked for: words have theirs all the same."""
    expected = Embedder.load(folder, device="cpu").encode("the cat")
    change(folder)
    embedder = Embedder.load(folder, device="cpu")
    with pytest.raises(ExportError, match=message) as raised:
        embedder.encode("the cat", "sentence")
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)
    assert np.array_equal(embedder.encode("the cat"), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no list of modules"),
        ([], "holds no list of modules"),
        ([{"type": "sentence_transformers.models.CLIPModel", "path": ""}], "the first module is .*CLIPModel"),
        ([{"type": "sentence_transformers.models.Transformer", "path": "../other"}], "lies outside"),
        ([{"type": "sentence_transformers.models.Transformer", "path": "/etc"}], "lies outside"),
        ([{"type": "sentence_transformers.models.Transformer", "path": 3}], "names 3"),
    ],
)
def test_modules_that_lead_nowhere(content: Any, message: str, folder: Path) -> None:
    put(folder, "modules.json", content)
    with pytest.raises(ExportError, match=message):
        Embedder.load(folder)


def test_lengths_and_prompts(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A text that sentence-transformers would cut is refused; a prompt that it would add is said."""
    put(folder, "sentence_bert_config.json", {"max_seq_length": 8, "do_lower_case": False})
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    put(folder, "config_sentence_transformers.json", settings)
    with caplog.at_level(logging.WARNING):
        embedder = Embedder.load(folder, device="cpu")
    assert "default_prompt_name is 'query', but its prompt 'query: ' is not put before texts" in caplog.text
    assert embedder.max_length == 8
    with pytest.raises(TextTooLong, match="the model reads at most 8"):
        embedder.encode(". " * 7)
    assert embedder.encode(". " * 6).shape == (6, 24)
    put(folder, "sentence_bert_config.json", {"max_seq_length": "8"})
    with pytest.raises(ExportError, match="max_seq_length is '8', not a number"):
        Embedder.load(folder)


def test_a_dense_module_that_leads_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    add_dense(folder, "torch.nn.modules.activation.Tanh")
    shutil.move(folder / "2_Dense", tmp_path / "elsewhere")
    (folder / "2_Dense").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match="names '2_Dense', which lies outside"):
        Embedder.load(folder)
    assert load_file(tmp_path / "elsewhere/model.safetensors")
