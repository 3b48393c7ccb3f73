"""The LSTM with projection, both directions side by side, and its stack.

Shapes: 2 directions, T positions, B rows, P projection_size, D cell_size. Parameters have the layout of the published
datasets, one direction after the other. Gates and cells are computed in float32, also where parameters are bfloat16.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.config.models import ElmoConfig
from pretrain.models.elmo.buffers import BufferPool
from pretrain.models.elmo.pointwise import choose_pointwise, clip_into, unclip_into

Clips = tuple[float, float]
"""cell_clip and projection_clip: bounds on the cell and on the output; 0 means none."""

INFERENCE_BYTES = 2**25
"""Size of the gates of the positions that are run together without gradients."""

_pool = BufferPool()


def reference_lstm(
    inputs: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor,
    projection: Tensor,
    clips: Clips,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence as its formulas say it (Sak et al. 2014, with ELMo's clips), its gradients autograd's.

    inputs [2, T, B, P], state [2, B, P + D] (output, cell), weight [2, P + P, 4D], bias [2, 4D], projection [2, D, P]
    -> outputs [2, T, B, P] and the state after them. Rows of `weight` are those of the input, then of the last output;
    columns the input gate, the candidate, the forget gate, the output gate. The forget gate's bias of 1 is added here.

    With `lengths` (int [B]), a row's state stays as its last real position left it, and its outputs behind are 0.
    """
    input_weight, recurrent_weight = weight.chunk(2, dim=1)
    input_projection = inputs.flatten(1, 2) @ input_weight  # for all positions at once
    input_projection = (input_projection.to(state.dtype) + bias.to(state.dtype)[:, None]).view(*inputs.shape[:3], -1)
    last_output, last_cell = torch.split(state, [inputs.shape[3], projection.shape[1]], dim=2)
    last_output = last_output.to(inputs.dtype)
    outputs = []
    for position, from_input in enumerate(input_projection.unbind(1)):
        gates = from_input + last_output @ recurrent_weight
        input_gate, candidate, forget_gate, output_gate = gates.chunk(4, dim=2)
        cell = torch.sigmoid(forget_gate + 1) * last_cell + torch.sigmoid(input_gate) * torch.tanh(candidate)
        cell = _clip(cell, clips[0])
        cell_output = torch.sigmoid(output_gate) * torch.tanh(cell)
        output = _clip(cell_output.to(inputs.dtype) @ projection, clips[1])
        if lengths is not None:
            real = (position < lengths)[:, None]
            outputs.append(output * real)
            output, cell = torch.where(real, output, last_output), torch.where(real, cell, last_cell)
        else:
            outputs.append(output)
        last_output, last_cell = output, cell
    return torch.stack(outputs, dim=1), torch.cat([last_output.to(state.dtype), last_cell], dim=2)


def _clip(values: Tensor, bound: float) -> Tensor:
    """Values within ±bound, with the gradient of those outside 0; a bound of 0 means none."""
    return values.clamp(-bound, bound) if bound else values


