"""One rank of one start: everything a run needs, built and put together."""

import logging
import os
import warnings

import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, Trainer

from pretrain.config.run import RunConfig
from pretrain.data.corpus import PreparedCorpus
from pretrain.data.stream import StreamPosition
from pretrain.models.family import Tokenizer
from pretrain.runs.checkpoints import ResumePoint, State
from pretrain.runs.folder import RunFolder, versions
from pretrain.runs.trained import model_folder, read_tokenizer, select_backends
from pretrain.runtime.logging import ignore_known_warnings, quiet_libraries
from pretrain.runtime.world import World
from pretrain.training.callbacks import Probe, Restore, StepEnd
from pretrain.training.evaluation import HeldOut
from pretrain.training.module import Pretraining
from pretrain.training.steps import build_loader
from pretrain.training.strategy import build_strategy

log = logging.getLogger(__name__)


def stop_step(config: RunConfig, step: int, stop_after: int | None) -> int:
    """The step at which a start that begins at `step` ends."""
    total = config.schedule.total_steps
    return total if stop_after is None else min(total, step + stop_after)


def run_rank(
    config: RunConfig,
    corpus: PreparedCorpus,
    resume: ResumePoint | None,
    world: World,
    stop_after: int | None = None,
    *,
    probe: Probe | None = None,
) -> int:
    """Trains this rank's part from `resume`, or the beginning, to the end or `stop_after` steps on.

    Rank 0 calls `probe` for checkpoints; all ranks have it, or none. Returns the step at which it ended: earlier than
    that where it was asked to stop.
    """
    quiet_libraries()
    folder = RunFolder(config.folder)
    start = resume.state if resume else _beginning(config, corpus)
    stop = stop_step(config, start.step, stop_after)
    tokenizer = read_tokenizer(config, corpus.fetch_tokenizer())
    module = build_module(config, tokenizer, fresh=resume is None)
    module.step = start.step
    device = rank_device(world)
    set_up_arithmetic(config.deterministic)
    for line in select_backends(config, module.model, device):
        log.info("%s", line)
    held_out = HeldOut(config, module, tokenizer, corpus) if corpus.held_out else None
    if world.rank == 0:
        extended = describe_extension(config, folder, start.step) if resume else None
        folder.begin(
            config,
            start.step,
            fresh=resume is None,
            ranks=world.size,
            threads=torch.get_num_threads(),
            prepared=corpus.absolute,
            tokenizer=corpus.fetch_tokenizer(),
        )
        if resume:
            log.info("resuming %s at step %d of %d", folder.path, start.step, config.schedule.total_steps)
            if extended is not None:
                log.info("%s", extended)
    callbacks: list[Callback] = [
        Restore(config, resume),
        StepEnd(config, folder, start, fresh=resume is None, stop=stop, held_out=held_out, probe=probe),
    ]
    loader = build_loader(config, tokenizer, corpus, start.position, world)
    # Lightning begins nothing where there is no step; `StepEnd` then stops it before the first
    trainer = build_trainer(config, world, device, callbacks, steps=max(1, stop - start.step))
    with warnings.catch_warnings(), module.stop_request.listen():
        ignore_known_warnings()
        trainer.fit(module, train_dataloaders=loader)
    return module.step


def describe_extension(config: RunConfig, folder: RunFolder, step: int) -> str | None:
    """What the learning rate does where a run goes on with another schedule; None where it is the same."""
    began, peak = folder.read_config().schedule, config.optimizer.peak_learning_rate
    if began == config.schedule:
        return None
    before, now = (peak * schedule.factor(at) for schedule, at in ((began, max(0, step - 1)), (config.schedule, step)))
    return (
        f"extended from {began.total_steps} to {config.schedule.total_steps} steps: the learning rate was {before:.3e} "
        f"in the last step, is {now:.3e} in the next one, and follows the {config.schedule.decay} schedule from there"
    )


def _beginning(config: RunConfig, corpus: PreparedCorpus) -> State:
    return State(0, StreamPosition.start(config.data.lanes), corpus.identity, versions(), None)


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
        with model_folder(start) as source:
            new = module.family.format.initialize(module.model, source, tokenizer)
        log.info("initialised from %s%s", start, f"; new: {', '.join(new)}" if new else "")
    return module


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
