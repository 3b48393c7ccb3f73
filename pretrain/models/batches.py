"""Batches of sequences of equal length, of which nothing is padding."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def batches_by_length(lengths: NDArray[np.int64], tokens: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """A length and the numbers of sequences that have it, of `tokens` tokens together at most, or one; shortest first.

    Each batch's numbers ascend.
    """
    order = lengths.argsort(kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1) if len(order) else []:
        length = int(lengths[group[0]])
        size = max(1, tokens // max(1, length))
        for start in range(0, len(group), size):
            yield length, group[start : start + size]
