"""Models as people publish them: transformers' own vectors, or a line that names the key or the file."""

import json
import logging
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain.config.models import BertConfig
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.embedding.embedder import Embedder
from pretrain.errors import ExportError
from pretrain.models.bert import FAMILY
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.tokens import SPECIAL
from pretrain.models.family import ModelFolder
from tests.models.bert.conftest import TINY_OBJECTIVE

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), ".", ","]
SIZES = dict(
    vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=32,
)  # fmt: skip
TEXTS = ["ab cd.", "e", "", "the quick brown fox, it jumps"]
WORDS = "bert.embeddings.word_embeddings.weight"


def publish(folder: Path, kind: str = "BertForPreTraining", **options: Any) -> Any:
    """A model as transformers writes it, with weights that differ everywhere, and a vocabulary."""
    torch.manual_seed(3)
    model = getattr(transformers, kind)(transformers.BertConfig(**SIZES | options)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in VOCABULARY))
    return model


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def agrees(folder: Path) -> None:
    """Every layer of every piece, [CLS] and [SEP] left out."""
    ours = Embedder.load(folder, device="cpu").encode(TEXTS, "pieces", layers="all")
    tokenizer, model = (
        transformers.BertTokenizer.from_pretrained(folder),
        transformers.BertModel.from_pretrained(folder),
    )
    for text, vectors in zip(TEXTS, ours, strict=True):
        with torch.no_grad():
            layers = model.eval()(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        np.testing.assert_allclose(vectors, torch.cat(layers)[:, 1:-1].float().numpy(), atol=1e-5, rtol=1e-4)


KINDS = (
    "BertForPreTraining", "BertModel", "BertForMaskedLM", "BertForNextSentencePrediction",
    "BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering", "BertLMHeadModel",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_of_every_class(kind: str, tmp_path: Path) -> None:
    publish(tmp_path, kind)
    agrees(tmp_path)


@pytest.mark.parametrize("options", [
    {"type_vocab_size": 1}, {"type_vocab_size": 4}, {"hidden_act": "gelu_new"}, {"layer_norm_eps": 1e-5},
    {"tie_word_embeddings": False}, {"pad_token_id": 3}, {"max_position_embeddings": 40},
    {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.3},
])  # fmt: skip
def test_keys_of_the_config(options: dict[str, Any], tmp_path: Path) -> None:
    publish(tmp_path, **options)
    agrees(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    publish(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update({n: t.to(dtype) for n, t in tensors.items()}))
    edit_config(tmp_path, dtype="float32")
    agrees(tmp_path)


def early(folder: Path) -> None:
    """As the first BERTs of PyTorch were published: gamma and beta, a pickle, a config without `model_type`."""
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    keys = [*SIZES, "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "type_vocab_size"]
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in keys}))


def test_early_folders(tmp_path: Path) -> None:
    publish(tmp_path)
    early(tmp_path)
    assert FAMILY.format.recognises(tmp_path)
    agrees(tmp_path)
    read = FAMILY.format.read(tmp_path)
    model = BertModel(read.config, TINY_OBJECTIVE.model_copy(update={"max_sequence_length": 32}), len(VOCABULARY))
    assert FAMILY.format.initialize(model, tmp_path) == []


def test_the_shared_early_case(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("cases/published/early_bert_gamma_beta")
    ours = Embedder.load(folder, device="cpu").encode("the river bank", "pieces")
    tokenizer, model = (
        transformers.BertTokenizer.from_pretrained(folder),
        transformers.BertModel.from_pretrained(folder),
    )
    with torch.no_grad():
        expected = model.eval()(**tokenizer("the river bank", return_tensors="pt")).last_hidden_state[0, 1:-1]
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("pickled", [False, True])
def test_shards(pickled: bool, tmp_path: Path) -> None:
    model = publish(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="4kB")
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists()
    if pickled:  # as transformers wrote them before safetensors
        listed = json.loads(index.read_text())
        for name in set(listed["weight_map"].values()):
            torch.save(load_file(tmp_path / name), tmp_path / f"{name}.bin")
            (tmp_path / name).unlink()
        listed["weight_map"] = {name: f"{file}.bin" for name, file in listed["weight_map"].items()}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(listed))
        index.unlink()
        ours = FAMILY.format.read(tmp_path).model.state_dict()["encoder.layers.1.output.weight"]
        assert torch.equal(ours, model.state_dict()["bert.encoder.layer.1.output.dense.weight"])
    else:
        agrees(tmp_path)


def resized(folder: Path) -> None:
    """The head of a vocabulary that was shorter."""
    edit_tensors(folder, lambda t: t.update({"cls.predictions.bias": t["cls.predictions.bias"][:40].clone()}))


def untied(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({"cls.predictions.decoder.weight": t[WORDS] + 1}))


def untied_of_another_size(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({"cls.predictions.decoder.weight": t[WORDS][:40].clone()}))


def said_to_be_untied(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=False)
    edit_tensors(folder, lambda t: t.pop("cls.predictions.decoder.weight", None))


def three_classes(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({"cls.seq_relationship.weight": torch.zeros(3, 16)}))


def no_transform(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.pop("cls.predictions.transform.dense.weight"))


def no_heads(folder: Path) -> None:
    edit_tensors(folder, lambda t: [t.pop(name) for name in list(t) if name.startswith(("cls.", "bert.pooler"))])


HEADS: list[tuple[Callable[[Path], None], str]] = [
    (resized, r"cls.predictions.bias is \[40\], the model's is \[59\]"),
    (untied, "cls.predictions.decoder.weight differs from the word embeddings, and only a tied one"),
    (untied_of_another_size, r"cls.predictions.decoder.weight is \[40, 16\], the word embeddings are \[59, 16\]"),
    (said_to_be_untied, "tie_word_embeddings is false, and there is no cls.predictions.decoder.weight"),
    (three_classes, r"cls.seq_relationship.weight is \[3, 16\], the model's is \[2, 16\]"),
    (no_transform, "there is no cls.predictions.transform.dense.weight"),
    (no_heads, "there is no cls.predictions"),
]


def evaluate(folder: ModelFolder) -> None:
    batch = torch.tensor([[2, 5, 6, 3]])
    folder.model(batch, torch.zeros_like(batch), torch.ones_like(batch), torch.tensor([1]))


@pytest.mark.parametrize(("change", "message"), HEADS)
def test_the_encoder_is_all_that_vectors_need(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    """Of heads that are missing, or are not ours, one line says so where they are needed."""
    publish(tmp_path)
    change(tmp_path)
    if change is not said_to_be_untied:
        edit_config(tmp_path, tie_word_embeddings=True)
    read = FAMILY.format.read(tmp_path)
    embedder = Embedder.load(tmp_path, device="cpu")
    assert embedder.encode("ab").shape == (1, 16)
    with pytest.raises(ExportError, match=f"gives vectors, but no losses: .*{message}") as raised:
        evaluate(read)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)
    with pytest.raises(ExportError, match=r"cannot be written: .*no losses"):
        FAMILY.format.write(tmp_path / "again", read)

    objective = BertObjectiveConfig(max_sequence_length=32)
    model = BertModel(read.config, objective, len(VOCABULARY))
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    kept = FAMILY.format.initialize(model, tmp_path)
    names = [line.partition(" (")[0] for line in kept]
    assert names and all(name.startswith(("masked_words.", "pooler.", "next_sentence.")) for name in names)
    for name in names:
        assert torch.equal(model.state_dict()[name], fresh[name]), name
    held = read.model.state_dict()
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, held[f"encoder.{name}"]), name
    evaluate(ModelFolder(model.eval(), None, read.config, objective))


