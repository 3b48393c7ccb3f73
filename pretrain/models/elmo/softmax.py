"""What predicts words: full or sampled softmax, and their losses.

Shapes: N positions, P projection_size, V vocabulary, S candidates.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LOGITS_AT_ONCE = 2**26
"""Elements of a block of full-softmax logits: 256 MiB in float32."""


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
        """Sum of the losses (natural log) of int64 targets [N], -100 being ignored, given hidden [N, P].

        Over the whole vocabulary; or, given `candidates` (ids, int64 [S]) that took `num_tries` draws, over those.
        """
        if candidates is None:
            return self._full(hidden, targets)
        return self._sampled(hidden, targets, candidates, num_tries)

    def _full(self, hidden: Tensor, targets: Tensor) -> Tensor:
        at_once = max(1, _LOGITS_AT_ONCE // self.vocabulary_size)
        losses = []
        for some_hidden, some_targets in zip(torch.split(hidden, at_once), torch.split(targets, at_once), strict=True):
            logits = F.linear(some_hidden, self.weight, self.bias)
            losses.append(F.cross_entropy(logits.to(_wide(logits.dtype)), some_targets, reduction="sum"))
        return torch.stack(losses).sum()

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
        losses = torch.logaddexp(positive, negative.logsumexp(dim=1)) - positive
        return (losses * real).sum()

    def _rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [ids, P] and biases [ids] of words; looked up, since the gradient of indexing is not repeatable."""
        return F.embedding(ids, self.weight), F.embedding(ids, self.bias[:, None]).squeeze(1)

    def _log_expected(self, ids: Tensor, num_tries: int) -> Tensor:
        """log E[id is drawn] in `num_tries` log-uniform draws: P(id) = log((id + 2) / (id + 1)) / log(V + 1)."""
        probability = (1 / (ids.double() + 1)).log1p() / math.log(self.vocabulary_size + 1)
        return (-torch.expm1(num_tries * torch.log1p(-probability))).log()
