"""Attention within rows of one sequence each, or within packs, where every token attends to its own sequence only.

Shapes: B rows of T tokens, H hidden size; S slots for sequences in a row.

An attention is a tuple, since ZeRO 3 looks for a module's tensors only inside tuples, lists and dictionaries.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.models.bert.dropout import DropoutAttention

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
"""(query, key, value, cu_seqlens, max_seqlen, dropout) -> output; all but the last three [tokens, heads, head size]."""


class Attention(Protocol):
    """Scaled dot-product attention of every token over the tokens that it may attend to."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, dropout: float) -> Tensor:
        """[B, T, H] from the same, three times."""


class MaskedAttention(NamedTuple):
    """Whole rows under a mask."""

    mask: Tensor
    """bool [B, 1, 1 or T, T]: true for the tokens that one may attend to."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, dropout: float) -> Tensor:
        """As `Attention` has it."""
        query, key, value = (x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (query, key, value))
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, dropout_p=dropout)
        return output.transpose(1, 2).flatten(2)


class PerSequenceAttention(NamedTuple):
    """One sequence after another, for CPU: its matrices stay in the cache. Padding costs nothing; its output is 0."""

    lengths: tuple[int, ...]
    """Tokens of each sequence in the flattened rows, and of the padding at the end of a row."""
    is_sequence: tuple[bool, ...]
    """False for padding."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, dropout: float) -> Tensor:
        """As `Attention` has it."""
        shape = (query.shape[0] * query.shape[1], num_heads, -1)
        queries, keys, values = (torch.split(x.reshape(shape), list(self.lengths)) for x in (query, key, value))
        outputs = [
            _attend(q, k, v, dropout) if is_sequence else torch.zeros_like(q)
            for q, k, v, is_sequence in zip(queries, keys, values, self.is_sequence, strict=True)
        ]
        return torch.cat(outputs).view_as(query)


class VarlenAttention(NamedTuple):
    """All sequences in one call of a kernel for variable lengths; padding is sequences of its own."""

    kernel: Kernel
    cu_seqlens: Tensor
    """int32 [sequences + 1]: where each begins in the flattened rows, and where the last ends; some are empty."""
    max_seqlen: int
    """Tokens of the longest sequence, at most."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, dropout: float) -> Tensor:
        """As `Attention` has it."""
        q, k, v = (x.reshape(-1, num_heads, x.shape[2] // num_heads) for x in (query, key, value))
        return self.kernel(q, k, v, self.cu_seqlens, self.max_seqlen, dropout).reshape(query.shape)


def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """[tokens, heads, head size] from the same, three times."""
    query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    if dropout:
        output: Tensor = DropoutAttention.apply(query, key, value, dropout)  # type: ignore[no-untyped-call]
    else:
        output = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
    return output.transpose(0, 1)


def _varlen(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
    """torch's kernel for sequences of different lengths."""
    from torch.nn.attention.varlen import varlen_attn

    if dropout:
        raise ValueError("it has no dropout")
    output = varlen_attn(query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    assert isinstance(output, Tensor)
    return output


def _nested(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
    """torch's attention over nested tensors."""
    # Told that a sequence may be empty, torch takes none of its fast kernels, which all read cu_seqlens and do nothing
    # for an empty one, but its slowest, which waits for the device sequence by sequence.
    offsets = cu_seqlens.long()
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(x, offsets, min_seqlen=1, max_seqlen=max_seqlen).transpose(1, 2)
        for x in (query, key, value)
    )
    output: Tensor = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2)
    return output.values()


def _load_flash_attn() -> Kernel:
    """The kernel of the flash-attn package; raises ImportError where there is none."""
    package: Any = importlib.import_module("flash_attn")
    return _wrap_flash_attn(package.flash_attn_varlen_func)


@functools.cache
def _wrap_flash_attn(function: Callable[..., Tensor]) -> Kernel:
    """Always the same kernel for the same function: a layer is compiled anew for every other."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        deterministic = torch.are_deterministic_algorithms_enabled()
        return function(
            q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p=dropout, deterministic=deterministic
        )

    return kernel


KERNELS: dict[str, Callable[[], Kernel]] = {
    "varlen_fa3": lambda: _varlen,
    "varlen": lambda: _varlen,
    "flash_attn": _load_flash_attn,
    "nested": lambda: _nested,
}
"""What loads the kernel of each backend for variable lengths, outside of compiled code: imports cannot be traced."""


def padded_attention(attention_mask: Tensor) -> MaskedAttention:
    """Attention of every token over the real ones of its row; `attention_mask` [B, T] is 1 for those."""
    return MaskedAttention(attention_mask.bool()[:, None, None, :])


def packed_attention(backend: str, sequence_lengths: Tensor, length: int, max_seqlen: int) -> Attention:
    """Attention of every token over its own sequence; padding attends to padding, or to nothing.

    `sequence_lengths` int64 [B, S], of `max_seqlen` at most, follow each other in rows of `length` tokens. `backend` is
    as `compute.attention` has it. All shapes are constant, except with `per_sequence`: its depend on the data, so that
    the host waits for an accelerator.
    """
    if backend == "auto":
        backend = "per_sequence" if sequence_lengths.device.type == "cpu" else "masked"
    if backend == "per_sequence":
        return _per_sequence(sequence_lengths.tolist(), length)
    if backend == "masked":
        return _masked(sequence_lengths, length)
    return VarlenAttention(KERNELS[backend](), _cu_seqlens(sequence_lengths, length, max_seqlen), max_seqlen)


def sequence_starts(sequence_lengths: Tensor, length: int) -> Tensor:
    """int64 [B * S]: where each sequence begins in the flattened rows; 0 for an empty slot."""
    rows = length * torch.arange(len(sequence_lengths), device=sequence_lengths.device)
    starts = rows[:, None] + sequence_lengths.cumsum(1) - sequence_lengths
    return starts.where(sequence_lengths > 0, 0).flatten()


def _masked(sequence_lengths: Tensor, length: int) -> MaskedAttention:
    # The number of a token's sequence in its row; padding comes after the last, and so has a number of its own.
    tokens = torch.arange(length, device=sequence_lengths.device).repeat(len(sequence_lengths), 1)
    sequence_ids = torch.searchsorted(sequence_lengths.cumsum(1), tokens, right=True)
    return MaskedAttention((sequence_ids[:, :, None] == sequence_ids[:, None, :])[:, None])


def _per_sequence(sequence_lengths: list[list[int]], length: int) -> PerSequenceAttention:
    parts = []
    for row in sequence_lengths:
        parts += [(tokens, True) for tokens in row if tokens]
        parts += [(padding, False)] if (padding := length - sum(row)) else []
    lengths, is_sequence = zip(*parts, strict=True)
    return PerSequenceAttention(lengths, is_sequence)


def _cu_seqlens(sequence_lengths: Tensor, length: int, max_seqlen: int) -> Tensor:
    # Padding is cut up, so that no sequence is longer than the kernel was told.
    padding = length - sequence_lengths.sum(1, keepdim=True)
    before = max_seqlen * torch.arange(-(-length // max_seqlen), device=padding.device)
    lengths = torch.cat([sequence_lengths, (padding - before).clamp(0, max_seqlen)], dim=1).flatten()
    return F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