def test_a_model_without_next_sentences_predicts_words(tmp_path: Path) -> None:
    theirs = publish(tmp_path, "BertForMaskedLM")
    read = FAMILY.format.read(tmp_path)
    assert not read.objective.next_sentence
    ids = torch.tensor([[2, 9, 4, 7, 3]])
    with torch.no_grad():
        ours = read.model(ids, torch.zeros_like(ids), torch.ones_like(ids), torch.arange(5)).words
        expected = theirs(ids).logits[0]
    torch.testing.assert_close(ours[:, : len(VOCABULARY)], expected, atol=1e-4, rtol=1e-4)


def test_segments_that_a_folder_lacks_stay_fresh(tmp_path: Path) -> None:
    publish(tmp_path, type_vocab_size=1)
    model = BertModel(FAMILY.format.read(tmp_path).config, BertObjectiveConfig(max_sequence_length=32), len(VOCABULARY))
    assert FAMILY.format.initialize(model, tmp_path) == ["segments 1 to 1"]


def _refused() -> Iterator[tuple[str, Callable[[Path], object]]]:
    index = "model.safetensors.index.json"

    def shards(content: Any) -> Callable[[Path], object]:
        def change(folder: Path) -> None:
            (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
            (folder / "link.safetensors").symlink_to(folder.parent / "secret.safetensors")
            (folder / index).write_text(json.dumps(content))

        return change

    def instead(name: str, content: bytes) -> Callable[[Path], object]:
        def change(folder: Path) -> None:
            (folder / "model.safetensors").unlink()
            (folder / name).write_bytes(content)

        return change

    for name in ("../secret.safetensors", "link.safetensors", "/etc/passwd"):
        yield f"names '{name}', which lies outside", shards({"weight_map": {WORDS: name}})
    yield "names 3 where a file's name belongs", shards({"weight_map": {WORDS: 3}})
    yield "has no weight_map", shards({})
    yield "has no weight_map", shards({"weight_map": []})
    yield "index.json holds no JSON object", shards([])
    yield "other.safetensors is missing", shards({"weight_map": {WORDS: "other.safetensors"}})
    yield (
        "pytorch_model.bin is a Git LFS pointer",
        instead("pytorch_model.bin", b"version https://git-lfs.github.com/spec/v1\n"),
    )
    yield "pytorch_model.bin is an HTML page", instead("pytorch_model.bin", b"<!DOCTYPE html><html>Not found</html>")
    yield "none of model.safetensors, .*; tf_model.h5 is another library's", instead("tf_model.h5", b"x")
    yield (
        r"TensorFlow checkpoint \(bert_model.ckpt.index\).*to a folder of transformers",
        instead("bert_model.ckpt.index", b"x"),
    )
    for key, value, message in (
        ("model_type", "roberta", "model_type is 'roberta'; only 'bert' can be read"),
        ("model_type", "distilbert", "model_type is 'distilbert'"),
        ("position_embedding_type", "relative_key_query", "position_embedding_type is 'relative_key_query'"),
        ("hidden_act", "silu", "hidden_act is 'silu'; can be read: gelu"),
        ("is_decoder", True, "is_decoder is True"),
        ("pruned_heads", {"0": [1]}, "pruned_heads is"),
        ("num_hidden_layers", 10**12, "has no bert.encoder.layer.2.attention.self.query.weight"),
        ("hidden_size", 10**9, r"word_embeddings.weight is \[59, 16\], the model's is \[59, 1000000000\]"),
        ("vocab_size", 10**12, r"word_embeddings.weight is \[59, 16\], the model's is \[1000000000000, 16\]"),
        ("intermediate_size", 10**12, r"intermediate.dense.weight is \[24, 16\]"),
        ("max_position_embeddings", 10**12, r"position_embeddings.weight is \[32, 16\]"),
        ("type_vocab_size", 10**12, r"token_type_embeddings.weight is \[2, 16\]"),
        ("num_attention_heads", 0, "config.json: num_heads"),
    ):
        yield message, lambda folder, key=key, value=value: edit_config(folder, **{key: value})  # type: ignore[misc]


@pytest.mark.parametrize(("message", "change"), list(_refused()))
def test_what_is_refused_is_named(message: str, change: Callable[[Path], object], tmp_path: Path) -> None:
    """Before a model of such a size is built, or a file elsewhere is opened."""
    folder = tmp_path / "model"
    publish(folder)
    change(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ExportError, match=message) as raised:
        Embedder.load(folder, device="cpu")
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


@pytest.mark.parametrize("name", ["lfs_pointer", "html_page", "cut_short"])
def test_the_shared_cases(name: str, shared_data: Callable[[str], Path]) -> None:
    messages = {"lfs_pointer": "Git LFS pointer", "html_page": "HTML page", "cut_short": "cut short"}
    with pytest.raises(ExportError, match=f"pytorch_model.bin .*{messages[name]}") as raised:
        Embedder.load(shared_data(f"cases/published/{name}"), device="cpu")
    assert "\n" not in str(raised.value)


def test_a_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<e1>": len(VOCABULARY)}))
    with pytest.raises(ExportError, match=r"the tokenizer has 60 pieces, vocab_size in config.json is 59"):
        Embedder.load(tmp_path)


def test_folders_of_others_are_not_ours(tmp_path: Path) -> None:
    """A config.json of neither transformers nor an early BERT."""
    (tmp_path / "config.json").write_text(json.dumps({"dataset_reader": {}, "hidden_size": 3}))
    assert not FAMILY.format.recognises(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert not FAMILY.format.recognises(tmp_path)


def test_words_of_another_program_are_embedded(tmp_path: Path) -> None:
    publish(tmp_path)
    keys = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(keys))
    embedder = Embedder.load(tmp_path, device="cpu")
    assert embedder.encode([["ab", "c"]], is_split_into_words=True)[0].shape == (2, 16)
    with pytest.raises(ExportError, match="BertJapaneseTokenizer cuts text with a program that is not here"):
        embedder.encode("ab c")


def test_the_language_is_written_and_read(
    model: BertModel, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for language in (None, "is"):
        FAMILY.format.write(tmp_path, ModelFolder(model, tokenizer, model.config, TINY_OBJECTIVE, language))
        with caplog.at_level(logging.WARNING):
            read = FAMILY.format.read(tmp_path)
        assert (read.language, read.config, read.objective) == (language, model.config, TINY_OBJECTIVE)
        written = json.loads((tmp_path / "config.json").read_text())["pretrain"]
        assert ("language" in written) == (language is not None)
        shutil.rmtree(tmp_path)
    assert not caplog.records, "nothing of ours is warned of"
    assert isinstance(read.config, BertConfig)
