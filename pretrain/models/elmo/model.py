"""The biLM: one character encoder, a forward and a backward stack, and for training a softmax that both share.

Shapes: N distinct words, C characters of a word, B rows, T positions, P projection_size.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.errors import ConfigError
from pretrain.models.elmo.layers import TokenEncoder, lookup
from pretrain.models.elmo.recurrence import LstmStack
from pretrain.models.elmo.softmax import Softmax
from pretrain.models.elmo.tokens import SENTENCE_BEGIN, SENTENCE_END, character_ids, trim_characters
from pretrain.models.family import LayerVectors, Pieces


class ElmoEncoder(nn.Module):
    """Contextual vectors of words from their characters (Peters et al. 2018, sections 3.1 and 3.2).

    The carried state is one float32 tensor [rows, state_size]: of each direction, layer by layer, output and cell.
    """

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.config = config
        self.token_encoder = TokenEncoder(config)
        self.stack = LstmStack(config)
        self.dropout = nn.Dropout(config.dropout)
        self.state_size = 2 * config.num_layers * (config.projection_size + config.cell_size)

    def forward(
        self, characters: Tensor, forward_index: Tensor, backward_index: Tensor, carried: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For training: int characters [N, C], two unrelated windows of text as its rows, int [B, T] each.

        Returns what the top layer says in the two directions, [B, T, P] each in the order in which they read, and the
        state carried on, detached (truncated back-propagation).
        """
        return self.read(self.token_encoder(characters), forward_index, backward_index, carried)

    def read(
        self, words: Tensor, forward_index: Tensor, backward_index: Tensor, carried: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`forward`, of words that are encoded already, [N, P]."""
        index = torch.stack([forward_index.T, backward_index.T])
        layers, state = self.run(lookup(index, words), carried)
        forward, backward = self.dropout(layers[-1]).transpose(1, 2)
        return forward, backward, state.detach()

    def vectors(
        self, characters: Tensor, index: Tensor, lengths: Tensor, carried: Tensor | None = None
    ) -> tuple[LayerVectors, Tensor]:
        """For use: sentences `<S> w1 … wn </S>` as rows of `characters`, int [B, T], of which `lengths` [B] are real.

        Returns the vectors of the words without the boundaries, [B, T - 2, 2P] a layer, 0 where there is none; layer 0
        is the token twice, the others forward and backward side by side; and the state after each row's last position.
        """
        words = self.token_encoder(characters)
        positions = torch.arange(index.shape[1], device=index.device)
        # each row's own reversal, its padding left in place; it is its own inverse
        reversal = torch.where(positions < lengths[:, None], lengths[:, None] - 1 - positions, positions)
        both = torch.stack([index.T, index.gather(1, reversal).T])
        layers, state = self.run(lookup(both, words), carried, lengths)
        tokens = lookup(index, words)
        in_order = reversal[:, :, None].expand(-1, -1, tokens.shape[2])
        pairs = [(tokens, tokens)]
        for layer in layers:
            forward, backward = layer.transpose(1, 2)
            pairs.append((forward, backward.gather(1, in_order)))
        mask = positions[:-2] < lengths[:, None] - 2
        vectors = tuple(torch.cat(pair, dim=2)[:, 1:-1] * mask[:, :, None] for pair in pairs)
        return LayerVectors(vectors, mask), state

    def run(
        self, inputs: Tensor, carried: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Each layer's outputs over token vectors [2, T, B, P], each direction's in the order in which it reads.

        It starts from zeros or from what was carried, [B, state_size], and also returns the state after it.
        """
        rows = inputs.shape[2]
        if carried is None:
            dtype = torch.promote_types(inputs.dtype, torch.float32)
            carried = torch.zeros(rows, self.state_size, dtype=dtype, device=inputs.device)
        state = carried.view(rows, 2, self.config.num_layers, -1).permute(1, 2, 0, 3)
        layers, state = self.stack(inputs, state, lengths)
        return layers, state.permute(2, 0, 1, 3).reshape(rows, -1)


class ElmoModel(nn.Module):
    """The pretraining model. Without a softmax (a published folder may lack it) it gives vectors only."""

    def __init__(self, config: ElmoConfig, vocabulary_size: int | None) -> None:
        super().__init__()
        self.encoder = ElmoEncoder(config)
        self.softmax = None if vocabulary_size is None else Softmax(vocabulary_size, config.projection_size)


def build_model(config: ElmoConfig, objective: ElmoObjectiveConfig, vocabulary_size: int) -> ElmoModel:
    """A freshly initialised model (Peters et al.'s released trainer), the same for every objective.

    Raises ConfigError for sizes at which readers of the published format leave a projection out.
    """
    width = sum(number for _, number in config.filters)
    for key, size in (("model.filters, in all", width), ("model.cell_size", config.cell_size)):
        if size <= config.projection_size:
            raise ConfigError(
                f"model.projection_size ({config.projection_size}) must be less than {key} ({size}): the published "
                "format knows projections to smaller sizes only"
            )
    return ElmoModel(config, vocabulary_size)


def hidden_matrices(name: str) -> int:
    """4 for an LSTM layer's weight, a gate each; 1 for its projection, and for what follows the convolutions.

    A gate's rows for input and last output are one matrix: together they are what the gate is a linear map of.
    """
    *path, module, kind = name.split(".")
    if "stack" in path:
        return {"weight": 4, "projection": 1}.get(kind, 0)
    return int(kind == "weight" and (module == "projection" or "highways" in path))


@torch.no_grad()
def encode(
    encoder: ElmoEncoder, pieces: Sequence[Pieces], carried: Tensor | None = None
) -> tuple[LayerVectors, Tensor]:
    """Vectors of several texts' words, and the state with which row i can go on, float32 [rows, state_size].

    As published, each text is read between `<S>` and `</S>` (an empty one too), and rows that `carried` has beyond the
    texts keep their state. The encoder is to be in evaluation mode.
    """
    texts = [[SENTENCE_BEGIN, *cast(list[str], text.tokens), SENTENCE_END] for text in pieces]
    lengths = np.array([len(text) for text in texts])
    row_of: dict[str, int] = {}
    index = np.zeros((len(texts), lengths.max()), np.int64)
    for row, text in enumerate(texts):
        index[row, : len(text)] = [row_of.setdefault(word, len(row_of)) for word in text]
    spelled = character_ids(list(row_of), encoder.config.max_characters)
    characters = trim_characters(spelled, max(width for width, _ in encoder.config.filters))
    device = next(encoder.parameters()).device
    state = torch.zeros(max(len(texts), 0 if carried is None else len(carried)), encoder.state_size, device=device)
    if carried is not None:
        state[: len(carried)] = carried
    inputs = [torch.from_numpy(array.astype(np.int64)).to(device) for array in (characters, index, lengths)]
    vectors, state[: len(texts)] = encoder.vectors(inputs[0], inputs[1], inputs[2], state[: len(texts)])
    return vectors, state
