"""Logistic regression over features that are many and mostly 0, or over vectors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

MAX_STEPS = 500
TOLERANCE = 1e-5
"""A fit has converged where no derivative of the mean loss and the penalty is larger."""
VALIDATION_SHARE = 0.2


class Features(NamedTuple):
    """A matrix [items, features], and the same turned round."""

    matrix: Tensor
    """Dense, or sparse in coordinates."""
    transposed: Tensor

    @classmethod
    def dense(cls, matrix: Tensor) -> "Features":
        """Of vectors."""
        return cls(matrix, matrix.T)

    @classmethod
    def sparse(cls, rows: Sequence[dict[int, float]], size: int) -> "Features":
        """Of the features that each item has, by number; `size` is how many there are."""
        items = torch.tensor([number for number, row in enumerate(rows) for _ in row], dtype=torch.int64)
        features = torch.tensor([feature for row in rows for feature in row], dtype=torch.int64)
        values = torch.tensor([value for row in rows for value in row.values()], dtype=torch.float32)
        size_of_all = (len(rows), size)
        places = torch.stack([items, features])
        matrix = torch.sparse_coo_tensor(places, values, size_of_all, check_invariants=True).coalesce()
        return cls(matrix, matrix.t().coalesce())

    def rows(self, numbers: Tensor) -> "Features":
        """Some of the items."""
        chosen = self.matrix.index_select(0, numbers)
        if chosen.is_sparse:
            return Features(chosen.coalesce(), chosen.t().coalesce())
        return Features.dense(chosen)


class Logistic(NamedTuple):
    """A fitted regression."""

    weights: Tensor
    """[features, classes]"""
    bias: Tensor
    """[classes]"""

    def predict(self, features: Features) -> Tensor:
        """The class of each item, [items]."""
        return (features.matrix @ self.weights + self.bias).argmax(dim=1)


def fit_logistic(
    features: Features, labels: Tensor, classes: int, inverse_strength: float, start: Logistic | None = None
) -> Logistic:
    """The regression with the smallest mean cross-entropy of `labels` [items] and penalty, by L-BFGS.

    The penalty is half the squared weights, divided by `inverse_strength` × items, as in scikit-learn, where it is
    called C; the bias goes without. A `start` near the minimum saves steps.
    """
    if start is None:
        start = Logistic(torch.zeros(features.matrix.shape[1], classes), torch.zeros(classes))
    weights, bias = start.weights.clone().requires_grad_(), start.bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights, bias],
        max_iter=MAX_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=1e-9,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    penalty = 1 / (inverse_strength * len(labels))
    answers = functional.one_hot(labels, classes)

    @torch.no_grad()
    def closure() -> float:
        """The loss; its derivatives by hand, since those of a sparse product are slow."""
        logarithms = torch.log_softmax(features.matrix @ weights + bias, dim=1)
        errors = (logarithms.exp() - answers) / len(labels)
        weights.grad = features.transposed @ errors + penalty * weights
        bias.grad = errors.sum(dim=0)
        loss = functional.nll_loss(logarithms, labels) + penalty / 2 * weights.square().sum()
        return float(loss)

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Logistic(weights.detach(), bias.detach())


def fit_best(
    features: Features, labels: Tensor, classes: int, inverse_strengths: Sequence[float], order: Tensor
) -> tuple[Logistic, float]:
    """The regression with the strength that is right most often on a fifth of the items, then fitted to all.

    The fifth is the first of `order` [items]. `inverse_strengths` are in ascending order; of equally good ones the
    first is taken, the strongest penalty. Also returns it.
    """
    held_out = max(1, int(len(order) * VALIDATION_SHARE))
    validation, training = order[:held_out], order[held_out:]
    some, others = features.rows(training), features.rows(validation)
    fitted, best = None, (-1, 0.0)
    for inverse_strength in inverse_strengths:
        fitted = fit_logistic(some, labels[training], classes, inverse_strength, fitted)
        right = int((fitted.predict(others) == labels[validation]).sum())
        if right > best[0]:
            best = right, inverse_strength
    return fit_logistic(features, labels, classes, best[1]), best[1]
