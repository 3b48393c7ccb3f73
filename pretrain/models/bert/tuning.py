"""What is quick, but does not work on every device, is tried on a small pack first: kernels that read packs, compiling.

Nothing here changes what is computed, but for rounding.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import attention as implementations

from pretrain.config.compute import ComputeConfig
from pretrain.config.models import BertConfig
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.errors import ConfigError
from pretrain.models.bert.attention import Attention, read_packs, read_rows
from pretrain.models.bert.layers import Layer
from pretrain.models.bert.model import BertModel

LADDER = ("varlen_fa3", "varlen", "flash_attn", "nested")
"""Ways to read packs on CUDA, the quickest first; after them `masked`, which always works."""

SLACK = 3
"""A kernel may be so many times as far from float32 as the plain way in the same type is."""


def tune(
    model: nn.Module, compute: ComputeConfig, device: torch.device, dtype: torch.dtype, zero_stage: int
) -> list[str]:
    """Settles how `model` is computed on `device`, in products of `dtype`; returns what the log should say.

    Raises ConfigError where the config asks for what does not work here.
    """
    assert isinstance(model, BertModel)
    lines = []
    model.encoder.activation_checkpointing = compute.activation_checkpointing
    if model.objective.packing:
        model.encoder.attention, said = choose_attention(model, compute, device, dtype)
        lines += said
    if compute.compile or (compute.compile is None and device.type == "cuda"):
        problem = compile_problem(model, device, dtype, zero_stage)
        if problem is None:
            compile_parts(model)
            lines.append("layers and heads are compiled")
        elif compute.compile:
            raise ConfigError(f"compute.compile is true: {problem}")
        else:
            lines.append(f"nothing is compiled: {problem}")
    return lines


def choose_attention(
    model: BertModel, compute: ComputeConfig, device: torch.device, dtype: torch.dtype
) -> tuple[str, list[str]]:
    """The way to read packs that the config asks for, or the first of the ladder that works here; and the log's lines.

    On CPU that is one by one, or a mask for layers that are compiled.
    """
    config, objective = model.config, model.objective
    if compute.attention != "auto":
        problem = attention_problem(compute.attention, config, objective, device, dtype)
        if problem is not None:
            raise ConfigError(f"compute.attention is {compute.attention}: {problem}")
        return compute.attention, []
    if device.type == "cpu":
        return "masked" if compute.compile else "per_sequence", []
    skipped: list[str] = []
    for way in LADDER:
        problem = attention_problem(way, config, objective, device, dtype)
        if problem is None:
            return way, [f"attention: {way}", *skipped]
        skipped.append(f"attention: not {way}: {problem}")
    return "masked", ["attention: masked", *skipped]


def attention_problem(
    way: str, config: BertConfig, objective: BertObjectiveConfig, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Why packs cannot be read in this way here; None where it agrees with the plain way, gradients included."""
    try:
        if way == "varlen_fa3":
            implementations.activate_flash_attention_impl("FA3")
        problem = _disagreement(way, config, objective, device, dtype)
    except Exception as error:  # whatever a kernel says that is not made for this device, or not installed
        problem = _first_sentence(error)
    if way == "varlen_fa3" and problem is not None and implementations.current_flash_attention_impl() == "FA3":
        implementations.restore_flash_attention_impl()
    return problem


def _first_sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().split('. ')[0].splitlines()[0]}" if str(error) else repr(error)


def _disagreement(
    way: str, config: BertConfig, objective: BertObjectiveConfig, device: torch.device, dtype: torch.dtype
) -> str | None:
    length, longest = objective.tokens_per_example, objective.max_sequence_length
    lengths = torch.tensor([[longest // 2, longest // 4, 0, 1, 0], [longest, 0, 0, 0, 0]], device=device)
    generator = torch.Generator().manual_seed(0)
    shape = (4, len(lengths), length, config.hidden_size)
    inputs = torch.randn(shape, generator=generator).to(device)
    real = (torch.arange(length, device=device) < lengths.sum(1, keepdim=True))[..., None]
    plain, attend = (read_packs(one, lengths, length, longest) for one in ("masked", way))

    def run(attend: Attention, dtype: torch.dtype, dropout: float = 0.0) -> Tensor:
        """What the real tokens got, and the gradients of all three inputs; NaN where padding got no number."""
        *three, weights = inputs.to(dtype)
        three = [x.detach().requires_grad_() for x in three]
        mixed = attend(*three, num_heads=config.num_heads, dropout=dropout)
        gradients = torch.autograd.grad(mixed, three, weights * real)
        return torch.stack([mixed.detach() * real, *gradients]).float()

    expected = run(plain, torch.float32)
    allowed = SLACK * (run(plain, dtype) - expected).abs().amax() + 1e-5
    distance = (run(attend, dtype) - expected).abs().amax()
    if not distance <= allowed:
        return f"{float(distance):.1e} from the plain way, {float(allowed):.1e} allowed"
    dropout = config.dropout_of_attention
    if dropout:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if torch.equal(run(attend, dtype, dropout), run(attend, dtype, dropout)):
                return "it has no dropout"
    return None


def compile_problem(model: BertModel, device: torch.device, dtype: torch.dtype, zero_stage: int) -> str | None:
    """Why parts of the model are not compiled here; None where a compiled layer runs, and agrees with a plain one."""
    if zero_stage == 3:
        return "sharding.zero_stage is 3, which gathers weights in the middle of layers"
    if model.encoder.attention in ("nested", "per_sequence"):
        return f"attention is {model.encoder.attention}"
    sizes = {"hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "dropout": 0.0}
    layer = Layer(model.config.model_copy(update=sizes)).to(device)
    x = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    attend = read_rows(torch.ones(2, 64, device=device))

    def run(work: Callable[..., Tensor]) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            y = work(x, attend).float()
        gradients = torch.autograd.grad(y.sum(), list(layer.parameters()))
        return torch.cat([y.flatten(), *(gradient.flatten() for gradient in gradients)])

    try:
        plain, compiled = run(layer), run(torch.compile(layer, fullgraph=True))
    except Exception as error:  # whatever stands between torch and a compiler
        return _first_sentence(error)
    distance, size = (compiled - plain).norm(), plain.norm()
    if not distance <= 0.02 * size:
        return f"a compiled layer is {float(distance / size):.1e} from a plain one"
    return None


def compile_parts(model: BertModel, backend: str = "inductor") -> None:
    """Compiles what a step spends its time in, part by part: layers that are alike share their code.

    In place, so that the names of parameters stay. Lightning and ZeRO do not take a model that is compiled as a whole.
    """
    for part in (model.encoder.embeddings, *model.encoder.layers, model.masked_words):
        part.compile(fullgraph=True, backend=backend)
