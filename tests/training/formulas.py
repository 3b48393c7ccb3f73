"""The optimizers as their papers write them: one parameter at a time, in float64 NumPy."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.config.training import AdagradConfig, AdamWConfig, LambConfig, OptimizerConfig

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Adam:
    """AdamW (Loshchilov and Hutter 2019), and LAMB (You et al. 2020), of a parameter that may be exempt from decay."""

    config: AdamWConfig | LambConfig
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


def formula(config: OptimizerConfig, *, exempt: bool) -> Adam | Adagrad:
    """The formula of a parameter."""
    return Adagrad(config) if isinstance(config, AdagradConfig) else Adam(config, exempt)


def clipped(gradients: dict[str, Array], largest: float) -> dict[str, Array]:
    """All gradients, scaled down together where their global norm is over `largest`; 0 means no clipping."""
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    scale = min(1.0, largest / norm) if largest else 1.0
    return {name: scale * gradient for name, gradient in gradients.items()}
