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
def _advance(
    gates, product, memory, kept, shown, read, after,
    gates_stride, product_stride, memory_stride, buffer_stride, after_stride,
    memory_row, cells, bound, HAS_PRODUCT: tl.constexpr, HAS_BOUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    direction, row = tl.program_id(2), tl.program_id(1)
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = cell < cells
    gate = gates + direction.to(tl.int64) * gates_stride + row * 4 * cells + cell
    write = tl.load(gate, real).to(tl.float32)
    candidate = tl.load(gate + cells, real).to(tl.float32)
    forget = tl.load(gate + 2 * cells, real).to(tl.float32)
    opened = tl.load(gate + 3 * cells, real).to(tl.float32)
    if HAS_PRODUCT:
        added = product + direction.to(tl.int64) * product_stride + row * 4 * cells + cell
        write += tl.load(added, real).to(tl.float32)
        candidate += tl.load(added + cells, real).to(tl.float32)
        forget += tl.load(added + 2 * cells, real).to(tl.float32)
        opened += tl.load(added + 3 * cells, real).to(tl.float32)
    write, candidate, forget, opened = tl.sigmoid(write), _tanh(candidate), tl.sigmoid(forget), tl.sigmoid(opened)
    tl.store(gate, write, real)
    tl.store(gate + cells, candidate, real)
    tl.store(gate + 2 * cells, forget, real)
    tl.store(gate + 3 * cells, opened, real)
    place = direction.to(tl.int64) * buffer_stride + row * cells + cell
    last = tl.load(memory + direction.to(tl.int64) * memory_stride + row * memory_row + cell, real)
    value = forget * last + write * candidate
    tl.store(kept + place, value, real)
    if HAS_BOUND:
        value = tl.minimum(tl.maximum(value, -bound), bound)
    tl.store(after + direction.to(tl.int64) * after_stride + row * cells + cell, value, real)
    squashed = _tanh(value)
    tl.store(shown + place, squashed, real)
    tl.store(read + place, opened * squashed, real)


@triton.jit
def _retreat(
    gates, gradient, before, kept, shown, read_gradient, memory_gradient,
    gates_stride, gradient_stride, before_stride, buffer_stride, read_stride, memory_stride,
    before_row, cells, bound, CLIP_BEFORE: tl.constexpr, HAS_BOUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    direction, row = tl.program_id(2), tl.program_id(1)
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = cell < cells
    gate = gates + direction.to(tl.int64) * gates_stride + row * 4 * cells + cell
    write, candidate = tl.load(gate, real), tl.load(gate + cells, real)
    forget, opened = tl.load(gate + 2 * cells, real), tl.load(gate + 3 * cells, real)
    place = direction.to(tl.int64) * buffer_stride + row * cells + cell
    squashed, value = tl.load(shown + place, real), tl.load(kept + place, real)
    last = tl.load(before + direction.to(tl.int64) * before_stride + row * before_row + cell, real)
    if CLIP_BEFORE:
        last = tl.minimum(tl.maximum(last, -bound), bound)
    through = tl.load(read_gradient + direction.to(tl.int64) * read_stride + row * cells + cell, real).to(tl.float32)
    carried = memory_gradient + direction.to(tl.int64) * memory_stride + row * cells + cell
    flow = tl.load(carried, real) + through * opened * (1 - squashed * squashed)
    if HAS_BOUND:
        flow = tl.where(tl.abs(value) <= bound, flow, 0.0)
    tl.store(carried, flow * forget, real)
    out = gradient + direction.to(tl.int64) * gradient_stride + row * 4 * cells + cell
    tl.store(out, flow * candidate * write * (1 - write), real)
    tl.store(out + cells, flow * write * (1 - candidate * candidate), real)
    tl.store(out + 2 * cells, flow * last * forget * (1 - forget), real)
    tl.store(out + 3 * cells, through * squashed * opened * (1 - opened), real)


def advance(
    gates: Tensor, product: Tensor | None, memory: Tensor, kept: Tensor, shown: Tensor, read: Tensor, bound: float
) -> Tensor:
    """As `pointwise.advance`."""
    two, rows, cells = kept.shape
    after = memory.new_empty(two, rows, cells)
    _advance[triton.cdiv(cells, BLOCK), rows, two](
        gates, gates if product is None else product, memory, kept, shown, read, after,
        gates.stride(0), 0 if product is None else product.stride(0), memory.stride(0), kept.stride(0), after.stride(0),
        memory.stride(1), cells, bound, HAS_PRODUCT=product is not None, HAS_BOUND=bound > 0, BLOCK=BLOCK,
    )  # fmt: skip
    return after


def retreat(
    gates: Tensor, gradient: Tensor, before: Tensor, kept: Tensor, shown: Tensor, read_gradient: Tensor,
    memory_gradient: Tensor, bound: float, *, clip_before: bool,
) -> None:  # fmt: skip
    """As `pointwise.retreat`."""
    two, rows, cells = kept.shape
    _retreat[triton.cdiv(cells, BLOCK), rows, two](
        gates, gradient, before, kept, shown, read_gradient, memory_gradient,
        gates.stride(0), gradient.stride(0), before.stride(0), kept.stride(0), read_gradient.stride(0),
        memory_gradient.stride(0), before.stride(1), cells, bound,
        CLIP_BEFORE=clip_before and bound > 0, HAS_BOUND=bound > 0, BLOCK=BLOCK,
    )  # fmt: skip
