"""What happens before the first step, and at the end of each: count it, guard it, measure, log, save."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer

from pretrain.config.run import RunConfig
from pretrain.data.loader import MicroBatch
from pretrain.errors import TrainingError
from pretrain.models.loss import Losses, LossSums
from pretrain.runs import checkpoints
from pretrain.runs.checkpoints import Best, ResumePoint, State
from pretrain.runs.folder import RunFolder, versions
from pretrain.runs.metrics import Sink, open_sinks
from pretrain.runtime.collectives import from_rank_0, gather_objects
from pretrain.runtime.throughput import Throughput
from pretrain.training import sharded_states
from pretrain.training.evaluation import HeldOut
from pretrain.training.module import Pretraining
from pretrain.training.optimizer import map_partitions

log = logging.getLogger(__name__)

Probe = Callable[[int], Mapping[str, float]]
"""Figures, by name, of the checkpoint of a step; for rank 0 to call."""


class Restore(Callback):
    """What is done once the strategy holds the model: a checkpoint is put in place, and the optimizer told its slices.

    One of Lightning's habits is taken over as well.
    """

    def __init__(self, config: RunConfig, resume: ResumePoint | None) -> None:
        self._config = config
        self._resume = resume

    def on_train_start(self, trainer: Trainer, module: Pretraining) -> None:  # type: ignore[override]
        """Before the first step."""
        # Lightning broadcasts after every micro-batch whether a SIGTERM came, and its handler deadlocks where only one
        # rank got it. Ours only note it; the step's own all-reduce tells the others.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        module.stop_request.take_over()
        optimizer, stage = trainer.optimizers[0], self._config.sharding.zero_stage
        if stage > 0:
            map_partitions(optimizer, stage)
        if self._resume is None:
            sharded_states.begin(module.model, optimizer, self._config.optimizer, zero_stage=stage)
        else:
            path = self._resume.checkpoint
            sharded_states.restore(path, module.model, optimizer, self._config.optimizer, zero_stage=stage)
            carried = checkpoints.read_carried(path, trainer.global_rank, trainer.world_size)
            module.carried = None if carried is None else carried.to(module.device)
        gather_objects(None)


class StepEnd(Callback):
    """The steps of one start, from where it resumes to `stop`."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        start: State,
        *,
        fresh: bool,
        stop: int,
        held_out: HeldOut | None,
        probe: Probe | None = None,
    ) -> None:
        self._config = config
        self._folder = folder
        self._corpus = start.corpus
        self._position = start.position  # after the last step trained: of this rank's lanes, or of all at the start
        self._best = start.best
        self._fresh = fresh
        self._stop = stop
        self._held_out = held_out
        stages = config.objective.by_first_step()
        self._stage_begins = {start.step, *stages} if len(stages) > 1 else set()
        self._probe = probe
        self._throughput = Throughput()
        self._sinks: list[Sink] = []

    def on_train_start(self, trainer: Trainer, module: Pretraining) -> None:  # type: ignore[override]
        """Rank 0 opens what watches the run. Where there is no step to train, the model is saved as it is."""
        self._forget_best_that_does_not_count()
        if trainer.is_global_zero:
            self._sinks = open_sinks(self._config, self._folder.path, module.step, self._stop, fresh=self._fresh)
            checkpoints.link_best(self._folder.checkpoints, self._best)
        if module.step == self._stop:
            if self._fresh:  # else it is what was resumed from
                self._save(trainer, module, None)
            trainer.should_stop = True
        self._throughput = Throughput()

    def _forget_best_that_does_not_count(self) -> None:
        """One measured on other text, or one that was removed since and whose successor was damaged."""
        if self._best is not None and checkpoints.incomplete_at(self._folder.checkpoints, self._best.step):
            log.info("the best step, %d, is not there any more: it is chosen anew", self._best.step)
            self._best = None
        if self._best is not None and self._held_out is not None and self._best.text != self._held_out.text:
            log.info(
                "held-out text: %s, before: %s: the best step is chosen anew", self._held_out.text, self._best.text
            )
            self._best = None

    def on_train_batch_start(self, trainer: Trainer, module: Pretraining, batch: MicroBatch, batch_idx: int) -> None:  # type: ignore[override]
        """Learning rates are pure functions of the step. A stage that begins is logged."""
        if batch.index == 0 and module.step in self._stage_begins:
            log.info("from step %d on: %s", module.step + 1, self._config.objective.describe_stage(module.step))
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = group["peak_lr"] * self._config.schedule.factor(module.step)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: Pretraining, outputs: Any, batch: MicroBatch, batch_idx: int
    ) -> None:
        """Ends the step with its last micro-batch."""
        if not batch.last:
            return
        self._count(module, batch)
        last = module.step == self._stop or module.stopping
        save = last or module.step % self._config.checkpoint.every_steps == 0
        # wherever it could be the best, a checkpoint is measured
        measure = self._held_out is not None and (save or module.step % self._config.evaluation.every_steps == 0)
        if measure or save or module.step % self._config.logging.every_steps == 0:
            line = self._guard(trainer, module)
            self._throughput.pause()
            held_out = self._measure(trainer, module, line) if measure else None
            self._log(trainer, line)
            if save:
                self._save(trainer, module, held_out)
                self._probe_checkpoint(trainer, module)
            if held_out is not None and self._held_out is not None and module.step == self._config.schedule.total_steps:
                for said in self._held_out.verdict(held_out):
                    log.info("%s", said)
            self._throughput.go_on()
        if last:
            trainer.should_stop = True

    def _count(self, module: Pretraining, batch: MicroBatch) -> None:
        """The step is trained: its data counts as used."""
        module.step += 1
        self._position = batch.step_examples.position
        self._throughput.add(module.counts["tokens"])

    def _guard(self, trainer: Trainer, module: Pretraining) -> dict[str, Any]:
        """The metrics since the last line; raises TrainingError, on all ranks alike, where they are NaN or infinite."""
        losses = module.sums.reduce(module.sums.names, module.device)
        module.sums = LossSums()
        norm = gradient_norm(trainer, module)
        loss = losses.loss if losses.terms else None  # a step may hold nothing to predict
        check_finite(module.step, "the loss", 0.0 if loss is None else loss)
        check_finite(module.step, "the norm of the gradient", 0.0 if norm is None else norm)
        line: dict[str, Any] = {"step": module.step, "loss": loss} | losses.metrics
        line |= {
            "learning_rate": self._config.optimizer.peak_learning_rate * self._config.schedule.factor(module.step - 1),
            "gradient_norm": norm,
            "tokens_per_second": self._throughput.read(),
            "tokens": module.counts["tokens"],
            "data_digest": f"{module.digest:016x}",
            "time": time.time(),
        }
        return line | count_ratios(module.counts) | self._config.objective.staged_options(module.step - 1)

    def _measure(self, trainer: Trainer, module: Pretraining, line: dict[str, Any]) -> Losses:
        """The held-out loss, which `line` gets too."""
        assert self._held_out is not None
        losses = self._held_out.measure(trainer, module)
        check_finite(module.step, "the held-out loss", losses.loss)
        line |= {"held_out_loss": losses.loss, "held_out_perplexity": losses.perplexity}
        line |= {f"held_out_{name}": value for name, value in losses.metrics.items()}
        return losses

    def _log(self, trainer: Trainer, line: dict[str, Any]) -> None:
        for sink in self._sinks if trainer.is_global_zero else ():
            sink.log(line)

    def _save(self, trainer: Trainer, module: Pretraining, held_out: Losses | None) -> None:
        """A checkpoint of this step; the best if its held-out loss is."""
        if held_out is not None and (self._best is None or held_out.loss < self._best.loss):
            assert self._held_out is not None
            self._best = Best(module.step, held_out.loss, self._held_out.text)
        rank, ranks, stage = trainer.global_rank, trainer.world_size, self._config.sharding.zero_stage
        position = type(self._position).join(gather_objects(self._position))
        state = State(module.step, position, self._corpus, versions(), self._best)
        tensors = sharded_states.collect(
            module.model, trainer.optimizers[0], self._config.optimizer, zero_stage=stage, rank=rank, ranks=ranks
        )
        for name in gather_objects(next((k for k, v in tensors.items() if not v.isfinite().all()), None)):
            check_finite(module.step, name, math.nan if name else 0.0)
        checkpoints.save(self._folder.checkpoints, state, tensors, module.carried, rank=rank, ranks=ranks)
        if trainer.is_global_zero:
            checkpoints.link_best(self._folder.checkpoints, self._best)
            checkpoints.prune(self._folder.checkpoints, state, self._config.checkpoint.keep_last)

    def _probe_checkpoint(self, trainer: Trainer, module: Pretraining) -> None:
        """Rank 0 probes the weights just saved, which are whole whatever shards them; the others wait for it.

        A line of metrics of its own: that of the step is written before its checkpoint, and outlives a kill from here.
        """
        probe, step = self._probe, module.step
        if probe is not None and self._config.is_probed(step) and not module.stopping:
            figures = from_rank_0(lambda: probe(step))
            if figures:
                self._log(trainer, {"step": step, **figures, "time": time.time()})

    def on_train_end(self, trainer: Trainer, module: Pretraining) -> None:  # type: ignore[override]
        """Closes what watches the run."""
        self._close()

    def on_exception(self, trainer: Trainer, module: Pretraining, exception: BaseException) -> None:  # type: ignore[override]
        """Closes it also where the run fails: W&B would give the same run to the next one of this process."""
        self._close()

    def _close(self) -> None:
        for sink in self._sinks:
            sink.close()
        self._sinks = []


def count_ratios(counts: Mapping[str, int]) -> dict[str, float]:
    """Of one step's counts: `fill`, the share of token slots that hold tokens, and of predictions, those of a kind.

    A share of nothing is left out.
    """
    kinds = {name: name.split(".")[0] for name in counts if "." in name}
    found = {
        f"{name.replace('.', '_')}_share": counts[name] / counts[term] for name, term in kinds.items() if counts[term]
    }
    return found | ({"fill": counts["tokens"] / counts["token_slots"]} if "token_slots" in counts else {})


def check_finite(step: int, what: str | None, value: float) -> None:
    """Raises TrainingError for infinity and NaN; the values of all ranks are to be alike."""
    if not math.isfinite(value):
        raise TrainingError(
            f"step {step}: {what} is NaN or infinite ({value}): nothing was saved since the last checkpoint; "
            "lower optimizer.peak_learning_rate or lengthen schedule.warmup_steps"
        )


def gradient_norm(trainer: Trainer, module: Pretraining) -> float | None:
    """The global norm of the last step's gradient, before clipping."""
    engine: Any = trainer.strategy.model
    known = engine.get_global_grad_norm() if hasattr(engine, "get_global_grad_norm") else module.gradient_norm
    return None if known is None else float(known)
