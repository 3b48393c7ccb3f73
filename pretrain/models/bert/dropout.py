"""Dropout on CPU, where torch's spends more time on drawing than the products that it follows take.

An element is dropped where 16 random bits are below a threshold, so that a probability is rounded to 1/65536; what is
kept is scaled by the rounded one. The bits come from torch's generator, four elements from each number.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16


def draw_mask(shape: torch.Size, probability: float, dtype: torch.dtype) -> Tensor:
    """What elements are multiplied by: 0, or the scale of what is kept."""
    threshold = round(probability * LEVELS)
    count = shape.numel()
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = numbers.view(torch.int16)[:count].view(shape)
    mask = torch.ge(bits, threshold - LEVELS // 2, out=torch.empty(shape, dtype=dtype))
    return mask.mul_(LEVELS / (LEVELS - threshold))


class Dropout(nn.Module):
    """Dropout of elements; torch's on an accelerator, and where the module is compiled."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Shape and type of `x`."""
        ours = self.training and self.probability and x.device.type == "cpu" and not torch.compiler.is_compiling()
        if not ours:
            return F.dropout(x, self.probability, self.training)
        return x * draw_mask(x.shape, self.probability, x.dtype)


class DropoutAttention(torch.autograd.Function):
    """Scaled dot-product attention with dropout of the probabilities, which are kept for the backward pass."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """[heads, tokens, width] from the same, three times; probabilities are float32 at least."""
        scores = torch.bmm(query * query.shape[-1] ** -0.5, key.transpose(1, 2))
        probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        mask = draw_mask(scores.shape, dropout, probabilities.dtype)
        mixed = torch.bmm((probabilities * mask).to(value.dtype), value)
        context.save_for_backward(query, key, value, probabilities, mask, mixed)
        return mixed

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Of the three inputs."""
        query, key, value, probabilities, mask, mixed = context.saved_tensors
        scale = query.shape[-1] ** -0.5
        to_value = torch.bmm((probabilities * mask).to(value.dtype).transpose(1, 2), gradient)
        # Softmax takes from each slope the mean of its row, which is also that of the slopes of what was mixed.
        means = (gradient * mixed).sum(-1, keepdim=True, dtype=mask.dtype)
        slopes = torch.bmm(gradient, value.transpose(1, 2)).to(mask.dtype)
        to_scores = slopes.mul_(mask).sub_(means).mul_(probabilities).to(query.dtype)
        to_query = torch.bmm(to_scores, key).mul_(scale)
        return to_query, torch.bmm(to_scores.transpose(1, 2), query).mul_(scale), to_value, None
