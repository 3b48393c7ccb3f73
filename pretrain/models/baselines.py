"""What `pretrain bench` measures a family against: other implementations of the same training step, and parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from pretrain.models.loss import Batch, Objective

Tensors = tuple[Tensor, ...]
Work = Callable[[nn.Module, Tensors], Tensors]
"""(a model, inputs) -> outputs; the bench takes the gradients of weights, and of the inputs that ask for one."""


@dataclass(frozen=True)
class Part:
    """A part of a model's work that can be timed by itself."""

    name: str
    flops_per_token: float
    """Of forward and backward, as the model is defined."""
    inputs: Callable[[nn.Module, Batch], Tensors]
    """(our model, a micro-batch) -> what the part starts from, the same for all; not timed."""
    ours: Work
    """How our model does it."""


@dataclass(frozen=True)
class Baseline:
    """Another implementation of the same training step."""

    name: str
    model: nn.Module
    objective: Objective
    parts: Mapping[str, Work] = field(default_factory=dict)
    """How it does the parts that it does differently, by name."""


@dataclass(frozen=True)
class UnavailableBaseline:
    """A baseline that cannot take part here."""

    name: str
    reason: str
