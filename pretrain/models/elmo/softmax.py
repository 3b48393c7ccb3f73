"""The softmax over words, full or sampled, and its losses.

Shapes: N positions, P projection_size, V vocabulary, S candidates.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.models.elmo.layers import lookup

_BLOCK_POSITIONS = {"cpu": 2**9, "cuda": 2**12}
_BLOCK_LOGITS = {"cpu": 2**20, "cuda": 2**24}
"""Most positions, and elements, of a block of logits: what caches hold, or 64 MiB where launches cost."""


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for a model of that (tests of gradients)."""
    return torch.promote_types(dtype, torch.float32)


class Softmax(nn.Module):
    """Losses of predicted words, one softmax for both directions: weight [V, P] from N(0, 1/√P), bias [V] of 0.

    Losses are computed in here because only a module's own forward may read its weights when they are sharded.
    """

    def __init__(self, vocabulary_size: int, projection_size: int) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.weight = nn.Parameter(torch.empty(vocabulary_size, projection_size))
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        nn.init.normal_(self.weight, std=1 / math.sqrt(projection_size))

    def forward(self, hidden: Tensor, labels: Tensor, candidates: Tensor | None = None, num_tries: int = 0) -> Tensor:
        """Losses (natural log) [N], float32, of int64 labels [N] given hidden [N, P]; 0 where the label is -100.

        Over the whole vocabulary; or, given `candidates` (distinct ids, int64 [S]) that took `num_tries` draws, over
        those and the label (Jean et al. 2015): the log of a word's expected count among the candidates is taken off its
        logit, and a candidate that is the label of a position is no negative for it ("accidental hit").
        """
        dtype = _accumulation_dtype(hidden.dtype)
        real = labels >= 0
        labels = labels.clamp(min=0)
        if candidates is None:
            weights, biases = self._look_up(labels, dtype)
            label_logits = (hidden.to(dtype) * weights).sum(dim=1) + biases
            return (_logsumexp(hidden, self.weight, self.bias, None) - label_logits) * real
        candidates = candidates.sort().values
        index = torch.searchsorted(candidates, labels).clamp(max=len(candidates) - 1)
        accidental_hit = torch.where(candidates[index] == labels, index, -1)
        ids = torch.cat([candidates, labels])  # one lookup, since its gradient is as large as the vocabulary
        weights, biases = self._look_up(ids, dtype)
        biases = biases - self._log_expected_count(ids, num_tries).to(dtype)
        sizes = [len(candidates), len(labels)]
        candidate_weights, label_weights = torch.split(weights, sizes)
        candidate_biases, label_biases = torch.split(biases, sizes)
        label_logits = (hidden.to(dtype) * label_weights).sum(dim=1) + label_biases
        negatives = _logsumexp(hidden, candidate_weights, candidate_biases, accidental_hit)
        losses: Tensor = torch.logaddexp(label_logits, negatives) - label_logits
        return losses * real

    def _look_up(self, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weights [ids, P] and biases [ids] of words; looked up, since the gradient of indexing is not repeatable."""
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return lookup(ids, weight), lookup(ids, bias[:, None]).squeeze(1)

    def _log_expected_count(self, ids: Tensor, num_tries: int) -> Tensor:
        """log E[id is drawn] in `num_tries` log-uniform draws: P(id) = log((id + 2) / (id + 1)) / log(V + 1)."""
        probability = (1 / (ids.double() + 1)).log1p() / math.log(self.vocabulary_size + 1)
        return (-torch.expm1(num_tries * torch.log1p(-probability))).log()


def _logsumexp(hidden: Tensor, weight: Tensor, bias: Tensor, excluded: Tensor | None) -> Tensor:
    """`_LogSumExp`, whose products have autocast's precision."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    result: Tensor = _LogSumExp.apply(hidden, weight, bias, excluded, dtype)  # type: ignore[no-untyped-call]
    return result


class _LogSumExp(torch.autograd.Function):
    """log Σ exp(logit) of each position, of logits that are there a block at a time only, and twice: forward, backward.

    hidden [N, P], weight [W, P], bias [W] -> [N]. Word `excluded[n]` is not among position n's; none is where that is
    negative. Logits are products in `dtype`; all that follows is in float32 (float64 for float64), sums over blocks
    included.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, excluded: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            maximum = torch.full(hidden.shape[:1], -torch.inf, dtype=_accumulation_dtype(dtype), device=hidden.device)
            total = torch.zeros_like(maximum)  # of exp(logit - maximum)
            for rows, columns in _blocks(hidden, weight):
                logits = _logits(hidden[rows], weight[columns], bias[columns], dtype)
                if excluded is not None:
                    # not -inf, from which nothing can be subtracted where all are excluded
                    _fill(logits, excluded[rows], columns, torch.finfo(logits.dtype).min)
                new_maximum = torch.maximum(maximum[rows], logits.amax(dim=1))
                logits.sub_(new_maximum[:, None]).exp_()
                total[rows] = total[rows] * (maximum[rows] - new_maximum).exp() + logits.sum(dim=1)
                maximum[rows] = new_maximum
            result = maximum + total.log()
            ctx.save_for_backward(hidden, weight, bias, excluded, result)
            ctx.dtype = dtype
            return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        hidden, weight, bias, excluded, result = ctx.saved_tensors
        hidden_gradient, weight_gradient, bias_gradient = (
            torch.zeros_like(tensor, dtype=result.dtype) for tensor in (hidden, weight, bias)
        )
        for rows, columns in _blocks(hidden, weight):
            logits_gradient = _logits(hidden[rows], weight[columns], bias[columns], ctx.dtype)
            logits_gradient.sub_(result[rows, None]).exp_().mul_(gradient[rows, None])
            if excluded is not None:
                _fill(logits_gradient, excluded[rows], columns, 0.0)
            bias_gradient[columns] += logits_gradient.sum(dim=0)
            logits_gradient = logits_gradient.to(ctx.dtype)
            _add_product(hidden_gradient[rows], logits_gradient, weight[columns])
            _add_product(weight_gradient[columns], logits_gradient.T, hidden[rows])
        return (
            hidden_gradient.to(hidden.dtype),
            weight_gradient.to(weight.dtype),
            bias_gradient.to(bias.dtype),
            None,
            None,
        )


def _blocks(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, slice]]:
    """(positions, words) of every block of logits."""
    kind = hidden.device.type
    num_rows = max(1, min(len(hidden), _BLOCK_POSITIONS[kind]))
    num_columns = max(1, _BLOCK_LOGITS[kind] // num_rows)
    for row in range(0, len(hidden), num_rows):
        for column in range(0, len(weight), num_columns):
            yield slice(row, row + num_rows), slice(column, column + num_columns)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """[rows, columns], the product in `dtype`."""
    if bias.dtype == dtype:
        return torch.addmm(bias, hidden.to(dtype), weight.to(dtype).T).to(_accumulation_dtype(dtype))
    return (hidden.to(dtype) @ weight.to(dtype).T).to(_accumulation_dtype(dtype)).add_(bias)


def _fill(block: Tensor, words: Tensor, columns: slice, value: float) -> None:
    """Writes `value` where a row's word is, in the rows whose word is in the block."""
    inside = (words >= columns.start) & (words < columns.stop)
    index = torch.where(inside, words - columns.start, 0)[:, None]
    # one index a row: scatter_ is repeatable, which writing through a list of indices is not on CUDA
    block.scatter_(1, index, block.gather(1, index).masked_fill_(inside[:, None], value))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in place; the product in the dtype of `left`, the sum in that of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right.to(left.dtype))
    else:
        total += left @ right.to(left.dtype)


def softmax_problem(softmax: Softmax | None, vocabulary_size: int) -> str | None:
    """What keeps a model's softmax from predicting words of a vocabulary, in a line; None where nothing does."""
    if softmax is None:
        return "the model folder holds no *softmax_weights.hdf5: it gives vectors, but no losses"
    if softmax.vocabulary_size != vocabulary_size:
        return (
            f"the softmax predicts {softmax.vocabulary_size} words, the vocabulary has {vocabulary_size}: "
            "they do not belong together"
        )
    return None
