"""The optimizers as their papers write them: one parameter at a time, in float64 NumPy."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.config.training import AdagradConfig, AdamWConfig, LambConfig, MuonConfig, OptimizerConfig

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Adam:
    """AdamW (Loshchilov and Hutter 2019), and LAMB (You et al. 2020), of a parameter that may be exempt from decay."""

    config: AdamWConfig | LambConfig | MuonConfig
    exempt: bool
    mean: Array | float = 0.0
    square: Array | float = 0.0
    steps: int = 0
    ratio: float = 1.0
    """The last trust ratio."""

    def __call__(self, weight: Array, gradient: Array, rate: float) -> Array:
        """The weight after a step."""
        config = self.config
        self.steps += 1
        self.mean = config.beta1 * self.mean + (1 - config.beta1) * gradient
        self.square = config.beta2 * self.square + (1 - config.beta2) * gradient**2
        mean, square = self.mean, self.square
        if config.bias_correction:
            mean = mean / (1 - config.beta1**self.steps)
            square = square / (1 - config.beta2**self.steps)
        update = mean / (np.sqrt(square) + config.epsilon)
        if not self.exempt:
            update = update + config.weight_decay * weight
            if isinstance(config, LambConfig):
                self.ratio = trust_ratio(config, weight, update)
        return weight - rate * self.ratio * update


def trust_ratio(config: LambConfig, weight: Array, update: Array) -> float:
    """The norm of a weight over that of its update, within the bounds; 1 where one of them is nothing."""
    above, below = np.sqrt((weight**2).sum()), np.sqrt((update**2).sum())
    if above == 0 or below == 0:
        return 1.0
    most = np.inf if config.max_trust_ratio is None else config.max_trust_ratio
    return float(min(max(above / below, config.min_trust_ratio), most))


@dataclass
class Adagrad:
    """Adagrad (Duchi et al. 2011) without epsilon."""

    config: AdagradConfig
    squares: Array | float = 0.0

    def __call__(self, weight: Array, gradient: Array, rate: float) -> Array:
        """The weight after a step."""
        self.squares = self.squares + gradient**2
        return weight - rate * gradient / np.sqrt(self.config.initial_accumulator + self.squares)


@dataclass
class Muon:
    """Muon (Jordan et al. 2024) as its page has it, scaled as Moonlight has it (Liu et al. 2025, equation 4).

    A parameter may hold several matrices: stacked in its first dimension, and side by side in its last.
    """

    config: MuonConfig
    exempt: bool
    side_by_side: int
    momentum: Array | float = 0.0

    def __call__(self, weight: Array, gradient: Array, rate: float) -> Array:
        """The weight after a step; the rate is that of AdamW's parameters."""
        config = self.config
        self.momentum = config.momentum * self.momentum + gradient
        ahead = gradient + config.momentum * self.momentum
        update = np.empty_like(weight)
        for stack in np.ndindex(weight.shape[:-2]):
            for k in range(self.side_by_side):
                size = weight.shape[-1] // self.side_by_side
                one = (*stack, slice(None), slice(k * size, (k + 1) * size))
                update[one] = 0.2 * np.sqrt(max(ahead[one].shape)) * newton_schulz(ahead[one])
        if not self.exempt:
            update = update + config.weight_decay * weight
        return weight - rate * (config.matrix_learning_rate or 1.0) * update


def newton_schulz(matrix: Array) -> Array:
    """Jordan's five steps, by singular values: the polynomial is applied to each, and the vectors stay."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / max(np.sqrt((matrix**2).sum()), 1e-300)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values) @ right


def formula(config: OptimizerConfig, *, exempt: bool, side_by_side: int = 0) -> Adam | Adagrad | Muon:
    """The formula of a parameter, which holds as many hidden matrices side by side."""
    if isinstance(config, MuonConfig) and side_by_side:
        return Muon(config, exempt, side_by_side)
    return Adagrad(config) if isinstance(config, AdagradConfig) else Adam(config, exempt)


def clipped(gradients: dict[str, Array], largest: float) -> dict[str, Array]:
    """All gradients, scaled down together where their global norm is over `largest`; 0 means no clipping."""
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    scale = min(1.0, largest / norm) if largest else 1.0
    return {name: scale * gradient for name, gradient in gradients.items()}
