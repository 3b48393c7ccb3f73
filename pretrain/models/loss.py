"""Loss terms, their sums, and what they say about a model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossTerm:
    """One named part of the loss, summed, not averaged.

    `total` is a float32 scalar: the sum of natural-log losses over `count` predictions (an int64 scalar tensor).
    The objective is the sum over terms of `weight * total / count`.
    """

    total: Tensor
    count: Tensor
    weight: float = 1.0
    predicts_tokens: bool = True
    """Whether exp(total / count) is a perplexity."""


def perplexity(terms: Mapping[str, float], predicts_tokens: Mapping[str, bool]) -> float:
    """Arithmetic mean of the perplexities of the terms that predict tokens (for a biLM, as Peters et al. report it)."""
    values = [math.exp(min(loss, 700.0)) for name, loss in terms.items() if predicts_tokens[name]]
    return sum(values) / len(values)
