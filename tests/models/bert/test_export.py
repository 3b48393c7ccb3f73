import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain.config.models import BertConfig
from pretrain.errors import ExportError
from pretrain.models.bert import FAMILY
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.family import ModelFolder
from tests.models.bert.conftest import TINY_OBJECTIVE

TEXT = "ab cd efg, ab."
SIZES = dict(
    vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture
def folder(model: BertModel, tokenizer: WordPieceTokenizer, tmp_path: Path) -> Path:
    path = tmp_path / "exported"
    FAMILY.format.write(path, ModelFolder(model, tokenizer, model.config, TINY_OBJECTIVE))
    return path


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    torch.manual_seed(3)
    ids = torch.randint(5, 200, (3, 20))
    lengths = torch.tensor([20, 13, 6])
    return {
        "input_ids": ids,
        "segment_ids": (torch.arange(20) > 8).long().expand(3, -1).contiguous(),
        "attention_mask": (torch.arange(20) < lengths[:, None]).long(),
    }


def test_files(folder: Path) -> None:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == [
        "1_Pooling/config.json", "config.json", "config_sentence_transformers.json", "model.safetensors",
        "modules.json", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip
    assert FAMILY.format.recognises(folder)
    assert not FAMILY.format.recognises(folder / "1_Pooling")
    assert not FAMILY.format.recognises(folder / "nothing")


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_transformers_loads_all_and_agrees(
    activation: str, tokenizer: WordPieceTokenizer, inputs: dict[str, Tensor], model: BertModel, tmp_path: Path
) -> None:
    from transformers import BertForPreTraining

    config = BertConfig.model_validate(model.config.model_dump() | {"activation": activation})
    ours = BertModel(config, TINY_OBJECTIVE, tokenizer.vocabulary_size).eval()
    for parameter in ours.parameters():
        parameter.data.mul_(5)  # far enough from linear for the two activations to differ
    FAMILY.format.write(tmp_path, ModelFolder(ours, tokenizer, config, TINY_OBJECTIVE))
    theirs, loaded = BertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loaded.values()), loaded
    with torch.no_grad():
        actual = ours(**inputs, masked_positions=torch.arange(60))
        expected = theirs.eval()(
            inputs["input_ids"], token_type_ids=inputs["segment_ids"], attention_mask=inputs["attention_mask"]
        )
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        actual.words[:, :200].reshape(3, 20, -1)[real], expected.prediction_logits[real], atol=5e-5, rtol=1e-5
    )
    torch.testing.assert_close(actual.next_sentence, expected.seq_relationship_logits, atol=5e-5, rtol=1e-5)


