"""`config.json` of a published BERT: read key by key, and written."""

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from pretrain.config.models import BertConfig
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.errors import ExportError
from pretrain.models.bert.layers import SEGMENTS
from pretrain.models.family import ModelFolder
from pretrain.models.published_files import read_json

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
model was trained and `evaluate` needs to ask it the same: the objective's options, and `language`."""

ONLY: dict[str, tuple[Any, ...]] = {
    "model_type": ("bert", None),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
"""Keys that would make it another model, and the values with which it is ours."""


class PublishedConfig(NamedTuple):
    """What a `config.json` says."""

    config: BertConfig
    objective: BertObjectiveConfig
    """What the model was trained on, as far as the file says it."""
    vocabulary_size: int
    segments: int
    """Rows of the segment embeddings; ours are two, and vectors use the first."""
    tied: bool
    """Whether the masked-word head predicts by the word embeddings."""
    language: str | None


def write_config(folder: ModelFolder, vocabulary_size: int, padding_id: int) -> dict[str, Any]:
    """The content of `config.json`."""
    config: BertConfig = folder.config
    objective: BertObjectiveConfig = folder.objective
    language = {} if folder.language is None else {"language": folder.language}
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
        OURS: objective.model_dump(mode="json", exclude={"kind", "stages"}) | language,
    }


def read_config(path: Path) -> PublishedConfig:
    """What a `config.json` says; raises ExportError naming the key that is missing, wrong, or of another model."""
    published = read_json(path)
    check_model_type(path, published)
    missing = [key for key in ["vocab_size", *SIZES.values()] if key not in published]
    if missing:
        raise ExportError(f"{path} has no {', '.join(missing)}")
    activation = published.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ExportError(f"{path}: hidden_act is {activation!r}; can be read: {', '.join(ACTIVATIONS)}")
    options: dict[str, Any] = {
        ours: published[theirs] for ours, theirs in (SIZES | OPTIONS).items() if theirs in published
    }
    options["activation"] = ACTIVATIONS[activation]
    ours = published.get(OURS, {})
    if not isinstance(ours, dict):
        raise ExportError(f"{path}: {OURS} is {ours!r}, not an object")
    language = ours.get("language")
    if language is not None and not isinstance(language, str):
        raise ExportError(f"{path}: {OURS}.language is {language!r}, not a language's code")
    known = BertObjectiveConfig.model_fields
    try:
        config = BertConfig.model_validate(options, strict=False)
        asked = {name: value for name, value in ours.items() if name in known}
        objective = BertObjectiveConfig.model_validate(asked)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ExportError(f"{path}: {'.'.join(map(str, problem['loc']))} {problem['msg']}") from error
    if objective.max_sequence_length > config.max_positions:
        objective = objective.model_copy(update={"max_sequence_length": config.max_positions})
    if config.attention_dropout == config.dropout:
        config = config.model_copy(update={"attention_dropout": None})
    size, segments = _count(path, published, "vocab_size"), _count(path, published, "type_vocab_size", SEGMENTS)
    return PublishedConfig(
        config, objective, size, segments, published.get("tie_word_embeddings") is not False, language
    )


def check_model_type(path: Path, published: dict[str, Any]) -> None:
    """Raises ExportError where a `config.json` is another model's."""
    for key, values in ONLY.items():
        value = published.get(key)
        if value not in values:
            only = "such models are not read" if values[0] is None else f"only {values[0]!r} can be read"
            raise ExportError(f"{path}: {key} is {value!r}; {only}")


def _count(path: Path, published: dict[str, Any], key: str, default: int | None = None) -> int:
    value = published.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ExportError(f"{path}: {key} is {value!r}, not a number of 1 or more")
    return value
