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
"""Most positions, and elements, of a block of logits: what caches hold, or 64 MiB where launches cost."""


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

        Over the whole vocabulary; or, given `candidates` (distinct ids, int64 [S]) that took `num_tries` draws, over
        those (Jean et al. 2015): logits less the log of how often a word is expected among the candidates, and a
        candidate that is the target of a position is no negative for it ("accidental hit").
        """
        wide = _wide(hidden.dtype)
        real = targets >= 0
        targets = targets.clamp(min=0)
        if candidates is None:
            rows, biases = self._rows(targets, wide)
            at_target = (hidden.to(wide) * rows).sum(dim=1) + biases
            return (_logsumexp(hidden, self.weight, self.bias, None) - at_target) * real
        candidates = candidates.sort().values
        place = torch.searchsorted(candidates, targets).clamp(max=len(candidates) - 1)
        hit = torch.where(candidates[place] == targets, place, -1)
        ids = torch.cat([candidates, targets])  # one lookup, since its gradient is as large as the vocabulary
        rows, biases = self._rows(ids, wide)
        biases = biases - self._log_expected(ids, num_tries).to(wide)
        sizes = [len(candidates), len(targets)]
        (negatives, rows), (offsets, biases) = torch.split(rows, sizes), torch.split(biases, sizes)
        at_target = (hidden.to(wide) * rows).sum(dim=1) + biases
        losses: Tensor = torch.logaddexp(at_target, _logsumexp(hidden, negatives, offsets, hit)) - at_target
        return losses * real

    def _rows(self, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weights [ids, P] and biases [ids] of words; looked up, since the gradient of indexing is not repeatable.

        Of bfloat16 parameters in float32: the gradients of a word that occurs often are added up.
        """
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return F.embedding(ids, weight), F.embedding(ids, bias[:, None]).squeeze(1)

    def _log_expected(self, ids: Tensor, num_tries: int) -> Tensor:
        """log E[id is drawn] in `num_tries` log-uniform draws: P(id) = log((id + 2) / (id + 1)) / log(V + 1)."""
        probability = (1 / (ids.double() + 1)).log1p() / math.log(self.vocabulary_size + 1)
        return (-torch.expm1(num_tries * torch.log1p(-probability))).log()


def _logsumexp(hidden: Tensor, weight: Tensor, bias: Tensor, left_out: Tensor | None) -> Tensor:
    """`_LogSumExp`, whose products have autocast's precision."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    sums: Tensor = _LogSumExp.apply(hidden, weight, bias, left_out, dtype)  # type: ignore[no-untyped-call]
    return sums


class _LogSumExp(torch.autograd.Function):
    """log Σ exp(logit) of each position, of logits that are there a block at a time only, and twice: forward, backward.

    hidden [N, P], weight [W, P], bias [W] -> [N]. Word `left_out[n]` is not among position n's; none is where that is
    negative. Logits are products in `dtype`; all that follows is in float32 (float64 for float64), sums over blocks
    included.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, left_out: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        wide = _wide(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            peak = torch.full(hidden.shape[:1], -torch.inf, dtype=wide, device=hidden.device)
            total = torch.zeros_like(peak)  # of exp(logit - peak)
            for rows, columns in _blocks(hidden, weight):
                logits = _logits(hidden[rows], weight[columns], bias[columns], dtype)
                if left_out is not None:
                    # not -inf, from which nothing can be subtracted where all are left out
                    _put(logits, left_out[rows], columns, torch.finfo(wide).min)
                higher = torch.maximum(peak[rows], logits.amax(dim=1))
                logits.sub_(higher[:, None]).exp_()
                total[rows] = total[rows] * (peak[rows] - higher).exp() + logits.sum(dim=1)
                peak[rows] = higher
            sums = peak + total.log()
            ctx.save_for_backward(hidden, weight, bias, left_out, sums)
            ctx.dtype = dtype
            return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        hidden, weight, bias, left_out, sums = ctx.saved_tensors
        of_hidden, of_weight, of_bias = (torch.zeros_like(x, dtype=sums.dtype) for x in (hidden, weight, bias))
        for rows, columns in _blocks(hidden, weight):
            slope = _logits(hidden[rows], weight[columns], bias[columns], ctx.dtype)
            slope.sub_(sums[rows, None]).exp_().mul_(gradient[rows, None])
            if left_out is not None:
                _put(slope, left_out[rows], columns, 0.0)
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
    """[rows, columns], the product in `dtype`."""
    if bias.dtype == dtype:
        return torch.addmm(bias, hidden.to(dtype), weight.to(dtype).T).to(_wide(dtype))
    return (hidden.to(dtype) @ weight.to(dtype).T).to(_wide(dtype)).add_(bias)


def _put(block: Tensor, words: Tensor, columns: slice, value: float) -> None:
    """Writes `value` where a row's word is, in the rows whose word is in the block."""
    inside = (words >= columns.start) & (words < columns.stop)
    place = torch.where(inside, words - columns.start, 0)[:, None]
    # one place a row: scatter_ is repeatable, which writing through a list of places is not on CUDA
    block.scatter_(1, place, block.gather(1, place).masked_fill_(inside[:, None], value))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in place; the product in the dtype of `left`, the sum in that of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right.to(left.dtype))
    else:
        total += left @ right.to(left.dtype)
