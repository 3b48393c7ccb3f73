"""The same biLM as others compute it, for `pretrain bench`, and the parts of it that are timed by themselves.

Two baselines. AllenNLP's way spells out every position and runs its cell position by position; it is exact. PyTorch's
`nn.LSTM` knows no clips of cell and output, so it computes another model as soon as one is reached; it shows what
a recurrence without them can do, on our character encoder and softmax.

Shapes: B rows, T positions, C characters of a word, P projection_size, D cell_size.
"""

import copy
import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import h5py
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.models import ElmoConfig
from pretrain.models.baselines import Baseline, Part, Tensors, UnavailableBaseline
from pretrain.models.elmo.export import write
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.objective import ElmoObjective
from pretrain.models.elmo.tokens import NUM_CHARACTERS, WORD_PADDING
from pretrain.models.family import ModelFolder
from pretrain.models.loss import Batch

Weights = dict[str, Tensor]
"""By published dataset."""
CHARACTERS, RECURRENCE = "character CNN", "recurrence"


class PositionwiseCharacters(nn.Module):
    """AllenNLP's character encoder, on every position at `max_characters`; each direction by itself."""

    def __init__(self, config: ElmoConfig, weights: Weights) -> None:
        super().__init__()
        width = sum(filters for _, filters in config.filters)
        self._max_characters = config.max_characters
        self._activation = torch.relu if config.activation == "relu" else torch.tanh
        self.embedding = nn.Embedding(NUM_CHARACTERS, config.character_embedding_size)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.character_embedding_size, filters, size) for size, filters in config.filters
        )
        self.highways = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(config.num_highways))
        self.projection = nn.Linear(width, config.projection_size)
        state = {"embedding.weight": weights["char_embed"]}
        for i in range(len(config.filters)):
            state[f"convolutions.{i}.weight"] = weights[f"CNN/W_cnn_{i}"].squeeze(0).permute(2, 1, 0)
            state[f"convolutions.{i}.bias"] = weights[f"CNN/b_cnn_{i}"]
        for i in range(config.num_highways):
            matrices, biases = ([weights[f"CNN_high_{i}/{x}_{gate}"] for gate in ("transform", "carry")] for x in "Wb")
            state[f"highways.{i}.weight"] = torch.cat(matrices, dim=1).T
            state[f"highways.{i}.bias"] = torch.cat(biases)
        state |= {"projection.weight": weights["CNN_proj/W_proj"].T, "projection.bias": weights["CNN_proj/b_proj"]}
        self.load_state_dict(state)

    def forward(self, characters: Tensor, *indices: Tensor) -> Tensors:
        """Int [words, C] and its rows by position, [B, T] each -> vectors [B, T, P] each."""
        spelled = F.pad(characters, (0, self._max_characters - characters.shape[1]), value=WORD_PADDING)
        return tuple(self._encode(spelled[index.flatten()]).view(*index.shape, -1) for index in indices)

    def _encode(self, characters: Tensor) -> Tensor:
        embedded = self.embedding(characters).transpose(1, 2)
        convolved = [self._activation(convolution(embedded).max(dim=-1).values) for convolution in self.convolutions]
        words = torch.cat(convolved, dim=-1)
        for highway in self.highways:
            transform, gate = highway(words).chunk(2, dim=-1)
            gate = torch.sigmoid(gate)
            words = gate * torch.relu(transform) + (1 - gate) * words
        return cast(Tensor, self.projection(words))


class DistinctCharacters(nn.Module):
    """Our character encoder, used as ours is: once per distinct word."""

    def __init__(self, ours: ElmoModel) -> None:
        super().__init__()
        self.token_encoder = copy.deepcopy(ours.encoder.token_encoder)

    def forward(self, characters: Tensor, *indices: Tensor) -> Tensors:
        """As `PositionwiseCharacters.forward`."""
        words = self.token_encoder(characters)
        return tuple(F.embedding(index, words) for index in indices)


