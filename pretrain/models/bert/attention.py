"""Which tokens read which: the real ones of their row, or, in a pack, those of their own sequence.

Shapes: B rows of T tokens, H hidden size; S places for sequences in a row; N sequences in all, L tokens of the longest.

Both ways are tuples of tensors, since ZeRO 3 looks for a module's tensors only inside tuples, lists and dictionaries.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

TOO_LONG = 2
"""A row is read as one, under a mask, up to so many times the longest sequence: what is masked is computed too."""


class Attention(Protocol):
    """Scaled dot-product attention of every token over those that it reads."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, dropout: float) -> Tensor:
        """[B, T, H] from the same, three times."""


class WithinRows(NamedTuple):
    """A row at a time; `mask` is bool [B, 1, 1 or T, T], true for the tokens that one may read."""

    mask: Tensor

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, dropout: float) -> Tensor:
        """As `Attention` has it."""
        query, key, value = (x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, dropout_p=dropout)
        return mixed.transpose(1, 2).flatten(2)


class WithinSequences(NamedTuple):
    """A sequence at a time, taken out of its row, padded to the longest, and put back; padding gets 0."""

    tokens: Tensor
    """int64 [N * L]: where they are in the flattened rows; padding is the sequence's first token."""
    mask: Tensor
    """bool [N, 1, 1, L]: true where there is a token."""
    places: Tensor
    """int64 [B * T]: where each token is in the padded sequences; N * L for padding."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, dropout: float) -> Tensor:
        """As `Attention` has it."""
        shape = (self.mask.shape[0], self.mask.shape[-1], query.shape[2])
        taken = (x.flatten(0, 1).index_select(0, self.tokens).view(shape) for x in (query, key, value))
        mixed = WithinRows(self.mask)(*taken, num_heads=num_heads, dropout=dropout)
        return F.pad(mixed.flatten(0, 1), (0, 0, 0, 1)).index_select(0, self.places).view_as(query)


def read_rows(attention_mask: Tensor) -> WithinRows:
    """Every token reads the real ones of its row; `attention_mask` [B, T] is 1 where there is one."""
    return WithinRows(attention_mask.bool()[:, None, None, :])


def read_packs(sequence_lengths: Tensor, length: int) -> Attention:
    """Every token reads its own sequence's; padding reads padding, or nothing.

    `sequence_lengths` int64 [B, S] follow each other in rows of `length` tokens. On CPU, long rows are taken apart; the
    shapes that this needs depend on the data, for which an accelerator would have to be waited for.
    """
    if sequence_lengths.device.type == "cpu" and length > TOO_LONG * int(sequence_lengths.max()):
        return _by_sequence(sequence_lengths, length)
    return _by_row(sequence_lengths, length)


def sequence_starts(sequence_lengths: Tensor, length: int) -> Tensor:
    """int64 [B * S]: where each sequence begins in the flattened rows; 0 where there is none."""
    rows = length * torch.arange(len(sequence_lengths), device=sequence_lengths.device)
    starts = rows[:, None] + sequence_lengths.cumsum(1) - sequence_lengths
    return starts.where(sequence_lengths > 0, 0).flatten()


def _by_row(sequence_lengths: Tensor, length: int) -> WithinRows:
    # The number of a token's sequence in its row; padding comes after the last, and so has a number of its own.
    places = torch.arange(length, device=sequence_lengths.device).repeat(len(sequence_lengths), 1)
    numbers = torch.searchsorted(sequence_lengths.cumsum(1), places, right=True)
    return WithinRows((numbers[:, :, None] == numbers[:, None, :])[:, None])


def _by_sequence(sequence_lengths: Tensor, length: int) -> WithinSequences:
    there = sequence_lengths.flatten() > 0
    starts = sequence_starts(sequence_lengths, length)[there, None]
    lengths = sequence_lengths.flatten()[there, None]
    within = torch.arange(int(lengths.max()))
    mask = within < lengths
    tokens = starts + within * mask
    places = torch.full((sequence_lengths.shape[0] * length,), mask.numel())
    places[tokens[mask]] = torch.arange(mask.numel()).view_as(mask)[mask]
    return WithinSequences(tokens.flatten(), mask[:, None, None, :], places)
