"""Checkpoints: one format for every ZeRO stage and number of ranks, written whole or not at all.

    step-00001000/
      tensors-0-of-2.safetensors …     float32 weight/<name> and <state>/<name>; parameter i is in file i mod ranks
      carried-0-of-2.safetensors …     ordered families: float32 [rows, size], the ranks' rows in lane order
      state.json                       step, position in the data, corpus, versions, the best step so far
      complete.json                    written last: SHA-256 of every other file
    best                               a link to the step with the lowest held-out loss, as the newest state.json says

Nothing is pickled. DeepSpeed's own checkpoints are not used: they are not atomic, and tied to ranks and stage.
Finding and verifying import no torch.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pretrain.data.stream import StreamPosition
from pretrain.errors import CheckpointError, ConfigError
from pretrain.runtime.collectives import gather_objects
from pretrain.runtime.files import flush, share

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

BEST = "best"
STEP = re.compile(r"step-(\d{8,})")
T = TypeVar("T")


@dataclass(frozen=True)
class Best:
    """The step of a run whose held-out loss is the lowest."""

    step: int
    loss: float
    text: str
    """What was measured on: losses over different text are not compared."""


@dataclass(frozen=True)
class State:
    """The small part of a checkpoint."""

    step: int
    position: StreamPosition
    corpus: str
    """The identity of the prepared corpus that was trained on."""
    versions: dict[str, str]
    best: Best | None
    """Of the steps that were saved so far; None where none was measured."""

    def to_json(self) -> str:
        """As state.json has it, a line for each field."""
        best = None if self.best is None else asdict(self.best)
        values = {"step": self.step, "position": self.position.to_json(), "corpus": self.corpus}
        values |= {"versions": self.versions, "best": best}
        lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"


@dataclass(frozen=True)
class ResumePoint:
    """Where a start goes on; found and verified once, for all ranks."""

    checkpoint: Path
    state: State
    checksum: str
    """SHA-256 of its complete.json, which holds those of all other files."""


def checkpoint_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:08d}"


# ---- finding ---------------------------------------------------------------------------------------------------------


def steps_in(folder: Path) -> dict[int, Path]:
    """The checkpoints of a run by step, ascending, complete or not; what is named otherwise is not ours."""
    found = {
        int(match[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := STEP.fullmatch(path.name)) and path.name == checkpoint_name(int(match[1])) and path.is_dir()
    }
    return dict(sorted(found.items()))


def newest_step(folder: Path) -> int:
    """The newest step that has a marker, unverified; 0 where there is none."""
    return max((step for step, path in steps_in(folder).items() if (path / "complete.json").is_file()), default=0)


def find_newest(folder: Path) -> Path | None:
    """The newest complete checkpoint; says which newer ones it passed over. None where there is no checkpoint.

    Raises CheckpointError where there are checkpoints and none is complete.
    """
    problems: list[str] = []
    for path in reversed(steps_in(folder).values()):
        problem = incomplete(path)
        if problem is None:
            for line in problems:
                log.warning("passed over %s", line)
            return path
        problems.append(problem)
    if problems:
        raise CheckpointError("\n".join([*problems, f"{folder}: no complete checkpoint is left to resume from"]))
    return None


def find_resume_point(folder: Path) -> ResumePoint | None:
    """The newest complete checkpoint, as `find_newest` finds it, and what it says."""
    path = find_newest(folder)
    return None if path is None else ResumePoint(path, read_state(path), sha256(path / "complete.json"))


def choose_checkpoint(folder: Path, which: str) -> Path:
    """The folder of a complete checkpoint: `best`, `newest`, or that of a step.

    `best` is the newest one where nothing was held out. Raises ConfigError for anything else, CheckpointError for one
    that is missing or damaged.
    """
    if which not in ("best", "newest") and not which.isdecimal():
        raise ConfigError(f"--checkpoint {which}: expected best, newest or the number of a step")
    newest = find_newest(folder)
    if newest is None:
        raise CheckpointError(f"{folder}: no checkpoint: nothing was saved yet")
    if which == "newest":
        return newest
    if which == "best":
        best = read_state(newest).best
        if best is None:
            return newest
        if (problem := incomplete_at(folder, best.step)) is not None:
            log.warning("the best checkpoint is not there any more (%s): the newest is taken", problem)
            return newest
        which = str(best.step)
    path = folder / checkpoint_name(int(which))
    if not path.exists():
        raise CheckpointError(f"{folder}: no checkpoint of step {which}; there are {_listed(steps_in(folder))}")
    if (problem := incomplete(path)) is not None:
        raise CheckpointError(problem)
    return path


def _listed(steps: dict[int, Path]) -> str:
    return ", ".join(map(str, steps)) or "none"


def incomplete(path: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None where it is whole."""
    marker = path / "complete.json"
    try:
        checksums: dict[str, str] = dict(json.loads(marker.read_text(encoding="utf-8")))
        if "state.json" not in checksums:
            raise ValueError("it names no state.json")
    except FileNotFoundError:
        return f"{path}: cut short: no complete.json"
    except (ValueError, TypeError) as error:
        return f"{marker}: damaged: {error}"
    for name, expected in checksums.items():
        if not (path / name).is_file():
            return f"{path / name}: missing"
        if (found := sha256(path / name)) != expected:
            return f"{path / name}: damaged: its SHA-256 is {found[:12]}…, complete.json says {str(expected)[:12]}…"
    return None


