"""Packs: rows of fixed length that hold several sequences each, so that hardly any of a batch is padding."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Budgets:
    """What a pack holds at most; its arrays are that long, however full it is."""

    tokens: int
    sequences: int
    masked: int


@dataclass(frozen=True)
class Placement:
    """Where each sequence goes; int64 [sequences] each, but for the number of packs."""

    packs: int
    pack: NDArray[np.int64]
    number: NDArray[np.int64]
    """Its number within the pack."""
    offset: NDArray[np.int64]
    """Its first token within the pack."""


def pack_sequences(
    lengths: NDArray[np.int64], masked: NDArray[np.int64], order: NDArray[np.int64], most: Budgets
) -> Placement:
    """Packs sequences of `lengths` tokens, of which `masked` are predicted: each must fit into a pack alone.

    Best fit, longest first; `order`, all their numbers, is the order of those that are alike.
    """
    order = order[(-lengths[order]).argsort(kind="stable")]
    chosen = np.array(best_fit(lengths[order].tolist(), masked[order].tolist(), most), dtype=np.int64)
    # Now sequences pack by pack, so that offsets within a pack are differences of running sums.
    by_pack = chosen.argsort(kind="stable")
    members = order[by_pack]
    counts = np.bincount(chosen)
    firsts = counts.cumsum() - counts
    starts = lengths[members].cumsum() - lengths[members]
    pack, number, offset = (np.empty(len(order), dtype=np.int64) for _ in range(3))
    pack[members] = chosen[by_pack]
    number[members] = np.arange(len(order)) - np.repeat(firsts, counts)
    offset[members] = starts - np.repeat(starts[firsts], counts)
    return Placement(len(counts), pack, number, offset)


def best_fit(lengths: list[int], masked: list[int], most: Budgets) -> list[int]:
    """The pack of each sequence: the fullest that holds it. A pack that lacks room for predicted tokens is closed."""
    packs: list[int] = []
    sequences: list[int] = []
    masked_in_pack: list[int] = []
    open_packs: list[list[int]] = [[] for _ in range(most.tokens + 1)]
    """By the tokens that they have left."""
    lefts = 0
    """The bit of each number of tokens that an open pack has left: the lowest of the fitting ones is quickly found."""
    for length, needed in zip(lengths, masked, strict=True):
        pack = -1
        while fitting := lefts >> length:
            left = length + (fitting & -fitting).bit_length() - 1
            pack = open_packs[left].pop()
            if not open_packs[left]:
                lefts ^= 1 << left
            if masked_in_pack[pack] + needed <= most.masked:
                break
            pack = -1
        if pack < 0:
            pack, left = len(sequences), most.tokens
            sequences.append(0)
            masked_in_pack.append(0)
        packs.append(pack)
        sequences[pack] += 1
        masked_in_pack[pack] += needed
        left -= length
        if left and sequences[pack] < most.sequences:
            open_packs[left].append(pack)
            lefts |= 1 << left
    return packs
