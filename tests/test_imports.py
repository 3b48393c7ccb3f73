"""What is imported when: the command line starts without torch, and the Embedder needs nothing that only trains."""

import importlib.resources
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import REPOSITORY, clean_environment

HEAVY = ["torch", "lightning", "deepspeed", "datasets"]
TRAINING = ["lightning", "deepspeed", "datasets", "wandb", "pyarrow", "matplotlib", "sentencex", "filelock"]

BLOCK = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TRAINING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=clean_environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def imported(code: str, packages: list[str]) -> list[str]:
    """Which of `packages` are imported once `code` has run."""
    report = f"print(json.dumps([p for p in {packages!r} if p in sys.modules]))"
    done = python(f"import json, sys\ntry:\n    {code}\nexcept SystemExit as end:\n    assert not end.code\n{report}")
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import pretrain",
        "from pretrain.cli import main; main(['--help'])",
        "from pretrain.cli import main; main(['config', 'configs/bert/demo.yaml'])",
    ],
)
def test_cheap_starts_import_nothing_heavy(code: str) -> None:
    assert imported(code, HEAVY) == []


def test_the_embedder_imports_nothing_that_only_trains() -> None:
    assert imported("from pretrain import Embedder", TRAINING) == []


def test_a_config_is_shown_without_the_training_packages() -> None:
    done = python(f"{BLOCK}\nfrom pretrain.cli import main; main(['config', 'configs/bert/demo.yaml'])")
    assert done.returncode == 0, done.stderr


def test_the_embedder_works_without_the_training_packages() -> None:
    done = python(f"{BLOCK}\nfrom pretrain import Embedder; print(Embedder.__name__)")
    assert (done.returncode, done.stdout) == (0, "Embedder\n"), done.stderr


@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_training_without_its_packages_says_how_to_install_them(verb: str, tmp_path: Path) -> None:
    arguments = [verb, "configs/bert/demo.yaml", f"run_root={tmp_path}", "sharding.ranks=1"]
    done = python(f"{BLOCK}\nfrom pretrain.cli import main\nmain({arguments!r})")
    assert done.returncode == 2
    assert done.stderr.startswith("error: this needs ")
    assert done.stderr.endswith(": pip install 'pretrain[train]'\n")
    assert done.stderr.count("\n") == 1


def test_the_package_says_that_it_is_typed() -> None:
    """Else type checkers take everything that is imported from it for Any (PEP 561)."""
    assert (importlib.resources.files("pretrain") / "py.typed").is_file()