def incomplete_at(folder: Path, step: int) -> str | None:
    """As `incomplete`, of the checkpoint of a step."""
    return incomplete(folder / checkpoint_name(step))


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_state(path: Path) -> State:
    """The small part of a checkpoint; raises CheckpointError where it is not what we write."""
    file = path / "state.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        expected = {field.name for field in fields(State)}
        if not isinstance(values, dict) or values.keys() != expected:
            found = ", ".join(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(
                f"it holds {found}; this version of pretrain reads {', '.join(sorted(expected))}: another version "
                "wrote it"
            )
        if type(values["step"]) is not int:
            raise ValueError(f"step is {values['step']!r}, not a whole number")
        best = values.pop("best")
        position = StreamPosition.from_json(values.pop("position"))
        return State(**values, position=position, best=None if best is None else Best(**best))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None


def read_weights(path: Path) -> "dict[str, Tensor]":
    """The float32 weights of a complete checkpoint, by name."""
    tensors = Tensors(path, "tensors")
    return {key.removeprefix("weight/"): tensors.get(key) for key in tensors if key.startswith("weight/")}


def read_carried(path: Path, rank: int, ranks: int) -> "Tensor | None":
    """This rank's rows of the carried states, however many ranks wrote them."""
    import torch

    tensors = Tensors(path, "carried")
    parts = [tensors.get(key) for key in sorted(tensors)]
    return torch.cat(parts).chunk(ranks)[rank].clone() if parts else None


class Tensors:
    """The tensors of a checkpoint's files, read one at a time."""

    def __init__(self, path: Path, stem: str) -> None:
        from safetensors import safe_open

        self._file_of: dict[str, Any] = {}
        for file in sorted(path.glob(f"{stem}-*.safetensors")):
            handle: Any = safe_open(file, framework="pt")
            self._file_of |= dict.fromkeys(handle.keys(), handle)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def get(self, key: str) -> "Tensor":
        """One tensor, on CPU."""
        tensor: Tensor = self._file_of[key].get_tensor(key)
        return tensor


# ---- writing ---------------------------------------------------------------------------------------------------------


def save(
    folder: Path, state: State, tensors: "dict[str, Tensor]", carried: "Tensor | None", *, rank: int, ranks: int
) -> Path:
    """Writes this rank's part of a checkpoint; all ranks call it together. Returns the checkpoint's folder.

    The folder has a temporary name until every file in it is written, flushed and read back.
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
    from safetensors import SafetensorError

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
    folder: Path, tensors: "dict[str, Tensor]", carried: "Tensor | None", rank: int, ranks: int
) -> dict[str, str]:
    from safetensors.torch import save_file

    files = {f"tensors-{rank}-of-{ranks}.safetensors": tensors}
    if carried is not None:
        files[f"carried-{rank}-of-{ranks}.safetensors"] = {f"carried/{rank:05d}": carried.cpu().contiguous()}
    for name, content in files.items():
        save_file(content, folder / name)
        share(folder / name)
        flush(folder / name)
    return {name: sha256(folder / name) for name in files}


def _finish(temporary: Path, path: Path, state: State, checksums: dict[str, str]) -> None:
    (temporary / "state.json").write_text(state.to_json(), encoding="utf-8")
    checksums["state.json"] = sha256(temporary / "state.json")
    (temporary / "complete.json").write_text(json.dumps(checksums, indent=1), encoding="utf-8")
    for written in (temporary / "state.json", temporary / "complete.json", temporary):
        flush(written)
    problem = incomplete(temporary)
    if problem is not None:
        raise CheckpointError(f"{problem} (just written: is the disk sound?)")
    shutil.rmtree(path, ignore_errors=True)  # an incomplete one that resuming passed over
    temporary.replace(path)
    flush(path.parent)


def link_best(folder: Path, best: Best | None) -> None:
    """Makes the link `best` follow what the newest state says."""
    link, temporary = folder / BEST, folder / f".tmp-{BEST}"
    if best is None or not (folder / checkpoint_name(best.step)).is_dir():
        link.unlink(missing_ok=True)
        return
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(checkpoint_name(best.step))
    temporary.replace(link)


def prune(folder: Path, newest: State, keep_last: int) -> None:
    """Of the checkpoints up to the newest, just written, keeps the last and the best; the others' marker goes first.

    Those of later steps are torn ones that resuming passed over: they are left to be replaced, and do not count. One
    that cannot be removed is left, with a warning.
    """
    written = {step: path for step, path in steps_in(folder).items() if step <= newest.step}
    kept = {step for step, path in written.items() if (path / "complete.json").exists()}
    kept = {*sorted(kept)[-keep_last:], *([] if newest.best is None else [newest.best.step])}
    leftovers = [path for path in folder.glob(".tmp-*") if STEP.fullmatch(path.name.removeprefix(".tmp-"))]
    for path in (*leftovers, *(path for step, path in written.items() if step not in kept)):
        try:
            (path / "complete.json").unlink(missing_ok=True)
            shutil.rmtree(path)
        except OSError as error:
            log.warning("%s: an old checkpoint that cannot be removed: %s", path, error.strerror)
