"""What happens at the end of a step, in this order: count it, measure held-out loss, write metrics, save."""

import logging
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from tqdm import tqdm

from pretrain.config.run import RunConfig
from pretrain.data.loader import MicroBatch
from pretrain.data.stream import StreamPosition
from pretrain.errors import TrainingError
from pretrain.models.loss import Losses, LossSums
from pretrain.runtime.distributed import gather_objects
from pretrain.runtime.run_folder import RunFolder, versions
from pretrain.runtime.throughput import Throughput
from pretrain.training import checkpoint
from pretrain.training.module import Pretraining

log = logging.getLogger(__name__)

Measure = Callable[[Trainer, Pretraining], Losses]


class StepEnd(Callback):
    """The steps of one start, from the first to `stop`."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        *,
        position: StreamPosition,
        best: float | None,
        stop: int,
        measure: Measure | None,
    ) -> None:
        self._config = config
        self._folder = folder
        self._position = position  # after the last step trained: of this rank's lanes, or of all at the start
        self._best = best
        self._stop = stop
        self._measure = measure
        self._throughput = Throughput()
        self._watchers: list[Any] = []

    def on_train_start(self, trainer: Trainer, module: Pretraining) -> None:  # type: ignore[override]
        """Rank 0 opens what watches the run."""
        if trainer.is_global_zero:
            self._watchers = [Console(self._config, module.step, self._stop), *open_wandb(self._config, self._folder)]
        self._throughput = Throughput()

    def on_train_batch_start(self, trainer: Trainer, module: Pretraining, batch: MicroBatch, batch_idx: int) -> None:  # type: ignore[override]
        """The learning rate is a pure function of the step."""
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self._learning_rate(module.step)

    def _learning_rate(self, step: int) -> float:
        return self._config.optimizer.peak_learning_rate * self._config.schedule.factor(step)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, module: Pretraining, outputs: Any, batch: MicroBatch, batch_idx: int
    ) -> None:
        """Ends the step with its last micro-batch."""
        if not batch.last:
            return
        learning_rate = self._learning_rate(module.step)
        module.step += 1
        self._position = batch.step_examples.position
        self._throughput.add(module.counts["tokens"])
        config, step = self._config, module.step
        last = step == self._stop
        evaluate = self._measure is not None and (step % config.evaluation.every_steps == 0 or last)
        save = step % config.checkpoint.every_steps == 0 or last
        if evaluate or save or last or step % config.logging.every_steps == 0:
            line = self._line(module, learning_rate, gradient_norm(trainer, module))
            self._throughput.pause()
            held_out = self._evaluate(trainer, module, line) if evaluate else None
            if trainer.is_global_zero:
                self._write(line)
            if save:
                self._save(trainer, module, held_out)
            self._throughput.go_on()

    def _line(self, module: Pretraining, learning_rate: float, norm: float | None) -> dict[str, Any]:
        """The metrics since the last line; raises TrainingError, on all ranks alike, where the loss is no number."""
        losses = module.sums.reduce(module.sums.names, module.device)
        module.sums = LossSums()
        check_finite(module.step, "the loss", losses.loss)
        check_finite(module.step, "the norm of the gradient", 0.0 if norm is None else norm)
        line: dict[str, Any] = {"step": module.step, "loss": losses.loss} | losses.metrics
        line |= {
            "learning_rate": learning_rate,
            "gradient_norm": norm,
            "tokens_per_second": self._throughput.read(),
            "tokens": module.counts["tokens"],
            "data_digest": f"{module.digest:016x}",
            "time": time.time(),
        }
        return line | shares(module.counts)

    def _evaluate(self, trainer: Trainer, module: Pretraining, line: dict[str, Any]) -> float:
        assert self._measure is not None
        losses = self._measure(trainer, module)
        check_finite(module.step, "the held-out loss", losses.loss)
        line |= {"held_out_loss": losses.loss, "held_out_perplexity": losses.perplexity}
        line |= {f"held_out_{name}": value for name, value in losses.metrics.items()}
        return losses.loss

    def _write(self, line: dict[str, Any]) -> None:
        self._folder.log(line)
        for watcher in self._watchers:
            watcher.log(line)

    def _save(self, trainer: Trainer, module: Pretraining, held_out: float | None) -> None:
        """A checkpoint of this step; the best if its held-out loss is."""
        best = held_out is not None and (self._best is None or held_out < self._best)
        if best:
            self._best = held_out
        rank, ranks, stage = trainer.global_rank, trainer.world_size, self._config.sharding.zero_stage
        state = checkpoint.State(
            step=module.step,
            position=StreamPosition.join(gather_objects(self._position)),
            versions=versions(),
            best=self._best,
        )
        tensors = checkpoint.collect(
            module.model, trainer.optimizers[0], self._config.optimizer, zero_stage=stage, rank=rank, ranks=ranks
        )
        for name in gather_objects(next((k for k, v in tensors.items() if not v.isfinite().all()), None)):
            check_finite(module.step, name, math.nan if name else 0.0)
        path = checkpoint.save(self._folder.checkpoints, state, tensors, module.carried, rank=rank, ranks=ranks)
        if trainer.is_global_zero:
            if best:
                checkpoint.mark_best(self._folder.checkpoints, path)
            checkpoint.prune(path, self._config.checkpoint.keep_last)

    def on_train_end(self, trainer: Trainer, module: Pretraining) -> None:  # type: ignore[override]
        """Closes what watches the run."""
        for watcher in self._watchers:
            watcher.close()


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Of one step's counts: `fill`, the share of its places that hold tokens, and of predictions, those of a kind."""
    kinds = {name: name.split(".")[0] for name in counts if "." in name}
    found = {f"{name.replace('.', '_')}_share": counts[name] / max(counts[term], 1) for name, term in kinds.items()}
    return found | ({"fill": counts["tokens"] / counts["places"]} if "places" in counts else {})


