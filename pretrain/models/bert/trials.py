"""Trials of attention backends and compiling: whether they run on this device, agree with plain torch, and how fast."""

import statistics
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import attention as implementations

from pretrain.models.bert.attention import Attention, packed_attention
from pretrain.models.bert.model import BertModel
from pretrain.runtime.machine import seconds_of

UNCOMPILED_BACKENDS = ("nested", "per_sequence")
"""Backends that the compiler cannot follow, or would compile anew for every batch."""

COMPILER = "inductor"
"""The backend of `torch.compile`."""

TOLERANCE_FACTOR = 3
"""A kernel may be this many times as far from float32 as masked attention in the same type is."""

TRIAL_TOKENS = 8192
"""Tokens of the batch that is timed, as far as packs are not longer."""


class Setting(NamedTuple):
    """Where and in which types a model is trained."""

    device: torch.device
    dtype: torch.dtype
    """Of matrix products, by autocast; parameters are float32 at every ZeRO stage."""
    zero_stage: int

    def autocast(self) -> torch.autocast:
        """The context of the forward pass, as training has it."""
        mixed = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=mixed, cache_enabled=False)


def attention_problem(backend: str, model: BertModel, setting: Setting) -> str | None:
    """Why a backend cannot be used here; None where it agrees with masked attention, gradients included."""
    try:
        activate(backend)
        return _disagreement(backend, model, setting)
    except Exception as error:  # whatever a kernel says that is not made for this device, or not installed
        return first_sentence(error)


def activate(backend: str) -> None:
    """Makes FlashAttention 3 torch's own for the backend that is so called, and for no other."""
    if backend == "varlen_fa3":
        implementations.activate_flash_attention_impl("FA3")
    elif implementations.current_flash_attention_impl() == "FA3":
        implementations.restore_flash_attention_impl()


def first_sentence(error: Exception) -> str:
    """One line of an error that is shown as a reason."""
    return f"{type(error).__name__}: {str(error).strip().split('. ')[0].splitlines()[0]}" if str(error) else repr(error)


