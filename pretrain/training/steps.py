"""What training and `pretrain bench` do alike: reading batches, and a forward pass."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.run import RunConfig
from pretrain.data.corpus import PreparedCorpus
from pretrain.data.loader import MicroBatch, StepLoader
from pretrain.data.stream import BlockOrder, StreamPosition
from pretrain.models import get_family
from pretrain.models.family import Tokenizer
from pretrain.models.loss import LossTerm, Objective
from pretrain.runtime.seeding import seed_of
from pretrain.runtime.world import World


def rank_lanes(config: RunConfig, rank: int, ranks: int) -> range:
    """The contiguous run of lanes that a rank owns."""
    number = config.data.lanes // ranks
    return range(rank * number, (rank + 1) * number)


def build_loader(
    config: RunConfig,
    tokenizer: Tokenizer,
    corpus: PreparedCorpus,
    position: StreamPosition,
    world: World,
    *,
    step: int = 0,
) -> StepLoader:
    """A rank's micro-batches from `step` on, which begins at `position`."""
    build_examples = get_family(config.model.kind).training.build_examples
    makers = {
        first: build_examples(config.model, objective, tokenizer, config.rows_per_lane)
        for first, objective in config.objective.by_first_step().items()
    }
    return StepLoader(
        BlockOrder(corpus.training, makers, config.seed, config.data.lanes),
        rank_lanes(config, world.rank, world.size),
        config.rows_per_lane,
        config.batch.micro_size,
        position=position,
        step=step,
        workers=config.data.workers,
    )


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """Where products are computed in the run's precision; weights, and thus their gradients, are float32.

    Casts of weights are not cached: the gradients of a weight that is used twice would be added up in bfloat16.
    """
    mixed = config.precision == "bf16-mixed"
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed, cache_enabled=False)


def forward_pass(
    config: RunConfig,
    objective: Objective,
    model: nn.Module,
    batch: MicroBatch,
    carried: Tensor | None,
    counts: Mapping[str, int],
    *,
    step: int,
    rank: int = 0,
) -> tuple[Tensor, Mapping[str, LossTerm], Tensor | None]:
    """A micro-batch's part of the step's loss, its terms, and the state carried on.

    The loss is the weighted sum of the terms' totals, each over its `counts` in the whole step, so that the parts of
    all micro-batches and ranks add up to the mean. Dropout's noise depends on seed, step, micro-batch and rank alone.
    """
    torch.manual_seed(seed_of(config.seed, "dropout", step, batch.index, rank))
    device = next(iter(batch.tensors.values())).device
    with autocast(config, device):
        terms, carried = objective(model, batch.tensors, carried, seed=seed_of(config.seed, "objective", step))
    loss: Any = sum(term.weight * term.total / max(counts[name], 1) for name, term in terms.items())
    part: Tensor = loss
    return part, terms, carried
