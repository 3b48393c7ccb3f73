"""`pretrain bench`: how fast a config's training steps are, beside baselines doing the same work in the same minutes.

A step is forward, backward, clipping and the optimizer's update of `batch.global_size` examples in one process, on
batches that lie ready on the device. A baseline of the family gets the same weights, batches and optimizer. Parts of
the model are timed by themselves: forward, and backward to the weights and to what the part started from.
"""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.run import RunConfig
from pretrain.data.loader import MicroBatch, StepLoader
from pretrain.data.prepare import ensure_prepared
from pretrain.data.stream import StreamPosition
from pretrain.data.tokenizer import settle_tokenizer
from pretrain.models import get_family
from pretrain.models.baselines import Baseline, Part, Tensors, UnavailableBaseline, Work
from pretrain.models.family import FamilyTraining, ModelFolder
from pretrain.models.loss import Objective
from pretrain.runs.folder import versions
from pretrain.runs.trained import build_initial_model, read_tokenizer, select_backends
from pretrain.runtime.machine import MemoryMeter, device_name, matrix_peaks, seconds_of
from pretrain.runtime.timing import OURS, Timing
from pretrain.runtime.world import World
from pretrain.training.optimizer import build_optimizer
from pretrain.training.steps import autocast, build_loader, forward_pass

WARM_UP_STEPS = 2
"""Steps of each before anything is timed: kernels are chosen, memory is taken, optimizer states are made."""

READING_SECONDS = 1.0
"""How long batches are only read, at least."""

Step = Sequence[MicroBatch]


@dataclass(frozen=True)
class Bench:
    """What was measured, and where."""

    about: dict[str, Any]
    """The run, its sizes, the machine, versions; `matrix_peak`: FLOP/s of large matrix products by type; `counts` of
    all timed steps; and `reading`: what one process reads per second."""
    step: Timing
    parts: list[Timing]
    peak_memory: dict[str, int | None]
    """Bytes that a model's warm-up took at most, by name; None where the system does not tell."""
    losses: dict[str, list[float]]
    """Of each timed step, by model."""
    unavailable: list[UnavailableBaseline]

    def share(self, part: Timing) -> float:
        """The part's share of our step."""
        return statistics.median(part.seconds[OURS]) / statistics.median(self.step.seconds[OURS])

    @property
    def fill(self) -> float | None:
        """The share of our batches' token slots that hold tokens, where some do not."""
        counts = self.about["counts"]
        return counts["tokens"] / counts["token_slots"] if "token_slots" in counts else None

    def values(self) -> dict[str, Any]:
        """All numbers by name."""
        return self.about | {
            "step": self.step.values(),
            "fill": self.fill,
            "parts": {part.name: part.values() | {"share_of_step": self.share(part)} for part in self.parts},
            "peak_memory": self.peak_memory,
            "losses": self.losses,
            "unavailable": {baseline.name: baseline.reason for baseline in self.unavailable},
        }

    def lines(self) -> list[str]:
        """The numbers, readable."""
        about = self.about
        dropouts = ", ".join(f"{name} {value:g}" for name, value in about["dropouts"].items())
        reading = ", ".join(f"{number:,.0f} {what}/s" for what, number in about["reading"].items())
        fill = "" if self.fill is None else f", fill {self.fill:.1%}"
        peaks = ", ".join(f"{name} {peak / 1e12:.4g}" for name, peak in about["matrix_peak"].items())
        memory = {name: f", {peak / 2**20:,.0f} MiB" for name, peak in self.peak_memory.items() if peak is not None}
        return [
            f"{about['name']}: {about['parameters']:,} parameters, vocabulary {about['vocabulary_size']:,}, "
            f"{about['global_size']} examples per step, {about['precision']}, {dropouts}",
            *about["backends"],
            f"{about['device']}, {about['threads']} threads; matrix products, TFLOP/s: {peaks}",
            f"{about['steps']} steps of each, in turn; rates are medians over steps, ratios a baseline's time to ours",
            "FLOPs are the model's own, also where a model saves some: their share of the peak may pass 100%",
            f"reading, one process: {reading}",
            f"step, {self.step.flops_per_token:.3e} FLOPs per token{fill}:",
            *self.step.lines(memory),
            *(
                line
                for part in self.parts
                for line in (
                    f"{part.name}, {part.flops_per_token:.3e} FLOPs per token, {self.share(part):.0%} of our step:",
                    *part.lines({}),
                )
            ),
            *(f"no baseline: {baseline.name}: {baseline.reason}" for baseline in self.unavailable),
        ]


