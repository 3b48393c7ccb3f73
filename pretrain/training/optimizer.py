"""Optimizers, and their states by name."""

import math
from collections.abc import Callable, Iterable, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from pretrain.config.training import AdagradConfig, LambConfig, OptimizerConfig
from pretrain.runtime.collectives import sum_over_ranks

ParameterSlice = slice | EllipsisType
"""Where a parameter is in a tensor that an optimizer is given."""

STATES = {"adamw": ("exp_avg", "exp_avg_sq"), "lamb": ("exp_avg", "exp_avg_sq"), "adagrad": ("sum",)}
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


def _empty_moments(parameter: Tensor, step: float) -> dict[str, Tensor]:
    """Adam's states after `step` updates with gradients of zero; infinitely many make its bias correction exactly 1."""
    return {
        "step": torch.tensor(float(step)),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


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
                    self.state[parameter] = _empty_moments(parameter, math.inf)
        super().step()
        return loss


class Lamb(Optimizer):
    """LAMB (You et al. 2020, algorithm 2, where φ is the identity): p -= lr · ratio · u, with u = m̂ / (√v̂ + ε) + λp.

    The ratio ‖p‖ ÷ ‖u‖ of a parameter is kept within `bounds`; it is 1 where either norm is 0, and throughout a group
    that is not `scaled`. Without bias correction, m̂ and v̂ are the running means themselves.

    ZeRO puts flat partitions in the place of a group's parameters, which hold whole parameters and parts of some:
    `set_partitions` says which. Squared norms are then summed over the ranks, all of a group's at once.
    """

    def __init__(self, params: Iterable[dict[str, Any]], *, bounds: tuple[float, float], **defaults: Any) -> None:
        super().__init__(params, defaults)
        self.bounds = bounds
        self._slices: dict[Tensor, Sequence[ParameterSlice]] = {
            parameter: (...,) for group in self.param_groups for parameter in group["params"]
        }
        self._partitioned = False

    def set_partitions(self, slices: dict[Tensor, Sequence[slice]]) -> None:
        """Says where this rank's part of each parameter is in its partition: as many slices on every rank, some empty.

        Elements outside all slices are padding, which may hold anything.
        """
        self._slices = dict(slices)
        self._partitioned = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; ranks that hold partitions call it together."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            updates = [self._update(parameter, group) for parameter in parameters]
            if group["scaled"] and parameters:  # ZeRO 3 steps one group at a time, the others having none
                self._scale(parameters, updates)
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.add_(update, alpha=-group["lr"])
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Adam's update of a parameter, with its decay, before any learning rate."""
        state = self.state[parameter]
        if not state:
            state |= _empty_moments(parameter, 0 if group["bias_correction"] else math.inf)
        state["step"] += 1
        gradient = parameter.grad.to(parameter.dtype)  # type: ignore[union-attr]
        mean, square, (beta1, beta2) = state["exp_avg"], state["exp_avg_sq"], group["betas"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        step = state["step"].item()
        root = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        update: Tensor = mean / (1 - beta1**step)
        return update.div_(root).add_(parameter, alpha=group["weight_decay"])

    def _scale(self, parameters: Sequence[Tensor], updates: Sequence[Tensor]) -> None:
        """Multiplies every parameter's update by its trust ratio; nothing waits for the device."""
        pairs = [
            (parameter[part], update[part])
            for parameter, update in zip(parameters, updates, strict=True)
            for part in self._slices[parameter]
        ]
        squares = torch.stack([torch.linalg.vector_norm(tensor).square() for pair in pairs for tensor in pair])
        if self._partitioned:
            sum_over_ranks(squares)
        weights, norms = squares.sqrt().view(-1, 2).unbind(1)
        ratios = torch.where((weights > 0) & (norms > 0), (weights / norms).clamp(*self.bounds), 1.0)
        for (_, update), ratio in zip(pairs, ratios.unbind(), strict=True):
            update.mul_(ratio)


def map_partitions(zero: Any, zero_stage: int) -> None:
    """Tells an optimizer that DeepSpeed's ZeRO wraps which slices of its partitions are which parameters."""
    if not isinstance(zero.optimizer, Lamb):
        return
    slices: dict[Tensor, Sequence[slice]]
    if zero_stage == 3:
        slices = {
            flat: _sharded_slices(parameters, zero)
            for flat, parameters in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
        }
    else:
        slices = {
            flat: [_flat_slice(parameter) for parameter in parameters]
            for flat, parameters in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)
        }
    zero.optimizer.set_partitions(slices)


def _flat_slice(parameter: Any) -> slice:
    """ZeRO 1 and 2: a group is one vector, cut evenly over the ranks; DeepSpeed notes where a parameter's part is."""
    if parameter._hp_mapping is None:
        return slice(0, 0)
    address = parameter._hp_mapping.hp_fragment_address
    return slice(address.start, address.start + address.numel)


def _sharded_slices(parameters: Sequence[Any], zero: Any) -> list[slice]:
    """ZeRO 3: every parameter is cut evenly over the ranks; the last part is padded, with what memory held before."""
    slices, start = [], 0
    for parameter in parameters:
        size, rank = parameter.ds_tensor.numel(), zero._get_param_partition_rank(parameter)
        slices.append(slice(start, start + max(0, min(size, parameter.ds_numel - size * rank))))
        start += size
    return slices


def build_optimizer(config: OptimizerConfig, model: nn.Module, no_decay: Callable[[str], bool]) -> Optimizer:
    """The optimizer of a config; weight decay and trust ratios leave out the parameters that the family names."""
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rate = config.peak_learning_rate
    if isinstance(config, AdagradConfig):
        return Adagrad([p for _, p in parameters], lr=rate, initial_accumulator=config.initial_accumulator)
    decayed: dict[str, Any] = {"params": [p for name, p in parameters if not no_decay(name)]}
    others: dict[str, Any] = {"params": [p for name, p in parameters if no_decay(name)], "weight_decay": 0.0}
    betas, epsilon, decay = (config.beta1, config.beta2), config.epsilon, config.weight_decay
    if isinstance(config, LambConfig):
        most = math.inf if config.max_trust_ratio is None else config.max_trust_ratio
        return Lamb(
            [group for group in (decayed | {"scaled": True}, others | {"scaled": False}) if group["params"]],
            bounds=(config.min_trust_ratio, most),
            lr=rate,
            betas=betas,
            eps=epsilon,
            weight_decay=decay,
            bias_correction=config.bias_correction,
        )
    build = AdamW if config.bias_correction else UncorrectedAdamW
    groups = [group for group in (decayed, others) if group["params"]]
    return build(groups, lr=rate, betas=betas, eps=epsilon, weight_decay=decay)


def empty_states(config: OptimizerConfig, parameter: Tensor, step: int) -> dict[str, Tensor]:
    """The states of one (flat) parameter after `step` updates, to be filled in from a checkpoint."""
    if isinstance(config, AdagradConfig):  # padding of a partition must not divide by zero
        return {"sum": torch.full_like(parameter, config.initial_accumulator)}
    return _empty_moments(parameter, step if config.bias_correction else math.inf)
