"""The datasets of a published ELMo: names and shapes, and where the model keeps their values."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pretrain.config.models import ElmoConfig
from pretrain.errors import ExportError
from pretrain.models.elmo.hdf5 import find_dataset, holds, open_file, read_dataset
from pretrain.models.elmo.tokens import NUM_CHARACTERS


class ParameterSlice(NamedTuple):
    """Where a dataset's values are kept: a parameter, or of one that holds both directions, one of them."""

    parameter: str
    shape: tuple[int, ...]
    """Of the dataset."""
    direction: int | None = None

    def of(self, parameters: dict[str, nn.Parameter]) -> torch.Tensor:
        """The values, sharing the parameter's memory."""
        values = parameters[self.parameter].detach()
        return values if self.direction is None else values[self.direction]


def encoder_slices(config: ElmoConfig) -> Iterator[tuple[str, ParameterSlice]]:
    """Where each published dataset of the encoder is kept."""
    token, size, projection = "encoder.token_encoder", config.character_embedding_size, config.projection_size
    width = sum(number for _, number in config.filters)
    yield "char_embed", ParameterSlice(f"{token}.characters.weight", (NUM_CHARACTERS, size))
    for i, (characters, number) in enumerate(config.filters):
        yield f"CNN/W_cnn_{i}", ParameterSlice(f"{token}.convolutions.{i}.weight", (1, characters, size, number))
        yield f"CNN/b_cnn_{i}", ParameterSlice(f"{token}.convolutions.{i}.bias", (number,))
    for k in range(config.num_highways):
        for part in ("transform", "carry"):
            yield f"CNN_high_{k}/W_{part}", ParameterSlice(f"{token}.highways.{k}.{part}.weight", (width, width))
            yield f"CNN_high_{k}/b_{part}", ParameterSlice(f"{token}.highways.{k}.{part}.bias", (width,))
    yield "CNN_proj/W_proj", ParameterSlice(f"{token}.projection.weight", (width, projection))
    yield "CNN_proj/b_proj", ParameterSlice(f"{token}.projection.bias", (projection,))
    shapes = {
        "W_0": ("weight", (2 * projection, 4 * config.cell_size)),
        "B": ("bias", (4 * config.cell_size,)),
        "W_P_0": ("projection", (config.cell_size, projection)),
    }
    for direction in (0, 1):
        for layer in range(config.num_layers):
            cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            for dataset, (parameter, shape) in shapes.items():
                yield f"{cell}/{dataset}", ParameterSlice(f"encoder.stack.layers.{layer}.{parameter}", shape, direction)


def softmax_slices(config: ElmoConfig, vocabulary_size: int) -> Iterator[tuple[str, ParameterSlice]]:
    """The same of the softmax."""
    yield "softmax/W", ParameterSlice("softmax.weight", (vocabulary_size, config.projection_size))
    yield "softmax/b", ParameterSlice("softmax.bias", (vocabulary_size,))


def vocabulary_size_of(path: Path, projection_size: int) -> int:
    """The number of words that the softmax in a file predicts."""
    with open_file(path) as file:
        shape: tuple[int, ...] = find_dataset(file, "softmax/W").shape
    if len(shape) != 2:
        raise ExportError(f"{path}: softmax/W is {shape}, the options ask for (words, {projection_size})")
    return shape[0]


def _find(file: h5py.File, name: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """A dataset by its published name, also where another writer has it otherwise."""
    alone = name.replace("/MultiRNNCell/Cell0/", "/")  # what the original's trainer calls the only layer of a stack
    name = alone if not holds(file, name) and holds(file, alone) else name
    found = find_dataset(file, name)
    if name == "char_embed" and found.shape[:1] == (NUM_CHARACTERS + 1,):
        shape = (NUM_CHARACTERS + 1, *shape[1:])
    return find_dataset(file, name, shape)


def _read(file: h5py.File, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    array = read_dataset(_find(file, name, shape))
    if len(array) > shape[0]:  # char_embed, written by a reader, which adds a row for padding
        if array[0].any():
            raise ExportError(f"{file.filename}: {name} has {len(array)} rows, of which the first is not 0")
        array = array[1:]
    return array


def check_datasets(slices: Iterable[tuple[str, ParameterSlice]], path: Path) -> None:
    """Raises ExportError at the first dataset that is missing or of another shape; reads none."""
    with open_file(path) as file:
        for name, slice_ in slices:
            _find(file, name, slice_.shape)


def read_datasets(model: nn.Module, slices: Iterable[tuple[str, ParameterSlice]], path: Path) -> None:
    """Copies datasets into the model's parameters."""
    parameters = dict(model.named_parameters())
    with open_file(path) as file:
        for name, slice_ in slices:
            slice_.of(parameters).copy_(torch.from_numpy(_read(file, name, slice_.shape)))


def write_datasets(
    path: Path, slices: Iterable[tuple[str, ParameterSlice]], parameters: dict[str, nn.Parameter]
) -> None:
    """Writes parameters as float32 datasets of a new file."""
    with h5py.File(path, "w") as file:
        for name, slice_ in slices:
            file[name] = slice_.of(parameters).to("cpu", torch.float32).numpy()
