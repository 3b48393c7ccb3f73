"""BERT: the encoder, and the two heads that it is pretrained with (Devlin et al. 2018, §3.1)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.config.models import BertConfig
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.errors import ExportError
from pretrain.models.bert.attention import Attention, packed_attention, padded_attention, sequence_starts
from pretrain.models.bert.layers import Activation, Embeddings, Layer, LayerNorm
from pretrain.models.family import LayerVectors, Pieces


class Predictions(NamedTuple):
    """What the heads say about a batch."""

    words: Tensor
    """[masked, padded vocabulary]: logits of the masked positions, in the order given; -inf where there is no word."""
    next_sentence: Tensor | None
    """[sequences, 2]: logits of the classes 0 = next, 1 = random; None for a model that is not asked."""


class BertEncoder(nn.Module):
    """Layer 0 (the embeddings) and the Transformer layers above it."""

    def __init__(self, config: BertConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.max_positions = config.max_positions
        self.attention: str = "auto"
        """The backend for packs; `select_backends` resolves `auto`."""
        self.activation_checkpointing = False
        self.embeddings = Embeddings(config, vocabulary_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))

    def forward(
        self,
        input_ids: Tensor,
        segment_ids: Tensor,
        attention_mask: Tensor,
        *,
        positions: Tensor | None = None,
        sequence_lengths: Tensor | None = None,
        max_sequence_length: int | None = None,
        all_layers: bool = True,
    ) -> LayerVectors:
        """Vectors [batch, token, hidden] of layers 0 to the last, or of the last alone.

        The inputs are int64 [batch, token]; `attention_mask` is 1 where there is a token. A row is one sequence, or,
        given their `positions` and `sequence_lengths` [batch, sequence], of `max_sequence_length` at most, several that
        follow each other. What padding yields is not meaningful.
        """
        if sequence_lengths is None:
            attend: Attention = padded_attention(attention_mask)
        else:
            length = input_ids.shape[1]
            attend = packed_attention(self.attention, sequence_lengths, length, max_sequence_length or length)
        x = self.embeddings(input_ids, segment_ids, positions)
        kept = [x]
        for layer in self.layers:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, attend, use_reentrant=False)
            else:
                x = layer(x, attend)
            kept = [*kept, x] if all_layers else [x]
        return LayerVectors(tuple(kept), attention_mask.bool())

    def at(self, input_ids: Tensor, places: Tensor) -> Tensor:
        """The top layer's vectors [batch, hidden] of one place in each row, int64 [batch], which alone is computed.

        `input_ids` int64 [batch, token] are one sequence a row, without padding, all of segment A.
        """
        attend = padded_attention(torch.ones_like(input_ids))
        x = self.embeddings(input_ids, torch.zeros_like(input_ids), None)
        *below, top = self.layers
        for layer in below:
            x = layer(x, attend)
        vectors: Tensor = top(x, attend, places)
        return vectors[:, 0]


class Decoder(nn.Linear):
    """Logits of words from the word embeddings' own Parameter, with a bias of its own; -inf for rows without a word."""

    no_word: Tensor

    def __init__(self, words: nn.Embedding, vocabulary_size: int) -> None:
        super().__init__(words.embedding_dim, words.num_embeddings)
        self.weight = words.weight
        self.register_buffer("no_word", torch.arange(words.num_embeddings) >= vocabulary_size, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, padded vocabulary] from [rows, hidden]. What has no word gets no gradient, and stays 0."""
        return F.linear(x, self.weight, self.bias.masked_fill(self.no_word, -torch.inf))


class MaskedWordHead(nn.Module):
    """What the masked words were."""

    def __init__(self, config: BertConfig, words: nn.Embedding, vocabulary_size: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.transform = nn.Linear(size, size)
        self.activation = Activation(config.activation)
        self.norm = LayerNorm(size, config.layer_norm_epsilon)
        self.decoder = Decoder(words, vocabulary_size)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, padded vocabulary] from [rows, hidden]."""
        logits: Tensor = self.decoder(self.norm(self.activation(self.transform(x))))
        return logits


