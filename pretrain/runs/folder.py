"""The run folder: its layout, its lock, and the config and tokenizer that the run owns.

run_root/name/
  config.yaml        the resolved config of the run, without the secrets of its URLs
  tokenizer/         the tokenizer that the run began with
  starts.jsonl       one line per start: time, step, ranks, versions, how it was carried out
  metrics.jsonl      one line per logging interval; the truth about the run
  prepared           where the prepared corpus is (a path, relative to this folder where it is beside it, or a URL)
  checkpoints/       step-00001000/ …, and best, a link to the best of them
  wandb/             W&B's own files
  probes/            what `pretrain probe` found, a file for each task and step
  export/            what `pretrain export` writes by default
"""

import contextlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from pretrain.config.load import dump_config, load_config
from pretrain.config.run import EXTENDABLE, RunConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.runs.checkpoints import steps_in
from pretrain.runs.metrics import read_metrics
from pretrain.runtime.files import exclusive, write_atomically

LOCK_SECONDS = 3.0
"""How long a start waits for the ranks of a killed one to be gone: they look for their launcher twice a second."""
SOURCES = "data.sources."


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.tokenizer = path / "tokenizer"
        self.metrics_file = path / "metrics.jsonl"
        self.starts_file = path / "starts.jsonl"
        self.prepared_file = path / "prepared"
        self.checkpoints = path / "checkpoints"
        self.probes = path / "probes"
        self.export = path / "export"

    @contextlib.contextmanager
    def lock(self) -> Iterator[int]:
        """Keeps a second training out of the folder; gives the lock's descriptor, for ranks to inherit.

        Raises CheckpointError where another process trains there.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            self.path.mkdir(parents=True, exist_ok=True)  # another start that failed may have removed it
            with exclusive(self.path / ".lock") as handle:
                if handle is not None:
                    try:
                        yield handle
                    finally:
                        self._remove_if_unused()
                    return
            if time.monotonic() > deadline:
                raise CheckpointError(f"{self.path}: another process is training in this folder")
            time.sleep(0.2)

    def _remove_if_unused(self) -> None:
        """Leaves no folder behind of a start that failed before anything was written."""
        if [entry.name for entry in self.path.iterdir()] == [".lock"]:
            (self.path / ".lock").unlink()
            with contextlib.suppress(OSError):  # another start is beginning there
                self.path.rmdir()

    def check(self, config: RunConfig, *, extend: bool = False) -> None:
        """Refuses a folder that is no run folder, or holds a run that another config decided; changes nothing.

        With `extend`, the schedule may have more steps than the run began with, and another decay.
        """
        self.check_place()
        if self.config_file.exists() and steps_in(self.checkpoints):  # where nothing was saved, it starts over
            self._check_options(config, extend=extend)

    def check_place(self) -> None:
        """Refuses what is there and no run folder; before the lock, which leaves a file."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ConfigError(f"{self.path}: not a folder")
        if not self.config_file.exists():
            strangers = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
            if strangers:
                raise ConfigError(f"{self.path}: not a run folder: it holds {strangers[0]} and no config.yaml")

    def _check_options(self, config: RunConfig, *, extend: bool) -> None:
        began = self.read_config()
        ours, theirs = config.result_options(), began.result_options()
        differing = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
        longer = config.schedule.total_steps > began.schedule.total_steps
        if extend and longer:
            differing = [key for key in differing if key not in EXTENDABLE]
        if not differing:
            return
        if set(differing) <= EXTENDABLE and self._was_extended() and not longer:
            raise ConfigError(
                f"{self.path}: the run was extended to {began.schedule.total_steps} steps, and this command has "
                f"{config.schedule.total_steps}: give the schedule of its config.yaml"
            )
        lines = [f"{self.path}: {line}" for line in _describe(differing, ours, theirs)]
        if longer and set(differing) <= EXTENDABLE:
            advice = "to train longer, add --extend; docs/training.md says what the learning rate then does"
        else:
            advice = "give the run another name, or the options it began with"
        raise ConfigError("\n".join([*lines, f"{self.path}: {advice}"]))

    def _was_extended(self) -> bool:
        return self.starts_file.exists() and '"schedule":' in self.starts_file.read_text(encoding="utf-8")

    def read_config(self) -> RunConfig:
        """The config of the run: the one that it began with, but for a schedule that was extended."""
        if not self.config_file.is_file():
            raise ConfigError(f"{self.path}: not a run folder: no config.yaml")
        return load_config(self.config_file)

    def begin(
        self, config: RunConfig, step: int, *, fresh: bool, ranks: int, threads: int, prepared: str, tokenizer: Path
    ) -> None:
        """Records a start at `step` on the corpus at `prepared`, whose `tokenizer` becomes that of a `fresh` run.

        The metrics of steps that will be trained again are dropped.
        """
        start = {"time": _now(), "step": step, "ranks": ranks, "threads": threads, "versions": versions()}
        if fresh:
            shutil.rmtree(self.tokenizer, ignore_errors=True)
            shutil.copytree(tokenizer, self.tokenizer)
            write_atomically(self.config_file, dump_config(config.public()))
        elif (began := self.read_config()).schedule != config.schedule:
            start["schedule"] = {
                "was": began.schedule.model_dump(exclude_defaults=True),
                "is": config.schedule.model_dump(exclude_defaults=True),
            }
            write_atomically(self.config_file, dump_config(config.public()))
        write_atomically(self.prepared_file, self._relative(prepared) + "\n")
        if self.metrics_file.exists():
            kept = [line for line in self.read_metrics() if line["step"] <= step]
            write_atomically(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))
        with self.starts_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(start | {"how": config.runtime_options()}) + "\n")

    def _relative(self, prepared: str) -> str:
        """A path below the run root as seen from here, so that the whole tree can be moved; others as they are."""
        root = str(self.path.parent.absolute())
        if "://" in prepared or not prepared.startswith(root + os.sep):
            return prepared
        return os.path.relpath(prepared, self.path.absolute())

    def prepared(self) -> str:
        """Where the run's prepared corpus is."""
        if not self.prepared_file.is_file():
            raise CheckpointError(f"{self.prepared_file}: missing: it says where the run's prepared text is")
        where = self.prepared_file.read_text(encoding="utf-8").strip()
        return where if "://" in where else str(Path(os.path.normpath(self.path.absolute() / where)))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut short by a kill is left out."""
        return read_metrics(self.metrics_file)

    def last_start(self) -> dict[str, Any] | None:
        """The newest line of starts.jsonl; None where there is none."""
        if not self.starts_file.exists():
            return None
        for line in reversed(self.starts_file.read_text(encoding="utf-8").splitlines()):
            with contextlib.suppress(json.JSONDecodeError):
                start: dict[str, Any] = json.loads(line)
                return start
        return None


def _describe(keys: list[str], ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    """What differs, a line each: an option with both values, or a source that only one side has."""
    told = set()
    for key in keys:
        source = ".".join(key.split(".")[:-1]) if key.startswith(SOURCES) else None
        if source is None or (f"{source}.kind" in ours and f"{source}.kind" in theirs):
            yield f"{key} was {theirs.get(key)!r} when this run began, now it is {ours.get(key)!r}"
        elif source not in told:
            told.add(source)
            name = source.removeprefix(SOURCES)
            gone = f"{source}.kind" in theirs
            yield f"source {name} was {'there' if gone else 'not there'} when this run began, now it is{' not' * gone}"


def versions() -> dict[str, str]:
    """Versions of what decides numbers."""
    found = {"python": platform.python_version()}
    for package in ("pretrain", "torch", "lightning", "deepspeed", "datasets", "tokenizers", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
