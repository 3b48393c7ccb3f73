"""The pointwise part of one position of the recurrence: plain torch, and on CUDA one Triton kernel where it works.

Shapes: 2 directions, B rows, D cell_size. Gates are the input gate, the candidate, the forget gate, the output gate.
"""

import functools
import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_sigmoid_gradient = torch.ops.aten.sigmoid_backward.grad_input
_tanh_gradient = torch.ops.aten.tanh_backward.grad_input
_clip_gradient = torch.ops.aten.hardtanh_backward.grad_input


class Pointwise(NamedTuple):
    """One way to compute it."""

    name: str
    advance: Callable[..., Tensor]
    """See `advance`."""
    retreat: Callable[..., None]
    """See `retreat`."""


def advance(
    gates: Tensor, product: Tensor | None, memory: Tensor, kept: Tensor, shown: Tensor, read: Tensor, bound: float
) -> Tensor:
    """Forward. gates [2, B, 4D] become values; they come as sums, to which `product` of the same shape is added if any.

    memory [2, B, D] is the last one. Writes the new one before its clip into `kept`, tanh of it after that into
    `shown`, and what is to be projected into `read`, [2, B, D] each. Returns the new memory.
    """
    if product is not None:
        gates += product
    write, candidate, forget, opened = gates.chunk(4, dim=2)
    # tanh(x) = 2 sigmoid(2x) - 1, which on CPU takes an eighth of the time
    candidate.mul_(2)
    gates.sigmoid_()
    candidate.mul_(2).sub_(1)
    torch.mul(forget, memory, out=kept).addcmul_(write, candidate)
    memory = clip_into(kept, bound)
    torch.mul(memory, 2, out=shown).sigmoid_().mul_(2).sub_(1)
    torch.mul(opened, shown, out=read)
    return memory


def retreat(
    gates: Tensor,
    gradient: Tensor,
    before: Tensor,
    kept: Tensor,
    shown: Tensor,
    read_gradient: Tensor,
    memory_gradient: Tensor,
    bound: float,
    *,
    clip_before: bool,
) -> None:
    """Backward. Writes the gradient of the gates' sums into `gradient`, which may be `gates` itself: [2, B, 4D].

    `before` is the memory that the position began with (with `clip_before`, before its clip), `kept` and `shown` are
    `advance`'s, `read_gradient` is that of `read`; `memory_gradient` becomes that of `before`. [2, B, D] each.
    """
    if clip_before:
        before = clip_into(before, bound)
    through = read_gradient.to(gates.dtype)
    write, candidate, forget, opened = gates.chunk(4, dim=2)
    work = through * shown
    through = through * opened
    _sigmoid_gradient(work, opened, grad_input=opened)
    memory_gradient += _tanh_gradient(through, shown, grad_input=through)
    unclip_into(memory_gradient, kept, bound, out=memory_gradient)
    torch.mul(memory_gradient, before, out=work)
    torch.mul(memory_gradient, forget, out=through)
    _sigmoid_gradient(work, forget, grad_input=forget)
    torch.mul(memory_gradient, candidate, out=work)
    memory_gradient *= write
    _sigmoid_gradient(work, write, grad_input=write)
    _tanh_gradient(memory_gradient, candidate, grad_input=candidate)
    memory_gradient.copy_(through)
    if gradient.data_ptr() != gates.data_ptr():
        gradient.copy_(gates)


PLAIN = Pointwise("plain torch", advance, retreat)


@functools.cache
def choose_pointwise(device: torch.device) -> Pointwise:
    """On CUDA, Triton's kernels if they compile and agree with plain torch here; else plain torch. The log says which.

    Decided once per device and process.
    """
    if device.type != "cuda":
        return PLAIN
    try:
        kernels = load_kernels()
        check_kernels(kernels, device)
    except Exception as error:  # of an import, a compiler, a driver: whatever it is, there is another way
        log.warning("recurrence on %s: plain torch, for Triton failed: %s", device, str(error).splitlines()[0])
        return PLAIN
    log.info("recurrence on %s: Triton", device)
    return kernels


def load_kernels() -> Pointwise:
    """Triton's; raises ModuleNotFoundError where it is not installed."""
    from pretrain.models.elmo import kernels

    return Pointwise("Triton", kernels.advance, kernels.retreat)


def check_kernels(kernels: Pointwise, device: torch.device) -> None:
    """Raises ArithmeticError where they do not compute what plain torch does, in float32 and with bfloat16 products."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    for dtype in (torch.float32, torch.bfloat16):
        gates, product, memory = draw(2, 3, 40), draw(2, 3, 40).to(dtype), draw(2, 3, 10)
        read_gradient, memory_gradient = draw(2, 3, 10).to(dtype), draw(2, 3, 10)
        results = []
        for way in (PLAIN, kernels):
            values, flow = gates.clone(), memory_gradient.clone()
            kept, shown = torch.empty_like(memory), torch.empty_like(memory)
            read = torch.empty_like(memory, dtype=dtype)
            after = way.advance(values, product, memory, kept, shown, read, 0.5)
            gradient = torch.empty_like(values, dtype=dtype)
            way.retreat(values, gradient, memory, kept, shown, read_gradient, flow, 0.5, clip_before=True)
            results.append([after, kept, shown, read, gradient, flow])
        for plain, theirs in zip(*results, strict=True):
            tolerance = 1e-5 if plain.dtype == torch.float32 else 2e-2
            if not torch.allclose(plain.float(), theirs.float(), rtol=tolerance, atol=tolerance):
                raise ArithmeticError("its kernels do not agree with plain torch")


def clip_into(values: Tensor, bound: float, out: Tensor | None = None) -> Tensor:
    """Values within ±bound; a bound of 0 means none."""
    if bound:
        return torch.clamp(values, -bound, bound, out=out)
    return values if out is None else out.copy_(values)


def unclip_into(gradient: Tensor, values: Tensor, bound: float, out: Tensor) -> None:
    """The gradient where the values lie within ±bound or on it, else 0."""
    if not bound:
        out.copy_(gradient)
        return
    # hardtanh's gradient is 0 on its bounds as well
    beyond = _next_number(bound, values.dtype)
    _clip_gradient(gradient.to(values.dtype), values, -beyond, beyond, grad_input=out)


@functools.cache
def _next_number(number: float, dtype: torch.dtype) -> float:
    """The least number of a type that is greater."""
    return torch.nextafter(torch.tensor(number, dtype=dtype), torch.tensor(math.inf, dtype=dtype)).item()
