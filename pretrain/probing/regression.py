"""Multinomial logistic regression on frozen vectors: convex (but for the scalar mix), so that a fit can be checked."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

log = logging.getLogger(__name__)

INVERSE_STRENGTH = 1.0
"""C, as scikit-learn calls it, and with its default."""
MAX_STEPS = 500
TOLERANCE = 1e-4
"""A fit has converged where no derivative of the mean loss is larger, in the coordinates of the search."""
FIRST_ITEMS = 10_000
"""A search begins with so many items, because each step over all of them is dear."""
ROUND_STEPS, MAX_ROUNDS, WORTH = 50, 8, 1e-3
"""A mix is searched for in rounds, until one betters the objective by less than this share."""
CERTAINTY = 0.1
"""How much less curved the loss of a fitted regression is than that of one that only knows how frequent labels are."""


@dataclass(frozen=True)
class Indicators:
    """Features that an item has or has not, a few out of many: a sparse matrix of ones."""

    features: Tensor
    """[entries]: the features of the first item, then those of the second …"""
    starts: Tensor
    """[items]: where the features of each item start."""
    size: int
    """How many features there are."""

    def first(self, items: int) -> "Indicators":
        """Those of the first items."""
        end = int(self.starts[items]) if items < len(self.starts) else len(self.features)
        return Indicators(self.features[:end], self.starts[:items], self.size)

    def transposed(self) -> "Indicators":
        """The items that have each feature, in the same form."""
        counts = torch.diff(self.starts, append=torch.tensor([len(self.features)]))
        items = torch.repeat_interleave(torch.arange(len(self.starts)), counts)
        sizes = torch.bincount(self.features, minlength=self.size)
        return Indicators(items[torch.argsort(self.features, stable=True)], sizes.cumsum(0) - sizes, len(self.starts))

    def sum(self, rows: Tensor) -> Tensor:
        """[items, columns]: for each item the sum of the rows, [size, columns], of its features."""
        if not len(self.features):
            return rows.new_zeros(len(self.starts), rows.shape[1])
        return functional.embedding_bag(self.features, rows, self.starts, mode="sum")


@dataclass(frozen=True)
class Inputs:
    """What a regression sees of items."""

    layers: Sequence[Tensor] = ()
    """Vectors, standardised, [items, width] each; several layers are mixed."""
    indicators: Indicators | None = None

    def first(self, items: int) -> "Inputs":
        """The first items."""
        return Inputs([layer[:items] for layer in self.layers], self.indicators and self.indicators.first(items))


@dataclass(frozen=True)
class Regression:
    """A fitted regression."""

    bias: Tensor
    """[classes]"""
    weights: Tensor
    """[width, classes]"""
    mixing: Tensor
    """[layers]: the weights of the scalar mix, which sum to 1."""
    indicator_weights: Tensor
    """[indicators, classes]"""
    objective: float
    """The mean loss of the training items and the penalty."""
    steps: int

    def logits(self, inputs: Inputs) -> Tensor:
        """[items, classes]"""
        logits = self.bias
        for share, layer in zip(self.mixing, inputs.layers, strict=True):
            logits = logits + layer @ (share * self.weights)
        return logits if inputs.indicators is None else logits + inputs.indicators.sum(self.indicator_weights)

    def predict(self, inputs: Inputs) -> Tensor:
        """[items]: the class of each."""
        return self.logits(inputs).argmax(dim=1)


def fit(inputs: Inputs, labels: Tensor, classes: int, inverse_strength: float = INVERSE_STRENGTH) -> Regression:
    """The regression with the smallest mean cross-entropy of `labels`, [items], and penalty, by L-BFGS.

    The penalty is half the squared weights, divided by `inverse_strength` × items, as in scikit-learn; the bias goes
    without. Several layers are summed with softmax-normalised weights, which are learned with the rest (Peters et al.
    2018, equation 1; its factor γ is part of the regression's weights). That is not convex: it is gone downhill from
    equal weights for as long as it is worth it.
    """
    penalty = 1 / (inverse_strength * len(labels))
    whole = _Search(inputs, labels, classes, penalty)
    if len(inputs.layers) > 1:
        whole, found, steps = _rounds(whole)
    else:
        start = whole.zeros()
        if len(labels) >= 2 * FIRST_ITEMS:
            part = _Search(inputs.first(FIRST_ITEMS), labels[:FIRST_ITEMS], classes, penalty)
            start = whole.scaled(part.unscaled(part.minimise(part.zeros(), 10 * TOLERANCE)[0]))
        found, steps = whole.minimise(start, TOLERANCE)
        if steps >= MAX_STEPS:
            log.warning("a regression has not converged after %d steps", steps)
    with torch.no_grad():
        objective = float(whole.objective(found))
        bias, mixing, weights, indicator_weights = whole.unscaled(found)
    return Regression(bias, weights, torch.softmax(mixing, 0), indicator_weights, objective, steps)


def _rounds(search: "_Search") -> "tuple[_Search, list[Tensor], int]":
    """Where a search for a mix ends, in the coordinates of the last round, and its steps."""
    before, total = float("inf"), 0
    found = search.zeros()
    for _ in range(MAX_ROUNDS):
        found, steps = search.minimise(found, TOLERANCE, ROUND_STEPS)
        total += steps
        objective = float(search.objective(found))
        if objective > (1 - WORTH) * before:
            break
        before, plain = objective, search.unscaled(found)
        search = _Search(search.inputs, search.labels, search.classes, search.penalty, torch.softmax(plain[1], 0))
        found = search.scaled(plain)
    return search, found, total


def mix(layers: Sequence[Tensor], mixing: Tensor) -> Tensor:
    """The weighted sum of layers, each [items, width]."""
    if len(layers) == 1:
        return layers[0]
    return sum((share * layer for share, layer in zip(mixing, layers, strict=True)), start=torch.zeros(()))


class _Search:
    """What is minimised, in coordinates in which it is about equally curved in all directions.

    The dimensions of contextual vectors are far from independent, and some features are far rarer than others: with
    plain weights L-BFGS takes many times as many steps to the same minimum. `mixing` is about how layers are mixed.
    """

    def __init__(
        self, inputs: Inputs, labels: Tensor, classes: int, penalty: float, mixing: Tensor | None = None
    ) -> None:
        self.inputs, self.labels, self.classes, self.penalty = inputs, labels, classes, penalty
        shares = torch.bincount(labels, minlength=classes) / len(labels)
        curvature = CERTAINTY * shares * (1 - shares)  # of each class's loss by its logit
        self._bias_scales = (curvature + penalty).rsqrt()
        self._directions, self._scales = torch.zeros(0, 0), torch.zeros(0, classes)
        if inputs.layers:
            layers = len(inputs.layers)
            mixed = mix(inputs.layers, torch.full((layers,), 1 / layers) if mixing is None else mixing)
            variances, self._directions = torch.linalg.eigh(mixed.T @ mixed / len(mixed))
            self._scales = (variances.clamp(min=0)[:, None] * curvature + penalty).rsqrt()
        self._indicator_scales = torch.zeros(0, classes)
        if inputs.indicators is not None:
            counts = torch.bincount(inputs.indicators.features, minlength=inputs.indicators.size)
            self._indicator_scales = (counts[:, None] / len(labels) * curvature + penalty).rsqrt()
            self._transposed = inputs.indicators.transposed()

    def zeros(self) -> list[Tensor]:
        """Where a search starts: bias, logarithms of mixing weights, weights, weights of indicators."""
        starts = (self._bias_scales, torch.zeros(len(self.inputs.layers)), self._scales, self._indicator_scales)
        return [torch.zeros_like(start) for start in starts]

    def unscaled(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The parameters themselves, of those in coordinates of the search."""
        bias, mixing, weights, indicator_weights = parameters
        weights = self._directions @ (self._scales * weights)
        return [self._bias_scales * bias, mixing, weights, self._indicator_scales * indicator_weights]

    def scaled(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Parameters in coordinates of the search."""
        bias, mixing, weights, indicator_weights = parameters
        weights = self._directions.T @ weights / self._scales
        return [bias / self._bias_scales, mixing, weights, indicator_weights / self._indicator_scales]

    def objective(self, parameters: Sequence[Tensor]) -> Tensor:
        """The mean loss and the penalty."""
        bias, mixing, weights, indicator_weights = self.unscaled(parameters)
        logits = bias
        for share, layer in zip(torch.softmax(mixing, 0), self.inputs.layers, strict=True):
            logits = logits + layer @ (share * weights)
        if self.inputs.indicators is not None:
            logits = logits + _sum(indicator_weights, self.inputs.indicators, self._transposed)
        squares = weights.square().sum() + indicator_weights.square().sum()
        return functional.cross_entropy(logits.expand(len(self.labels), -1), self.labels) + self.penalty / 2 * squares

    def minimise(
        self, start: Sequence[Tensor], tolerance: float, max_steps: int = MAX_STEPS
    ) -> tuple[list[Tensor], int]:
        """The parameters at the minimum, in coordinates of the search, and the number of steps."""
        parameters = [tensor.clone().requires_grad_() for tensor in start]
        optimizer = torch.optim.LBFGS(
            [parameter for parameter in parameters if parameter.numel()],
            max_iter=max_steps,
            tolerance_grad=tolerance,
            tolerance_change=1e-8,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            objective = self.objective(parameters)
            objective.backward()  # type: ignore[no-untyped-call]
            return objective

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        state: Any = optimizer.state[optimizer.param_groups[0]["params"][0]]
        return [parameter.detach() for parameter in parameters], int(state["n_iter"])


class _Sum(torch.autograd.Function):
    """`Indicators.sum`; its gradient by the transposed matrix takes a thirtieth of the time of `embedding_bag`'s."""

    @staticmethod
    def forward(context: Any, rows: Tensor, indicators: Indicators, transposed: Indicators) -> Tensor:
        context.transposed = transposed
        return indicators.sum(rows)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return context.transposed.sum(gradients[0].contiguous()), None, None


_sum: Any = _Sum.apply
