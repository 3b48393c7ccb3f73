"""Every way to start trains the same run on two ranks."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
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


@pytest.fixture
def said(tmp_path: Path) -> Callable[..., list[list[str]]]:
    """What launch/torchrun.sh runs, command by command, instead of `pretrain` and `torchrun`."""
    binaries, log = tmp_path / "recording", tmp_path / "commands"
    binaries.mkdir()
    for name in ("pretrain", "torchrun"):
        script = binaries / name
        script.write_text(f'#!/bin/sh\nprintf "%s\\t" {name} "$@" >> {log}\necho >> {log}\n', encoding="utf-8")
        script.chmod(0o755)

    def run(*arguments: str, **variables: str) -> list[list[str]]:
        path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
        command = [REPOSITORY / "launch" / "torchrun.sh", *arguments]
        subprocess.run(command, env=clean_environment() | {"PATH": path} | variables, check=True, timeout=60)
        return [line.split("\t")[:-1] for line in log.read_text(encoding="utf-8").splitlines()]

    return run


@pytest.mark.parametrize("options", [["--extend", "--stop-after", "3"], ["--stop-after=3", "--extend"]])
def test_torchrun_on_one_host_prepares_first(options: list[str], said: Callable[..., list[list[str]]]) -> None:
    prepare, train = said("2", "some.yaml", *options, "seed=2")
    assert prepare == ["pretrain", "prepare", "some.yaml", "seed=2"]
    assert train[:2] == ["torchrun", "--standalone"]
    assert train[-len(options) - 3 :] == ["some.yaml", *options, "seed=2", "sharding.ranks=2"]


@pytest.mark.parametrize("host", ["0", "1"])
def test_torchrun_on_several_hosts_leaves_preparing_to_rank_0(host: str, said: Callable[..., list[list[str]]]) -> None:
    (train,) = said("2", "some.yaml", NODES="2", NODE_RANK=host, MASTER_ADDR="host0")
    assert train[:5] == ["torchrun", "--nnodes", "2", "--node-rank", host]
    assert train[-3:] == ["train", "some.yaml", "sharding.ranks=2"]


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda path: path.name)
def test_usage(launcher: Path, environment: dict[str, str]) -> None:
    done = subprocess.run([launcher, "2"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: {launcher} RANKS CONFIG")
