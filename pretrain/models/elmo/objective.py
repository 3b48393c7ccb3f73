"""The two language-model losses, with full or sampled softmax."""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.errors import ConfigError, ExportError
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.softmax import softmax_problem
from pretrain.models.family import Tokenizer
from pretrain.models.loss import IGNORE_INDEX, Batch, LossTerm

DIRECTIONS = ("forward", "backward")


def draw_candidates(
    rng: np.random.Generator, vocabulary_size: int, num_candidates: int
) -> tuple[NDArray[np.int64], int]:
    """Distinct ids drawn log-uniformly, in the order drawn, and the number of tries they took, repeats included.

    P(id) = log((id + 2) / (id + 1)) / log(vocabulary_size + 1), so ids must be in the order of frequency.
    """
    drawn = np.empty(0, np.int64)
    while True:
        # twice as many each time: near the whole vocabulary most draws are repeats
        uniform = rng.random(max(3 * num_candidates, len(drawn)))
        ids = np.exp(uniform * np.log(vocabulary_size + 1)).astype(np.int64) - 1
        drawn = np.concatenate([drawn, ids.clip(0, vocabulary_size - 1)])
        first_seen = np.sort(np.unique(drawn, return_index=True)[1])[:num_candidates]
        if len(first_seen) == num_candidates:
            return drawn[first_seen], int(first_seen[-1]) + 1


class ElmoObjective:
    """Mean loss of the forward and the backward model (Peters et al. 2018, section 3.1).

    A model in training may use sampled softmax; one in evaluation never does, since sampled losses are no perplexities.
    """

    def __init__(self, config: ElmoObjectiveConfig, tokenizer: Tokenizer) -> None:
        self._vocabulary_size = tokenizer.vocabulary_size
        self._sampled = config.softmax == "sampled"
        self._num_negatives = config.num_negatives
        if self._sampled and config.num_negatives >= self._vocabulary_size:
            raise ConfigError(
                f"objective.num_negatives ({config.num_negatives}) is not less than the vocabulary's "
                f"{self._vocabulary_size} words: set objective.softmax to full, or sample fewer"
            )

    def __call__(
        self, model: nn.Module, batch: Batch, carried: Tensor | None, *, seed: int
    ) -> tuple[dict[str, LossTerm], Tensor | None]:
        """Terms `forward` and `backward`, half the loss each, and the carried state [rows, state_size].

        A row that `begins` starts from zero state. The terms hold each position's loss, float32 [rows * T].
        The directions' candidates are two draws that depend on `seed` alone. Raises ExportError for a model whose
        folder held no softmax, or another vocabulary's.
        """
        model = cast(ElmoModel, model)
        if (problem := softmax_problem(model.softmax, self._vocabulary_size)) is not None:
            raise ExportError(problem)
        assert model.softmax is not None
        if carried is not None and "begins" in batch:
            carried = carried.masked_fill(batch["begins"][:, None] == 1, 0.0)
        *hidden, carried = model.encoder(batch["characters"], batch["forward_index"], batch["backward_index"], carried)
        terms = {}
        for number, (direction, outputs) in enumerate(zip(DIRECTIONS, hidden, strict=True)):
            labels = batch[f"{direction}_labels"].flatten()
            candidates: Tensor | None = None
            num_tries = 0
            if self._sampled and model.training:
                rng = np.random.default_rng([seed, number])
                ids, num_tries = draw_candidates(rng, self._vocabulary_size, self._num_negatives)
                candidates = torch.from_numpy(ids)
                if labels.is_cuda:  # from pinned memory, else the host would wait for the device here
                    candidates = candidates.pin_memory().to(labels.device, non_blocking=True)
            losses = model.softmax(outputs.flatten(0, 1), labels, candidates, num_tries)
            terms[direction] = LossTerm(
                losses.sum(), (labels != IGNORE_INDEX).sum(), weight=0.5, losses=losses.detach()
            )
        return terms, carried


def gradient_scale(config: ElmoObjectiveConfig) -> float:
    """The window's length: the original's gradient is a sum over time and a mean over rows."""
    return float(config.unroll_length)
