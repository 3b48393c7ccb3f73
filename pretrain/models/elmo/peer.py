"""The same biLM computed position by position, as AllenNLP's cell does it, for `pretrain bench`.

Shapes: B rows, T positions, C characters of a word, P projection_size, D cell_size.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.elmo.model import ElmoEncoder, ElmoModel
from pretrain.models.elmo.objective import ElmoObjective
from pretrain.models.elmo.recurrence import LstmLayer, LstmStack
from pretrain.models.elmo.tokens import WORD_PADDING
from pretrain.models.family import Tokenizer

NAME = "per-time-step cell, characters of every position"


class SteppedLayer(LstmLayer):
    """The input's product inside the loop, and each output written into its place of a whole-sequence tensor."""

    def forward(self, inputs: Tensor, state: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, T, P], state [B, P + D] -> outputs [B, T, P] and the state after them; rows are full (no `lengths`)."""
        projection_clip, cell_clip = self._clips
        input_weight, recurrent_weight = self.weight.chunk(2)
        output, memory = torch.split(state, self.sizes, dim=1)
        outputs = inputs.new_zeros(*inputs.shape[:2], self.sizes[0])
        for position in range(inputs.shape[1]):
            gates = inputs[:, position] @ input_weight + output.to(inputs.dtype) @ recurrent_weight + self.bias
            write, candidate, forget, read = gates.to(state.dtype).chunk(4, dim=1)
            memory = torch.sigmoid(write) * torch.tanh(candidate) + torch.sigmoid(forget + 1) * memory
            memory = memory.clamp(-cell_clip, cell_clip) if cell_clip else memory
            output = (torch.sigmoid(read) * torch.tanh(memory)) @ self.projection
            output = output.clamp(-projection_clip, projection_clip) if projection_clip else output
            outputs[:, position] = output
        return outputs, torch.cat([output.to(state.dtype), memory], dim=1)


class PositionwiseEncoder(ElmoEncoder):
    """The character encoder on all positions and all `max_characters`, however often a word occurs."""

    def forward(
        self, characters: Tensor, forward_index: Tensor, backward_index: Tensor, carried: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `ElmoEncoder.forward`."""
        missing = self.config.max_characters - characters.shape[1]
        spelled = F.pad(characters, (0, missing), value=WORD_PADDING)
        tokens = [
            self.token_encoder(spelled[index.flatten()]).unflatten(0, index.shape)
            for index in (forward_index, backward_index)
        ]
        forward_state, backward_state = self._state(tokens[0], forward_index, carried)
        forward, forward_state = self.forward_stack(tokens[0], forward_state)
        backward, backward_state = self.backward_stack(tokens[1], backward_state)
        state = torch.cat([forward_state, backward_state], dim=1).detach()
        return self.dropout(forward[-1]), self.dropout(backward[-1]), state


def build_peer(model: nn.Module, tokenizer: Tokenizer) -> nn.Module:
    """The peer with the weights and sizes of `model`."""
    ours = cast(ElmoModel, model)
    config = ours.encoder.config
    peer = ElmoModel(config, tokenizer.vocabulary_size)
    peer.encoder = PositionwiseEncoder(config)
    for stack in (peer.encoder.forward_stack, peer.encoder.backward_stack):
        assert isinstance(stack, LstmStack)
        stack.layers = nn.ModuleList(SteppedLayer(config) for _ in range(config.num_layers))
    peer.load_state_dict(ours.state_dict())
    return peer


def build_peer_objective(model: nn.Module, tokenizer: Tokenizer) -> ElmoObjective:
    """The objective that trains the peer: ours, since the peer differs in its encoder alone."""
    return ElmoObjective(cast(ElmoModel, model).encoder.config, tokenizer)
