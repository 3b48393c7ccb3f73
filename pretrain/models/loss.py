"""Loss terms and their sums; plain torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretrain.runtime.collectives import sum_over_ranks

Batch = Mapping[str, Tensor]
"""A micro-batch: integer tensors by name."""

IGNORE_INDEX = -100
"""The label of a position without a loss."""


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
    losses: Tensor | None = None
    """Each position's own loss, 0 where it has none, where the objective tells them apart; `total` is their sum."""
    correct: Tensor | None = None
    """How many of the predictions hold the true class to be the likeliest (an int64 scalar), where that was asked."""
    classes: Tensor | None = None
    """How many of the predictions have each class for the true one (int64 [classes]); comes with `correct`."""
    title: str | None = None
    """What people call it, where that is not its name in metrics."""

    @property
    def counted(self) -> Tensor:
        """`count`, then `correct` and `classes` as far as they are there: int64 [1 to 2 + classes]."""
        parts = (self.count, self.correct, self.classes)
        return torch.cat([part.reshape(-1) for part in parts if part is not None])


class Objective(Protocol):
    """The losses of a batch."""

    def __call__(
        self, model: nn.Module, batch: Batch, carried: Tensor | None, *, seed: int
    ) -> tuple[dict[str, LossTerm], Tensor | None]:
        """Loss terms by name, and the state carried to the rows' next window (None where nothing is carried).

        `seed` keys whatever is drawn on the device and must be the same on every rank; `carried` None means zero state.
        """


@dataclass(frozen=True)
class Losses:
    """Mean losses in nats, by term. A term without predictions is in `counts` alone: nothing is known of it."""

    terms: dict[str, float]
    counts: dict[str, int]
    """The predictions of each term, 0 included."""
    weights: dict[str, float]
    predicts_tokens: dict[str, bool]
    titles: dict[str, str]
    """What people call each term."""
    accuracies: dict[str, float]
    """The share of correct predictions, of the terms that count them."""
    majorities: dict[str, float]
    """The accuracy of always saying the more frequent class, of the terms that count their classes."""

    @property
    def loss(self) -> float:
        """The objective: the weighted sum of the terms, of which one at least must have predictions."""
        assert self.terms, "no loss over 0 predictions"
        return sum(self.weights[name] * value for name, value in self.terms.items())

    @property
    def metrics(self) -> dict[str, float]:
        """What is known of each term, as metrics are named: `<term>_loss`, `<term>_accuracy`, `<term>_majority`."""
        kinds = {"loss": self.terms, "accuracy": self.accuracies, "majority": self.majorities}
        return {f"{name}_{kind}": value for kind, values in kinds.items() for name, value in values.items()}

    @property
    def perplexities(self) -> dict[str, float]:
        """The perplexity of each term that predicts tokens."""
        return {name: exp(loss) for name, loss in self.terms.items() if self.predicts_tokens[name]}

    @property
    def token_loss(self) -> float:
        """The mean loss of the terms that predict tokens, of which one at least must have predictions."""
        values = [loss for name, loss in self.terms.items() if self.predicts_tokens[name]]
        assert values, "no loss over 0 predictions"
        return sum(values) / len(values)

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of the terms that predict tokens: the geometric mean of their perplexities."""
        return exp(self.token_loss)

    @property
    def perplexity_arithmetic(self) -> float:
        """Arithmetic mean of the perplexities of the terms that predict tokens (as Peters et al. report a biLM's)."""
        values = self.perplexities.values()
        return sum(values) / len(values)


def exp(loss: float) -> float:
    """e to the power of a loss, without overflow."""
    return math.exp(min(loss, 700.0))


class LossSums:
    """Totals and counts of loss terms over many micro-batches, all of which count the same things."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._counted: dict[str, Tensor] = {}
        self._kinds: dict[str, tuple[float, bool, str]] = {}

    @property
    def names(self) -> list[str]:
        """The terms added so far."""
        return list(self._totals)

    def add(self, terms: Mapping[str, LossTerm]) -> None:
        """Adds one micro-batch, without waiting for the device."""
        for name, term in terms.items():
            total, counted = term.total.detach().double(), term.counted
            self._totals[name] = self._totals[name] + total if name in self._totals else total
            self._counted[name] = self._counted[name] + counted if name in self._counted else counted
            self._kinds[name] = (term.weight, term.predicts_tokens, term.title or name)

    def reduce(self, names: Sequence[str], device: torch.device) -> Losses:
        """The losses over all ranks; every rank must call it with the same names.

        Of a term that has no prediction on any rank there is only the count.
        """
        sums = torch.stack([self._totals[name] for name in names]).to(device)
        counted = torch.cat([self._counted[name] for name in names]).to(device)
        sum_over_ranks(sums)
        sum_over_ranks(counted)
        numbers = iter(counted.tolist())
        counted_by = {name: list(islice(numbers, len(self._counted[name]))) for name in names}
        found = {name: values for name, values in counted_by.items() if values[0]}
        totals = dict(zip(names, sums.tolist(), strict=True))
        return Losses(
            terms={name: totals[name] / count for name, (count, *_) in found.items()},
            counts={name: count for name, (count, *_) in counted_by.items()},
            accuracies={name: rest[0] / count for name, (count, *rest) in found.items() if rest},
            majorities={name: max(rest[1:]) / count for name, (count, *rest) in found.items() if rest[1:]},
            weights={name: self._kinds[name][0] for name in names},
            predicts_tokens={name: self._kinds[name][1] for name in names},
            titles={name: self._kinds[name][2] for name in names},
        )


Step = Callable[[Any, Tensor | None], tuple[Mapping[str, LossTerm], Tensor | None]]
"""(batch, carried state) -> (loss terms, carried state)."""


def zeroed(term: LossTerm) -> LossTerm:
    """The same term over no prediction."""
    total, count = torch.zeros_like(term.total), torch.zeros_like(term.count)
    correct, classes = (None if part is None else torch.zeros_like(part) for part in (term.correct, term.classes))
    return replace(term, total=total, count=count, losses=None, correct=correct, classes=classes)
