"""Muon for hidden matrices, AdamW for the rest."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pretrain.runtime.collectives import broadcast, rank_and_ranks, sum_on_rank
from pretrain.training.adam import adam_update
from pretrain.training.partitions import ParameterPart, PartitionedOptimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial of a Newton-Schulz step, as Jordan et al. chose them: steep at 0, near 1 from there to 1."""
STEPS = 5
"""They take singular values between 0.01 and 1 to between 0.68 and 1.14."""
SIZE_OF_ADAMW = 0.2
"""The root mean square of the elements of AdamW's update (Liu et al. 2025, §2.2)."""


class Muon(PartitionedOptimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) as Moonlight scales it (Liu et al. 2025, §2.2):

    m += (1 - μ) (g - m), p -= lr · (0.2 · √max(rows, columns) · orthogonal(g + μ (m - g)) + λp).

    Jordan's code keeps the momentum as this running mean, his page as the sum m = μm + g, which is 1 / (1 - μ) times as
    large: orthogonalised, they are the same. An orthogonal matrix times that factor has elements as large as AdamW's
    updates have, so that AdamW's learning rates and decoupled weight decay fit. Groups that are not of `matrices` are
    AdamW's.

    `matrices` says of a parameter of hidden matrices how many of them lie side by side in it.

    ZeRO puts flat partitions in the place of a group's parameters: `set_partitions` says what they hold. Then the parts
    of a parameter are put together on one rank, which orthogonalises it and sends the others the update. The ranks take
    turns, also where each of them holds everything: the work is divided in either case.
    """

    def __init__(self, params: Iterable[dict[str, Any]], *, matrices: Mapping[Tensor, int], **defaults: Any) -> None:
        super().__init__(params, defaults)
        self.matrices = matrices

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; all ranks call it together."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["matrices"]:
                self._update_matrices(parameters, group)
            else:
                for parameter in parameters:
                    parameter.add_(adam_update(parameter, self.state[parameter], group), alpha=-group["lr"])
        return loss

    def _update_matrices(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        """As many parameters at a time as there are ranks, of about one size, each orthogonalised by another rank."""
        for tensor in parameters:
            state = self.state[tensor]
            if not state:
                state["momentum"] = torch.zeros_like(tensor)
            state["momentum"].lerp_(tensor.grad.to(tensor.dtype), 1 - group["momentum"])  # type: ignore[union-attr]
        held = [(tensor, part) for tensor in parameters for part in self._parts[tensor]]
        held.sort(key=lambda pair: pair[1].shape.numel())
        rank, ranks = rank_and_ranks()
        for start in range(0, len(held), ranks):
            turn = held[start : start + ranks]
            own = None
            for owner, (tensor, part) in enumerate(turn):
                whole = self._gather(tensor, part, group["momentum"], owner)
                if owner == rank:
                    own = whole
            if own is not None:
                own = scaled_orthogonal(own, self.matrices[turn[rank][1].parameter])
            for owner, (tensor, part) in enumerate(turn):
                update = own if own is not None and owner == rank else tensor.new_empty(part.shape)
                broadcast(update, owner)
                weight = tensor[part.where]
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(self._part_of(update, part), alpha=group["lr"])

    def _gather(self, tensor: Tensor, part: ParameterPart, momentum: float, owner: int) -> Tensor:
        """What is to be orthogonalised, whole on the rank `owner`: the momentum, and a step ahead of it."""
        gradient = tensor.grad[part.where].to(tensor.dtype)  # type: ignore[index]
        ahead = gradient.lerp(self.state[tensor]["momentum"][part.where], momentum)
        if not self._partitioned:
            return ahead
        whole = tensor.new_zeros(part.shape)
        self._part_of(whole, part).copy_(ahead)
        sum_on_rank(whole, owner)
        return whole

    def _part_of(self, whole: Tensor, part: ParameterPart) -> Tensor:
        """What this rank holds of a parameter, of a whole tensor of its shape."""
        if isinstance(part.where, slice):
            return whole.view(-1)[part.start : part.start + part.where.stop - part.where.start]
        return whole


def scaled_orthogonal(tensor: Tensor, side_by_side: int) -> Tensor:
    """The update of a parameter [..., rows, side_by_side * columns], in its shape: each of its matrices by itself."""
    rows, columns = tensor.shape[-2], tensor.shape[-1] // side_by_side
    matrices = tensor.view(-1, rows, side_by_side, columns).transpose(1, 2)
    update = orthogonal(matrices) * (SIZE_OF_ADAMW * math.sqrt(max(rows, columns)))
    return update.transpose(1, 2).reshape(tensor.shape).contiguous()  # to be sent, and cut into parts


def orthogonal(matrices: Tensor) -> Tensor:
    """U Vᵀ of each matrix U S Vᵀ of [..., rows, columns], about: its singular values are near 1, and a zero's 0.

    Newton-Schulz steps in the precision of `matrices`, not in Jordan's bfloat16: X = aX + (bA + cA²) X, with A = X Xᵀ.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    # no singular value is greater than this norm, which below 1e-15 may be an underflow of squares
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-15)
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.mT if tall else x
    return result
