"""Optimizers, and their states by name."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.config.training import AdamWConfig, OptimizerConfig

STATES = {"adamw": ("exp_avg", "exp_avg_sq"), "adagrad": ("sum",)}
"""The per-element states of each optimizer, as a checkpoint stores them."""


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


def build_optimizer(config: OptimizerConfig, model: nn.Module, no_decay: Callable[[str], bool]) -> Optimizer:
    """The optimizer of a config; weight decay leaves out the parameters that the family names."""
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if isinstance(config, AdamWConfig):
        decayed = [p for name, p in parameters if not no_decay(name)]
        others = [p for name, p in parameters if no_decay(name)]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.peak_learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
        )
    return Adagrad(
        [p for _, p in parameters], lr=config.peak_learning_rate, initial_accumulator=config.initial_accumulator
    )


def empty_states(config: OptimizerConfig, parameter: Tensor, step: int) -> dict[str, Tensor]:
    """The states of one (flat) parameter after `step` updates, to be filled in from a checkpoint."""
    states = {key: torch.zeros_like(parameter) for key in STATES[config.kind]}
    if config.kind == "adamw":
        states["step"] = torch.tensor(float(step))
    else:
        states["sum"].fill_(config.initial_accumulator)  # padding of a partition must not divide by zero
    return states
