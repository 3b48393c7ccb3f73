"""One rank of one start: everything a run needs, built and put together."""

import logging
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, Trainer

from pretrain.config.run import RunConfig
from pretrain.data.loader import StepLoader
from pretrain.data.store import Store
from pretrain.data.stream import (
    Corpus,
    PreparedSource,
    StreamPosition,
    held_out_blocks,
    held_out_sources,
    training_sources,
)
from pretrain.errors import DataError
from pretrain.models import get_family
from pretrain.models.family import Tokenizer
from pretrain.models.loss import Losses, measure_held_out
from pretrain.runtime.distributed import World, gather_objects
from pretrain.runtime.logging import ignore_known_warnings, quiet_libraries
from pretrain.runtime.run_folder import RunFolder
from pretrain.training import checkpoint
from pretrain.training.callbacks import Measure, StepEnd, held_out_step, rank_lanes
from pretrain.training.module import Pretraining
from pretrain.training.optimizer import share_out
from pretrain.training.strategy import build_strategy
from pretrain.training.trained import held_out_batches, load_tokenizer, tune

log = logging.getLogger(__name__)


def stop_step(config: RunConfig, step: int, stop_after: int | None) -> int:
    """The step at which a start that begins at `step` ends."""
    total = config.schedule.total_steps
    return total if stop_after is None else min(total, step + stop_after)


def run_rank(config: RunConfig, store: Store, world: World, stop_after: int | None) -> None:
    """Trains this rank's part from the newest checkpoint, or the beginning, to the end or `stop_after` steps on."""
    quiet_libraries()
    folder = RunFolder(config.folder)
    newest = checkpoint.find_newest(folder.checkpoints)
    state = checkpoint.read_state(newest) if newest else None
    step = state.step if state else 0
    stop = stop_step(config, step, stop_after)
    manifest = store.read_manifest()
    if manifest is None:
        raise DataError(f"{store.url}: not prepared")
    tokenizer = load_tokenizer(config, store)
    module = build_module(config, tokenizer, fresh=newest is None)
    module.step = step
    if state is None:
        positions: StreamPosition = [(0, 0)] * config.data.lanes
    else:
        positions = state.positions
    if world.rank == 0:
        folder.begin(config, step, world.size, store.absolute)
        if newest:
            log.info("resuming %s at step %d of %d", folder.path, step, config.schedule.total_steps)
    set_up_arithmetic(config.deterministic)
    device = rank_device(world)
    for line in tune(config, module.model, device):
        log.info("%s", line)
    callbacks: list[Callback] = [
        Restore(newest, config),
        StepEnd(
            config,
            folder,
            positions=positions,
            best=state.best if state else None,
            stop=stop,
            measure=held_out_measure(config, tokenizer, held_out_sources(store, manifest)),
        ),
    ]
    weights = [source.weight for source in config.data.sources]
    loader = build_loader(config, tokenizer, training_sources(store, manifest, weights), positions, world)
    trainer = build_trainer(config, world, device, callbacks, steps=stop - step)
    with warnings.catch_warnings():
        ignore_known_warnings()
        trainer.fit(module, train_dataloaders=loader)


def set_up_arithmetic(deterministic: bool) -> None:
    """Only deterministic kernels, or any; and on CUDA, float32 that is float32."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else torch refuses matrix products on CUDA
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.allow_tf32 = False  # by default cuDNN convolves in TF32


def build_module(config: RunConfig, tokenizer: Tokenizer, *, fresh: bool) -> Pretraining:
    """The module; a fresh run starts from `model.initialize_from` where it is given."""
    module = Pretraining(config, tokenizer)
    start = config.model.initialize_from
    if fresh and start is not None:
        new = module.family.format.initialize(module.model, start, tokenizer)
        log.info("initialised from %s%s", start, f"; new: {', '.join(new)}" if new else "")
    return module


def build_loader(
    config: RunConfig, tokenizer: Tokenizer, sources: list[PreparedSource], positions: StreamPosition, world: World
) -> StepLoader:
    """This rank's micro-batches from `positions` on."""
    build_examples = get_family(config.model.kind).training.build_examples
    maker = build_examples(config.model, config.objective, tokenizer, config.rows_per_lane)
    return StepLoader(
        Corpus(sources, maker, config.seed, config.data.lanes),
        rank_lanes(config, world.rank, world.size),
        config.rows_per_lane,
        config.batch.micro_size,
        maker.collate,
        positions=positions,
        workers=config.data.workers,
    )


def held_out_measure(config: RunConfig, tokenizer: Tokenizer, sources: list[PreparedSource]) -> Measure | None:
    """A function that measures the held-out loss; None where nothing is held out."""
    blocks = held_out_blocks(sources, config.evaluation.blocks)
    if not blocks:
        return None
    batches_of = held_out_batches(config.model, config.objective, tokenizer, sources)
    if not any(batches_of(block) for block in blocks):  # before hours of training, not after them
        raise DataError(f"data.held_out is {config.data.held_out}: that text is too little for one example")

    def measure(trainer: Trainer, module: Pretraining) -> Losses:
        model: Any = trainer.strategy.model
        model.eval()
        module.eval()
        rank, ranks = trainer.global_rank, trainer.world_size
        step = held_out_step(trainer, module)
        losses = measure_held_out(step, blocks, batches_of, rank=rank, ranks=ranks, device=module.device)
        model.train()
        module.train()
        return losses

    return measure


class Restore(Callback):
    """What is done once the strategy holds the model: a checkpoint is put in place, and the optimizer told its shares.

    Two of Lightning's habits are taken over as well.
    """

    def __init__(self, path: Path | None, config: RunConfig) -> None:
        self._path = path
        self._config = config

    def on_train_start(self, trainer: Trainer, module: Pretraining) -> None:  # type: ignore[override]
        """Before the first step."""
        # Lightning broadcasts after every micro-batch whether a SIGTERM came, and its handler deadlocks where only
        # one rank got it. A SIGTERM ends a rank, the launcher ends the others, and the last checkpoint counts.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stage = self._config.sharding.zero_stage
        if stage > 0:
            share_out(trainer.optimizers[0], stage)
        if self._path is not None:
            checkpoint.restore(
                self._path, module.model, trainer.optimizers[0], self._config.optimizer, zero_stage=stage
            )
            carried = checkpoint.read_carried(self._path, trainer.global_rank, trainer.world_size)
            module.carried = None if carried is None else carried.to(module.device)
        gather_objects(None)


def rank_device(world: World) -> torch.device:
    """What this rank computes on."""
    return torch.device("cuda", world.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def build_trainer(
    config: RunConfig, world: World, device: torch.device, callbacks: list[Callback], steps: int
) -> Trainer:
    """Lightning's trainer with everything of its own that we replace switched off."""
    clip = config.optimizer.clip_norm
    return Trainer(
        accelerator=device.type,
        devices=world.local_size,
        num_nodes=world.size // world.local_size,
        strategy=build_strategy(config, world.size, device),
        plugins=[TorchElasticEnvironment()] if world.size > 1 or config.sharding.zero_stage > 0 else [],
        precision=config.precision,
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulation(world.size),
        gradient_clip_val=clip or None,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=config.folder,
        num_sanity_val_steps=0,
    )
