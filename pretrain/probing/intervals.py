"""Bootstrap intervals: how much a figure would move with another sample of the same size (Efron 1979)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pretrain.runtime.seeding import generator

RESAMPLES = 1_000
LEVEL = 0.95


def mean_interval(
    values: NDArray[np.floating | np.bool_], clusters: NDArray[np.integer] | None = None, seed: int = 1
) -> tuple[float, float, float]:
    """The mean of `values` [items], and the bounds of its 95 % percentile interval.

    Items that share a number in `clusters` [items], words of a sentence for instance, are drawn together.
    """
    numbers = np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    counts = np.bincount(numbers).astype(np.float64)
    sums = np.bincount(numbers, weights=np.asarray(values, np.float64))
    rng = generator("bootstrap", seed)
    means = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = rng.integers(0, len(counts), len(counts))
        means[number] = sums[drawn].sum() / counts[drawn].sum()
    return float(np.mean(values)), *bounds(means)


def interval(
    statistic: Callable[[NDArray[np.int64]], float], items: int, seed: int = 1, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Any statistic of the numbers of `items` drawn: its value for all, each once, and the bounds of its interval."""
    rng = generator("bootstrap", seed)
    values = np.array([statistic(rng.integers(0, items, items)) for _ in range(resamples)])
    return float(statistic(np.arange(items))), *bounds(values)


def draw_counts(items: int, seed: int = 1) -> NDArray[np.uint16]:
    """How often each sample of `interval` holds each item, [resamples, items], for figures of many at once."""
    rng = generator("bootstrap", seed)
    counts = np.empty((RESAMPLES, items), np.uint16)
    for sample in counts:
        sample[:] = np.bincount(rng.integers(0, items, items), minlength=items)
    return counts


def bounds(values: NDArray[np.floating]) -> tuple[float, float]:
    """The bounds of the 95 % percentile interval of a figure's values [resamples], but for those that are NaN."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
