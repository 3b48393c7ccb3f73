"""`tests/gpu/run.sh` without a GPU: its syntax, and every part at tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.config.load import load_config
from tests.gpu.sizes import BENCH, COMPILED, TRAIN
from tests.tiny import REPOSITORY, clean_environment

SCRIPT = REPOSITORY / "tests" / "gpu" / "run.sh"


def test_syntax() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.parametrize("name", [*BENCH, *TRAIN])
def test_real_sizes_are_valid(name: str) -> None:
    """The configs at the sizes that only a GPU runs; their overrides have no spaces, at which the script splits."""
    path, _, overrides = (BENCH | TRAIN)[name]
    assert not any(" " in override for override in overrides)
    overrides = [override for override in overrides if override != COMPILED]
    config = load_config(f"configs/{path}.yaml", [*overrides, f"name={name}"])
    assert config.accumulation(1) == 1


@pytest.mark.slow
def test_every_part_works(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [str(SCRIPT), str(out)],
        env=clean_environment() | {"PRETRAIN_GPU_DRY": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    logs = "\n".join(path.read_text(encoding="utf-8")[-3000:] for path in sorted(out.glob("*.log")))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert list(summary) == ["machine", "parity", "sharding", "bench", "train"]
    assert all(part["exit_code"] == 0 for part in summary.values())
    assert set(summary["sharding"]["sharding"].values()) == {"passed"}
    assert set(BENCH) <= set(summary["bench"]) and set(TRAIN) <= set(summary["train"])
    assert all(summary["bench"][name]["step"]["baselines"] for name in BENCH)
    assert len(list(out.iterdir())) <= 8 and (out / "loss.png").stat().st_size > 1000
