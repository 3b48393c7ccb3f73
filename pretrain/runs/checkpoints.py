"""Checkpoints: one format for every ZeRO stage and number of ranks, written whole or not at all.

    step-00001000/
      tensors-0-of-2.safetensors …     float32 weight/<name> and <state>/<name>; parameter i is in file i mod ranks
      carried-0-of-2.safetensors …     ordered families: float32 [rows, size], the ranks' rows in lane order
      state.json                       step, positions, versions, held-out loss
      complete.json                    written last: SHA-256 of every other file

Nothing is pickled. DeepSpeed's own checkpoints are not used: they are not atomic, and tied to ranks and stage.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.config.training import OptimizerConfig
from pretrain.data.stream import StreamPosition
from pretrain.errors import CheckpointError
from pretrain.runtime.distributed import gather_objects
from pretrain.training.optimizer import STATES, empty_states

log = logging.getLogger(__name__)

BEST = "best"
T = TypeVar("T")


@dataclass(frozen=True)
class State:
    """The small part of a checkpoint."""

    step: int
    position: StreamPosition
    versions: dict[str, str]
    best: float | None
    """Lowest held-out loss of the run so far."""


def checkpoint_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:08d}"


# ---- finding ---------------------------------------------------------------------------------------------------------


def find_newest(folder: Path) -> Path | None:
    """The newest complete checkpoint; says which newer ones it passed over. None where there is no checkpoint.

    Raises CheckpointError where there are checkpoints and none is complete.
    """
    problems: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        problem = incomplete(path)
        if problem is None:
            for line in problems:
                log.warning("passed over %s", line)
            return path
        problems.append(problem)
    if problems:
        raise CheckpointError("\n".join([*problems, f"{folder}: no complete checkpoint is left to resume from"]))
    return None


def incomplete(path: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None where it is whole."""
    marker = path / "complete.json"
    try:
        checksums: dict[str, str] = json.loads(marker.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{path}: cut short: no complete.json"
    except ValueError as error:
        return f"{marker}: damaged: {error}"
    for name, expected in checksums.items():
        if not (path / name).is_file():
            return f"{path / name}: missing"
        if (found := _sha256(path / name)) != expected:
            return f"{path / name}: damaged: its SHA-256 is {found[:12]}…, complete.json says {expected[:12]}…"
    return None


def read_state(path: Path) -> State:
    """The small part of a complete checkpoint."""
    values = json.loads((path / "state.json").read_text(encoding="utf-8"))
    position = StreamPosition.from_json(values.pop("positions"))
    return State(position=position, **values)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The float32 weights of a complete checkpoint, by name."""
    tensors = _Tensors(path, "tensors")
    return {key.removeprefix("weight/"): tensors.get(key) for key in tensors if key.startswith("weight/")}


class _Tensors:
    """The tensors of a checkpoint's files, read one at a time."""

    def __init__(self, path: Path, stem: str) -> None:
        self._where: dict[str, Any] = {}
        for file in sorted(path.glob(f"{stem}-*.safetensors")):
            handle: Any = safe_open(file, framework="pt")
            self._where |= dict.fromkeys(handle.keys(), handle)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def get(self, key: str) -> Tensor:
        tensor: Tensor = self._where[key].get_tensor(key)
        return tensor


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- writing ---------------------------------------------------------------------------------------------------------


def save(
    folder: Path, state: State, tensors: dict[str, Tensor], carried: Tensor | None, *, rank: int, ranks: int
) -> Path:
    """Writes this rank's part of a checkpoint; all ranks call it together. Returns the checkpoint's folder.

    Every file is written under a temporary name, flushed and read back before the folder gets its real name.
    Where any rank fails, all raise CheckpointError and nothing is left under the real name.
    """
    path = folder / checkpoint_name(state.step)
    temporary = folder / f".tmp-{checkpoint_name(state.step)}"
    _together(path, lambda: _begin(temporary) if rank == 0 else None)
    parts = _together(path, lambda: _write_part(temporary, tensors, carried, rank, ranks))
    checksums = {name: sha for part in parts for name, sha in part.items()}
    _together(path, lambda: _finish(temporary, path, state, checksums) if rank == 0 else None)
    return path


def _together(path: Path, act: Callable[[], T]) -> list[T]:
    """What `act` returns on every rank; raises CheckpointError on all of them where it fails on any."""
    result, problem = None, None
    try:
        result = act()
    except (OSError, SafetensorError, CheckpointError) as error:  # safetensors has an error of its own for the disk's
        problem = f"{path}: cannot be written: {error}"
    parts = gather_objects((result, problem))
    if problems := [said for _, said in parts if said]:
        raise CheckpointError("\n".join(problems))
    return [result for result, _ in parts]


def _begin(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)


def _write_part(
    folder: Path, tensors: dict[str, Tensor], carried: Tensor | None, rank: int, ranks: int
) -> dict[str, str]:
    files = {f"tensors-{rank}-of-{ranks}.safetensors": tensors}
    if carried is not None:
        files[f"carried-{rank}-of-{ranks}.safetensors"] = {f"carried/{rank:05d}": carried.cpu().contiguous()}
    for name, content in files.items():
        save_file(content, folder / name)
        _flush(folder / name)
    return {name: _sha256(folder / name) for name in files}


def _finish(temporary: Path, path: Path, state: State, checksums: dict[str, str]) -> None:
    values = {key: value for key, value in vars(state).items() if key != "position"}
    text = json.dumps(values | {"positions": state.position.to_json()}, indent=1)
    (temporary / "state.json").write_text(text, encoding="utf-8")
    checksums["state.json"] = _sha256(temporary / "state.json")
    (temporary / "complete.json").write_text(json.dumps(checksums, indent=1), encoding="utf-8")
    for name in ("state.json", "complete.json"):
        _flush(temporary / name)
    problem = incomplete(temporary)
    if problem is not None:
        raise CheckpointError(f"{problem} (just written: is the disk sound?)")
    shutil.rmtree(path, ignore_errors=True)  # an incomplete one that resuming passed over
    temporary.replace(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def mark_best(folder: Path, path: Path) -> None:
    """Makes `best` a link to a checkpoint."""
    temporary = folder / f".tmp-{BEST}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(path.name)
    temporary.replace(folder / BEST)


def prune(newest: Path, keep_last: int) -> None:
    """Of the checkpoints up to `newest`, just written, keeps the last and the best; the others' marker goes first.

    Those of later steps are torn ones that resuming passed over: they are left to be replaced, and do not count.
    """
    folder = newest.parent
    best = (folder / BEST).resolve()
    written = [path for path in sorted(folder.glob("step-*")) if path.name <= newest.name]
    kept = [path for path in written if (path / "complete.json").exists()][-keep_last:]
    for path in written:
        if path not in kept and path.resolve() != best:
            (path / "complete.json").unlink(missing_ok=True)
            shutil.rmtree(path)
    for leftover in folder.glob(".tmp-step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


# ---- a run's tensors, whatever holds them ----------------------------------------------------------------------------


def collect(
    model: nn.Module, optimizer: Any, config: OptimizerConfig, *, zero_stage: int, rank: int, ranks: int
) -> dict[str, Tensor]:
    """This rank's part of all weights and optimizer states, float32 on CPU; all ranks call it together."""
    if zero_stage in (1, 2):
        _link_states(optimizer)
    kept: dict[str, Tensor] = {}
    for i, (name, parameter) in enumerate(model.named_parameters()):
        for key, tensor in _whole(parameter, optimizer, STATES[config.kind], zero_stage):
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
    tensors = _Tensors(path, "tensors")
    step = read_state(path).step
    if zero_stage > 0:
        _make_zero_states(optimizer, config, zero_stage, step)
    for name, parameter in model.named_parameters():
        values = {key: tensors.get(f"{key}/{name}") for key in ("weight", *STATES[config.kind])}
        if zero_stage == 3:
            _set_sharded(parameter, values)
        elif zero_stage > 0:
            _set_flat(parameter, values)
        else:
            parameter.data.copy_(values.pop("weight"))
            optimizer.state[parameter] = empty_states(config, parameter, step)
            for key, value in values.items():
                optimizer.state[parameter][key].copy_(value)


def _make_zero_states(zero: Any, config: OptimizerConfig, zero_stage: int, step: int) -> None:
    """ZeRO makes the states in its first step; they must exist, and be linked to the parameters, to be set."""
    flat_parameters = zero.fp32_partitioned_groups_flat if zero_stage == 3 else zero.single_partition_of_fp32_groups
    for flat in flat_parameters:
        zero.optimizer.state[flat] = empty_states(config, flat, step)
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


def read_carried(path: Path, rank: int, ranks: int) -> Tensor | None:
    """This rank's rows of the carried states, however many ranks wrote them."""
    tensors = _Tensors(path, "carried")
    parts = [tensors.get(key) for key in sorted(tensors)]
    if not parts:
        return None
    rows = torch.cat(parts)
    return rows.chunk(ranks)[rank].clone()
