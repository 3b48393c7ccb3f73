"""Every way to start trains the same run on two ranks."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import REPOSITORY, clean_environment, metrics, tiny_config, tiny_overrides

LAUNCHERS = sorted((REPOSITORY / "launch").iterdir())


def test_there_are_launchers() -> None:
    assert LAUNCHERS
    assert all(os.access(launcher, os.X_OK) for launcher in LAUNCHERS)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """`pretrain` and `torchrun` of this checkout and this Python, whether or not they are installed."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, module in (("pretrain", "pretrain"), ("torchrun", "torch.distributed.run")):
        script = binaries / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    return clean_environment() | {"PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda path: path.name)
def test_two_ranks_for_two_steps(launcher: Path, environment: dict[str, str], corpus: Path, tmp_path: Path) -> None:
    overrides = tiny_overrides("bert", corpus, tmp_path, "name=launched", "sharding.ranks=auto")
    done = subprocess.run(
        [launcher, "2", "configs/bert/demo.yaml", *overrides, "--stop-after", "2"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    config = tiny_config("bert", corpus, tmp_path, "name=launched")
    assert [line["step"] for line in metrics(config)] == [1, 2]
    files = (config.folder / "checkpoints" / "step-00000002").glob("tensors-*.safetensors")
    assert sorted(file.name for file in files) == ["tensors-0-of-2.safetensors", "tensors-1-of-2.safetensors"]


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda path: path.name)
def test_usage(launcher: Path, environment: dict[str, str]) -> None:
    done = subprocess.run([launcher, "2"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: {launcher} RANKS CONFIG")
