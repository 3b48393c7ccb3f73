"""Which tokens read which: the real ones of their row, or, in a pack, those of their own sequence.

Shapes: B rows of T tokens, H hidden size; S places for sequences in a row; N sequences in all, L tokens of the longest.

All ways are tuples, since ZeRO 3 looks for a module's tensors only inside tuples, lists and dictionaries.
"""

import importlib
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.models.bert.dropout import DropoutAttention


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


class OneByOne(NamedTuple):
    """A sequence at a time, on CPU: a sequence's matrices stay in the cache, and padding costs nothing, and gets 0."""

    lengths: tuple[int, ...]
    """Tokens of each sequence in the flattened rows, and of what is left of a row."""
    there: tuple[bool, ...]
    """Whether it is a sequence."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, dropout: float) -> Tensor:
        """As `Attention` has it."""
        shape = (query.shape[0] * query.shape[1], num_heads, -1)
        queries, keys, values = (torch.split(x.reshape(shape), list(self.lengths)) for x in (query, key, value))
        mixed = [
            _attend(q, k, v, dropout) if there else torch.zeros_like(q)
            for q, k, v, there in zip(queries, keys, values, self.there, strict=True)
        ]
        return torch.cat(mixed).view_as(query)


class OnEnd(NamedTuple):
    """All sequences on end, in one call of a kernel that knows where each begins; padding is sequences of its own."""

    way: str
    """`varlen`, `flash_attn` or `nested`."""
    starts: Tensor
    """int32 [sequences + 1]: where each begins in the flattened rows, and where the last ends."""
    longest: int
    """Tokens of any sequence, at most."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, dropout: float) -> Tensor:
        """As `Attention` has it."""
        q, k, v = (x.reshape(-1, num_heads, x.shape[2] // num_heads) for x in (query, key, value))
        return KERNELS[self.way](q, k, v, self.starts, self.longest, dropout).reshape(query.shape)


def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """[tokens, heads, width] from the same, three times."""
    query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    if dropout:
        mixed: Tensor = DropoutAttention.apply(query, key, value, dropout)  # type: ignore[no-untyped-call]
    else:
        mixed = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
    return mixed.transpose(0, 1)


def _varlen(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, dropout: float) -> Tensor:
    """torch's kernel for sequences of different lengths."""
    from torch.nn.attention.varlen import varlen_attn

    if dropout:
        raise ValueError("it has no dropout")
    mixed = varlen_attn(query, key, value, starts, starts, longest, longest)
    assert isinstance(mixed, Tensor)
    return mixed


def _flash_attn(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, dropout: float) -> Tensor:
    """The kernel of the flash-attn package."""
    package: Any = importlib.import_module("flash_attn")
    same = torch.are_deterministic_algorithms_enabled()
    mixed: Tensor = package.flash_attn_varlen_func(
        query, key, value, starts, starts, longest, longest, dropout_p=dropout, deterministic=same
    )
    return mixed


def _nested(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, dropout: float) -> Tensor:
    """torch's attention over nested tensors."""
    offsets = starts.long()
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(x, offsets, min_seqlen=0, max_seqlen=longest).transpose(1, 2)
        for x in (query, key, value)
    )
    mixed: Tensor = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2)
    return mixed.values()


KERNELS = {"varlen": _varlen, "flash_attn": _flash_attn, "nested": _nested}
"""The ways to read sequences on end: from [tokens, heads, width of a head] three times, the same."""


def read_rows(attention_mask: Tensor) -> WithinRows:
    """Every token reads the real ones of its row; `attention_mask` [B, T] is 1 where there is one."""
    return WithinRows(attention_mask.bool()[:, None, None, :])


def read_packs(way: str, sequence_lengths: Tensor, length: int, longest: int) -> Attention:
    """Every token reads its own sequence's; padding reads padding, or nothing.

    `sequence_lengths` int64 [B, S], of `longest` at most, follow each other in rows of `length` tokens. `way` is as
    `compute.attention` has it. All shapes are constant, but for `per_sequence`: those depend on the data, for which an
    accelerator has to be waited for.
    """
    if way == "auto":
        way = "per_sequence" if sequence_lengths.device.type == "cpu" else "masked"
    if way == "per_sequence":
        return _per_sequence(sequence_lengths.tolist(), length)
    if way == "masked":
        return _by_row(sequence_lengths, length)
    return _on_end("varlen" if way == "varlen_fa3" else way, sequence_lengths, length, longest)


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


def _per_sequence(sequence_lengths: list[list[int]], length: int) -> OneByOne:
    parts = []
    for row in sequence_lengths:
        parts += [(one, True) for one in row if one]
        parts += [(left, False)] if (left := length - sum(row)) else []
    lengths, there = zip(*parts, strict=True)
    return OneByOne(lengths, there)


def _on_end(way: str, sequence_lengths: Tensor, length: int, longest: int) -> OnEnd:
    # What is left of a row is cut up, so that no sequence is longer than the kernel was told.
    left = length - sequence_lengths.sum(1, keepdim=True)
    before = longest * torch.arange(-(-length // longest), device=left.device)
    lengths = torch.cat([sequence_lengths, (left - before).clamp(0, longest)], dim=1).flatten()
    return OnEnd(way, F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), longest)
