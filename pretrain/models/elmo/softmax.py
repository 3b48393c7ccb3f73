"""What predicts words: full or sampled softmax, and their losses.

Shapes: N positions, P projection_size, V vocabulary, S candidates.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_POSITIONS_AT_ONCE = {"cpu": 2**9, "cuda": 2**12}
_LOGITS_AT_ONCE = {"cpu": 2**20, "cuda": 2**24}
"""Most positions, and elements, of a block of full-softmax logits: what caches hold, or 64 MiB where launches cost."""


def _wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for a model of that (tests of gradients)."""
    return torch.promote_types(dtype, torch.float32)


class Softmax(nn.Module):
    """What predicts words, shared by both directions: weight [V, P] from N(0, 1/√P), bias [V] of 0.

    Losses are computed in here because only a module's own forward may read its weights when they are sharded.
    """

    def __init__(self, vocabulary_size: int, projection_size: int) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.weight = nn.Parameter(torch.empty(vocabulary_size, projection_size))
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        nn.init.normal_(self.weight, std=1 / math.sqrt(projection_size))

    def forward(self, hidden: Tensor, targets: Tensor, candidates: Tensor | None = None, num_tries: int = 0) -> Tensor:
        """Losses (natural log) [N], float32, of int64 targets [N] given hidden [N, P]; 0 where the target is -100.

        Over the whole vocabulary; or, given `candidates` (ids, int64 [S]) that took `num_tries` draws, over those.
        """
        if candidates is not None:
            return self._sampled(hidden, targets, candidates, num_tries)
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        losses: Tensor = _FullLosses.apply(hidden, self.weight, self.bias, targets, dtype)  # type: ignore[no-untyped-call]
        return losses

    def _sampled(self, hidden: Tensor, targets: Tensor, candidates: Tensor, num_tries: int) -> Tensor:
        """Jean et al. 2015: logits less the log of how often a word is expected among the candidates.

        A candidate that is the target of a position is no negative for it ("accidental hit").
        """
        wide = _wide(hidden.dtype)
        real = targets >= 0
        targets = targets.clamp(min=0)
        negative = F.linear(hidden, *self._rows(candidates)).to(wide) - self._log_expected(candidates, num_tries).to(
            wide
        )
        # not -inf, whose gradient is not a number where every candidate is a hit
        negative = negative.masked_fill(targets[:, None] == candidates, torch.finfo(wide).min)
        rows, biases = self._rows(targets)
        positive = (hidden.to(wide) * rows.to(wide)).sum(dim=1) + biases.to(wide)
        positive = positive - self._log_expected(targets, num_tries).to(wide)
        losses: Tensor = torch.logaddexp(positive, negative.logsumexp(dim=1)) - positive
        return losses * real

    def _rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [ids, P] and biases [ids] of words; looked up, since the gradient of indexing is not repeatable."""
        return F.embedding(ids, self.weight), F.embedding(ids, self.bias[:, None]).squeeze(1)

    def _log_expected(self, ids: Tensor, num_tries: int) -> Tensor:
        """log E[id is drawn] in `num_tries` log-uniform draws: P(id) = log((id + 2) / (id + 1)) / log(V + 1)."""
        probability = (1 / (ids.double() + 1)).log1p() / math.log(self.vocabulary_size + 1)
        return (-torch.expm1(num_tries * torch.log1p(-probability))).log()


class _FullLosses(torch.autograd.Function):
    """-log softmax at the targets, of logits that are there a block at a time only, and twice: forward and backward.

    Logits are products in `dtype`; all that follows is in float32 (float64 for float64), sums over blocks included.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        wide = _wide(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            peak = torch.full(targets.shape, -torch.inf, dtype=wide, device=hidden.device)
            total = torch.zeros_like(peak)  # of exp(logit - peak)
            at_target = torch.zeros_like(peak)
            for rows, columns in _blocks(hidden, weight):
                logits = _logits(hidden[rows], weight[columns], bias[columns], dtype)
                place, inside = _place(targets[rows], columns)
                at_target[rows] += logits.gather(1, place)[:, 0] * inside
                higher = torch.maximum(peak[rows], logits.amax(dim=1))
                logits.sub_(higher[:, None]).exp_()
                total[rows] = total[rows] * (peak[rows] - higher).exp() + logits.sum(dim=1)
                peak[rows] = higher
            normaliser = peak + total.log()
            ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
            ctx.dtype = dtype
            return (normaliser - at_target) * (targets >= 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        gradient = gradient * (targets >= 0)
        of_hidden, of_weight, of_bias = (torch.zeros_like(x, dtype=normaliser.dtype) for x in (hidden, weight, bias))
        for rows, columns in _blocks(hidden, weight):
            slope = _logits(hidden[rows], weight[columns], bias[columns], ctx.dtype)
            slope.sub_(normaliser[rows, None]).exp_().mul_(gradient[rows, None])
            place, inside = _place(targets[rows], columns)
            # one place a row: not scatter_add_, whose order is not fixed on CUDA
            slope.scatter_(1, place, slope.gather(1, place) - (gradient[rows] * inside)[:, None])
            of_bias[columns] += slope.sum(dim=0)
            slope = slope.to(ctx.dtype)
            _add_product(of_hidden[rows], slope, weight[columns])
            _add_product(of_weight[columns], slope.T, hidden[rows])
        return of_hidden.to(hidden.dtype), of_weight.to(weight.dtype), of_bias.to(bias.dtype), None, None


def _blocks(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, slice]]:
    """(positions, words) of every block of logits."""
    kind = hidden.device.type
    at_once = max(1, min(len(hidden), _POSITIONS_AT_ONCE[kind]))
    words = max(1, _LOGITS_AT_ONCE[kind] // at_once)
    for row in range(0, len(hidden), at_once):
        for column in range(0, len(weight), words):
            yield slice(row, row + at_once), slice(column, column + words)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    return F.linear(hidden.to(dtype), weight.to(dtype), bias.to(dtype)).to(_wide(dtype))


def _place(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Each target's column in a block, [rows, 1], and whether it is in the block at all, [rows]."""
    inside = (targets >= columns.start) & (targets < columns.stop)
    return torch.where(inside, targets - columns.start, 0)[:, None], inside


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in place; the product in the dtype of `left`, the sum in that of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right.to(left.dtype))
    else:
        total += left @ right.to(left.dtype)