class BertModel(nn.Module):
    """The pretraining model: `encoder`, the masked-word head, and the pooler with the next-sentence head.

    Without next-sentence prediction it has neither of the last two, which nothing would train.
    """

    def __init__(self, config: BertConfig, objective: BertObjectiveConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.objective = objective
        self.vocabulary_size = vocabulary_size
        self.problem: str | None = None
        """Why the heads of a model folder predict nothing; its encoder gives vectors all the same."""
        self.encoder = BertEncoder(config, vocabulary_size)
        self.masked_words = MaskedWordHead(config, self.encoder.embeddings.words, vocabulary_size)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if objective.next_sentence else None
        self.next_sentence = nn.Linear(config.hidden_size, 2) if objective.next_sentence else None
        self._initialize(config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        segment_ids: Tensor,
        attention_mask: Tensor,
        masked_positions: Tensor,
        *,
        positions: Tensor | None = None,
        sequence_lengths: Tensor | None = None,
    ) -> Predictions:
        """Predictions for a batch; `masked_positions` is int64 [masked], into the flattened [batch * token].

        The masked rows are gathered before the head: run on all rows it would cost a fifth more of BERT-base's work.
        With `sequence_lengths` [batch, sequence], every slot of a pack has a next-sentence prediction, empty ones too.
        Raises ExportError for a model folder whose heads are missing, or could not be read.
        """
        if self.problem is not None:
            raise ExportError(self.problem)
        (top,) = self.encoder(
            input_ids,
            segment_ids,
            attention_mask,
            positions=positions,
            sequence_lengths=sequence_lengths,
            max_sequence_length=self.objective.max_sequence_length,
            all_layers=False,
        ).layers
        words = self.masked_words(top.flatten(0, 1).index_select(0, masked_positions))
        if self.pooler is None or self.next_sentence is None:
            return Predictions(words, None)
        if sequence_lengths is None:
            first = top[:, 0]
        else:
            first = top.flatten(0, 1).index_select(0, sequence_starts(sequence_lengths, top.shape[1]))
        return Predictions(words, self.next_sentence(torch.tanh(self.pooler(first))))

    def _initialize(self, deviation: float) -> None:
        """Matrices from a normal distribution cut at two deviations, biases 0, LayerNorms 1 (the original's code)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=deviation, a=-2 * deviation, b=2 * deviation)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)
        nn.init.zeros_(self.encoder.embeddings.words.weight[self.vocabulary_size :])


def build_model(config: BertConfig, objective: BertObjectiveConfig, vocabulary_size: int) -> BertModel:
    """A freshly initialised model; torch's random state decides the weights."""
    return BertModel(config, objective, vocabulary_size)


def no_decay(name: str) -> bool:
    """Whether a parameter is exempt from weight decay: biases, and all of a LayerNorm."""
    *_, module, kind = name.split(".")
    return kind == "bias" or module.endswith("norm")


def hidden_matrices(name: str) -> int:
    """1 for the weights of the layers' attention and feed-forward parts, and of the masked-word head's transform.

    0 for the pooler too: one logit, next or not, is all that its gradient comes from, so that its lesser singular
    values are noise, which must not be made as large as the greatest.
    """
    hidden = name.startswith("encoder.layers.") or name == "masked_words.transform.weight"
    return int(hidden and not no_decay(name))


@torch.no_grad()
def encode(encoder: BertEncoder, pieces: Sequence[Pieces], carried: None = None) -> tuple[LayerVectors, None]:
    """Vectors of all layers, [text, most pieces, hidden] each; nothing is carried from call to call.

    The encoder is used in the mode that it is in: put it in `eval` for vectors without dropout. Raises ValueError
    for a text of more pieces than the model has positions.
    """
    for index, text in enumerate(pieces):
        if len(text.tokens) > encoder.max_positions:
            raise ValueError(
                f"text {index} has {len(text.tokens)} pieces, special tokens included: "
                f"more than the model's {encoder.max_positions} positions"
            )
    longest = max(len(text.tokens) for text in pieces)
    input_ids = torch.zeros(len(pieces), longest, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, text in enumerate(pieces):
        input_ids[row, : len(text.tokens)] = torch.tensor(text.tokens)
        attention_mask[row, : len(text.tokens)] = 1
    device = next(encoder.parameters()).device
    input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
    vectors: LayerVectors = encoder(input_ids, torch.zeros_like(input_ids), attention_mask, all_layers=True)
    return vectors, None