def bench(config: RunConfig, steps: int, *, compiled: bool = False) -> Bench:
    """Measures `steps` steps of `config` and its baselines, in turn, after a warm-up of each; prepares text as needed.

    `compiled`: also of the baselines that `torch.compile` makes, which takes a minute or more. Raises DataError or
    ConfigError as training would.
    """
    family = get_family(config.model.kind)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = settle_tokenizer(config, family)
    corpus = ensure_prepared(config, family)
    tokenizer = read_tokenizer(config, corpus.fetch_tokenizer())
    alone = World(rank=0, local_rank=0, size=1, local_size=1)
    last_stage = max(config.objective.by_first_step())  # what most steps are, and the model is built for
    loader = build_loader(config, tokenizer, corpus, StreamPosition.start(config.data.lanes), alone, step=last_stage)
    reading = measure_reading(loader)
    batches = [
        [to_device(batch, device) for batch in step]
        for step in read_steps(loader, config.accumulation(1), WARM_UP_STEPS + steps)
    ]
    counts = [step[0].step_examples.counts for step in batches[WARM_UP_STEPS:]]
    total = {name: sum(of_step[name] for of_step in counts) for name in counts[0]}
    tokens = [of_step["tokens"] for of_step in counts]
    sequences = [of_step["sequences"] for of_step in counts if "sequences" in of_step]
    peaks = matrix_peaks(config.precision, device)
    peak = peaks["bfloat16" if config.precision == "bf16-mixed" else "float32"]

    model = build_initial_model(config, tokenizer)
    backends = select_backends(config, model, device)
    ours = ModelFolder(model, tokenizer, config.model, config.objective)
    baselines, parts = family.baselines.build(ours, compiled=compiled), family.baselines.parts(model)
    if config.optimizer.kind == "muon":
        baselines = [without_other_matrices(baseline, model, family.training) for baseline in baselines]
    present = [baseline for baseline in baselines if isinstance(baseline, Baseline)]
    objective = family.training.build_objective(config.objective, tokenizer)
    first = Baseline(OURS, model, objective, {part.name: part.ours for part in parts})
    models = [TimedModel(config, one, device, batches[:WARM_UP_STEPS]) for one in (first, *present)]
    timed = batches[WARM_UP_STEPS:]
    flops_per_token = config.flops_per_token(tokenizer.vocabulary_size, total)
    timings = [
        Timing(name, flops, peak, tokens, sequences)
        for name, flops in (("step", flops_per_token), *((part.name, part.flops_per_token) for part in parts))
    ]
    for step in timed:
        for one in models:
            timings[0].seconds.setdefault(one.name, []).append(one.train(step))
    for part, timing in zip(parts, timings[1:], strict=True):
        measure_part(part, timing, models, timed)
    about = {
        "name": config.name,
        "kind": config.model.kind,
        "precision": config.precision,
        "dropouts": config.model.dropouts,
        "backends": backends,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "steps": steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary_size": tokenizer.vocabulary_size,
        "global_size": config.batch.global_size,
        "micro_size": config.batch.micro_size,
        "matrix_peak": peaks,
        "counts": total,
        "reading": reading,
    }
    return Bench(
        about,
        timings[0],
        timings[1:],
        {one.name: one.peak_memory for one in models},
        {one.name: one.losses for one in models},
        [baseline for baseline in baselines if isinstance(baseline, UnavailableBaseline)],
    )


def without_other_matrices(
    baseline: Baseline | UnavailableBaseline, ours: nn.Module, training: FamilyTraining
) -> Baseline | UnavailableBaseline:
    """A baseline, unless Muon would find other hidden matrices in it than in our model: it goes by our names."""
    if isinstance(baseline, UnavailableBaseline):
        return baseline
    counts = [
        sum(parameter.numel() for name, parameter in model.named_parameters() if training.hidden_matrices(name))
        for model in (ours, baseline.model)
    ]
    if counts[0] == counts[1]:
        return baseline
    return UnavailableBaseline(baseline.name, "optimizer.kind is muon, which knows hidden matrices by our names alone")


