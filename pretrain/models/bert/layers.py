"""The parts of BERT's encoder (Vaswani et al. 2017, §3; Devlin et al. 2018, §3 and appendix A.2).

Shapes: B rows of a batch, T tokens of each, H hidden size.

Every module's forward reads its own parameters alone and calls its children, so that ZeRO-3 can gather them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.models import BertConfig
from pretrain.models.bert.attention import Attention
from pretrain.models.bert.dropout import Dropout

SEGMENTS = 2
"""Sentence A and sentence B."""

VOCABULARY_MULTIPLE = 64
"""The word matrix has a multiple of so many rows, for the sake of the matrix products; those without a word are 0."""


def padded_vocabulary(size: int) -> int:
    """Rows of the word matrix."""
    return -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension, in float32 at least, whatever the parameters' type."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Shape and type of `x`."""
        # An epsilon of 1e-12 is lost in bf16, and so are means of wide rows.
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return F.layer_norm(x.to(dtype), weight.shape, weight, bias, self.epsilon).to(x.dtype)


class Activation(nn.Module):
    """GELU: exact (erf), or the original's tanh approximation."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.approximate = {"gelu": "none", "gelu_tanh": "tanh"}[name]

    def forward(self, x: Tensor) -> Tensor:
        """Shape of `x`."""
        return F.gelu(x, approximate=self.approximate)


class Embedding(nn.Embedding):
    """Rows of a matrix, looked up in float32 at least, since 16 bits cannot add up the gradients of a frequent row."""

    def forward(self, ids: Tensor) -> Tensor:
        """[..., width] from integers [...]."""
        return F.embedding(ids, self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)))


class Embeddings(nn.Module):
    """Words + positions + segments, normalised: layer 0 of the encoder."""

    def __init__(self, config: BertConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.words = Embedding(padded_vocabulary(vocabulary_size), config.hidden_size)
        self.positions = Embedding(config.max_positions, config.hidden_size)
        self.segments = Embedding(SEGMENTS, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout)

    def forward(self, input_ids: Tensor, segment_ids: Tensor, positions: Tensor | None) -> Tensor:
        """[B, T, H] in the parameters' type, from int64 [B, T], three times; without `positions`, rows begin at 0."""
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        vectors = self.words(input_ids) + self.segments(segment_ids) + self.positions(positions)
        output: Tensor = self.dropout(self.norm(vectors))
        return output.to(self.words.weight.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention of every token over those that it may attend to."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.dropout = config.dropout_of_attention
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.output = nn.Linear(size, size)

    def forward(self, x: Tensor, attend: Attention, asking: Tensor | None = None) -> Tensor:
        """[B, T, H] from the same; or [B, tokens, H] of those `asking`, if not all do."""
        dropout = self.dropout if self.training else 0.0
        query = self.query(x if asking is None else asking)
        attended = attend(query, self.key(x), self.value(x), num_heads=self.num_heads, dropout=dropout)
        output: Tensor = self.output(attended)
        return output


class Layer(nn.Module):
    """Attention, then a feed-forward part; each is dropped out, added to its input, and the sum normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = Activation(config.activation)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, attend: Attention, places: Tensor | None = None) -> Tensor:
        """[B, T, H] from the same; or [B, 1, H], given the one place in each row that is needed, int64 [B]."""
        asking = x if places is None else x[torch.arange(len(x), device=x.device), places][:, None]
        x = self.attention_norm(asking + self.dropout(self.attention(x, attend, asking)))
        widened = self.activation(self.intermediate(x))
        output: Tensor = self.output_norm(x + self.dropout(self.output(widened)))
        return output
