"""Checkpoints: what is written comes back, damage is named and passed over, nothing half-written counts."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretrain.config.training import AdagradConfig, AdamWConfig, LambConfig, OptimizerConfig
from pretrain.errors import CheckpointError
from pretrain.runs import checkpoints
from pretrain.training.optimizer import build_optimizer

ADAMW = AdamWConfig(peak_learning_rate=0.1)
CONFIGS = {
    "adamw": ADAMW,
    "adamw-uncorrected": AdamWConfig(peak_learning_rate=0.1, bias_correction=False),
    "lamb": LambConfig(kind="lamb", peak_learning_rate=0.1),
    "adagrad": AdagradConfig(kind="adagrad", peak_learning_rate=0.1),
}


def some_state(step: int, best: float | None = None) -> checkpoints.State:
    return checkpoints.State(step=step, positions=[(1, 2), (3, 4)], versions={"torch": "2"}, best=best)


def write(folder: Path, step: int, **tensors: Tensor) -> Path:
    """A checkpoint of one rank."""
    content = tensors or {"weight/a": torch.full((3,), float(step))}
    return checkpoints.save(folder, some_state(step), content, None, rank=0, ranks=1)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        for i, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 * (i + step + 1))
        optimizer.step()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_round_trip(config: OptimizerConfig, tmp_path: Path) -> None:
    """Another model and optimizer, restored, go on as the saved ones do; bitwise."""

    def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
        return model, build_optimizer(config, model, lambda name: name.endswith("bias"))

    model, optimizer = build(1)
    update(model, optimizer, 3)
    tensors = sharded_states.collect(model, optimizer, config, zero_stage=0, rank=0, ranks=1)
    path = checkpoints.save(tmp_path, some_state(3, best=1.5), tensors, torch.ones(4, 2), rank=0, ranks=1)
    assert path.name == "step-00000003" and checkpoints.incomplete(path) is None
    assert checkpoints.read_state(path) == some_state(3, best=1.5)
    for name, value in checkpoints.read_weights(path).items():
        assert torch.equal(value, model.get_parameter(name))
    other, its_optimizer = build(2)
    sharded_states.restore(path, other, its_optimizer, config, zero_stage=0)
    update(model, optimizer, 2)
    update(other, its_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_each_rank_collects_its_share(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = build_optimizer(ADAMW, model, lambda name: False)
    update(model, optimizer, 1)
    parts = [sharded_states.collect(model, optimizer, ADAMW, zero_stage=0, rank=rank, ranks=2) for rank in range(2)]
    assert {key.partition("/")[2] for key in parts[0]} == {"0.weight", "1.weight"}
    assert {key.partition("/")[2] for key in parts[1]} == {"0.bias", "1.bias"}
    assert {key.partition("/")[0] for part in parts for key in part} == {"weight", "exp_avg", "exp_avg_sq"}


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


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def test_pruning_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    paths = [write(tmp_path, step) for step in (1, 2, 3, 4)]
    checkpoint.mark_best(tmp_path, paths[2])
    checkpoint.mark_best(tmp_path, paths[0])
    (tmp_path / ".tmp-step-00000003").mkdir()  # a kill while saving
    checkpoints.prune(paths[3], keep_last=2)
    assert steps_in(tmp_path) == [1, 3, 4]
    best = tmp_path / checkpoints.BEST
    assert best.is_symlink() and best.resolve() == paths[0].resolve()
    assert not best.readlink().is_absolute(), "the run folder may be moved"
    assert not list(tmp_path.glob(".tmp*"))


def test_pruning_does_not_mistake_a_torn_newer_one_for_the_newest(tmp_path: Path) -> None:
    """A start that passed over step 40 went on from 20 and saved 30: that is what is to be kept."""
    old, saved, torn = (write(tmp_path, step) for step in (20, 30, 40))
    flip(torn / "state.json")
    checkpoints.prune(saved, keep_last=1)
    assert not old.exists()
    assert checkpoints.find_newest(tmp_path) == saved
    (saved / "complete.json").unlink()
    again = write(tmp_path, 40)
    assert checkpoints.incomplete(again) is None, "training on replaces it"
    checkpoints.prune(again, keep_last=2)
    assert steps_in(tmp_path) == [40], "one without a marker does not count"


def test_nothing_is_left_under_the_real_name_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocked(folder: Path) -> None:
        (folder / "tensors-0-of-1.safetensors").mkdir(parents=True)  # a folder where a file is to be written

    monkeypatch.setattr(checkpoint, "_begin", blocked)
    with pytest.raises(CheckpointError, match=r"step-00000005: cannot be written: .*directory"):
        write(tmp_path, 5)
    assert steps_in(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"step-00000005: cannot be written: .*checkpoints"):
        write(tmp_path / "checkpoints", 5)


def test_what_is_written_is_read_back_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsound(path: Path) -> None:
        if path.suffix == ".safetensors":
            flip(path)  # before the checksum is taken of what was meant to be there

    honest = checkpoint._sha256
    monkeypatch.setattr(checkpoint, "_sha256", lambda path: (honest(path), unsound(path))[0])
    with pytest.raises(CheckpointError, match="is the disk sound"):
        write(tmp_path, 5)
    assert steps_in(tmp_path) == []


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