class TimedModel:
    """A model in training, warmed up: timed step by step, on the same batches as the others."""

    def __init__(self, config: RunConfig, baseline: Baseline, device: torch.device, warm_up: Sequence[Step]) -> None:
        family = get_family(config.model.kind).training
        memory = MemoryMeter(baseline.model, device)
        self.name = baseline.name
        self.parts = baseline.parts
        self.losses: list[float] = []
        """Of each step after the warm-up."""
        self._config = config
        self._model = baseline.model.to(device).train()
        self._objective: Objective = baseline.objective
        self._device = device
        self._scale = family.gradient_scale(config.objective)
        self._optimizer = build_optimizer(config.optimizer, self._model, family.no_decay, family.hidden_matrices)
        self._carried: dict[int, Tensor | None] = {}
        self._step = 0
        memory.start()
        for step in warm_up:
            self._train(step)
        self.peak_memory = memory.peak()

    def train(self, step: Step) -> float:
        """Trains one step, notes its loss, and returns the seconds that it took."""
        losses: list[Tensor] = []
        seconds = seconds_of(lambda: losses.append(self._train(step)), self._device)
        self.losses.append(losses[0].item())
        return seconds

    def _train(self, step: Step) -> Tensor:
        """The step's loss: a mean over its predictions, as training has it."""
        config = self._config
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for batch in step:
            # a baseline may give one mean per micro-batch, under a name that is not counted
            counts = defaultdict(lambda: len(step), batch.step_examples.counts)
            loss, _, self._carried[batch.index] = forward_pass(
                config,
                self._objective,
                self._model,
                batch,
                self._carried.get(batch.index),
                counts,
                step=self._step,
            )
            torch.autograd.backward(loss * self._scale)
            total += loss.detach()
        if config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), config.optimizer.clip_norm)
        self._optimizer.step()
        self._step += 1
        return total

    def inputs(self, part: Part, batch: MicroBatch) -> Tensors:
        """What a part starts from, if this is our model."""
        with autocast(self._config, self._device):
            return part.inputs(self._model, batch.tensors)

    def run(self, work: Work, inputs: Tensors) -> float:
        """Seconds of a part's forward and backward on one micro-batch."""
        self._optimizer.zero_grad(set_to_none=True)
        for tensor in inputs:
            tensor.grad = None
        return seconds_of(lambda: self._forward_and_backward(work, inputs), self._device)

    def _forward_and_backward(self, work: Work, inputs: Tensors) -> None:
        torch.manual_seed(self._config.seed)
        with autocast(self._config, self._device):
            outputs = work(self._model, inputs)
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def measure_part(part: Part, timing: Timing, models: Sequence[TimedModel], steps: Sequence[Step]) -> None:
    """Times a part of each step, all micro-batches of it, by every model that has a way of its own."""
    some = [one for one in models if part.name in one.parts]
    for step in steps:
        inputs = [models[0].inputs(part, batch) for batch in step]
        for one in some:
            seconds = sum(one.run(one.parts[part.name], some_inputs) for some_inputs in inputs)
            timing.seconds.setdefault(one.name, []).append(seconds)


def read_steps(loader: StepLoader, micro_batches: int, steps: int) -> list[Step]:
    """The first steps, of `micro_batches` each."""
    batches = iter(loader)
    return [list(islice(batches, micro_batches)) for _ in range(steps)]


def measure_reading(loader: StepLoader) -> dict[str, float]:
    """`tokens` per second, and `sequences` where there are any.

    Examples are made a block at a time, by all lanes in about the same step: so the clock runs from one such step to
    another.
    """
    rounds = _rounds(loader)
    next(rounds)
    total: Counter[str] = Counter()
    began = time.perf_counter()
    while (seconds := time.perf_counter() - began) < READING_SECONDS:
        total.update(next(rounds))
    return {name: total[name] / seconds for name in ("tokens", "sequences") if name in total}


def _rounds(loader: StepLoader) -> Iterator[dict[str, int]]:
    """What is read up to each step by which every lane, on average, has ended one more block."""
    total: Counter[str] = Counter()
    blocks = 0
    for batch in loader:
        if batch.last:
            total.update(batch.step_examples.counts)
            position = batch.step_examples.position
            if position.blocks_finished >= blocks + len(position.lanes):
                yield total
                total, blocks = Counter(), position.blocks_finished


def to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The micro-batch with its tensors on `device`."""
    tensors = {name: tensor.to(device) for name, tensor in batch.tensors.items()}
    return MicroBatch(tensors, batch.index, batch.last, batch.step_examples)