def _trial_lengths(model: BertModel, device: torch.device, rows: int) -> Tensor:
    """int64 [rows, 5]: tokens of the sequences of packs of which every other is full."""
    full = model.objective.max_sequence_length
    pair = torch.tensor([[full // 2, full // 4, 0, 1, 0], [full, 0, 0, 0, 0]], device=device)
    return pair.repeat(rows // 2, 1)


def _disagreement(backend: str, model: BertModel, setting: Setting) -> str | None:
    device, dtype = setting.device, setting.dtype
    length, max_seqlen = model.objective.tokens_per_example, model.objective.max_sequence_length
    lengths = _trial_lengths(model, device, 2)
    generator = torch.Generator().manual_seed(0)
    shape = (4, len(lengths), length, model.config.hidden_size)
    inputs = torch.randn(shape, generator=generator).to(device)
    real = (torch.arange(length, device=device) < lengths.sum(1, keepdim=True))[..., None]
    masked, attend = (packed_attention(one, lengths, length, max_seqlen) for one in ("masked", backend))

    def run(attend: Attention, dtype: torch.dtype, dropout: float = 0.0) -> Tensor:
        """The real tokens' output and the gradients of all three inputs; NaN where padding's output is not finite."""
        *qkv, weights = inputs.to(dtype)
        qkv = [x.detach().requires_grad_() for x in qkv]
        output = attend(*qkv, num_heads=model.config.num_heads, dropout=dropout)
        gradients = torch.autograd.grad(output, qkv, weights * real)
        return torch.stack([output.detach() * real, *gradients]).float()

    expected = run(masked, torch.float32)
    allowed = TOLERANCE_FACTOR * (run(masked, dtype) - expected).abs().amax() + 1e-5
    distance = (run(attend, dtype) - expected).abs().amax()
    if not distance <= allowed:
        return f"it is {float(distance):.1e} from masked attention, {float(allowed):.1e} allowed"
    dropout = model.config.dropout_of_attention
    if dropout and torch.equal(run(attend, dtype, dropout), run(attend, dtype, dropout)):
        return "it has no dropout"
    return None


def compile_problem(model: BertModel, backend: str, setting: Setting) -> str | None:
    """Why the model's parts are not compiled here; None where those of a copy run, and agree with plain ones."""
    if setting.zero_stage == 3:
        return "sharding.zero_stage is 3, which gathers weights in the middle of layers"
    if backend in UNCOMPILED_BACKENDS:
        return f"attention is {backend}"
    try:
        copy, batch = one_layer_copy(model, backend, setting), trial_batch(model, setting.device, 2)
        plain = loss_and_gradients(copy.eval(), batch, setting)
        compile_parts(copy)
        compiled = loss_and_gradients(copy, batch, setting)
        loss_and_gradients(copy.train(), batch, setting)  # with dropout
    except Exception as error:  # whatever stands between torch and a compiler
        return first_sentence(error)
    distance, size = (compiled - plain).norm(), plain.norm()
    if not distance <= 0.02 * size:
        return f"compiled parts are {float(distance / size):.1e} from plain ones"
    return None


def one_layer_copy(model: BertModel, backend: str, setting: Setting) -> BertModel:
    """A model of the same widths, with one layer, as it will be on the device."""
    copy = BertModel(model.config.model_copy(update={"num_layers": 1}), model.objective, model.vocabulary_size)
    copy.encoder.attention = backend
    copy.encoder.activation_checkpointing = model.encoder.activation_checkpointing
    return copy.to(setting.device)


def trial_batch(model: BertModel, device: torch.device, rows: int) -> dict[str, Tensor]:
    """A batch as the example maker makes it, of arbitrary tokens."""
    length, lengths = model.objective.tokens_per_example, _trial_lengths(model, device, rows)
    tokens = torch.arange(length, device=device).repeat(rows, 1)
    mask = (tokens < lengths.sum(1, keepdim=True)).long()
    batch = {"input_ids": tokens % model.vocabulary_size, "segment_ids": 0 * tokens, "attention_mask": mask}
    batch["masked_positions"] = mask.flatten().nonzero()[::7, 0]
    if model.objective.packing:
        batch |= {"positions": tokens % model.objective.max_sequence_length, "sequence_lengths": lengths}
    return batch


def loss_and_gradients(model: BertModel, batch: dict[str, Tensor], setting: Setting) -> Tensor:
    """The loss for arbitrary labels, and behind it the gradients of all parameters, flattened; float32."""
    with setting.autocast():
        words, next_sentence = model(**batch)
    heads = [logits.float() for logits in (words, next_sentence) if logits is not None]
    loss = torch.stack(
        [F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.int64)) for logits in heads]
    ).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([loss.detach().reshape(1), *(gradient.flatten().float() for gradient in gradients)])


def layer_milliseconds(model: BertModel, backend: str, setting: Setting, *, compiled: bool) -> float:
    """How long a layer takes forward and backward, in training."""
    device, length = setting.device, model.objective.tokens_per_example
    rows = max(2, TRIAL_TOKENS // length // 2 * 2)
    copy = one_layer_copy(model, backend, setting).train()
    if compiled:
        compile_parts(copy)
    (layer,) = copy.encoder.layers
    dtype = next(layer.parameters()).dtype
    x = torch.randn(rows, length, model.config.hidden_size, device=device, dtype=dtype, requires_grad=True)
    lengths = _trial_lengths(model, device, rows)
    parameters = list(layer.parameters())

    def step() -> None:
        attend = packed_attention(backend, lengths, length, model.objective.max_sequence_length)
        with setting.autocast():
            y = layer(x, attend)
        torch.autograd.grad(y.sum(), [x, *parameters])

    for _ in range(3):  # kernels are compiled and chosen
        step()
    return 1000 * statistics.median(seconds_of(step, device) for _ in range(5))


def compile_parts(model: BertModel) -> None:
    """Compiles what a step spends its time in, part by part: layers that are alike share their code.

    In place, so that the names of parameters stay. Lightning and ZeRO do not take a model that is compiled as a whole.
    """
    for part in (model.encoder.embeddings, *model.encoder.layers, model.masked_words):
        part.compile(fullgraph=True, backend=COMPILER)
