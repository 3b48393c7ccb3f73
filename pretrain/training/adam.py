"""Adam's update and what is made of it: AdamW as the original BERT has it, and LAMB."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from pretrain.runtime.collectives import sum_over_ranks
from pretrain.training.partitions import PartitionedOptimizer


def empty_moments(parameter: Tensor, step: float) -> dict[str, Tensor]:
    """Adam's states after `step` updates with gradients of zero; infinitely many make its bias correction exactly 1."""
    return {
        "step": torch.tensor(float(step)),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def adam_update(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """Adam's update of a parameter that has a gradient, with its decay, before any learning rate: m̂ / (√v̂ + ε) + λp.

    `state` is brought up to date. Without bias correction, m̂ and v̂ are the running means themselves.
    """
    if not state:
        state |= empty_moments(parameter, 0 if group["bias_correction"] else math.inf)
    state["step"] += 1
    gradient = parameter.grad.to(parameter.dtype)  # type: ignore[union-attr]
    mean, square, (beta1, beta2) = state["exp_avg"], state["exp_avg_sq"], group["betas"]
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    step = state["step"].item()
    root = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
    update: Tensor = mean / (1 - beta1**step)
    return update.div_(root).add_(parameter, alpha=group["weight_decay"])


class UncorrectedAdamW(AdamW):
    """AdamW without bias correction, as in the original BERT's code: p -= lr · (m / (√v + ε) + λp).

    torch's own, which corrects by 1 - βᵗ, in all its fast variants; its count of steps is infinite from the start.
    """

    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None  # first: where Lightning passes one, it makes the gradients
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter] = empty_moments(parameter, math.inf)
        super().step()
        return loss


class Lamb(PartitionedOptimizer):
    """LAMB (You et al. 2020, algorithm 2, where φ is the identity): p -= lr · ratio · u, with u = m̂ / (√v̂ + ε) + λp.

    The ratio ‖p‖ ÷ ‖u‖ of a parameter is kept within `bounds`; it is 1 where either norm is 0, and throughout a group
    that is not `scaled`. Without bias correction, m̂ and v̂ are the running means themselves.

    ZeRO puts flat partitions in the place of a group's parameters, which hold whole parameters and parts of some:
    `set_partitions` says where. Squared norms are then summed over the ranks, all of a group's at once.
    """

    def __init__(self, params: Iterable[dict[str, Any]], *, bounds: tuple[float, float], **defaults: Any) -> None:
        super().__init__(params, defaults)
        self.bounds = bounds

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; ranks that hold partitions call it together."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            updates = [adam_update(parameter, self.state[parameter], group) for parameter in parameters]
            if group["scaled"] and parameters:  # ZeRO 3 steps one group at a time, the others having none
                self._scale(parameters, updates)
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.add_(update, alpha=-group["lr"])
        return loss

    def _scale(self, parameters: Sequence[Tensor], updates: Sequence[Tensor]) -> None:
        """Multiplies every parameter's update by its trust ratio; nothing waits for the device."""
        pairs = [
            (parameter[part.where], update[part.where])
            for parameter, update in zip(parameters, updates, strict=True)
            for part in self._parts[parameter]
        ]
        squares = torch.stack([torch.linalg.vector_norm(tensor).square() for pair in pairs for tensor in pair])
        if self._partitioned:
            sum_over_ranks(squares)
        weights, norms = squares.sqrt().view(-1, 2).unbind(1)
        ratios = torch.where((weights > 0) & (norms > 0), (weights / norms).clamp(*self.bounds), 1.0)
        for (_, update), ratio in zip(pairs, ratios.unbind(), strict=True):
            update.mul_(ratio)