def check_finite(step: int, what: str | None, value: float) -> None:
    """Raises TrainingError for infinity and NaN; the values of all ranks are to be alike."""
    if not math.isfinite(value):
        raise TrainingError(
            f"step {step}: {what} is {value}: nothing was saved since the last checkpoint; "
            "lower optimizer.peak_learning_rate or lengthen schedule.warmup_steps"
        )


def rank_lanes(config: RunConfig, rank: int, ranks: int) -> range:
    """The contiguous run of lanes that a rank owns."""
    share = config.data.lanes // ranks
    return range(rank * share, (rank + 1) * share)


def gradient_norm(trainer: Trainer, module: Pretraining) -> float | None:
    """The global norm of the last step's gradient, before clipping."""
    engine: Any = trainer.strategy.model
    known = engine.get_global_grad_norm() if hasattr(engine, "get_global_grad_norm") else module.gradient_norm
    return None if known is None else float(known)


class Console:
    """One line per logging interval with fixed columns, or a progress bar on a terminal."""

    def __init__(self, config: RunConfig, start: int, stop: int) -> None:
        self._bar: Any = None
        if sys.stderr.isatty() or os.environ.get("PRETRAIN_PROGRESS") == "bar":
            self._bar = tqdm(total=stop, initial=start, desc=config.name, unit="step", dynamic_ncols=True)
        else:
            log.info("%8s %9s %10s %12s %9s", "step", "loss", "lr", "tokens/s", "held-out")

    def log(self, line: dict[str, Any]) -> None:
        """Shows a line of metrics."""
        held_out = f"{line['held_out_loss']:9.4f}" if "held_out_loss" in line else ""
        if self._bar is not None:
            shown = {"loss": f"{line['loss']:.3f}", "tokens/s": f"{line['tokens_per_second']:,.0f}"}
            self._bar.set_postfix(shown | ({"held-out": held_out.strip()} if held_out else {}), refresh=False)
            self._bar.update(line["step"] - self._bar.n)
        else:
            rate, lr = line["tokens_per_second"], line["learning_rate"]
            log.info("%8d %9.4f %10.3e %12s %9s", line["step"], line["loss"], lr, f"{rate:,.0f}", held_out)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def open_wandb(config: RunConfig, folder: RunFolder) -> list["WandbLog"]:
    """The W&B run, or nothing where it is off."""
    return [] if config.logging.wandb == "off" else [WandbLog(config, folder)]


class WandbLog:
    """The run in Weights & Biases; every start goes on with the same run id."""

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        import wandb

        identity = folder.path / "wandb" / "run_id"
        identity.parent.mkdir(exist_ok=True)
        if not identity.exists():
            identity.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
        self._run = wandb.init(
            project=config.logging.wandb_project,
            entity=config.logging.wandb_entity,
            name=config.name,
            id=identity.read_text(encoding="utf-8").strip(),
            resume="allow" if config.logging.wandb == "online" else None,
            mode="online" if config.logging.wandb == "online" else "offline",
            dir=str(folder.path),
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, line: dict[str, Any]) -> None:
        """Logs a line of metrics at its step."""
        self._run.log({key: value for key, value in line.items() if value is not None}, step=line["step"])

    def close(self) -> None:
        """Finishes writing."""
        self._run.finish()


def held_out_step(trainer: Trainer, module: Pretraining) -> Callable[[Any, Any], Any]:
    """A function (batch, carried) -> (terms, carried) through whatever wraps the model."""

    def step(batch: Any, carried: Any) -> Any:
        moved = {name: tensor.to(module.device) for name, tensor in batch.items()}
        with torch.no_grad():
            return trainer.strategy.test_step(moved, carried)

    return step