class FusedLstm(torch.autograd.Function):
    """`reference_lstm` without `lengths`, its gradients by hand."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, state: Tensor, weight: Tensor, bias: Tensor, projection: Tensor, clips: Clips
    ) -> tuple[Tensor, Tensor]:
        """inputs [2, T, B, P], state [2, B, P + D] and parameters -> outputs [2, T, B, P], state [2, B, P + D]."""
        outputs, projected, buffers = _run(inputs, state, weight, bias, projection, clips)
        cell = clip_into(buffers.cell_unclipped[:, -1], clips[0])
        ctx.save_for_backward(inputs, state, weight, projection, outputs, projected, *buffers)
        ctx.clips = clips
        return outputs, torch.cat([outputs[:, -1].to(state.dtype), cell], dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs_gradient: Tensor, state_gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `forward`'s tensors. Overwrites the gates, so that autograd refuses a second time.

        The loop only finds the gates' gradients; those of weights and inputs are large products after it.
        """
        inputs, state, weight, projection, outputs, projected, *buffers = ctx.saved_tensors
        gates, cell_unclipped, tanh_cell, cell_output = buffers
        clips = ctx.clips
        directions, positions, _, size = inputs.shape
        cells = projection.shape[1]
        first_output, first_cell = torch.split(state, [size, cells], dim=2)
        output_gradient, cell_gradient = (part.clone() for part in torch.split(state_gradient, [size, cells], dim=2))
        projected_gradient = torch.empty_like(projected)
        gates_gradient = gates if gates.dtype == weight.dtype else torch.empty_like(gates, dtype=weight.dtype)
        pointwise = choose_pointwise(inputs.device)
        for t in reversed(range(positions)):
            output_gradient += outputs_gradient[:, t]
            unclip_into(output_gradient, projected[:, t], clips[1], out=projected_gradient[:, t])
            cell_output_gradient = torch.bmm(projected_gradient[:, t], projection.transpose(1, 2))
            last_cell = cell_unclipped[:, t - 1] if t else first_cell
            pointwise.cell_backward(
                gates[:, t], gates_gradient[:, t], last_cell, cell_unclipped[:, t], tanh_cell[:, t],
                cell_output_gradient, cell_gradient, clips[0], clip_last=t > 0,
            )  # fmt: skip
            output_gradient = torch.bmm(gates_gradient[:, t], weight[:, size:].transpose(1, 2)).to(state.dtype)
        gradient = gates_gradient.flatten(1, 2)
        weight_gradient = torch.empty_like(weight)
        torch.bmm(inputs.reshape(directions, -1, size).transpose(1, 2), gradient, out=weight_gradient[:, :size])
        last_outputs = torch.cat([first_output[:, None].to(outputs.dtype), outputs[:, :-1]], dim=1).flatten(1, 2)
        torch.bmm(last_outputs.transpose(1, 2), gradient, out=weight_gradient[:, size:])
        inputs_gradient = (gradient @ weight[:, :size].transpose(1, 2)).view_as(inputs)
        projection_gradient = cell_output.flatten(1, 2).transpose(1, 2) @ projected_gradient.flatten(1, 2)
        bias_gradient = gradient.sum(dim=1, dtype=state.dtype)
        _pool.give_back(*buffers)
        carried = torch.cat([output_gradient, cell_gradient], dim=2)
        return inputs_gradient, carried, weight_gradient, bias_gradient, projection_gradient, None


class _Buffers(NamedTuple):
    """What the gradients of a window need, [2, T, B, D], the gates [2, T, B, 4D]."""

    gates: Tensor
    """Their activations."""
    cell_unclipped: Tensor
    """At a bound, these decide whether the gradient passes."""
    tanh_cell: Tensor
    """Of the clipped cell."""
    cell_output: Tensor
    """Output gate * tanh_cell, which is projected."""


def _run(
    inputs: Tensor, state: Tensor, weight: Tensor, bias: Tensor, projection: Tensor, clips: Clips
) -> tuple[Tensor, Tensor, _Buffers]:
    """Outputs [2, T, B, P], the same before their clip, and the buffers, from the pool and to be given back to it.

    The loop holds what depends on the last position alone; the inputs' product is one matrix product before it.
    """
    directions, positions, rows, size = inputs.shape
    cells = projection.shape[1]
    output, cell = torch.split(state, [size, cells], dim=2)
    output = output.to(inputs.dtype)
    bias = bias.to(state.dtype, copy=True)
    bias[:, 2 * cells : 3 * cells] += 1
    gates = _pool.take(directions, positions, rows, 4 * cells, like=state)
    input_projection = gates.flatten(1, 2)
    if state.dtype == inputs.dtype:
        torch.baddbmm(bias[:, None], inputs.reshape(directions, -1, size), weight[:, :size], out=input_projection)
    else:
        product = torch.bmm(inputs.reshape(directions, -1, size), weight[:, :size])
        torch.add(bias[:, None], product, out=input_projection)
    pointwise = choose_pointwise(inputs.device)
    cell_unclipped, tanh_cell = (_pool.take(directions, positions, rows, cells, like=state) for _ in range(2))
    cell_output = _pool.take(directions, positions, rows, cells, like=inputs)
    projected = inputs.new_empty(directions, positions, rows, size)
    outputs = torch.empty_like(projected)
    for t in range(positions):
        addend = _add_product(gates[:, t], output, weight[:, size:])
        cell = pointwise.cell_forward(
            gates[:, t], addend, cell, cell_unclipped[:, t], tanh_cell[:, t], cell_output[:, t], clips[0]
        )
        torch.bmm(cell_output[:, t], projection, out=projected[:, t])
        output = clip_into(projected[:, t], clips[1], out=outputs[:, t])
    return outputs, projected, _Buffers(gates, cell_unclipped, tanh_cell, cell_output)


