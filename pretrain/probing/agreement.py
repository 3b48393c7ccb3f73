"""How similar vectors are, and how well that agrees with what people say: cosine, ranks, thresholds."""

import numpy as np
from numpy.typing import NDArray

DECIMALS = 9
"""Cosines are rounded, so that what rounding leaves of equal vectors does not decide which of two is larger."""
BLOCK = 100
"""Samples that figures are calculated of at a time."""
Values = NDArray[np.floating]
Counts = NDArray[np.integer]
"""How often each sample holds each item, [samples, items]."""


def cosines(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """The cosine of each row of [items, width] with the same row of the other; 0 where a vector is zero."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    found: NDArray[np.float64] = np.round((first * second).sum(axis=1) / np.where(norms > 0, norms, 1), DECIMALS)
    return found


def average_ranks(values: Values) -> NDArray[np.float64]:
    """The rank of each of `values` [items], counted from 1; equal ones share the mean of their ranks."""
    _, numbers, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[numbers]
    return ranks


def spearman(first: Values, second: Values) -> float:
    """Spearman's rank correlation of two lists of numbers; 0 where all numbers of one are equal."""
    ranks = np.stack([average_ranks(first), average_ranks(second)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(ranks, axis=1).prod()
    return float(ranks[0] @ ranks[1] / norms) if norms else 0.0


def spearman_of_samples(first: Values, second: Values, counts: Counts) -> NDArray[np.float64]:
    """`spearman` of each sample, [samples]."""
    found = []
    for start in range(0, len(counts), BLOCK):
        drawn = counts[start : start + BLOCK].astype(np.float64)
        # an average rank is half of the number of items, on the average
        one, other = (_ranks_in_samples(values, drawn) - (drawn.shape[1] + 1) / 2 for values in (first, second))
        norms = np.sqrt((drawn * one**2).sum(axis=1) * (drawn * other**2).sum(axis=1))
        found.append((drawn * one * other).sum(axis=1) / np.where(norms > 0, norms, 1))
    return np.concatenate(found)


def _ranks_in_samples(values: Values, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """`average_ranks` in each sample, [samples, items]; those of items that it does not hold mean nothing."""
    _, numbers = np.unique(values, return_inverse=True)
    grouped = _by_value(numbers, counts)
    ranks: NDArray[np.float64] = (grouped.cumsum(axis=1) - (grouped - 1) / 2)[:, numbers]
    return ranks


def _by_value(numbers: NDArray[np.integer], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The counts [samples, values] of items [samples, items] that have the same value's number."""
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    return np.add.reduceat(counts[:, order], starts, axis=1)


def area_under_curve(scores: Values, positive: NDArray[np.bool_]) -> float:
    """The area under the ROC curve: how often a positive item has the higher score; equal ones count half.

    NaN where there is no positive, or no negative item.
    """
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    ranks = float(average_ranks(scores)[positive].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def areas_of_samples(scores: Values, positive: NDArray[np.bool_], counts: Counts) -> NDArray[np.float64]:
    """`area_under_curve` of each sample, [samples]."""
    _, numbers = np.unique(scores, return_inverse=True)
    found = []
    for start in range(0, len(counts), BLOCK):
        drawn = counts[start : start + BLOCK].astype(np.float64)
        positives, negatives = _by_value(numbers, drawn * positive), _by_value(numbers, drawn * ~positive)
        below = negatives.cumsum(axis=1) - negatives / 2
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        right = (positives * below).sum(axis=1)
        found.append(np.divide(right, pairs, out=np.full(len(drawn), np.nan), where=pairs > 0))
    return np.concatenate(found)


def best_threshold(scores: Values, positive: NDArray[np.bool_]) -> float:
    """Where `score >= threshold` tells positive items best, the lowest such place.

    It lies half-way between two scores, or is infinite where one answer is right more often than any division.
    """
    values, numbers = np.unique(scores, return_inverse=True)
    below = np.bincount(numbers, weights=np.where(positive, -1.0, 1.0), minlength=len(values))
    gains = np.concatenate([[0.0], np.cumsum(below)])  # of calling the lowest 0, 1, 2 … values negative
    cuts = np.concatenate([[-np.inf], (values[:-1] + values[1:]) / 2, [np.inf]])
    return float(cuts[gains.argmax()])