def test_transformers_tokenizes_the_exported_folder_alike(folder: Path, tokenizer: WordPieceTokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs(TEXT)["input_ids"] == tokenizer.pieces(TEXT).tokens
    assert theirs.model_max_length == 64


def test_sentence_transformers_opens_it(folder: Path, model: BertModel, tokenizer: WordPieceTokenizer) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu")
    assert theirs.max_seq_length == 64
    vectors, _ = FAMILY.encode(model.encoder, [tokenizer.pieces(TEXT)], None)
    torch.testing.assert_close(
        torch.from_numpy(theirs.encode([TEXT], show_progress_bar=False)),
        vectors.layers[-1].mean(dim=1),
        atol=1e-5,
        rtol=0,
    )


def test_what_is_written_is_read_back(folder: Path, model: BertModel, tokenizer: WordPieceTokenizer) -> None:
    again = FAMILY.format.read(folder)
    assert (again.config, again.objective) == (model.config, TINY_OBJECTIVE)
    assert not again.model.training
    assert again.tokenizer is not None and again.tokenizer.pieces(TEXT).tokens == tokenizer.pieces(TEXT).tokens
    for (name, one), (_, other) in zip(model.state_dict().items(), again.model.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


def _encoder_agrees(ours: BertModel, theirs: torch.nn.Module, inputs: dict[str, Tensor]) -> None:
    with torch.no_grad():
        actual = ours.eval().encoder(**inputs)
        expected = theirs.eval()(
            inputs["input_ids"], token_type_ids=inputs["segment_ids"], attention_mask=inputs["attention_mask"]
        ).last_hidden_state
    torch.testing.assert_close(actual.layers[-1][actual.mask], expected[actual.mask], atol=5e-5, rtol=0)


HEADS = {
    "masked_words.transform.weight", "masked_words.transform.bias", "masked_words.norm.weight",
    "masked_words.norm.bias", "masked_words.decoder.bias", "next_sentence.weight", "next_sentence.bias",
}  # fmt: skip


@pytest.mark.parametrize("shards", [False, True])
def test_a_plain_encoder_of_transformers_is_read(shards: bool, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    from transformers import BertConfig as PublishedConfig
    from transformers import BertModel as PublishedModel

    theirs = PublishedModel(PublishedConfig(**SIZES, initializer_range=0.1))
    theirs.save_pretrained(tmp_path, max_shard_size="20kB" if shards else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    again = FAMILY.format.read(tmp_path)
    assert again.tokenizer is None
    assert isinstance(again.model, BertModel)
    _encoder_agrees(again.model, theirs, inputs)
    model = BertModel(again.config, TINY_OBJECTIVE, 200)
    assert set(FAMILY.format.initialize(model, tmp_path)) == HEADS
    _encoder_agrees(model, theirs, inputs)


def test_a_pretraining_model_of_transformers_is_read_whole(inputs: dict[str, Tensor], tmp_path: Path) -> None:
    from transformers import BertConfig as PublishedConfig
    from transformers import BertForPreTraining

    theirs = BertForPreTraining(PublishedConfig(**SIZES, hidden_act="gelu_new"))
    theirs.save_pretrained(tmp_path)
    read = FAMILY.format.read(tmp_path)
    assert read.config.activation == "gelu_tanh"
    model = BertModel(read.config, TINY_OBJECTIVE, 200)
    assert FAMILY.format.initialize(model, tmp_path) == []
    _encoder_agrees(model, theirs.bert, inputs)


def test_early_files_are_read(folder: Path, inputs: dict[str, Tensor], model: BertModel) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(64)[None]
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    torch.save(old, folder / "pytorch_model.bin")
    again = FAMILY.format.read(folder).model
    arguments = {**inputs, "masked_positions": torch.arange(60)}
    assert torch.equal(again(**arguments).words, model(**arguments).words)


Change = Callable[[Path], None]


def _edit_config(**changes: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _edit_tensors(edit: Callable[[dict[str, Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return change


WORDS = "bert.embeddings.word_embeddings.weight"


def _damage() -> Iterator[tuple[str, Change]]:
    yield r"config.json is missing", lambda folder: (folder / "config.json").unlink()
    yield r"config.json is not JSON", lambda folder: (folder / "config.json").write_text("{") and None
    yield r"holds no weights: none of model.safetensors", lambda folder: (folder / "model.safetensors").unlink()
    yield r"model.safetensors cannot be read", lambda folder: (folder / "model.safetensors").write_bytes(b"x") and None
    yield (
        r"position_embedding_type is 'relative_key'; only 'absolute'",
        _edit_config(position_embedding_type="relative_key"),
    )
    yield r"type_vocab_size is 0, not a number of 1 or more", _edit_config(type_vocab_size=0)
    yield r"token_type_embeddings.weight is \[2, 32\], the model's is \[4, 32\]", _edit_config(type_vocab_size=4)
    yield r"vocab_size is 'many', not a number", _edit_config(vocab_size="many")
    yield r"hidden_act is \[\]; can be read: gelu", _edit_config(hidden_act=[])
    yield r"model_type is 'roberta'; only 'bert'", _edit_config(model_type="roberta")
    yield r"is_decoder is True; only False", _edit_config(is_decoder=True)
    yield r"quantization_config is .*; such models are not read", _edit_config(quantization_config={"bits": 8})
    yield r"pretrain is 3, not an object", _edit_config(pretrain=3)
    yield r"pretrain.language is 3, not a language's code", _edit_config(pretrain={"language": 3})
    yield r"hidden_size .*", _edit_config(hidden_size={})
    yield r"config.json: max_sequence_length", _edit_config(pretrain={"max_sequence_length": "long"})
    yield r"hidden_act is 'relu'; can be read: gelu", _edit_config(hidden_act="relu")
    yield r"config.json: .*hidden_size \(32\) is not a multiple of num_heads \(5\)", _edit_config(num_attention_heads=5)
    yield r"the tokenizer has 200 pieces, vocab_size in config.json is 190", _edit_config(vocab_size=190)
    yield (
        r"position_embeddings.weight is \[64, 32\], the model's is \[60, 32\]",
        _edit_config(max_position_embeddings=60),
    )
    yield r"holds bert.encoder.layer.1.*no place for", _edit_config(num_hidden_layers=1)
    yield r"has no bert.encoder.layer.2.attention.self.query.weight", _edit_config(num_hidden_layers=3)
    yield r"model.safetensors has no bert.embeddings.word_embeddings", _edit_tensors(lambda tensors: tensors.pop(WORDS))
    yield (
        r"word_embeddings.weight holds torch.int32, not floating-point numbers",
        _edit_tensors(lambda tensors: tensors.update({WORDS: tensors[WORDS].int()})),
    )


@pytest.mark.parametrize(("message", "damage"), list(_damage()))
def test_damage_is_named(message: str, damage: Change, folder: Path) -> None:
    damage(folder)
    with pytest.raises(ExportError, match=message) as raised:
        FAMILY.format.read(folder)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 2}, r"num_heads is 4 there and 2 in this run"),
        ({"num_layers": 3}, r"num_layers is 2 there and 3"),
        ({"activation": "gelu_tanh"}, r"activation is gelu there and gelu_tanh"),
        ({"max_positions": 32}, r"max_positions is 64 there and 32 in this run"),
    ],
)
def test_a_run_of_another_shape_cannot_start_from_it(
    changes: dict[str, object], message: str, folder: Path, model: BertModel
) -> None:
    other = BertModel(BertConfig.model_validate(model.config.model_dump() | changes), TINY_OBJECTIVE, 200)
    with pytest.raises(ExportError, match=message):
        FAMILY.format.initialize(other, folder)


def test_positions_are_extended(folder: Path, model: BertModel, inputs: dict[str, Tensor]) -> None:
    longer = BertModel(
        BertConfig.model_validate(model.config.model_dump() | {"max_positions": 100}), TINY_OBJECTIVE, 200
    ).eval()
    fresh = longer.encoder.embeddings.positions.weight[64:].clone()
    assert FAMILY.format.initialize(longer, folder) == ["positions 64 to 99"]
    assert torch.equal(longer.encoder.embeddings.positions.weight[:64], model.encoder.embeddings.positions.weight)
    assert torch.equal(longer.encoder.embeddings.positions.weight[64:], fresh)
    assert torch.equal(longer.encoder(**inputs).layers[-1], model.encoder(**inputs).layers[-1])


def test_rows_without_a_word_are_neither_written_nor_read(
    folder: Path, model: BertModel, tokenizer: WordPieceTokenizer
) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert tensors[WORDS].shape == (200, 32) and tensors["cls.predictions.bias"].shape == (200,)
    # published files may be padded themselves, which their config.json counts
    for name in (WORDS, "cls.predictions.bias"):
        tensors[name] = torch.cat([tensors[name], torch.ones_like(tensors[name][:24])])
    save_file(tensors, folder / "model.safetensors")
    _edit_config(vocab_size=224)(folder)
    again = BertModel(model.config, TINY_OBJECTIVE, 200)
    assert FAMILY.format.initialize(again, folder, tokenizer) == []
    for (name, one), (_, other) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    _edit_config(vocab_size=190)(folder)
    with pytest.raises(ExportError, match=r"vocab_size is 190 there and 200 in this run"):
        FAMILY.format.initialize(again, folder, tokenizer)


def test_both_dropouts_are_written_and_read(model: BertModel, tokenizer: WordPieceTokenizer, tmp_path: Path) -> None:
    for given, written in ((None, 0.1), (0.0, 0.0)):
        config = BertConfig.model_validate(model.config.model_dump() | {"attention_dropout": given})
        FAMILY.format.write(tmp_path, ModelFolder(model, tokenizer, config, TINY_OBJECTIVE))
        published = json.loads((tmp_path / "config.json").read_text())
        assert [published[f"{name}_dropout_prob"] for name in ("hidden", "attention_probs")] == [0.1, written]
        assert FAMILY.format.read(tmp_path).config == config


def test_a_model_without_tokenizer_is_not_written(model: BertModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no WordPiece tokenizer"):
        FAMILY.format.write(tmp_path, ModelFolder(model, None, model.config, TINY_OBJECTIVE))


def test_a_model_without_pairs_is_a_masked_language_model(
    model: BertModel, folder: Path, tokenizer: WordPieceTokenizer, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    from transformers import BertForMaskedLM

    objective = TINY_OBJECTIVE.model_copy(update={"next_sentence": False})
    ours = BertModel(model.config, objective, tokenizer.vocabulary_size).eval()
    assert FAMILY.format.initialize(ours, folder) == [], "what it has no place for is left alone"
    FAMILY.format.write(tmp_path / "single", ModelFolder(ours, tokenizer, model.config, objective))
    theirs, loaded = BertForMaskedLM.from_pretrained(tmp_path / "single", output_loading_info=True)
    assert not any(loaded.values()), loaded
    with torch.no_grad():
        actual = ours(**inputs, masked_positions=torch.arange(60))
        expected = theirs.eval()(
            inputs["input_ids"], token_type_ids=inputs["segment_ids"], attention_mask=inputs["attention_mask"]
        )
    assert actual.next_sentence is None
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        actual.words[:, :200].reshape(3, 20, -1)[real], expected.logits[real], atol=5e-5, rtol=1e-5
    )
    again = FAMILY.format.read(tmp_path / "single")
    assert (again.config, again.objective) == (model.config, objective)
    added = FAMILY.format.initialize(model, tmp_path / "single")
    assert set(added) == {"pooler.weight", "pooler.bias", "next_sentence.weight", "next_sentence.bias"}
