"""A run's tensors by name, whatever holds them: one device, DDP's replicas, or ZeRO's partitions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.config.training import OptimizerConfig
from pretrain.runs.checkpoints import Tensors, read_state
from pretrain.training.optimizer import STATES, empty_states, update_kind
from pretrain.training.partitions import partitions


def begin(model: nn.Module, optimizer: Any, config: OptimizerConfig, *, zero_stage: int) -> None:
    """Makes the optimizer's states as they are before any step, so that a run can be saved before its first."""
    if zero_stage > 0:
        _make_zero_states(optimizer, config, zero_stage, 0)
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            kind = update_kind(config, optimizer, parameter)
            optimizer.state[parameter] = empty_states(config, kind, parameter, 0)


def collect(
    model: nn.Module, optimizer: Any, config: OptimizerConfig, *, zero_stage: int, rank: int, ranks: int
) -> dict[str, Tensor]:
    """This rank's part of all weights and optimizer states, float32 on CPU; all ranks call it together."""
    if zero_stage in (1, 2):
        _link_states(optimizer)
    kept: dict[str, Tensor] = {}
    for i, (name, parameter) in enumerate(model.named_parameters()):
        keys = STATES[update_kind(config, optimizer, parameter)]
        for key, tensor in _whole(parameter, optimizer, keys, zero_stage):
            if i % ranks == rank:
                kept[f"{key}/{name}"] = tensor.detach().to("cpu", torch.float32).contiguous().clone()
    return kept


def _whole(
    parameter: nn.Parameter, optimizer: Any, keys: tuple[str, ...], zero_stage: int
) -> Iterator[tuple[str, Tensor]]:
    """A parameter's float32 value and optimizer states, gathered from all ranks where they are sharded."""
    if zero_stage == 0:
        yield "weight", parameter.data
        for key in keys:
            yield key, optimizer.state[parameter][key]
        return
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    yield "weight", safe_get_full_fp32_param(parameter)
    for key in keys:
        yield key, safe_get_full_optimizer_state(parameter, key)


def restore(path: Path, model: nn.Module, optimizer: Any, config: OptimizerConfig, *, zero_stage: int) -> None:
    """Puts a checkpoint's weights and optimizer states where this run holds them; all ranks call it together."""
    tensors = Tensors(path, "tensors")
    step = read_state(path).step
    if zero_stage > 0:
        _make_zero_states(optimizer, config, zero_stage, step)
    for name, parameter in model.named_parameters():
        kind = update_kind(config, optimizer, parameter)
        values = {key: tensors.get(f"{key}/{name}") for key in ("weight", *STATES[kind])}
        if zero_stage == 3:
            _set_sharded(parameter, values)
        elif zero_stage > 0:
            _set_flat(parameter, values)
        else:
            parameter.data.copy_(values.pop("weight"))
            optimizer.state[parameter] = empty_states(config, kind, parameter, step)
            for key, value in values.items():
                optimizer.state[parameter][key].copy_(value)


def _make_zero_states(zero: Any, config: OptimizerConfig, zero_stage: int, step: int) -> None:
    """ZeRO makes the states in its first step; they must exist, and be linked to the parameters, to be set."""
    for flat, parts in partitions(zero, zero_stage).items():
        kind = update_kind(config, zero, parts[0].parameter)  # one for all of a group
        zero.optimizer.state[flat] = empty_states(config, kind, flat, step)
    if zero_stage < 3:
        _link_states(zero)


def _link_states(zero: Any) -> None:
    """ZeRO 1 and 2 find a parameter's states by links made after the *first group's* first step: make them for all."""
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()


def _set_flat(parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
    """ZeRO 1 and 2. The working copy is set too: DeepSpeed does not derive it from the master weights."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    for key, value in values.items():
        value = value.to(parameter.device)
        if key == "weight":
            safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)


def _set_sharded(parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
    """ZeRO 3, by local parts: the `full` setters fail where a parameter does not divide evenly over the ranks."""
    import deepspeed
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    zero: Any = parameter
    size, rank = zero.ds_tensor.numel(), zero._z3_optimizer._get_param_partition_rank(parameter)
    for key, value in values.items():
        flat = value.flatten().to(zero.ds_tensor.device)
        part = F.pad(flat, (0, max(0, size * (rank + 1) - flat.numel())))[size * rank : size * (rank + 1)]
        if key == "weight":
            safe_set_local_fp32_param(parameter, part)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(value)
        else:
            safe_set_local_optimizer_state(parameter, part, key)
