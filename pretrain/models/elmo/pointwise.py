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
    """An implementation of it."""

    name: str
    cell_forward: Callable[..., Tensor]
    """See `cell_forward`."""
    cell_backward: Callable[..., None]
    """See `cell_backward`."""


def cell_forward(
    gates: Tensor,
    product: Tensor | None,
    last_cell: Tensor,
    cell_unclipped: Tensor,
    tanh_cell: Tensor,
    cell_output: Tensor,
    clip: float,
) -> Tensor:
    """The new cell, [2, B, D], from the last one and the gates before their activations, [2, B, 4D].

    `product` of the gates' shape, if any, is added to them first, and they become their activations in place. Fills
    `cell_unclipped`, `tanh_cell` (of the clipped cell) and `cell_output` (output gate * tanh_cell), [2, B, D] each.
    """
    if product is not None:
        gates += product
    input_gate, candidate, forget_gate, output_gate = gates.chunk(4, dim=2)
    # tanh(x) = 2 sigmoid(2x) - 1, which on CPU takes an eighth of the time
    candidate.mul_(2)
    gates.sigmoid_()
    candidate.mul_(2).sub_(1)
    torch.mul(forget_gate, last_cell, out=cell_unclipped).addcmul_(input_gate, candidate)
    cell = clip_into(cell_unclipped, clip)
    torch.mul(cell, 2, out=tanh_cell).sigmoid_().mul_(2).sub_(1)
    torch.mul(output_gate, tanh_cell, out=cell_output)
    return cell


def cell_backward(
    gates: Tensor,
    gates_gradient: Tensor,
    last_cell: Tensor,
    cell_unclipped: Tensor,
    tanh_cell: Tensor,
    cell_output_gradient: Tensor,
    cell_gradient: Tensor,
    clip: float,
    *,
    clip_last: bool,
) -> None:
    """Writes the gradient of the gates before their activations into `gates_gradient`, [2, B, 4D].

    `gates`, `cell_unclipped` and `tanh_cell` are as `cell_forward` left them; `gates_gradient` may be `gates` itself.
    `last_cell` is the cell before the position, to be clipped here with `clip_last`. `cell_gradient` is the gradient of
    the new cell from later positions, and becomes that of the last one. [2, B, D] each.
    """
    if clip_last:
        last_cell = clip_into(last_cell, clip)
    input_gate, candidate, forget_gate, output_gate = gates.chunk(4, dim=2)
    cell_output_gradient = cell_output_gradient.to(gates.dtype)
    gradient = cell_output_gradient * tanh_cell  # of one activation after another
    last_cell_gradient = cell_output_gradient * output_gate  # holds that of tanh_cell first
    _sigmoid_gradient(gradient, output_gate, grad_input=output_gate)
    cell_gradient += _tanh_gradient(last_cell_gradient, tanh_cell, grad_input=last_cell_gradient)
    unclip_into(cell_gradient, cell_unclipped, clip, out=cell_gradient)
    torch.mul(cell_gradient, last_cell, out=gradient)
    torch.mul(cell_gradient, forget_gate, out=last_cell_gradient)
    _sigmoid_gradient(gradient, forget_gate, grad_input=forget_gate)
    torch.mul(cell_gradient, candidate, out=gradient)
    cell_gradient *= input_gate
    _sigmoid_gradient(gradient, input_gate, grad_input=input_gate)
    _tanh_gradient(cell_gradient, candidate, grad_input=candidate)
    cell_gradient.copy_(last_cell_gradient)
    if gates_gradient.data_ptr() != gates.data_ptr():
        gates_gradient.copy_(gates)


PLAIN = Pointwise("plain torch", cell_forward, cell_backward)


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

    return Pointwise("Triton", kernels.cell_forward, kernels.cell_backward)


def check_kernels(kernels: Pointwise, device: torch.device) -> None:
    """Raises ArithmeticError where they do not compute what plain torch does, in float32 and with bfloat16 products.

    Among the numbers is a NaN: a clip that turns it into a bound would hide that training diverges.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    for dtype in (torch.float32, torch.bfloat16):
        gates, product, last_cell = draw(2, 3, 40), draw(2, 3, 40).to(dtype), draw(2, 3, 10)
        last_cell[0, 0, 0] = torch.nan
        cell_output_gradient, next_gradient = draw(2, 3, 10).to(dtype), draw(2, 3, 10)
        results = []
        for pointwise in (PLAIN, kernels):
            activations, cell_gradient = gates.clone(), next_gradient.clone()
            cell_unclipped, tanh_cell = torch.empty_like(last_cell), torch.empty_like(last_cell)
            cell_output = torch.empty_like(last_cell, dtype=dtype)
            cell = pointwise.cell_forward(activations, product, last_cell, cell_unclipped, tanh_cell, cell_output, 0.5)
            gates_gradient = torch.empty_like(gates, dtype=dtype)
            pointwise.cell_backward(
                activations, gates_gradient, last_cell, cell_unclipped, tanh_cell, cell_output_gradient,
                cell_gradient, 0.5, clip_last=True,
            )  # fmt: skip
            results.append([cell, cell_unclipped, tanh_cell, cell_output, gates_gradient, cell_gradient])
        for plain, theirs in zip(*results, strict=True):
            tolerance = 1e-5 if plain.dtype == torch.float32 else 2e-2
            if not torch.allclose(plain.float(), theirs.float(), rtol=tolerance, atol=tolerance, equal_nan=True):
                raise ArithmeticError("its kernels do not agree with plain torch")


def clip_into(values: Tensor, bound: float, out: Tensor | None = None) -> Tensor:
    """Values within ±bound; a bound of 0 means none."""
    if bound:
        return torch.clamp(values, -bound, bound, out=out)
    return values if out is None else out.copy_(values)


def unclip_into(gradient: Tensor, values: Tensor, bound: float, out: Tensor) -> None:
    """The gradient where the values lie within ±bound or on it, 0 beyond, NaN where they are NaN or infinite."""
    if not bound:
        out.copy_(gradient)
        return
    # hardtanh's gradient is 0 on its bounds as well
    beyond = _next_number(bound, values.dtype)
    _clip_gradient(gradient.to(values.dtype), values, -beyond, beyond, grad_input=out)
    out.add_(values, alpha=0)  # of NaN it is 0 or the gradient, as the processor's vectors fall


@functools.cache
def _next_number(number: float, dtype: torch.dtype) -> float:
    """The least number of a type that is greater."""
    return torch.nextafter(torch.tensor(number, dtype=dtype), torch.tensor(math.inf, dtype=dtype)).item()
