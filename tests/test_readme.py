"""The README: everything in it is run, from top to bottom, and what it lists is there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_corpus
from tests.tiny import REPOSITORY, clean_environment, tiny_overrides

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")

SMALL = [*tiny_overrides("bert", Path("my/*.txt"), Path("runs")), "logging.wandb=offline"]
"""The demo's config as a run of seconds, on the reader's own text."""

MINE = """'data.sources=[{kind: text, files: "my/*.txt"}]'"""

HOW: dict[str, list[str] | str] = {
    "pip install -e '.[train]' && pretrain demo": ".ci/run",
    "pip install -e '.[dev]' && pytest": ".ci/run",
    f"pretrain train configs/bert/demo.yaml name=mine {MINE}": SMALL,
    "pretrain evaluate runs/mine": [],
    "pretrain export runs/mine --out models/mine": [],
    "pretrain embed models/mine sentences.txt --out vectors.hdf5": [],
    "pretrain bench configs/bert/demo.yaml --steps 10": [*SMALL, "--steps", "2"],
    "pretrain config configs/elmo/demo.yaml model.cell_size=4096 model.projection_size=512": [],
    "pretrain train configs/bert/demo.yaml name=wide sharding.ranks=1 --stop-after 100": [*SMALL, "--stop-after", "4"],
    "pretrain train configs/bert/demo.yaml name=wide sharding.ranks=2": SMALL,
    "launch/local.sh 2 configs/bert/demo.yaml name=two": "tests/test_launch.py",
    "launch/torchrun.sh 2 configs/bert/demo.yaml name=three": "tests/test_launch.py",
}
"""Each command of the README, and what is appended to it to make it small here, or which file runs it instead."""


def blocks(language: str) -> list[str]:
    """The contents of the README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def steps() -> list[tuple[str, str]]:
    """(language, text) of all that can be run, in order: each command, and each Python block as a whole."""
    found = []
    for language, text in re.findall(r"^```(bash|python)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL):
        found += [(language, line) for line in text.splitlines()] if language == "bash" else [(language, text)]
    return found


def test_every_command_is_known() -> None:
    commands = [text for language, text in steps() if language == "bash"]
    assert commands
    assert sorted(commands) == sorted(HOW)
    assert blocks("python")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_everything_runs_in_order(tmp_path: Path) -> None:
    (tmp_path / "my").mkdir()
    for number, name in enumerate(("one", "two")):
        write_corpus(tmp_path / "my" / f"{name}.txt", 150, seed=number)
    (tmp_path / "sentences.txt").write_text("The key was lost.\n\nA key of a dictionary.\n", encoding="utf-8")
    for language, text in steps():
        how = HOW[text] if language == "bash" else []
        if isinstance(how, str):
            continue
        command = [sys.executable, "-c", text] if language == "python" else [sys.executable, "-m", *shlex.split(text)]
        run([*command, *how], tmp_path)
    assert (tmp_path / "vectors.hdf5").stat().st_size > 0
    folder = tmp_path / "runs" / "mine"
    missing = [path for path in paths_of_tree(run_folder_tree()) if not (folder / path).exists()]
    assert not missing, f"the README's tree of the run folder names what is not there: {missing}"
    described = {path.parts[0] for path in map(Path, paths_of_tree(run_folder_tree()))}
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert found == described, "the run folder holds what the README does not describe"


def run(command: list[str], folder: Path) -> None:
    """Runs a command, which must end well."""
    environment = clean_environment() | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{command}:\n{done.stderr[-4000:]}"


def run_folder_tree() -> str:
    (tree,) = [block for block in blocks("text") if block.startswith("runs/mine/")]
    return tree


def paths_of_tree(tree: str) -> list[str]:
    """The paths of an indented tree, relative to its root, which is its first line."""
    paths: list[str] = []
    parents: list[str] = []
    for line in tree.splitlines()[1:]:
        name = line.split()[0].rstrip("/")
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        parents = [*parents[:depth], name]
        paths.append("/".join(parents))
    return paths


def repository_tree() -> dict[str, str]:
    """Path -> description."""
    (tree,) = [block for block in blocks("text") if block.startswith("pretrain/cli.py")]
    return {path: text.strip() for path, _, text in (line.partition(" ") for line in tree.splitlines())}


def test_the_tree_of_the_repository_is_current() -> None:
    tree = repository_tree()
    assert all(tree.values()), "one line per file or folder, each saying what it is"
    missing = [path for path in tree if not (REPOSITORY / path).exists()]
    assert not missing, f"the README names what is not there: {missing}"
    verbs = {path.name for path in (REPOSITORY / "pretrain").glob("*.py") if not path.name.startswith("__")}
    assert {path.removeprefix("pretrain/") for path in tree if re.fullmatch(r"pretrain/\w+\.py", path)} == verbs
    folders = {f"{path.parent.relative_to(REPOSITORY)}/" for path in (REPOSITORY / "pretrain").rglob("*/__init__.py")}
    assert {path for path in tree if re.fullmatch(r"pretrain/.+/", path)} == folders
    for folder in folders:
        modules = {path.stem for path in (REPOSITORY / folder).glob("*.py") if not path.name.startswith("__")}
        assert set(tree[folder].partition(":")[2].split()) == modules, f"{folder} in the README's tree"


def test_the_tests_that_are_named_exist() -> None:
    named = set(re.findall(r"`((?:tests/|\.ci/)[^`]+)`", README))
    assert named
    assert not [path for path in named if not (REPOSITORY / path).exists()]
