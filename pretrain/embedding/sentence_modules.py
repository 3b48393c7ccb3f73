"""How a folder of sentence-transformers makes one vector of a text: `modules.json`, obeyed module by module.

Its vectors are those of sentence-transformers: special tokens count like any other piece.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.embedding.pooling import Vectors
from pretrain.errors import ExportError
from pretrain.models.family import Tokenizer
from pretrain.models.published_files import read_json, read_json_value, read_tensors, resolve_inside

log = logging.getLogger(__name__)

Step = Callable[[Tensor], Tensor]
"""[layers, pieces, width] to [layers, width'] (pooling), or [layers, width] to the same or another width."""

POOLING: dict[str, Step] = {
    "cls": lambda x: x[:, 0],
    "max": lambda x: x.amax(dim=1),
    "mean": lambda x: x.mean(dim=1),
    "mean_sqrt_len_tokens": lambda x: x.sum(dim=1) / x.shape[1] ** 0.5,
    "weightedmean": lambda x: (x * _places(x)).sum(dim=1) / _places(x).sum(),
    "lasttoken": lambda x: x[:, -1],
}
"""By the name of the mode."""
LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The keys that said it first, one each, in the order in which several are put side by side."""
ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU, "Sigmoid": nn.Sigmoid}
"""Those of `torch.nn` that a Dense module is read with."""
TRANSFORMER_CONFIG = "sentence_*_config.json"
"""The options of the Transformer module, in a file with the name of its kind of model."""
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class SentenceModules:
    """What a `modules.json` says."""

    source: Path
    """The file."""
    transformer: Path
    """The folder of the model itself."""
    steps: list[Step] = field(default_factory=list)
    """What follows it."""
    problem: str | None = None
    """Why the vector of a text cannot be made; pieces and words have theirs all the same."""
    max_length: int | None = None
    """The most pieces of a text, special tokens included."""
    lowercase: bool = False
    """Whether text is to be lower-cased before the tokenizer sees it."""

    def __call__(self, vectors: Vectors) -> Vectors:
        """One vector a layer, [layers, width'] from [layers, pieces, width], special tokens included.

        A text without a piece (of a family without special tokens) gets zeros. Raises ExportError where there is a
        `problem`.
        """
        if self.problem is not None:
            raise ExportError(self.problem)
        x = torch.from_numpy(vectors)
        if not x.shape[1]:
            x = x.new_zeros(x.shape[0], 1, x.shape[2])
        for step in self.steps:
            x = step(x)
        pooled: Vectors = x.numpy()
        return pooled

    def checked(self, width: int, tokenizer: Tokenizer) -> "SentenceModules":
        """The same, with a `problem` where the model's vectors or its tokenizer are not what the modules are for."""
        if self.problem is not None:
            return self
        cased = tokenizer.pieces(["A"]).tokens != tokenizer.pieces(["a"]).tokens
        if self.lowercase and cased:
            problem = f"{self.transformer / TRANSFORMER_CONFIG}: do_lower_case is true, and the tokenizer keeps case"
            return replace(self, problem=problem)
        try:
            self(np.zeros((1, 1, width), np.float32))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            return replace(self, problem=f"{self.source}: its modules do not fit vectors of {width}: {reason}")
        return self


def modules_of_run(run: Path, pooling: str | None) -> SentenceModules | None:
    """The modules of a run's model, the same as those of its export; None for a family that has none."""
    return None if pooling is None else SentenceModules(run, run, [POOLING[pooling]])


def read_sentence_modules(folder: Path) -> SentenceModules | None:
    """How the folder makes vectors of texts; None where it does not say.

    Raises ExportError where `modules.json` is damaged, or leads out of the folder; modules that are not read are the
    result's `problem`.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return None
    modules = read_json_value(path)
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise ExportError(f"{path} holds no list of modules")
    first, *others = [(_kind(module), resolve_inside(folder, module.get("path", ""), path)) for module in modules]
    if first[0] != "Transformer":
        raise ExportError(f"{path}: the first module is {modules[0].get('type')!r}; only a Transformer can be read")
    transformer = first[1]
    config = next(iter(sorted(transformer.glob(TRANSFORMER_CONFIG))), transformer / TRANSFORMER_CONFIG)
    options = _json_or_nothing(config)
    length = options.get("max_seq_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise ExportError(f"{config}: max_seq_length is {length!r}, not a number of pieces")
    _warn_of_prompt(folder / "config_sentence_transformers.json")
    steps: list[Step] = []
    problem: str | None = _other_output(config, options)
    try:
        for (kind, module_folder), module in zip(others, modules[1:], strict=True):
            steps += _read_module(path, kind, module_folder, module)
        if not others or others[0][0] != "Pooling":
            problem = problem or f"{path}: the second module is not a Pooling, which alone can be read there"
    except ExportError as error:
        problem = str(error)
    return SentenceModules(path, transformer, steps, problem, length, options.get("do_lower_case") is True)


def _kind(module: dict[str, Any]) -> str | None:
    """The class of a module of sentence-transformers; None for one of another library."""
    name = module.get("type")
    if not isinstance(name, str) or not name.startswith("sentence_transformers."):
        return None
    return name.rsplit(".", 1)[-1]


def _read_module(path: Path, kind: str | None, folder: Path, module: dict[str, Any]) -> list[Step]:
    if kind == "Pooling":
        return [_read_pooling(folder / "config.json")]
    if kind == "Normalize":
        options = _json_or_nothing(folder / "config.json")
        _check_input(folder / "config.json", options)
        return [lambda x: nn.functional.normalize(x, dim=-1)]
    if kind == "Dense":
        return [_read_dense(folder)]
    if kind == "Dropout":  # not in use, as here
        return []
    readable = "Pooling, Normalize, Dense and Dropout"
    raise ExportError(f"{path}: module {module.get('name')!r} is {module.get('type')!r}; can be read: {readable}")


def _read_pooling(path: Path) -> Step:
    options = read_json(path)
    modes = options.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in LEGACY.items() if options.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(isinstance(mode, str) and mode in POOLING for mode in modes):
        raise ExportError(f"{path}: pooling_mode is {modes!r}; can be read: {', '.join(POOLING)}")
    return lambda x: torch.cat([POOLING[mode](x) for mode in modes], dim=-1)


def _read_dense(folder: Path) -> Step:
    path = folder / "config.json"
    options = read_json(path)
    _check_input(path, options)
    if options.get("use_residual"):
        raise ExportError(f"{path}: use_residual is {options['use_residual']!r}; only false can be read")
    name = options.get("activation_function", "torch.nn.modules.activation.Tanh")
    short = name.rsplit(".", 1)[-1] if isinstance(name, str) and name.startswith("torch.nn.") else None
    if short not in ACTIVATIONS:
        raise ExportError(f"{path}: activation_function is {name!r}; can be read: {', '.join(ACTIVATIONS)} of torch.nn")
    activation = ACTIVATIONS[short]()
    weights = next((folder / file for file in _WEIGHTS if (folder / file).is_file()), folder / _WEIGHTS[0])
    tensors = read_tensors(weights)
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if weight is None or weight.ndim != 2 or (bias is None) == bool(options.get("bias", True)):
        raise ExportError(f"{weights} does not hold the linear.weight and linear.bias that {path} asks for")
    weight, bias = weight.float(), None if bias is None else bias.float()
    return lambda x: activation(nn.functional.linear(x, weight, bias))


def _check_input(path: Path, options: dict[str, Any]) -> None:
    for key in ("module_input_name", "module_output_name"):
        if options.get(key, "sentence_embedding") not in ("sentence_embedding", None):
            raise ExportError(f"{path}: {key} is {options[key]!r}; only 'sentence_embedding' can be read")


def _other_output(path: Path, options: dict[str, Any]) -> str | None:
    """Why what the Transformer module gives is not the last layer; None where it is."""
    text = options.get("modality_config") or {}
    text = text.get("text") if isinstance(text, dict) else None
    given = {
        "transformer_task": (options.get("transformer_task"), "feature-extraction"),
        "module_output_name": (options.get("module_output_name"), "token_embeddings"),
        "modality_config": ((text or {}).get("method_output_name"), "last_hidden_state"),
    }
    for key, (value, expected) in given.items():
        if value not in (None, expected):
            return f"{path}: {key} is {value!r}; only {expected!r} can be read"
    return None


def _warn_of_prompt(path: Path) -> None:
    options = _json_or_nothing(path)
    prompts, name = options.get("prompts"), options.get("default_prompt_name")
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    if prompt:
        log.warning(
            "%s: default_prompt_name is %r, but its prompt %r is not put before texts: give it with them",
            path, name, prompt,
        )  # fmt: skip


def _json_or_nothing(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _places(x: Tensor) -> Tensor:
    """1, 2, 3 … of the pieces, [pieces, 1]."""
    return torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