class SteppedLayer(nn.Module):
    """AllenNLP's cell: at each position both products, the gates cut out of them, and copies of the whole state.

    As many kernels as AllenNLP's own, 25 a position forward and 60 backward.
    """

    def __init__(self, config: ElmoConfig, parameters: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._cell_size = config.cell_size
        self._clips = (config.cell_clip, config.projection_clip)
        self.input_product = nn.Linear(config.projection_size, 4 * config.cell_size, bias=False)
        self.state_product = nn.Linear(config.projection_size, 4 * config.cell_size)
        self.projection = nn.Linear(config.cell_size, config.projection_size, bias=False)
        names = "input_product.weight", "state_product.weight", "state_product.bias", "projection.weight"
        self.load_state_dict(dict(zip(names, parameters, strict=True)))

    def forward(self, inputs: Tensor, output: Tensor, cell: Tensor) -> Tensors:
        """[B, T, P], state [B, P] and [B, D] -> outputs [B, T, P] and the state after them."""
        size = self._cell_size
        cell_clip, projection_clip = self._clips
        outputs = inputs.new_zeros(inputs.shape)
        rows = len(inputs)
        for position in range(inputs.shape[1]):
            last_cell, last_output = cell[:rows].clone(), output[:rows].clone()
            from_input, from_state = self.input_product(inputs[:rows, position]), self.state_product(last_output)
            input_gate, forget_gate, candidate, output_gate = (
                from_input[:, size * number : size * (number + 1)] + from_state[:, size * number : size * (number + 1)]
                for number in range(4)
            )
            new_cell = torch.sigmoid(input_gate) * torch.tanh(candidate) + torch.sigmoid(forget_gate) * last_cell
            new_cell = new_cell.clamp(-cell_clip, cell_clip) if cell_clip else new_cell
            new_output = self.projection(torch.sigmoid(output_gate) * torch.tanh(new_cell))
            new_output = new_output.clamp(-projection_clip, projection_clip) if projection_clip else new_output
            cell, output = cell.clone(), output.clone()
            cell[:rows], output[:rows], outputs[:rows, position] = new_cell, new_output, new_output
        return outputs, output, cell


class BuiltInLayer(nn.Module):
    """PyTorch's LSTM with projection: cuDNN on CUDA."""

    def __init__(self, config: ElmoConfig, parameters: tuple[Tensor, ...]) -> None:
        super().__init__()
        size = config.projection_size
        self.lstm = nn.LSTM(size, config.cell_size, proj_size=size, batch_first=True)
        names = "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "weight_hr_l0"
        state = dict(zip(names, parameters, strict=True))
        self.lstm.load_state_dict(state | {"bias_hh_l0": torch.zeros_like(state["bias_ih_l0"])})
        cast(nn.Parameter, self.lstm.bias_hh_l0).requires_grad_(False)  # one bias is trained, as in ours

    def forward(self, inputs: Tensor, output: Tensor, cell: Tensor) -> Tensors:
        """As `SteppedLayer.forward`."""
        with warnings.catch_warnings():  # it says that oneDNN does not support projections
            warnings.filterwarnings("ignore", message="LSTM with projections is not supported")
            outputs, (output, cell) = self.lstm(inputs, (output[None], cell[None]))
        return outputs, output[0], cell[0]


class BaselineEncoder(nn.Module):
    """Both directions' layers over one character encoder; dropout and skip connections where ours has them."""

    def __init__(self, config: ElmoConfig, characters: nn.Module, directions: Iterable[Iterable[nn.Module]]) -> None:
        super().__init__()
        self.characters = characters
        self.directions = nn.ModuleList(nn.ModuleList(layers) for layers in directions)
        self.dropout = nn.Dropout(config.dropout)
        self._skip_connections = config.skip_connections
        self._state_sizes = [config.projection_size, config.cell_size] * config.num_layers * 2

    def forward(
        self, characters: Tensor, forward_index: Tensor, backward_index: Tensor, carried: Tensor | None = None
    ) -> Tensors:
        """As `ElmoEncoder.forward`."""
        forward, backward, state = self.read(self.characters(characters, forward_index, backward_index), carried)
        return self.dropout(forward), self.dropout(backward), state.detach()

    def read(self, inputs: Tensors, carried: Tensor | None = None) -> Tensors:
        """Each direction's tokens [B, T, P] -> its top layer's outputs [B, T, P] each, and the state after them."""
        if carried is None:
            carried = torch.zeros(len(inputs[0]), sum(self._state_sizes), device=inputs[0].device)
        states = iter(torch.split(carried, self._state_sizes, dim=1))
        tops, after = [], []
        for values, layers in zip(inputs, self.directions, strict=True):
            for number, layer in enumerate(cast(nn.ModuleList, layers)):
                dropped = self.dropout(values)
                values, output, cell = layer(dropped, next(states).contiguous(), next(states).contiguous())
                values = values + dropped if number and self._skip_connections else values
                after += [output.to(carried.dtype), cell.to(carried.dtype)]
            tops.append(values)
        return *tops, torch.cat(after, dim=1)


class BaselineModel(nn.Module):
    """A baseline's encoder, and our softmax."""

    def __init__(self, encoder: BaselineEncoder, softmax: nn.Module | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.softmax = copy.deepcopy(softmax)


def build_baselines(folder: ModelFolder, *, compiled: bool) -> list[Baseline | UnavailableBaseline]:
    """AllenNLP's way and PyTorch's LSTM, with the weights of ours."""
    ours, config = cast(ElmoModel, folder.model), cast(ElmoConfig, folder.config)
    assert folder.tokenizer is not None
    weights = _published(folder)

    def build(characters: nn.Module, layer: Callable[[ElmoConfig, tuple[Tensor, ...]], nn.Module]) -> BaselineModel:
        directions = [
            [layer(config, _layer_parameters(weights, direction, number)) for number in range(config.num_layers)]
            for direction in range(2)
        ]
        return BaselineModel(BaselineEncoder(config, characters, directions), ours.softmax)

    objective = ElmoObjective(folder.objective, folder.tokenizer)
    none_compiled = [UnavailableBaseline("compiled", "ELMo's baselines are not")] if compiled else []
    return [
        Baseline(
            "AllenNLP's way",
            build(PositionwiseCharacters(config, weights), SteppedLayer),
            objective,
            {CHARACTERS: _baseline_characters, RECURRENCE: _baseline_recurrence},
        ),
        Baseline(
            "nn.LSTM without clips",
            build(DistinctCharacters(ours), BuiltInLayer),
            objective,
            {RECURRENCE: _baseline_recurrence},
        ),
        *none_compiled,
    ]


def build_parts(model: nn.Module) -> list[Part]:
    """From characters to the positions' token vectors, and from those to both directions' top outputs."""
    flops = cast(ElmoModel, model).encoder.config.flops_by_part
    return [
        Part(CHARACTERS, flops["characters"], _spelled, _our_characters),
        Part(RECURRENCE, flops["recurrence"], _token_vectors, _our_recurrence),
    ]


def _spelled(model: nn.Module, batch: Batch) -> Tensors:
    return batch["characters"], batch["forward_index"], batch["backward_index"]


@torch.no_grad()
def _token_vectors(model: nn.Module, batch: Batch) -> Tensors:
    return tuple(vectors.requires_grad_() for vectors in _our_characters(model, _spelled(model, batch)))


def _our_characters(model: nn.Module, inputs: Tensors) -> Tensors:
    characters, *indices = inputs
    words = cast(ElmoModel, model).encoder.token_encoder(characters)
    return tuple(F.embedding(index, words) for index in indices)


def _our_recurrence(model: nn.Module, inputs: Tensors) -> Tensors:
    layers, _ = cast(ElmoModel, model).encoder.run(torch.stack([tokens.transpose(0, 1) for tokens in inputs]))
    return tuple(layers[-1].transpose(1, 2))


def _baseline_characters(model: nn.Module, inputs: Tensors) -> Tensors:
    return cast(Tensors, cast(BaselineModel, model).encoder.characters(*inputs))


def _baseline_recurrence(model: nn.Module, inputs: Tensors) -> Tensors:
    return cast(BaselineModel, model).encoder.read(inputs)[:2]


def _published(ours: ModelFolder) -> Weights:
    """The encoder's weights as its model folder has them."""
    with torch.device("meta"):
        without_softmax = ElmoModel(ours.config, None)
    without_softmax.encoder = cast(ElmoModel, ours.model).encoder
    weights: Weights = {}

    def add(name: str, found: object) -> None:
        if isinstance(found, h5py.Dataset):
            weights[name] = torch.from_numpy(found[()])

    with tempfile.TemporaryDirectory(prefix="pretrain-bench-") as folder:
        write(Path(folder), dataclasses.replace(ours, model=without_softmax))
        with h5py.File(Path(folder) / "weights.hdf5") as file:
            file.visititems(add)
    return weights


def _layer_parameters(weights: Weights, direction: int, number: int) -> tuple[Tensor, ...]:
    """An LSTM layer's as PyTorch has them: [4D, P] of input and of state, bias [4D], projection [P, D].

    Published are [in, out], gates in the order input, candidate, forget, output; PyTorch has the forget gate before the
    candidate, and the forget gate's bias of 1 within the bias.
    """
    cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{number}/LSTMCell"

    def reordered(values: Tensor) -> Tensor:
        input_gate, candidate, forget_gate, output_gate = values.chunk(4)
        return torch.cat([input_gate, forget_gate, candidate, output_gate])

    of_input, of_state = reordered(weights[f"{cell}/W_0"].T).chunk(2, dim=1)
    input_gate, candidate, forget_gate, output_gate = weights[f"{cell}/B"].chunk(4)
    bias = torch.cat([input_gate, forget_gate + 1, candidate, output_gate])
    return of_input, of_state, bias, weights[f"{cell}/W_P_0"].T
