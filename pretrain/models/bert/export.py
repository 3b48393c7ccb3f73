"""BERT in the published format: a folder that transformers and sentence-transformers open.

config.json  model.safetensors                                       the model (`BertForPreTraining`; see below)
tokenizer.json  vocab.txt  tokenizer_config.json                     the tokenizer (`BertTokenizer`)
modules.json  1_Pooling/  sentence_bert_config.json  config_sentence_transformers.json     mean pooling

A model without next-sentence prediction is a `BertForMaskedLM`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretrain.config.models import BertConfig
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.errors import ExportError
from pretrain.models.bert.layers import SEGMENTS
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.tokens import WordPieceTokenizer, load_tokenizer
from pretrain.models.family import ModelFolder

ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}
"""transformers' names of the two activations; the first of each is the one written."""

SIZES = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
"""Our options and their keys in `config.json`, which must hold them."""

OPTIONS = {
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_epsilon": "layer_norm_eps",
    "initializer_range": "initializer_range",
}
"""Those that early `config.json` files may leave out, meaning BERT's own values, which are our defaults too."""

OURS = "pretrain"
"""The key of `config.json`, which every other reader ignores, for what the published format does not say of how the
model was trained and `evaluate` needs to ask it the same: `objective`."""

MODULES = {
    "encoder.embeddings.words": "bert.embeddings.word_embeddings",
    "encoder.embeddings.positions": "bert.embeddings.position_embeddings",
    "encoder.embeddings.segments": "bert.embeddings.token_type_embeddings",
    "encoder.embeddings.norm": "bert.embeddings.LayerNorm",
    "pooler": "bert.pooler.dense",
    "masked_words.transform": "cls.predictions.transform.dense",
    "masked_words.norm": "cls.predictions.transform.LayerNorm",
    "masked_words.decoder": "cls.predictions",
    "next_sentence": "cls.seq_relationship",
}
"""Our modules and the published ones, but for the layers'."""

LAYER_MODULES = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}
"""The same within a layer."""

BY_WORD = ("encoder.embeddings.words.weight", "masked_words.decoder.bias")
"""Our parameters with a row for every word, and more of them to fill a multiple; published files have none of those."""

POSITIONS = "encoder.embeddings.positions.weight"

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""The files that weights are read from: the first that is there."""

SENTENCE_TRANSFORMERS: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "config_sentence_transformers.json": {
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    },
}
"""The files of sentence-transformers that are the same for every model."""


def published_name(name: str) -> str:
    """The name of one of our parameters in a published file."""
    module, kind = name.rsplit(".", 1)
    if not module.startswith("encoder.layers."):
        return f"{MODULES[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    return f"bert.encoder.layer.{layer}.{LAYER_MODULES[part]}.{kind}"


def write(folder: Path, model_folder: ModelFolder) -> None:
    """Writes the model and its tokenizer, in float32. Raises ExportError where there is no tokenizer.

    The output matrix, which is the word embeddings', is written once: readers tie it again.
    """
    model, tokenizer = model_folder.model, model_folder.tokenizer
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise ExportError(f"{folder} cannot be written: the model has no WordPiece tokenizer")
    assert isinstance(model, BertModel)
    config: BertConfig = model_folder.config
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    tensors = {
        published_name(name): (p[: model.vocabulary_size] if name in BY_WORD else p).detach().float().cpu().contiguous()
        for name, p in model.named_parameters()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(folder, max_positions=config.max_positions)
    files = {
        **SENTENCE_TRANSFORMERS,
        "config.json": _published_config(config, model_folder.objective, model.vocabulary_size, tokenizer.padding_id),
        "sentence_bert_config.json": {"max_seq_length": config.max_positions, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _published_config(
    config: BertConfig, objective: BertObjectiveConfig, vocabulary_size: int, padding_id: int
) -> dict[str, Any]:
    return {
        "architectures": ["BertForPreTraining" if objective.next_sentence else "BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": vocabulary_size,
        "type_vocab_size": SEGMENTS,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "pad_token_id": padding_id,
        "tie_word_embeddings": True,
        **{theirs: getattr(config, ours) for ours, theirs in (SIZES | OPTIONS).items()},
        "attention_probs_dropout_prob": config.dropout_of_attention,
        OURS: objective.model_dump(mode="json", exclude={"kind"}),
    }


def recognises(folder: Path) -> bool:
    """Whether `config.json` says `"model_type": "bert"`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "bert"


def read(folder: Path) -> ModelFolder:
    """A published model, in `eval` mode. Heads that the folder does not hold are freshly initialised.

    The published format does not say how long the training sequences were: where we did not write it, our defaults are
    taken. Raises ExportError naming the file and what is wrong with it.
    """
    config, objective, vocabulary_size = _read_config(folder / "config.json")
    tokenizer = load_tokenizer(folder)
    if tokenizer is not None and tokenizer.vocabulary_size > vocabulary_size:
        raise ExportError(
            f"{folder}: the tokenizer has {tokenizer.vocabulary_size} pieces, "
            f"vocab_size in config.json is {vocabulary_size}"
        )
    model = BertModel(config, objective, vocabulary_size)
    _fill(model, folder, config.max_positions, vocabulary_size)
    return ModelFolder(model.eval(), tokenizer, config, objective)


