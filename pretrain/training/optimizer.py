"""Optimizers, and their states by name."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from pretrain.config.training import AdagradConfig, LambConfig, MuonConfig, OptimizerConfig
from pretrain.training.adam import Lamb, UncorrectedAdamW, empty_moments
from pretrain.training.muon import Muon
from pretrain.training.partitions import PartitionedOptimizer, partitions

STATES = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "lamb": ("exp_avg", "exp_avg_sq"),
    "muon": ("momentum",),
    "adagrad": ("sum",),
}
"""The per-element states of each kind of update, as a checkpoint stores them."""


class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011) without epsilon: sum += g², p -= lr · g / √sum.

    Not derived from `torch.optim.Adagrad`: ZeRO replaces any of those by a fresh plain one, and the options are lost.
    """

    def __init__(self, params: Iterable[Any], lr: float, initial_accumulator: float) -> None:
        super().__init__(params, {"lr": lr, "initial_accumulator": initial_accumulator})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "sum" not in state:
                    state["sum"] = torch.full_like(parameter, group["initial_accumulator"])
                gradient = parameter.grad.to(parameter.dtype)
                state["sum"].addcmul_(gradient, gradient)
                parameter.addcdiv_(gradient, state["sum"].sqrt(), value=-group["lr"])
        return loss


def map_partitions(zero: Any, zero_stage: int) -> None:
    """Tells an optimizer that DeepSpeed's ZeRO wraps what its partitions hold, where its updates need to know."""
    if isinstance(zero.optimizer, PartitionedOptimizer):
        zero.optimizer.set_partitions(partitions(zero, zero_stage))


def build_optimizer(
    config: OptimizerConfig,
    model: nn.Module,
    no_decay: Callable[[str], bool],
    hidden_matrices: Callable[[str], int],
) -> Optimizer:
    """The optimizer of a config.

    The family says what is exempt from weight decay and trust ratios, and what are hidden matrices, which are Muon's.
    Each group's learning rate is that after the warm-up, which stays in the group as `peak_lr`.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = _build(config, parameters, no_decay, hidden_matrices)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def _build(
    config: OptimizerConfig,
    parameters: Mapping[str, Tensor],
    no_decay: Callable[[str], bool],
    hidden_matrices: Callable[[str], int],
) -> Optimizer:
    rate = config.peak_learning_rate
    if isinstance(config, AdagradConfig):
        return Adagrad(list(parameters.values()), lr=rate, initial_accumulator=config.initial_accumulator)
    options: dict[str, Any] = {
        "lr": rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
    }
    if isinstance(config, LambConfig):
        groups = _groups(parameters, no_decay, {"scaled": True}, {"scaled": False})
        bounds = (config.min_trust_ratio, math.inf if config.max_trust_ratio is None else config.max_trust_ratio)
        return Lamb(groups, bounds=bounds, bias_correction=config.bias_correction, **options)
    if isinstance(config, MuonConfig):
        found = {name: count for name in parameters if (count := hidden_matrices(name))}
        matrices, others = ({n: p for n, p in parameters.items() if (n in found) == hidden} for hidden in (True, False))
        its_own = {"matrices": True, "momentum": config.momentum, "lr": config.matrix_learning_rate or rate}
        groups = _groups(matrices, no_decay, its_own, its_own)
        groups += _groups(others, no_decay, {"matrices": False}, {"matrices": False})
        side_by_side = {parameters[name]: count for name, count in found.items()}
        return Muon(groups, matrices=side_by_side, bias_correction=config.bias_correction, **options)
    build = AdamW if config.bias_correction else UncorrectedAdamW
    return build(_groups(parameters, no_decay, {}, {}), **options)


def _groups(
    parameters: Mapping[str, Tensor], no_decay: Callable[[str], bool], decayed: dict[str, Any], exempt: dict[str, Any]
) -> list[dict[str, Any]]:
    """The groups of what is decayed and of what is exempt, with the options of each; none that holds nothing."""
    groups = [
        {"params": [p for name, p in parameters.items() if not no_decay(name)]} | decayed,
        {"params": [p for name, p in parameters.items() if no_decay(name)], "weight_decay": 0.0} | exempt,
    ]
    return [group for group in groups if group["params"]]


def update_kind(config: OptimizerConfig, optimizer: Any, parameter: Tensor) -> str:
    """The kind of a parameter's update, as `STATES` has it: Muon, which ZeRO may wrap, leaves some to AdamW."""
    muon = getattr(optimizer, "optimizer", optimizer)
    return "adamw" if isinstance(muon, Muon) and parameter not in muon.matrices else config.kind


def empty_states(config: OptimizerConfig, kind: str, tensor: Tensor, step: int) -> dict[str, Tensor]:
    """The states of one (flat) parameter of a kind of update after `step` steps, to be filled in from a checkpoint."""
    if isinstance(config, AdagradConfig):  # padding of a partition must not divide by zero
        return {"sum": torch.full_like(tensor, config.initial_accumulator)}
    if kind == "muon":
        return {"momentum": torch.zeros_like(tensor)}
    return empty_moments(tensor, step if config.bias_correction else math.inf)
