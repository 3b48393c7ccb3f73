"""Words from their characters. Every parameter has the layout of its published dataset, so that export is a copy.

Shapes: N words, C characters of a word, P projection_size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.models import ElmoConfig
from pretrain.models.elmo.tokens import NUM_CHARACTERS, WORD_PADDING

WORDS_AT_ONCE = 256
"""On CPU, words of similar length that are convolved together."""


def lookup(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of a table [V, size], in its dtype: int [...] -> [..., size]. A row's gradients are summed in float32.

    In bfloat16 a sum stops growing once it is 256 times its terms, and a frequent character or word has thousands.
    """
    accumulated = torch.promote_types(table.dtype, torch.float32)
    return F.embedding(ids, table.to(accumulated)).to(table.dtype)


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
        return lookup(characters, self.weight)


class TokenEncoder(nn.Module):
    """Words from their characters, the biLM's layer 0 (Kim et al. 2016): int [N, C] -> [N, P]. No dropout."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        size, width = config.character_embedding_size, sum(number for _, number in config.filters)
        self._widest_filter = max(width for width, _ in config.filters)
        self.characters = CharacterEmbedding(size)
        self.convolutions = nn.ModuleList(CharacterConvolution(size, *f, config.activation) for f in config.filters)
        self.highways = nn.ModuleList(Highway(width) for _ in range(config.num_highways))
        self.projection = Affine(width, config.projection_size)

    def forward(self, characters: Tensor) -> Tensor:
        if characters.device.type == "cpu" and len(characters) > WORDS_AT_ONCE:
            words = self._convolve_by_length(characters)
        else:
            words = self._convolve(characters)
        for highway in self.highways:
            words = highway(words)
        projected: Tensor = self.projection(words)
        return projected

    def _convolve(self, characters: Tensor) -> Tensor:
        embedded = self.characters(characters)
        return torch.cat([convolution(embedded) for convolution in self.convolutions], dim=1)

    def _convolve_by_length(self, characters: Tensor) -> Tensor:
        """The same, of words of similar length together, each group without the padding that changes no maximum.

        Behind a word all windows of a filter are equal, so one is enough. Not on CUDA, where shapes should not depend
        on the words and nothing may wait for them.
        """
        length = characters.shape[1]
        ends = torch.arange(1, length + 1).where(characters != WORD_PADDING, 0).amax(dim=1)
        needed = (ends + self._widest_filter).clamp(max=length)
        order = needed.argsort(stable=True)
        groups = [
            self._convolve(characters[rows, : int(needed[rows[-1]])]) for rows in torch.split(order, WORDS_AT_ONCE)
        ]
        # looked up, since the gradient of indexing is slow
        return F.embedding(order.argsort(), torch.cat(groups))