def _add_product(addend: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """addend += left @ right; or the product, in its own precision, where the addend has another."""
    if addend.dtype != right.dtype:
        return torch.bmm(left, right)
    torch.baddbmm(addend, left, right, out=addend)
    return None


@torch.no_grad()
def inference_lstm(
    inputs: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor,
    projection: Tensor,
    clips: Clips,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`reference_lstm` without gradients, in memory that T does not add to, beyond inputs and outputs.

    It runs over chunks of time, each from the state that the last one left, and over the rows that reach them.
    """
    directions, positions, rows, _ = inputs.shape
    ends = torch.full((rows,), positions) if lengths is None else lengths.cpu()
    chunk_length = max(1, INFERENCE_BYTES // (directions * rows * bias.shape[1] * state.element_size()))
    outputs, state = torch.zeros_like(inputs), state.clone()
    for start in range(0, positions, chunk_length):
        active = (ends > start).nonzero().flatten()
        if not len(active):
            break
        chunk = inputs[:, start : start + chunk_length, active]
        chunk_outputs, _, buffers = _run(chunk, state[:, active], weight, bias, projection, clips)
        real = (ends[active] - start).clamp(max=chunk.shape[1])
        last = real - 1, torch.arange(len(active))
        cell = clip_into(buffers.cell_unclipped[:, *last], clips[0])
        state[:, active] = torch.cat([chunk_outputs[:, *last].to(state.dtype), cell], dim=2)
        behind = torch.arange(chunk.shape[1])[:, None] >= real
        chunk_outputs.masked_fill_(behind[:, :, None].to(inputs.device), 0)
        outputs[:, start : start + chunk_length, active] = chunk_outputs
        _pool.give_back(*buffers)
    return outputs, state


def fused_lstm(
    inputs: Tensor, state: Tensor, weight: Tensor, bias: Tensor, projection: Tensor, clips: Clips
) -> tuple[Tensor, Tensor]:
    """`FusedLstm`, with types."""
    result: tuple[Tensor, Tensor] = FusedLstm.apply(inputs, state, weight, bias, projection, clips)  # type: ignore[no-untyped-call]
    return result


class LstmLayer(nn.Module):
    """A layer of both directions, which never mix: LSTM with a projected output (Sak et al. 2014, as ELMo uses it).

    `weight` is [2, P + P, 4D], `bias` [2, 4D], `projection` [2, D, P], as `reference_lstm` says.
    """

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.clips = (config.cell_clip, config.projection_clip)
        projection_size, cell_size = config.projection_size, config.cell_size
        self.weight = nn.Parameter(torch.empty(2, 2 * projection_size, 4 * cell_size))
        self.bias = nn.Parameter(torch.zeros(2, 4 * cell_size))
        self.projection = nn.Parameter(torch.empty(2, cell_size, projection_size))
        for matrix in (self.weight, self.projection):
            bound = math.sqrt(6 / sum(matrix.shape[1:]))  # Glorot, over the whole published matrix
            nn.init.uniform_(matrix, -bound, bound)

    def forward(self, inputs: Tensor, state: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[2, T, B, P], state [2, B, P + D] -> outputs [2, T, B, P] and the state after them; see `reference_lstm`."""
        kind = inputs.device.type
        # autocast would cast these anew at every position
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
        weight, bias, projection = (tensor.to(dtype) for tensor in (self.weight, self.bias, self.projection))
        inputs = inputs.to(dtype)
        with torch.autocast(kind, enabled=False):
            if not torch.is_grad_enabled():
                return inference_lstm(inputs, state, weight, bias, projection, self.clips, lengths)
            if lengths is not None:
                return reference_lstm(inputs, state, weight, bias, projection, self.clips, lengths)
            return fused_lstm(inputs, state, weight, bias, projection, self.clips)


class LstmStack(nn.Module):
    """Layers of LSTM; from the second on, a layer's output may have its input added to it."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LstmLayer(config) for _ in range(config.num_layers))
        self.dropout = nn.Dropout(config.dropout)
        self._skip_connections = config.skip_connections

    def forward(self, inputs: Tensor, state: Tensor, lengths: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """[2, T, B, P], state [2, layers, B, P + D] -> each layer's outputs [2, T, B, P], and the state after them.

        Dropout is the original's: of each layer's input, drawn anew at every position, and the skip connection adds the
        dropped-out input. The state holds outputs without what skip connections add.
        """
        outputs, states = [], []
        for number, (layer, layer_state) in enumerate(zip(self.layers, state.unbind(1), strict=True)):
            dropped = self.dropout(inputs)
            inputs, layer_state = layer(dropped, layer_state, lengths)
            if number and self._skip_connections:
                inputs = inputs + dropped
            outputs.append(inputs)
            states.append(layer_state)
        return outputs, torch.stack(states, dim=1)
