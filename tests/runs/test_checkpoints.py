"""Checkpoints: what is written comes back, damage is named and passed over, nothing half-written counts."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.data.stream import StreamPosition
from pretrain.errors import CheckpointError, ConfigError
from pretrain.runs import checkpoints
from pretrain.runs.checkpoints import Best, State
from tests.tiny import REPOSITORY


def some_state(step: int, best: Best | None = None) -> State:
    position = StreamPosition({0: (1, 2), 1: (3, 4)})
    return State(step, position, corpus="c0ffee", versions={"torch": "2"}, best=best)


def write(folder: Path, step: int, **tensors: Tensor) -> Path:
    """A checkpoint of one rank."""
    content = tensors or {"weight/a": torch.full((3,), float(step))}
    return checkpoints.save(folder, some_state(step), content, None, rank=0, ranks=1)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("tensors-0-of-1.safetensors", truncate, "damaged"),
    ("tensors-0-of-1.safetensors", flip, "damaged"),
    ("tensors-0-of-1.safetensors", Path.unlink, "missing"),
    ("state.json", flip, "damaged"),
    ("state.json", Path.unlink, "missing"),
    ("complete.json", truncate, "damaged"),
    ("complete.json", lambda path: path.write_bytes(b"\xff\xfe"), "damaged"),
    ("complete.json", Path.unlink, "cut short: no complete.json"),
]


@pytest.mark.parametrize(("name", "damage", "says"), DAMAGE)
def test_damage_is_named_and_passed_over(
    name: str, damage: Callable[[Path], None], says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, torn = write(tmp_path, 9), write(tmp_path, 10)
    damage(torn / name)
    problem = checkpoints.incomplete(torn)
    assert problem is not None
    assert str(torn) in problem and name in problem and says in problem
    assert len(problem.splitlines()) == 1
    with caplog.at_level(logging.WARNING):
        assert checkpoints.find_newest(tmp_path) == whole
    assert f"passed over {problem}" in caplog.text
    damage(whole / name)
    with pytest.raises(CheckpointError) as error:
        checkpoints.find_newest(tmp_path)
    first, second, last = str(error.value).splitlines()
    assert str(torn) in first and str(whole) in second and "no complete checkpoint is left" in last


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoints.find_newest(tmp_path / "nowhere") is None


def steps(folder: Path) -> list[int]:
    return list(checkpoints.steps_in(folder))


def test_pruning_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    (tmp_path / ".tmp-step-00000003").mkdir()  # a kill while saving
    checkpoints.prune(tmp_path, some_state(4, Best(1, 0.5, "text")), keep_last=2)
    assert steps(tmp_path) == [1, 3, 4]
    assert not list(tmp_path.glob(".tmp*"))


def test_only_what_is_named_as_we_name_it_is_ours(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    theirs = [tmp_path / name for name in ("step-00000001-mine", "step-1", "step-", ".tmp-mine", "step-0000000a")]
    for path in theirs:
        path.mkdir()
    (tmp_path / "step-00000009").write_text("a file")
    assert steps(tmp_path) == [1, 2, 3]
    checkpoints.prune(tmp_path, some_state(3), keep_last=1)
    assert steps(tmp_path) == [3] and all(path.exists() for path in theirs)


def test_a_checkpoint_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(path: Path, *_: object, **__: object) -> None:
        raise OSError(16, "Device or resource busy", str(path))

    paths = [write(tmp_path, step) for step in (1, 2)]
    monkeypatch.setattr(checkpoints.shutil, "rmtree", busy)
    checkpoints.prune(tmp_path, some_state(2), keep_last=1)
    assert f"{paths[0]}: an old checkpoint that cannot be removed: Device or resource busy" in caplog.text
    assert checkpoints.find_newest(tmp_path) == paths[1]


def test_the_link_to_the_best_follows_the_state(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    link = tmp_path / checkpoints.BEST
    for best, path in ((Best(1, 0.5, "text"), first), (Best(2, 0.4, "text"), second)):
        checkpoints.link_best(tmp_path, best)
        assert link.is_symlink() and link.resolve() == path.resolve()
        assert not link.readlink().is_absolute(), "the run folder may be moved"
    checkpoints.link_best(tmp_path, None)
    assert not link.is_symlink()


def test_the_best_is_what_the_newest_state_says(tmp_path: Path) -> None:
    """Whatever the link says: a kill may come between the two."""
    first = write(tmp_path, 1)
    content = {"weight/a": torch.zeros(3)}
    second = checkpoints.save(tmp_path, some_state(2, Best(1, 0.5, "text")), content, None, rank=0, ranks=1)
    assert checkpoints.choose_checkpoint(tmp_path, "best") == first
    assert checkpoints.choose_checkpoint(tmp_path, "newest") == second
    assert checkpoints.choose_checkpoint(tmp_path, "2") == second
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; there are 1, 2"):
        checkpoints.choose_checkpoint(tmp_path, "7")
    with pytest.raises(ConfigError, match="--checkpoint last: expected best, newest or the number of a step"):
        checkpoints.choose_checkpoint(tmp_path, "last")
    with pytest.raises(CheckpointError, match="nothing was saved yet"):
        checkpoints.choose_checkpoint(tmp_path / "none", "best")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda values: values | {"mood": "good"}, "another version wrote it"),
        (lambda values: {key: value for key, value in values.items() if key != "corpus"}, "another version wrote it"),
        (lambda values: [values], "another version wrote it"),
        (lambda values: values | {"best": {"step": 1}}, "missing"),
        (lambda values: values | {"position": [[1]]}, "not a position"),
    ],
)
def test_a_state_of_another_version_is_one_line(change: Callable[[Any], Any], says: str, tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    file = path / "state.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(CheckpointError, match=says) as error:
        checkpoints.read_state(path)
    assert str(error.value).startswith(f"{file}: cannot be read: ") and "\n" not in str(error.value)


def test_finding_and_verifying_import_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    code = (
        "import sys; from pathlib import Path; from pretrain.runs.checkpoints import find_resume_point; "
        f"point = find_resume_point(Path({str(tmp_path)!r})); assert point.checkpoint == Path({str(path)!r}); "
        "assert point.state.step == 3 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=60)


def test_pruning_does_not_mistake_a_torn_newer_one_for_the_newest(tmp_path: Path) -> None:
    """A start that passed over step 40 went on from 20 and saved 30: that is what is to be kept."""
    old, saved, torn = (write(tmp_path, step) for step in (20, 30, 40))
    flip(torn / "state.json")
    checkpoints.prune(tmp_path, some_state(30), keep_last=1)
    assert not old.exists()
    assert checkpoints.find_newest(tmp_path) == saved
    (saved / "complete.json").unlink()
    again = write(tmp_path, 40)
    assert checkpoints.incomplete(again) is None, "training on replaces it"
    checkpoints.prune(tmp_path, some_state(40), keep_last=2)
    assert steps(tmp_path) == [40], "one without a marker does not count"


def test_nothing_is_left_under_the_real_name_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocked(folder: Path) -> None:
        (folder / "tensors-0-of-1.safetensors").mkdir(parents=True)  # a folder where a file is to be written

    monkeypatch.setattr(checkpoints, "_begin", blocked)
    with pytest.raises(CheckpointError, match=r"step-00000005: cannot be written: .*directory"):
        write(tmp_path, 5)
    assert steps(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"step-00000005: cannot be written: .*checkpoints"):
        write(tmp_path / "checkpoints", 5)


def test_what_is_written_is_read_back_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsound(path: Path) -> None:
        if path.suffix == ".safetensors":
            flip(path)  # before the checksum is taken of what was meant to be there

    honest = checkpoints.sha256
    monkeypatch.setattr(checkpoints, "sha256", lambda path: (honest(path), unsound(path))[0])
    with pytest.raises(CheckpointError, match="is the disk sound"):
        write(tmp_path, 5)
    assert steps(tmp_path) == []


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_carried_states_over_another_number_of_ranks(ranks: int, tmp_path: Path) -> None:
    """Written by two ranks, four rows each, in lane order."""
    rows = torch.arange(24.0).reshape(8, 3)
    (tmp_path / "x").mkdir()
    for rank in range(2):
        part = rows[rank * 4 : rank * 4 + 4]
        checkpoints._write_part(tmp_path / "x", {"weight/a": torch.zeros(1)}, part, rank, 2)
    parts = [checkpoints.read_carried(tmp_path / "x", rank, ranks) for rank in range(ranks)]
    assert all(part is not None and len(part) == 8 // ranks for part in parts)
    assert torch.equal(torch.cat([part for part in parts if part is not None]), rows)


def test_nothing_is_carried_by_families_that_are_not_ordered(tmp_path: Path) -> None:
    assert checkpoints.read_carried(write(tmp_path, 1), 0, 1) is None


def test_the_marker_covers_every_other_file(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    marked = json.loads((path / "complete.json").read_text(encoding="utf-8"))
    assert sorted([*marked, "complete.json"]) == sorted(file.name for file in path.iterdir())


def test_a_best_that_is_gone_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It was removed for a better one, which was damaged since."""
    write(tmp_path, 1)
    content = {"weight/a": torch.zeros(3)}
    newest = checkpoints.save(tmp_path, some_state(3, Best(2, 0.5, "text")), content, None, rank=0, ranks=1)
    assert checkpoints.choose_checkpoint(tmp_path, "best") == newest
    assert "the best checkpoint is not there any more" in caplog.text


def test_others_may_read_what_the_user_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = write(tmp_path, 1)
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()} == {
        "tensors-0-of-1.safetensors": 0o644, "state.json": 0o644, "complete.json": 0o644,
    }  # fmt: skip
