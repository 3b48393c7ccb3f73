"""Dropout for CPU, where torch takes longer to draw than the matrix products around it take.

An element is dropped where 16 random bits are below a threshold, so that a probability is rounded to 1/65536; the
others are scaled by the rounded probability. The bits come from torch's generator, four elements from each number.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16


def draw_mask(shape: torch.Size, probability: float, dtype: torch.dtype) -> Tensor:
    """The factor of every element: 0 for the dropped ones, the scale for all others."""
    threshold = round(probability * LEVELS)
    count = shape.numel()
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = numbers.view(torch.int16)[:count].view(shape)
    mask = torch.ge(bits, threshold - LEVELS // 2, out=torch.empty(shape, dtype=dtype))
    return mask.mul_(LEVELS / (LEVELS - threshold))


class Dropout(nn.Module):
    """Dropout of elements: torch's on an accelerator, and where the module is compiled."""

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
        """[heads, tokens, head size] from the same, three times; the probabilities are float32 at least."""
        scores = torch.bmm(query * query.shape[-1] ** -0.5, key.transpose(1, 2))
        probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        mask = draw_mask(scores.shape, dropout, probabilities.dtype)
        output = torch.bmm((probabilities * mask).to(value.dtype), value)
        context.save_for_backward(query, key, value, probabilities, mask, output)
        return output

    @staticmethod
    def backward(context: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of query, key and value."""
        query, key, value, probabilities, mask, output = context.saved_tensors
        scale = query.shape[-1] ** -0.5
        grad_value = torch.bmm((probabilities * mask).to(value.dtype).transpose(1, 2), grad_output)
        # Softmax subtracts from each gradient its row's mean under the probabilities, which is also the product of the
        # output and its gradient (FlashAttention's D: Dao et al. 2022, appendix B.2).
        means = (grad_output * output).sum(-1, keepdim=True, dtype=mask.dtype)
        grad_probabilities = torch.bmm(grad_output, value.transpose(1, 2)).to(mask.dtype)
        grad_scores = grad_probabilities.mul_(mask).sub_(means).mul_(probabilities).to(query.dtype)
        grad_query = torch.bmm(grad_scores, key).mul_(scale)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query).mul_(scale)
        return grad_query, grad_key, grad_value, None
