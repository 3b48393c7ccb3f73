"""`pretrain bench`: how fast a config's training steps are, beside a peer doing the same work in the same minute.

A step is forward, backward, clipping and the optimizer's update of `batch.global_size` examples in one process, on
batches that lie ready on the device. The peer, `models/<family>/peer.py`, gets the same weights, batches and optimizer.
"""

import importlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.run import RunConfig
from pretrain.data.loader import MicroBatch, StepLoader
from pretrain.data.prepare import ensure_prepared
from pretrain.data.store import Store
from pretrain.data.stream import Corpus, training_sources
from pretrain.models import get_family
from pretrain.models.family import Objective, Tokenizer
from pretrain.runtime.run_folder import versions
from pretrain.runtime.seeding import seed_of
from pretrain.training.optimizer import build_optimizer
from pretrain.training.trained import build_initial_model, load_tokenizer

WARM_UP_STEPS = 2
"""Steps of each before anything is timed: kernels are chosen, memory is taken, optimizer states are made."""
MATRIX_SECONDS = 0.5
"""How long matrix products of one type are repeated."""
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes that the system counts a process's memory in."""

Step = Sequence[MicroBatch]


@dataclass
class Measured:
    """One contestant's steps. Rates are medians over steps; tokens are real (unpadded) ones."""

    name: str
    examples: int
    """Examples per step."""
    flops_per_token: float
    """Model FLOPs (`flops_per_token` of the model's config), whatever the contestant computes more or saves."""
    peak: float
    """FLOP/s of matrix products in the run's precision."""
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    """Bytes: on CUDA what this contestant allocated at most; on CPU the process's high-water mark, ours only."""

    @property
    def tokens_per_second(self) -> float:
        """Median over the steps."""
        return statistics.median(count / time for count, time in zip(self.tokens, self.seconds, strict=True))

    def values(self) -> dict[str, Any]:
        """All numbers by name."""
        flops = self.tokens_per_second * self.flops_per_token
        return {
            "name": self.name,
            "tokens_per_second": self.tokens_per_second,
            "examples_per_second": self.examples / statistics.median(self.seconds),
            "flops_per_second": flops,
            "share_of_peak": flops / self.peak,
            "peak_memory": self.peak_memory,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "losses": self.losses,
        }

    def line(self) -> str:
        """The numbers, readable."""
        values = self.values()
        memory = "" if self.peak_memory is None else f", {self.peak_memory / 2**20:,.0f} MiB at most"
        return (
            f"{self.name}: {values['tokens_per_second']:,.0f} tokens/s, "
            f"{values['examples_per_second']:,.1f} examples/s, "
            f"{values['flops_per_second'] / 1e12:.4g} TFLOP/s ({values['share_of_peak']:.1%} of the peak){memory}"
        )


@dataclass(frozen=True)
class Bench:
    """What was measured, and where."""

    about: dict[str, Any]
    """The run, its sizes, the machine, versions, and `matrix_peak`: FLOP/s of large matrix products by type."""
    ours: Measured
    peer: Measured | None
    no_peer: str | None
    """Why there is no peer."""

    @property
    def ratio(self) -> float | None:
        """Our tokens per second over the peer's."""
        return None if self.peer is None else self.ours.tokens_per_second / self.peer.tokens_per_second

    def values(self) -> dict[str, Any]:
        """All numbers by name."""
        peer = None if self.peer is None else self.peer.values()
        return self.about | {"ours": self.ours.values(), "peer": peer, "no_peer": self.no_peer, "ratio": self.ratio}

    def lines(self) -> list[str]:
        """One readable line per number."""
        about = self.about
        peaks = ", ".join(f"{name} {peak / 1e12:.4g}" for name, peak in about["matrix_peak"].items())
        lines = [
            f"{about['name']}: {about['parameters']:,} parameters, vocabulary {about['vocabulary_size']:,}, "
            f"{self.ours.examples} examples per step, {about['precision']}",
            f"{about['device']}, {about['threads']} threads; matrix products, TFLOP/s: {peaks}",
            f"{about['flops_per_token']:.3e} FLOPs per token; {about['steps']} steps of each, in turn; medians:",
            self.ours.line(),
        ]
        if self.peer is None:
            return [*lines, f"no peer: {self.no_peer}"]
        return [*lines, self.peer.line(), f"ratio: {self.ratio:.3f}"]


def bench(config: RunConfig, steps: int) -> Bench:
    """Measures `steps` steps of `config` and of its peer, in turn, after a warm-up of each; prepares text as needed.

    Raises DataError or ConfigError as training would.
    """
    family = get_family(config.model.kind)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store = ensure_prepared(config, family)
    tokenizer = load_tokenizer(config, store)
    began = time.perf_counter()
    batches = read_steps(config, tokenizer, store, WARM_UP_STEPS + steps)
    reading = sum(step[0].share.counts["tokens"] for step in batches) / (time.perf_counter() - began)
    batches = [[to_device(batch, device) for batch in step] for step in batches]
    vocabulary_size = tokenizer.vocabulary_size
    flops_per_token = config.model.flops_per_token(vocabulary_size)
    peaks = matrix_peaks(config, device)
    peak = peaks["bfloat16" if config.precision == "bf16-mixed" else "float32"]
    numbers = config.batch.global_size, flops_per_token, peak
    warm_up, timed = batches[:WARM_UP_STEPS], batches[WARM_UP_STEPS:]

    initial = build_initial_model(config, tokenizer)
    peer_model, peer_name, no_peer = build_peer(config, initial, tokenizer)
    ours = Contestant(
        config, initial, family.build_objective(config.model, tokenizer), device, Measured("ours", *numbers)
    )
    ours.warm_up(warm_up)
    if device.type == "cpu":  # a process's mark never sinks, so the peer, which comes second, has none of its own
        ours.measured.peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
    peer = None
    if peer_model is not None:
        objective = peer_module(config).build_peer_objective(initial, tokenizer)
        peer = Contestant(config, peer_model, objective, device, Measured(peer_name, *numbers))
        peer.warm_up(warm_up)
    for step in timed:
        ours.time(step)
        if peer is not None:
            peer.time(step)
    about = {
        "name": config.name,
        "kind": config.model.kind,
        "precision": config.precision,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "steps": steps,
        "parameters": sum(parameter.numel() for parameter in initial.parameters()),
        "vocabulary_size": vocabulary_size,
        "global_size": config.batch.global_size,
        "micro_size": config.batch.micro_size,
        "flops_per_token": flops_per_token,
        "matrix_peak": peaks,
        "reading_tokens_per_second": reading,
    }
    return Bench(about, ours.measured, None if peer is None else peer.measured, no_peer)


