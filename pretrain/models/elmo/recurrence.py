"""The LSTM with projection and its stack. Every parameter has the layout of its published dataset.

Shapes: B rows, T positions, P projection_size, D cell_size.
Arithmetic that decays in 16 bits (gates, the memory) is done in float32, also where parameters are bfloat16.
"""

import math

import torch
from torch import Tensor, nn

from pretrain.config.models import ElmoConfig


class LstmLayer(nn.Module):
    """LSTM whose output is projected, with bounds on memory and output (Sak et al. 2014, as ELMo uses it).

    `weight` is [P + P, 4D]: rows of the input, then of the last output; columns of the input gate, the candidate, the
    forget gate, the output gate. The forget gate's bias of 1 is added here, not stored.
    """

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.sizes = [config.projection_size, config.cell_size]
        self._clips = (config.projection_clip, config.cell_clip)
        projection_size, cell_size = self.sizes
        self.weight = nn.Parameter(torch.empty(2 * projection_size, 4 * cell_size))
        self.bias = nn.Parameter(torch.zeros(4 * cell_size))
        self.projection = nn.Parameter(torch.empty(cell_size, projection_size))
        for matrix in (self.weight, self.projection):
            bound = math.sqrt(6 / sum(matrix.shape))  # Glorot, over the whole published matrix
            nn.init.uniform_(matrix, -bound, bound)

    def forward(self, inputs: Tensor, state: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, T, P], state [B, P + D] -> outputs [B, T, P] and the state after them.

        With `lengths` (int [B]), a row's state stays as its last real position left it, and its outputs behind are 0.
        """
        projection_clip, cell_clip = self._clips
        input_weight, recurrent_weight = self.weight.chunk(2)
        drive = inputs.transpose(0, 1) @ input_weight  # the input's share of the gates, for all positions at once
        dtype = drive.dtype
        # under autocast these would be cast anew at every position
        recurrent_weight, projection = recurrent_weight.to(dtype), self.projection.to(dtype)
        drive = drive.to(state.dtype) + self.bias.to(state.dtype)
        output, memory = torch.split(state, self.sizes, dim=1)
        output = output.to(dtype)
        outputs = []
        for position, driven in enumerate(drive.unbind(0)):
            write, candidate, forget, read = (driven + output @ recurrent_weight).chunk(4, dim=1)
            kept = torch.sigmoid(forget + 1) * memory + torch.sigmoid(write) * torch.tanh(candidate)
            kept = _clip(kept, cell_clip)
            shown = _clip((torch.sigmoid(read) * torch.tanh(kept)).to(dtype) @ projection, projection_clip)
            if lengths is None:
                output, memory = shown, kept
                outputs.append(shown)
            else:
                real = (position < lengths)[:, None]
                output, memory = torch.where(real, shown, output), torch.where(real, kept, memory)
                outputs.append(shown * real)
        return torch.stack(outputs, dim=1), torch.cat([output.to(state.dtype), memory], dim=1)


def _clip(values: Tensor, bound: float) -> Tensor:
    """Values within ±bound, with the gradient of those outside 0; a bound of 0 means none."""
    return values.clamp(-bound, bound) if bound else values


class LstmStack(nn.Module):
    """One direction: layers of LSTM; from the second on, a layer's output may have its input added to it."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LstmLayer(config) for _ in range(config.num_layers))
        self.dropout = nn.Dropout(config.dropout)
        self._skip_connections = config.skip_connections
        self._layer_state_size = config.projection_size + config.cell_size
        self.state_size = config.num_layers * self._layer_state_size

    def forward(self, inputs: Tensor, state: Tensor, lengths: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """[B, T, P], state [B, state_size] -> each layer's outputs [B, T, P], and the state after them.

        Dropout is the original's: of each layer's input, drawn anew at every position, and the skip connection adds the
        dropped-out input. The state holds outputs without what skip connections add.
        """
        outputs, states = [], []
        for number, (layer, layer_state) in enumerate(
            zip(self.layers, torch.split(state, self._layer_state_size, dim=1), strict=True)
        ):
            dropped = self.dropout(inputs)
            inputs, layer_state = layer(dropped, layer_state, lengths)
            if number and self._skip_connections:
                inputs = inputs + dropped
            outputs.append(inputs)
            states.append(layer_state)
        return outputs, torch.cat(states, dim=1)
