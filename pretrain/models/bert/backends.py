"""How BERT is computed here: the attention backend for packs, and what is compiled; tried out before the first step.

Nothing here changes what is computed, but for rounding.
"""

from dataclasses import dataclass

import torch
from torch import nn

from pretrain.config.compute import ComputeConfig
from pretrain.errors import ConfigError
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.trials import (
    Setting,
    activate,
    attention_problem,
    compile_parts,
    compile_problem,
    first_sentence,
    layer_milliseconds,
)

BACKENDS_BY_SPEED = ("varlen_fa3", "varlen", "flash_attn", "nested", "masked")
"""Backends for CUDA, in the order of their speed on most devices; `masked` works on all."""

NEARLY_AS_FAST = 1.1
"""Backends that take at most this many times as long as the fastest count as equally fast. The fixed order decides
between them, so that ranks and restarts choose alike."""


@dataclass(frozen=True)
class Trial:
    """What came of trying a backend."""

    backend: str
    problem: str | None = None
    """Why the backend cannot be used here."""
    compile_problem: str | None = None
    """Why nothing can be compiled with it; None also where nothing is to be."""
    milliseconds: float | None = None
    """Of a layer's forward and backward pass, compiled where it will be; None where nothing depends on it."""


def select_backends(
    model: nn.Module, compute: ComputeConfig, device: torch.device, dtype: torch.dtype, zero_stage: int
) -> list[str]:
    """Decides how `model` is computed on `device`, in products of `dtype`, and returns what the log should say.

    A backend or compiling that the config asks for is used, or the run fails with a ConfigError.
    """
    assert isinstance(model, BertModel)
    setting = Setting(device, dtype, zero_stage)
    model.encoder.activation_checkpointing = compute.activation_checkpointing
    compiling = compute.compile or (compute.compile is None and device.type == "cuda")
    trials = try_backends(model, compute, setting, compile=compiling)
    chosen = choose(trials, compute)
    model.encoder.attention = chosen.backend
    if len(trials) > 1:
        activate(chosen.backend)  # trials of others came after
    compiled = compiling and chosen.compile_problem is None
    if compiled:
        compile_parts(model)
    lines = _attention_lines(chosen, trials) if model.objective.packing else []
    if compiled:
        lines.append("layers and heads are compiled")
    elif compiling:
        lines.append(f"nothing is compiled: {chosen.compile_problem}")
    return lines


def backend_candidates(model: BertModel, compute: ComputeConfig, device: torch.device) -> tuple[str, ...]:
    """The backends to choose from; on CPU, and for rows of one sequence, there is no choice."""
    if compute.attention != "auto":
        return (compute.attention,)
    if not model.objective.packing:
        return ("masked",)
    if device.type == "cpu":
        return ("masked",) if compute.compile else ("per_sequence",)
    return BACKENDS_BY_SPEED


def try_backends(model: BertModel, compute: ComputeConfig, setting: Setting, *, compile: bool) -> list[Trial]:
    """Trials of the candidates, or of a deterministic run, which does not depend on times, up to the first that works.

    Random states stay as they are.
    """
    candidates = backend_candidates(model, compute, setting.device)
    if candidates == ("per_sequence",) and compute.attention == "auto":
        return [Trial("per_sequence")]  # plain torch, which always works
    devices = [setting.device] if setting.device.type == "cuda" else []
    timed = len(candidates) > 1 and not torch.are_deterministic_algorithms_enabled()
    trials = []
    with torch.random.fork_rng(devices=devices):
        for backend in candidates:
            trial = try_backend(model, backend, setting, compile=compile, timed=timed)
            trials.append(trial)
            if not timed and trial.problem is None and not (compute.compile and trial.compile_problem):
                break
    if compile:
        torch.compiler.reset()  # else the trials' graphs count towards the number that the model's parts may have
    return trials


def try_backend(model: BertModel, backend: str, setting: Setting, *, compile: bool, timed: bool) -> Trial:
    """Tries a backend on small packs, and on a copy of the model with one layer, in its own widths and types."""
    problem = attention_problem(backend, model, setting) if model.objective.packing else None
    if problem is not None:
        return Trial(backend, problem)
    not_compiled = compile_problem(model, backend, setting) if compile else None
    if not timed:
        return Trial(backend, None, not_compiled)
    try:
        time = layer_milliseconds(model, backend, setting, compiled=compile and not_compiled is None)
    except torch.OutOfMemoryError as error:
        return Trial(backend, first_sentence(error))
    return Trial(backend, None, not_compiled, time)


def choose(trials: list[Trial], compute: ComputeConfig) -> Trial:
    """The first of those that are nearly as fast as the fastest; raises ConfigError where none does what is asked."""
    usable = [trial for trial in trials if trial.problem is None]
    if not usable:
        raise ConfigError(f"compute.attention is {compute.attention}: {trials[-1].problem}")
    if compute.compile:
        reason = usable[-1].compile_problem
        usable = [trial for trial in usable if trial.compile_problem is None]
        if not usable:
            raise ConfigError(f"compute.compile is true: {reason}")
    times = [trial.milliseconds or 0.0 for trial in usable]
    return next(trial for trial, time in zip(usable, times, strict=True) if time <= NEARLY_AS_FAST * min(times))


def _attention_lines(chosen: Trial, trials: list[Trial]) -> list[str]:
    """`attention backend: varlen (0.80 ms a layer; masked 2.13 ms)`, and why others cannot be used."""
    times = [
        f"{trial.backend} {trial.milliseconds:.2f} ms"
        for trial in trials
        if trial is not chosen and trial.milliseconds is not None
    ]
    own = [] if chosen.milliseconds is None else [f"{chosen.milliseconds:.2f} ms a layer"]
    said = "; ".join([*own, ", ".join(times)] if times else own)
    return [
        f"attention backend: {chosen.backend}" + (f" ({said})" if said else ""),
        *(f"attention backend {trial.backend} cannot be used: {trial.problem}" for trial in trials if trial.problem),
    ]
