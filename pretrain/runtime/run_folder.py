"""The run folder: its layout, its lock, its configs, and metrics.jsonl.

run_root/name/
  config.yaml        the resolved config of the run
  starts.jsonl       one line per start: time, step, ranks, versions, what was changed of how it runs
  metrics.jsonl      one line per logging interval; the truth about the run
  prepared           where the prepared corpus is (a path or URL, one line)
  checkpoints/       step-00001000/ …, and best, a link to the best of them
  wandb/             W&B's own files
  export/            what `pretrain export` writes by default
"""

import contextlib
import json
import platform
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from pretrain.config.load import dump_config, load_config
from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError, ConfigError

LOCK_SECONDS = 8.0
"""How long a start waits for the ranks of a killed one to be gone."""


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.starts_file = path / "starts.jsonl"
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second training out of the folder; freed by any death of the holder."""
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            raise CheckpointError(f"{self.path}: another process is training in this folder") from None
        try:
            yield
        finally:
            lock.release()

    def check(self, config: RunConfig) -> None:
        """Refuses a folder that is no run folder, or holds a run that another config decided; changes nothing."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ConfigError(f"{self.path}: not a folder")
        if not self.config_file.exists():
            strangers = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
            if strangers:
                raise ConfigError(f"{self.path}: not a run folder: it holds {strangers[0]} and no config.yaml")
            return
        if not self.metrics_file.exists() and not self.checkpoints.exists():
            return
        ours, theirs = config.result_options(), self.read_config().result_options()
        wrong = [
            f"{self.path}: {key} was {theirs.get(key)!r} when this run began, now it is {ours.get(key)!r}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]
        if wrong:
            raise ConfigError(
                "\n".join([*wrong, f"{self.path}: give the run another name, or the options it began with"])
            )

    def read_config(self) -> RunConfig:
        """The config that the run began with."""
        if not self.config_file.is_file():
            raise ConfigError(f"{self.path}: not a run folder: no config.yaml")
        return load_config(self.config_file)

    def begin(self, config: RunConfig, step: int, ranks: int, prepared: str) -> None:
        """Records a start at `step`, and drops the metrics of steps that will be trained again."""
        self.path.mkdir(parents=True, exist_ok=True)
        if step == 0 or not self.config_file.exists():
            _write(self.config_file, dump_config(config))
        _write(self.path / "prepared", prepared + "\n")
        kept = [line for line in self.read_metrics() if line["step"] <= step]
        if self.metrics_file.exists():
            _write(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))
        how = config.model_dump(mode="json", include={"sharding", "checkpoint", "evaluation", "logging"})
        how |= {"micro_size": config.batch.micro_size, "workers": config.data.workers}
        start = {"time": _now(), "step": step, "ranks": ranks, "versions": versions(), "how": how}
        with self.starts_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(start) + "\n")

    def log(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl, all at once."""
        with self.metrics_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut short by a kill is left out."""
        if not self.metrics_file.exists():
            return []
        lines = []
        for text in self.metrics_file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
        return lines

    def prepared(self) -> str:
        """Where the run's prepared corpus is."""
        return (self.path / "prepared").read_text(encoding="utf-8").strip()


def versions() -> dict[str, str]:
    """Versions of what decides numbers."""
    found = {"python": platform.python_version()}
    for package in ("pretrain", "torch", "lightning", "deepspeed", "datasets", "tokenizers", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _write(path: Path, text: str) -> None:
    """Replaces a file in one go."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
