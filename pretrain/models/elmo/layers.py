"""The parts of the biLM. Every parameter has the layout of its published dataset, so that export is a copy.

Shapes: N words, C characters of a word, B rows, T positions, P projection_size, D cell_size, V vocabulary.
Arithmetic that decays in 16 bits (gates, the memory, losses) is done in float32, also where parameters are bfloat16.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.models import ElmoConfig
from pretrain.models.elmo.tokens import NUM_CHARACTERS

_LOGITS_AT_ONCE = 2**26
"""Elements of a block of full-softmax logits: 256 MiB in float32."""


def _wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for a model of that (tests of gradients)."""
    return torch.promote_types(dtype, torch.float32)


class CharacterConvolution(nn.Module):
    """One width of filters, its maximum over positions, then the activation: [N, C, size] -> [N, filters].

    Windows lie within the C characters (no padding of the input); weight is [1, width, size, filters].
    """

    def __init__(self, size: int, width: int, filters: int, activation: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width, size, filters))
        self.bias = nn.Parameter(torch.zeros(filters))
        self._activation = torch.relu if activation == "relu" else torch.tanh
        if activation == "relu":
            nn.init.uniform_(self.weight, -0.05, 0.05)
        else:
            nn.init.normal_(self.weight, std=1 / math.sqrt(width * size))

    def forward(self, characters: Tensor) -> Tensor:
        convolved = F.conv1d(characters.transpose(1, 2), self.weight[0].permute(2, 1, 0), self.bias)
        # max, not amax: of equal windows one takes the gradient, as in TensorFlow
        return self._activation(convolved.max(dim=-1).values)


class Affine(nn.Module):
    """x @ weight + bias with weight [in, out] (the transpose of nn.Linear's), drawn from N(0, 1/√in)."""

    def __init__(self, in_size: int, out_size: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_size, out_size))
        self.bias = nn.Parameter(torch.full((out_size,), bias))
        nn.init.normal_(self.weight, std=1 / math.sqrt(in_size))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight + self.bias


class Highway(nn.Module):
    """gate * relu(transform(x)) + (1 - gate) * x. The gate is published as "carry", though it opens the transform."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.transform = Affine(size, size)
        self.carry = Affine(size, size, bias=-2.0)

    def forward(self, inputs: Tensor) -> Tensor:
        gate = torch.sigmoid(self.carry(inputs))
        return gate * torch.relu(self.transform(inputs)) + (1 - gate) * inputs


class CharacterEmbedding(nn.Module):
    """A vector for each character id, drawn from U(-1, 1): int [N, C] -> [N, C, size]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(NUM_CHARACTERS, size).uniform_(-1, 1))

    def forward(self, characters: Tensor) -> Tensor:
        return F.embedding(characters, self.weight)


class TokenEncoder(nn.Module):
    """Words from their characters, the biLM's layer 0 (Kim et al. 2016): int [N, C] -> [N, P]. No dropout."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        size, width = config.character_embedding_size, sum(number for _, number in config.filters)
        self.characters = CharacterEmbedding(size)
        self.convolutions = nn.ModuleList(CharacterConvolution(size, *f, config.activation) for f in config.filters)
        self.highways = nn.ModuleList(Highway(width) for _ in range(config.num_highways))
        self.projection = Affine(width, config.projection_size)

    def forward(self, characters: Tensor) -> Tensor:
        embedded = self.characters(characters)
        words = torch.cat([convolution(embedded) for convolution in self.convolutions], dim=1)
        for highway in self.highways:
            words = highway(words)
        projected: Tensor = self.projection(words)
        return projected


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


class Softmax(nn.Module):
    """What predicts words, shared by both directions: weight [V, P] from N(0, 1/√P), bias [V] of 0.

    Losses are computed in here because only a module's own forward may read its weights when they are sharded.
    """

    def __init__(self, vocabulary_size: int, projection_size: int) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.weight = nn.Parameter(torch.empty(vocabulary_size, projection_size))
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        nn.init.normal_(self.weight, std=1 / math.sqrt(projection_size))

    def forward(self, hidden: Tensor, targets: Tensor, candidates: Tensor | None = None, num_tries: int = 0) -> Tensor:
        """Sum of the losses (natural log) of int64 targets [N], -100 being ignored, given hidden [N, P].

        Over the whole vocabulary; or, given `candidates` (ids, int64 [S]) that took `num_tries` draws, over those.
        """
        if candidates is None:
            return self._full(hidden, targets)
        return self._sampled(hidden, targets, candidates, num_tries)

    def _full(self, hidden: Tensor, targets: Tensor) -> Tensor:
        at_once = max(1, _LOGITS_AT_ONCE // self.vocabulary_size)
        losses = []
        for some_hidden, some_targets in zip(torch.split(hidden, at_once), torch.split(targets, at_once), strict=True):
            logits = F.linear(some_hidden, self.weight, self.bias)
            losses.append(F.cross_entropy(logits.to(_wide(logits.dtype)), some_targets, reduction="sum"))
        return torch.stack(losses).sum()

    def _sampled(self, hidden: Tensor, targets: Tensor, candidates: Tensor, num_tries: int) -> Tensor:
        """Jean et al. 2015: logits less the log of how often a word is expected among the candidates.

        A candidate that is the target of a position is no negative for it ("accidental hit").
        """
        wide = _wide(hidden.dtype)
        real = targets >= 0
        targets = targets.clamp(min=0)
        negative = F.linear(hidden, *self._rows(candidates)).to(wide) - self._log_expected(candidates, num_tries).to(
            wide
        )
        # not -inf, whose gradient is not a number where every candidate is a hit
        negative = negative.masked_fill(targets[:, None] == candidates, torch.finfo(wide).min)
        rows, biases = self._rows(targets)
        positive = (hidden.to(wide) * rows.to(wide)).sum(dim=1) + biases.to(wide)
        positive = positive - self._log_expected(targets, num_tries).to(wide)
        losses = torch.logaddexp(positive, negative.logsumexp(dim=1)) - positive
        return (losses * real).sum()

    def _rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [ids, P] and biases [ids] of words; looked up, since the gradient of indexing is not repeatable."""
        return F.embedding(ids, self.weight), F.embedding(ids, self.bias[:, None]).squeeze(1)

    def _log_expected(self, ids: Tensor, num_tries: int) -> Tensor:
        """log E[id is drawn] in `num_tries` log-uniform draws: P(id) = log((id + 2) / (id + 1)) / log(V + 1)."""
        probability = (1 / (ids.double() + 1)).log1p() / math.log(self.vocabulary_size + 1)
        return (-torch.expm1(num_tries * torch.log1p(-probability))).log()