def initialize(model: nn.Module, folder: Path, tokenizer: WordPieceTokenizer | None = None) -> list[str]:
    """Copies the weights of `folder` into `model`; returns what keeps its fresh values, for the log.

    That is parameters of heads that the folder does not hold, and the positions after its last one. Rows of its word
    matrix after the last word of its own vocabulary are left out. Raises ExportError where the folder's encoder is not
    the model's: another shape, or settings or a vocabulary that give the same weights another meaning.
    """
    assert isinstance(model, BertModel)
    theirs = load_tokenizer(folder)
    if tokenizer is not None and theirs is not None and theirs.vocabulary != tokenizer.vocabulary:
        raise ExportError(f"{folder}: its vocabulary is not the one this run's corpus was prepared with")
    config, _, vocabulary_size = _read_config(folder / "config.json")
    if vocabulary_size < model.vocabulary_size or (theirs is None and vocabulary_size != model.vocabulary_size):
        raise ExportError(
            f"{folder / 'config.json'}: vocab_size is {vocabulary_size} there and {model.vocabulary_size} in this run"
        )
    if config.max_positions > model.config.max_positions:
        raise ExportError(
            f"{folder / 'config.json'}: max_positions is {config.max_positions} there and "
            f"{model.config.max_positions} in this run's model, which can only have more"
        )
    for key in ("num_layers", "num_heads", "activation", "layer_norm_epsilon"):
        theirs, ours = getattr(config, key), getattr(model.config, key)
        if theirs != ours:
            raise ExportError(f"{folder / 'config.json'}: {key} is {theirs} there and {ours} in this run's model")
    return _fill(model, folder, config.max_positions, vocabulary_size)


def _read_config(path: Path) -> tuple[BertConfig, BertObjectiveConfig, int]:
    """The config, what the model was trained on as far as the file says it, and the vocabulary size."""
    published = _read_json(path)
    missing = [key for key in ["vocab_size", *SIZES.values()] if key not in published]
    if missing:
        raise ExportError(f"{path} has no {', '.join(missing)}")
    for key, expected in (
        ("model_type", "bert"),
        ("type_vocab_size", SEGMENTS),
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
    ):
        if published.get(key, expected) != expected:
            raise ExportError(f"{path}: {key} is {published[key]!r}; only {expected!r} can be read")
    activation = published.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise ExportError(f"{path}: hidden_act is {activation!r}; can be read: {', '.join(ACTIVATIONS)}")
    options: dict[str, Any] = {
        ours: published[theirs] for ours, theirs in (SIZES | OPTIONS).items() if theirs in published
    }
    options["activation"] = ACTIVATIONS[activation]
    try:
        config = BertConfig.model_validate(options, strict=False)
        known = BertObjectiveConfig.model_fields
        asked = {name: value for name, value in published.get(OURS, {}).items() if name in known}
        length = asked.get("max_sequence_length", known["max_sequence_length"].default)
        asked["max_sequence_length"] = min(length, config.max_positions)
        objective = BertObjectiveConfig.model_validate(asked)
        if config.attention_dropout == config.dropout:
            config = config.model_copy(update={"attention_dropout": None})
        return config, objective, int(published["vocab_size"])
    except ValidationError as error:
        problem = error.errors()[0]
        raise ExportError(f"{path}: {'.'.join(map(str, problem['loc']))} {problem['msg']}") from error


def _fill(model: BertModel, folder: Path, max_positions: int, vocabulary_size: int) -> list[str]:
    """Copies every tensor of `folder`, of so many positions and words, that the model has; returns what it lacks."""
    path, tensors = _read_tensors(folder)
    word_embeddings = tensors.get("bert.embeddings.word_embeddings.weight")
    decoder = tensors.pop("cls.predictions.decoder.weight", None)
    if decoder is not None and word_embeddings is not None and not torch.equal(decoder, word_embeddings):
        raise ExportError(
            f"{path}: cls.predictions.decoder.weight differs from the word embeddings; only tied can be read"
        )
    absent: list[str] = []
    for name, parameter in model.named_parameters():
        published = published_name(name)
        tensor = tensors.pop(published, None)
        expected = list(parameter.shape)
        if name in BY_WORD:
            expected[0] = vocabulary_size
        elif name == POSITIONS:
            expected[0] = max_positions
        if tensor is None:
            if name.startswith("encoder."):
                raise ExportError(f"{path} has no {published}")
            absent.append(name)
        elif list(tensor.shape) != expected:
            raise ExportError(f"{path}: {published} is {list(tensor.shape)}, the model's is {expected}")
        else:
            rows = min(len(tensor), model.vocabulary_size) if name in BY_WORD else len(tensor)
            with torch.no_grad():
                parameter[:rows] = tensor[:rows]
            if name == POSITIONS and rows < len(parameter):
                absent.append(f"positions {rows} to {len(parameter) - 1}")
    # Heads of other tasks are left alone, but an encoder must be read whole.
    others = ("bert.pooler.",) if model.pooler is None else ()
    left = [name for name in tensors if name.startswith("bert.") and not name.startswith(others)]
    if left:
        raise ExportError(f"{path} holds {left[0]}, which the model has no place for")
    return absent


def _read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The weights' file (or index), and all tensors, by the names that are in use today."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise ExportError(f"{folder} holds no weights: none of {', '.join(WEIGHTS)}")
    files = [path]
    if path.suffix == ".json":
        files = sorted({folder / name for name in _read_json(path)["weight_map"].values()})
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(_current_names(_load(file)))
    return path, tensors


def _load(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return loaded
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise ExportError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error


def _current_names(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names as transformers writes them today: early files say gamma and beta, plain encoders have no prefix."""
    for name, tensor in tensors.items():
        if name.endswith("position_ids"):
            continue  # a buffer of early versions: 0, 1, 2 …
        if name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"bert.{name}"
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        yield ("cls.predictions.bias" if name == "cls.predictions.decoder.bias" else name), tensor


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing") from None
    except ValueError as error:
        raise ExportError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path} holds no JSON object")
    return content
