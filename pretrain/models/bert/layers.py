"""The parts of BERT's encoder (Vaswani et al. 2017, §3; Devlin et al. 2018, §3 and appendix A.2).

Shapes: B texts of a batch, T tokens of the longest, H hidden size, A heads.

Every module's forward reads its own parameters alone and calls its children, so that ZeRO-3 can gather them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.models import BertConfig

SEGMENTS = 2
"""Sentence A and sentence B."""


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension, in float32 whatever the parameters' type."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Shape and type of `x`."""
        # An epsilon of 1e-12 is lost in bf16, and so are means of wide rows.
        normed = F.layer_norm(x.float(), self.weight.shape, self.weight.float(), self.bias.float(), self.epsilon)
        return normed.to(x.dtype)


class Activation(nn.Module):
    """GELU: exact (erf), or the original's tanh approximation."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.approximate = {"gelu": "none", "gelu_tanh": "tanh"}[name]

    def forward(self, x: Tensor) -> Tensor:
        """Shape of `x`."""
        return F.gelu(x, approximate=self.approximate)


class Embeddings(nn.Module):
    """Words + positions + segments, normalised: layer 0 of the encoder."""

    def __init__(self, config: BertConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_positions, config.hidden_size)
        self.segments = nn.Embedding(SEGMENTS, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, segment_ids: Tensor) -> Tensor:
        """[B, T, H] from int64 [B, T], twice."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        vectors = self.words(input_ids) + self.segments(segment_ids) + self.positions(positions)
        output: Tensor = self.dropout(self.norm(vectors))
        return output


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention of every token over the real tokens of its text."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.output = nn.Linear(size, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, T, H] from the same and bool [B, 1, 1, T], true for the tokens that may be read."""
        query, key, value = (self._heads(project(x)) for project in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def _heads(self, x: Tensor) -> Tensor:
        """[B, A, T, H / A] from [B, T, H]."""
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


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
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, T, H] from the same and bool [B, 1, 1, T]."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        widened = self.activation(self.intermediate(x))
        output: Tensor = self.output_norm(x + self.dropout(self.output(widened)))
        return output
