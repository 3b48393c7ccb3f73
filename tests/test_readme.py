"""The README: everything in it is run, from top to bottom; and what the pages that it leads to list is there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_corpus
from tests.tiny import REPOSITORY, clean_environment, tiny_overrides

DOCS = REPOSITORY / "docs"
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
GUIDE = (DOCS / "export-and-vectors.md").read_text(encoding="utf-8")

SMALL = [*tiny_overrides("bert", Path("my/*.txt"), Path("runs")), "logging.wandb=offline"]
"""The demo's config as a run of seconds, on the reader's own text."""

MINE = """'data.sources=[{kind: text, files: "my/*.txt"}]'"""

HOW: dict[str, list[str] | str] = {
    "pip install -e '.[train]'": ".ci/run",
    "pretrain demo": ".ci/run",
    "pip install -e '.[dev]' && pytest": ".ci/run",
    f"pretrain train configs/bert/demo.yaml name=mine {MINE}": SMALL,
    "pretrain evaluate runs/mine": [],
    "pretrain export runs/mine --out models/mine": [],
    "pretrain embed models/mine sentences.txt --out vectors.hdf5": [],
    "pretrain bench configs/bert/demo.yaml 'optimizer={kind: adamw, peak_learning_rate: 2e-3}' --steps 10": [
        *SMALL,
        "--steps",
        "2",
    ],
    "pretrain config configs/elmo/demo.yaml model.cell_size=4096 model.projection_size=512": [],
    "pretrain train configs/bert/demo.yaml name=wide sharding.ranks=1 --stop-after 100": [*SMALL, "--stop-after", "4"],
    "pretrain train configs/bert/demo.yaml name=wide sharding.ranks=2": SMALL,
    "pretrain train configs/bert/demo.yaml name=wide schedule.total_steps=1000 --extend": [
        *SMALL,
        "schedule.total_steps=24",
    ],
    "launch/local.sh 2 configs/bert/demo.yaml name=two": "tests/test_launch.py",
    "launch/torchrun.sh 2 configs/bert/demo.yaml name=three": "tests/test_launch.py",
}
"""Each command of the README, and what is appended to it to make it small here, or which file runs it instead."""


ON_REQUEST = {"probes", "start_states"}
"""Of the run folder: what is there once a probe has been made, or an ELMo has been read for vectors."""
DEMO_MODEL = "pretrain-demo/bert-demo-model"
"""The model of the README's first Python example, which `pretrain demo` makes."""


def blocks(page: str, language: str) -> list[str]:
    """The contents of a page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """All commands of the README, in order."""
    return [line for block in blocks(README, "bash") for line in block.splitlines()]


def test_every_command_is_known() -> None:
    assert commands()
    assert sorted(commands()) == sorted(HOW)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_everything_runs_in_order(tmp_path: Path) -> None:
    (tmp_path / "my").mkdir()
    for number, name in enumerate(("one", "two")):
        write_corpus(tmp_path / "my" / f"{name}.txt", 150, seed=number)
    (tmp_path / "sentences.txt").write_text("The key was lost.\n\nA key of a dictionary.\n", encoding="utf-8")
    for text in commands():
        how = HOW[text]
        if not isinstance(how, str):
            run([sys.executable, "-m", *shlex.split(text), *how], tmp_path)
    assert (tmp_path / "vectors.hdf5").stat().st_size > 0
    examples = blocks(GUIDE, "python")
    assert examples
    for example in examples:
        run([sys.executable, "-c", example], tmp_path)
    folder = tmp_path / "runs" / "mine"
    described = {}
    for page in (README, (DOCS / "run-folder.md").read_text(encoding="utf-8")):
        paths = paths_of_tree(run_folder_tree(page))
        missing = [path for path in paths if not (folder / path).exists() and Path(path).parts[0] not in ON_REQUEST]
        assert not missing, f"the tree of the run folder names what is not there: {missing}"
        described = {path.parts[0] for path in map(Path, paths)}
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert found == described - ON_REQUEST, "the run folder holds what docs/run-folder.md does not describe"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_vectors_have_the_shapes_that_the_readme_says(corpus: Path, tmp_path: Path) -> None:
    """On an untrained model of the demo's sizes."""
    (example,) = blocks(README, "python")
    assert DEMO_MODEL in example
    overrides = [f"data.sources=[{{kind: text, files: {corpus}}}]", "sharding.ranks=1", "sharding.zero_stage=0"]
    command = [sys.executable, "-m", "pretrain"]
    run([*command, "train", "configs/bert/demo.yaml", *overrides, "--stop-after", "0"], tmp_path)
    run([*command, "export", "runs/bert-demo", "--out", DEMO_MODEL], tmp_path)
    printed = run([sys.executable, "-c", example], tmp_path)
    assert printed.strip() == example.strip().rpartition("  # ")[2]


def run(command: list[str], folder: Path) -> str:
    """Runs a command, which must end well; returns what it printed."""
    environment = clean_environment() | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{command}:\n{done.stderr[-4000:]}"
    return done.stdout


def run_folder_tree(page: str) -> str:
    (tree,) = [block for block in blocks(page, "text") if block.startswith("runs/mine/")]
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
    """Path -> description, of docs/layout.md; a description may go on in indented lines."""
    page = (DOCS / "layout.md").read_text(encoding="utf-8")
    (tree,) = [block for block in blocks(page, "text") if block.startswith("pretrain/cli.py")]
    lines = re.sub(r"\n +", " ", tree).splitlines()
    return {path: text.strip() for path, _, text in (line.partition(" ") for line in lines)}


def test_the_tree_of_the_repository_is_current() -> None:
    tree = repository_tree()
    assert all(tree.values()), "one line per file or folder, each saying what it is"
    missing = [path for path in tree if not (REPOSITORY / path).exists()]
    assert not missing, f"docs/layout.md names what is not there: {missing}"
    verbs = {path.name for path in (REPOSITORY / "pretrain").glob("*.py") if not path.name.startswith("__")}
    assert {path.removeprefix("pretrain/") for path in tree if re.fullmatch(r"pretrain/\w+\.py", path)} == verbs
    folders = {f"{path.parent.relative_to(REPOSITORY)}/" for path in (REPOSITORY / "pretrain").rglob("*/__init__.py")}
    assert {path for path in tree if re.fullmatch(r"pretrain/.+/", path)} == folders
    for folder in folders:
        modules = {path.stem for path in (REPOSITORY / folder).glob("*.py") if not path.name.startswith("__")}
        assert set(tree[folder].rpartition(":")[2].split()) == modules, f"{folder} in docs/layout.md"


def test_what_layout_says_where_to_find_is_there() -> None:
    page = (DOCS / "layout.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+(?:/\w+)+)\.(py|\w+)`", page)
    assert named
    for module, name in named:
        source = (REPOSITORY / "pretrain" / f"{module}.py").read_text(encoding="utf-8")
        assert name == "py" or re.search(rf"^(?:class|def) {name}\b", source, flags=re.MULTILINE), f"{module}.{name}"


def test_the_tests_that_are_named_exist() -> None:
    page = (DOCS / "guarantees.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:tests/|\.ci/)[^`]+)`", page))
    assert named
    assert not [path for path in named if not (REPOSITORY / path).exists()]