class Contestant:
    """A model in training: timed step by step, on the same batches as the other."""

    def __init__(
        self, config: RunConfig, model: nn.Module, objective: Objective, device: torch.device, measured: Measured
    ) -> None:
        family = get_family(config.model.kind)
        self._config = config
        self._before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        self._model = model.to(device).train()
        self._objective = objective
        self._device = device
        self._scale = family.gradient_scale(config.model)
        self._optimizer = build_optimizer(config.optimizer, self._model, family.no_decay)
        self._carried: dict[int, Tensor | None] = {}
        self._step = 0
        self.measured = measured

    def warm_up(self, steps: Sequence[Step]) -> None:
        """Trains without timing, and notes the memory that it takes."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for step in steps:
            self._train(step)
        if self._device.type == "cuda":
            self.measured.peak_memory = torch.cuda.max_memory_allocated() - self._before

    def time(self, step: Step) -> None:
        """Trains one step and notes how long it took."""
        self._wait()
        began = time.perf_counter()
        loss = self._train(step)
        self._wait()
        self.measured.seconds.append(time.perf_counter() - began)
        self.measured.tokens.append(step[0].share.counts["tokens"])
        self.measured.losses.append(loss.item())

    def _train(self, step: Step) -> Tensor:
        """The step's loss: a mean over its predictions, as training has it."""
        config, seed = self._config, self._config.seed
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for batch in step:
            torch.manual_seed(seed_of(seed, "dropout", self._step, batch.index, 0))
            with torch.autocast(self._device.type, torch.bfloat16, enabled=config.precision == "bf16-mixed"):
                terms, self._carried[batch.index] = self._objective(
                    self._model,
                    batch.tensors,
                    self._carried.get(batch.index),
                    seed=seed_of(seed, "objective", self._step),
                )
            # a peer may give one mean per micro-batch, under a name that is not counted
            counts = {name: batch.share.counts.get(name, len(step)) for name in terms}
            loss: Any = sum(term.weight * term.total / max(counts[name], 1) for name, term in terms.items())
            (loss * self._scale).backward()
            total += loss.detach()
        if config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), config.optimizer.clip_norm)
        self._optimizer.step()
        self._step += 1
        return total

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def read_steps(config: RunConfig, tokenizer: Tokenizer, store: Store, steps: int) -> list[list[MicroBatch]]:
    """The first steps of the run as one process has them, on CPU."""
    manifest = store.read_manifest()
    assert manifest is not None  # the tokenizer was read from it
    lanes = config.data.lanes
    maker = get_family(config.model.kind).build_examples(config.model, tokenizer, config.rows_per_lane)
    sources = training_sources(store, manifest, [source.weight for source in config.data.sources])
    loader = StepLoader(
        Corpus(sources, maker, config.seed, lanes),
        range(lanes),
        config.rows_per_lane,
        config.batch.micro_size,
        maker.collate,
        positions=[(0, 0)] * lanes,
    )
    micro_batches = config.accumulation(1)
    flat = list(islice(iter(loader), steps * micro_batches))
    return [flat[start : start + micro_batches] for start in range(0, len(flat), micro_batches)]


def to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The micro-batch with its tensors on `device`."""
    tensors = {name: tensor.to(device) for name, tensor in batch.tensors.items()}
    return MicroBatch(tensors, batch.index, batch.last, batch.share)


def peer_module(config: RunConfig) -> Any:
    """The module of a family's peer."""
    return importlib.import_module(f"pretrain.models.{config.model.kind}.peer")


def build_peer(config: RunConfig, model: nn.Module, tokenizer: Tokenizer) -> tuple[nn.Module | None, str, str | None]:
    """The peer with the weights of `model` and its name; or why there is none."""
    peer = peer_module(config)
    try:
        return peer.build_peer(model, tokenizer), peer.NAME, None
    except ModuleNotFoundError as error:
        return None, peer.NAME, f"{peer.NAME}: {error.name} is not installed"


def matrix_peaks(config: RunConfig, device: torch.device) -> dict[str, float]:
    """FLOP/s of large square matrix products: float32, and after it bfloat16 where the run computes in it."""
    peaks = {"float32": matrix_peak(device, torch.float32)}
    if config.precision == "bf16-mixed":
        peaks["bfloat16"] = matrix_peak(device, torch.bfloat16)
    return peaks


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several products of random matrices."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < MATRIX_SECONDS:
        wait()
        began = time.perf_counter()
        left @ right
        wait()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def device_name(device: torch.device) -> str:
    """What computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"
