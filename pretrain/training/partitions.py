"""Where parameters are in what an optimizer is given: themselves, or in the flat partitions of DeepSpeed's ZeRO."""

from collections.abc import Iterable, Mapping, Sequence
from types import EllipsisType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer


class ParameterPart(NamedTuple):
    """What this rank holds of a parameter in a tensor that an optimizer is given."""

    parameter: Tensor
    """The model's own."""
    shape: torch.Size
    """Of the whole parameter."""
    where: slice | EllipsisType
    """In the optimizer's tensor; empty where this rank holds nothing of the parameter."""
    start: int
    """In the whole parameter, flattened."""


Parts = Mapping[Tensor, Sequence[ParameterPart]]
"""By the optimizer's tensors: the same parameters on every rank, in the same order.

Elements in none of a tensor's parts are padding, which may hold anything.
"""


class PartitionedOptimizer(Optimizer):
    """An optimizer whose update of a parameter depends on the whole of it, which ZeRO cuts up.

    It is given parameters, until `set_partitions` says what there is in their place.
    """

    def __init__(self, params: Iterable[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._parts: Parts = {p: (ParameterPart(p, p.shape, ..., 0),) for p in parameters}
        self._partitioned = False

    def set_partitions(self, parts: Parts) -> None:
        """Says what this rank's partitions hold."""
        self._parts = parts
        self._partitioned = True


def partitions(zero: Any, zero_stage: int) -> Parts:
    """The parts of an optimizer that DeepSpeed's ZeRO wraps."""
    if zero_stage == 3:
        flats = zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
        return {flat: _sharded_parts(parameters, zero) for flat, parameters in flats}
    flats = zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)
    return {flat: [_flat_part(parameter) for parameter in parameters] for flat, parameters in flats}


def _flat_part(parameter: Any) -> ParameterPart:
    """ZeRO 1 and 2: a group is one vector, cut evenly over the ranks; DeepSpeed notes where a parameter's part is."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return ParameterPart(parameter, parameter.shape, slice(0, 0), 0)
    address = mapping.hp_fragment_address
    where = slice(address.start, address.start + address.numel)
    return ParameterPart(parameter, parameter.shape, where, mapping.lp_fragment_address.start)


def _sharded_parts(parameters: Sequence[Any], zero: Any) -> list[ParameterPart]:
    """ZeRO 3: every parameter is cut evenly over the ranks; the last part is padded, with what memory held before."""
    parts, start = [], 0
    for parameter in parameters:
        size, rank = parameter.ds_tensor.numel(), zero._get_param_partition_rank(parameter)
        where = slice(start, start + max(0, min(size, parameter.ds_numel - size * rank)))
        parts.append(ParameterPart(parameter, parameter.ds_shape, where, size * rank))
        start += size
    return parts
