"""The weights of a published BERT: in which files they are, and by which names."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pretrain.config.models import BertConfig
from pretrain.errors import ExportError
from pretrain.models.published_files import find_tensorflow_checkpoint, read_json, read_tensors, resolve_inside

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

WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The files that weights are read from: the first that is there."""
OTHER_WEIGHTS = ("tf_model.h5", "flax_model.msgpack", "model.onnx", "openvino_model.xml")
"""Weights for other libraries."""


class Weights(NamedTuple):
    """What the weights of a model folder are, read whole."""

    path: Path
    """The file, or the index of several."""
    tensors: dict[str, Tensor]
    """By the names that are in use today."""


def published_name(name: str) -> str:
    """The name of one of our parameters in a published file."""
    module, kind = name.rsplit(".", 1)
    if not module.startswith("encoder.layers."):
        return f"{MODULES[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    return f"bert.encoder.layer.{layer}.{LAYER_MODULES[part]}.{kind}"


def read_weights(folder: Path) -> Weights:
    """The weights of a model folder; raises ExportError where it holds none, or they cannot be read."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        if (line := find_tensorflow_checkpoint(folder)) is not None:
            raise ExportError(f"{line}, to a folder of transformers")
        others = "".join(f"; {name} is another library's" for name in OTHER_WEIGHTS if (folder / name).is_file())
        raise ExportError(f"{folder} holds no weights: none of {', '.join(WEIGHTS)}{others}")
    tensors: dict[str, Tensor] = {}
    for file in [path] if path.suffix != ".json" else _indexed_files(folder, path):
        tensors.update(_current_names(read_tensors(file)))
    return Weights(path, tensors)


def check_encoder(weights: Weights, config: BertConfig, vocabulary_size: int, segments: int) -> None:
    """Raises ExportError where an encoder of these sizes is not in the file, all of it and nothing else.

    To be called before a model is built: that of a false config would take any amount of time and memory.
    """
    left = {name for name in weights.tensors if name.startswith("bert.")}
    for name, shape in _encoder_shapes(config, vocabulary_size, segments):
        tensor = weights.tensors.get(name)
        if tensor is None:
            raise ExportError(f"{weights.path} has no {name}")
        if list(tensor.shape) != shape:
            raise ExportError(f"{weights.path}: {name} is {list(tensor.shape)}, the model's is {shape}")
        if not tensor.is_floating_point():
            raise ExportError(f"{weights.path}: {name} holds {tensor.dtype}, not floating-point numbers")
        left.discard(name)
    unread = sorted(name for name in left if not name.startswith("bert.pooler."))
    if unread:
        raise ExportError(f"{weights.path} holds {unread[0]}, which the model has no place for")


def _encoder_shapes(config: BertConfig, vocabulary_size: int, segments: int) -> Iterator[tuple[str, list[int]]]:
    """Published names and shapes; one after the other, so that the first that is missing ends a false number."""
    size, wide = config.hidden_size, config.intermediate_size
    yield WORDS, [vocabulary_size, size]
    yield "bert.embeddings.position_embeddings.weight", [config.max_positions, size]
    yield "bert.embeddings.token_type_embeddings.weight", [segments, size]
    yield "bert.embeddings.LayerNorm.weight", [size]
    yield "bert.embeddings.LayerNorm.bias", [size]
    widths = {"intermediate": [wide, size], "output": [size, wide]}
    for layer in range(config.num_layers):
        for ours, theirs in LAYER_MODULES.items():
            shape = [size] if ours.endswith("norm") else widths.get(ours, [size, size])
            yield f"bert.encoder.layer.{layer}.{theirs}.weight", shape
            yield f"bert.encoder.layer.{layer}.{theirs}.bias", shape[:1]


def _indexed_files(folder: Path, index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ExportError(f"{index} has no weight_map, the files of the weights by name")
    return sorted({resolve_inside(folder, name, index) for name in shards.values()})


def _current_names(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names as transformers writes them today: early files say gamma and beta, plain encoders have no prefix."""
    for name, tensor in tensors.items():
        if name.endswith("position_ids"):
            continue  # a buffer of early versions: 0, 1, 2 …
        if name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"bert.{name}"
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        yield ("cls.predictions.bias" if name == "cls.predictions.decoder.bias" else name), tensor
