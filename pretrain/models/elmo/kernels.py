"""The pointwise part of one position of the recurrence, as one Triton kernel forward and one backward.

Arithmetic is float32 whatever the buffers hold. Shapes: 2 directions, B rows, D cell_size; tensors may be slices of
longer ones, but a row's elements lie side by side.
"""

# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Cells of a row that one program computes."""


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _clip(x, bound):
    return tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))  # minimum and maximum would take NaN for a bound


@triton.jit
def _cell_forward(
    gates, product, last_cell, cell_unclipped, tanh_cell, cell_output, new_cell,
    gates_stride, product_stride, last_cell_stride, cells_stride, new_cell_stride,
    last_cell_row_stride, cells, clip, HAS_PRODUCT: tl.constexpr, HAS_CLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    direction, row = tl.program_id(2).to(tl.int64), tl.program_id(1)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < cells
    gates += direction * gates_stride + row * 4 * cells + column
    input_gate = tl.load(gates, inside).to(tl.float32)
    candidate = tl.load(gates + cells, inside).to(tl.float32)
    forget_gate = tl.load(gates + 2 * cells, inside).to(tl.float32)
    output_gate = tl.load(gates + 3 * cells, inside).to(tl.float32)
    if HAS_PRODUCT:
        product += direction * product_stride + row * 4 * cells + column
        input_gate += tl.load(product, inside).to(tl.float32)
        candidate += tl.load(product + cells, inside).to(tl.float32)
        forget_gate += tl.load(product + 2 * cells, inside).to(tl.float32)
        output_gate += tl.load(product + 3 * cells, inside).to(tl.float32)
    input_gate, candidate = tl.sigmoid(input_gate), _tanh(candidate)
    forget_gate, output_gate = tl.sigmoid(forget_gate), tl.sigmoid(output_gate)
    tl.store(gates, input_gate, inside)
    tl.store(gates + cells, candidate, inside)
    tl.store(gates + 2 * cells, forget_gate, inside)
    tl.store(gates + 3 * cells, output_gate, inside)
    last = tl.load(last_cell + direction * last_cell_stride + row * last_cell_row_stride + column, inside)
    cell = forget_gate * last + input_gate * candidate
    offset = direction * cells_stride + row * cells + column
    tl.store(cell_unclipped + offset, cell, inside)
    if HAS_CLIP:
        cell = _clip(cell, clip)
    tl.store(new_cell + direction * new_cell_stride + row * cells + column, cell, inside)
    tanh = _tanh(cell)
    tl.store(tanh_cell + offset, tanh, inside)
    tl.store(cell_output + offset, output_gate * tanh, inside)


@triton.jit
def _cell_backward(
    gates, gates_gradient, last_cell, cell_unclipped, tanh_cell, cell_output_gradient, cell_gradient,
    gates_stride, gates_gradient_stride, last_cell_stride, cells_stride, cell_output_stride, cell_gradient_stride,
    last_cell_row_stride, cells, clip, CLIP_LAST: tl.constexpr, HAS_CLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    direction, row = tl.program_id(2).to(tl.int64), tl.program_id(1)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < cells
    gates += direction * gates_stride + row * 4 * cells + column
    input_gate, candidate = tl.load(gates, inside), tl.load(gates + cells, inside)
    forget_gate, output_gate = tl.load(gates + 2 * cells, inside), tl.load(gates + 3 * cells, inside)
    offset = direction * cells_stride + row * cells + column
    tanh, cell = tl.load(tanh_cell + offset, inside), tl.load(cell_unclipped + offset, inside)
    last = tl.load(last_cell + direction * last_cell_stride + row * last_cell_row_stride + column, inside)
    if CLIP_LAST:
        last = _clip(last, clip)
    cell_output_gradient += direction * cell_output_stride + row * cells + column
    from_output = tl.load(cell_output_gradient, inside).to(tl.float32)
    cell_gradient += direction * cell_gradient_stride + row * cells + column
    gradient = tl.load(cell_gradient, inside) + from_output * output_gate * (1 - tanh * tanh)
    if HAS_CLIP:
        gradient = tl.where(tl.abs(cell) > clip, 0.0, gradient)  # of NaN it stays NaN
    tl.store(cell_gradient, gradient * forget_gate, inside)
    gates_gradient += direction * gates_gradient_stride + row * 4 * cells + column
    tl.store(gates_gradient, gradient * candidate * input_gate * (1 - input_gate), inside)
    tl.store(gates_gradient + cells, gradient * input_gate * (1 - candidate * candidate), inside)
    tl.store(gates_gradient + 2 * cells, gradient * last * forget_gate * (1 - forget_gate), inside)
    tl.store(gates_gradient + 3 * cells, from_output * tanh * output_gate * (1 - output_gate), inside)


def cell_forward(
    gates: Tensor, product: Tensor | None, last_cell: Tensor, cell_unclipped: Tensor, tanh_cell: Tensor,
    cell_output: Tensor, clip: float,
) -> Tensor:  # fmt: skip
    """As `pointwise.cell_forward`."""
    directions, rows, cells = cell_unclipped.shape
    new_cell = last_cell.new_empty(directions, rows, cells)
    _cell_forward[triton.cdiv(cells, BLOCK), rows, directions](
        gates, gates if product is None else product, last_cell, cell_unclipped, tanh_cell, cell_output, new_cell,
        gates.stride(0), 0 if product is None else product.stride(0), last_cell.stride(0), cell_unclipped.stride(0),
        new_cell.stride(0), last_cell.stride(1), cells, clip,
        HAS_PRODUCT=product is not None, HAS_CLIP=clip > 0, BLOCK=BLOCK,
    )  # fmt: skip
    return new_cell


def cell_backward(
    gates: Tensor, gates_gradient: Tensor, last_cell: Tensor, cell_unclipped: Tensor, tanh_cell: Tensor,
    cell_output_gradient: Tensor, cell_gradient: Tensor, clip: float, *, clip_last: bool,
) -> None:  # fmt: skip
    """As `pointwise.cell_backward`."""
    directions, rows, cells = cell_unclipped.shape
    _cell_backward[triton.cdiv(cells, BLOCK), rows, directions](
        gates, gates_gradient, last_cell, cell_unclipped, tanh_cell, cell_output_gradient, cell_gradient,
        gates.stride(0), gates_gradient.stride(0), last_cell.stride(0), cell_unclipped.stride(0),
        cell_output_gradient.stride(0), cell_gradient.stride(0), last_cell.stride(1), cells, clip,
        CLIP_LAST=clip_last and clip > 0, HAS_CLIP=clip > 0, BLOCK=BLOCK,
    )  # fmt: skip
