"""Real starts on several ranks, as a user makes them: every config, every number of ranks, and every bad end."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pretrain.config.load import dump_config, load_config
from pretrain.config.plan import plan_run
from pretrain.config.run import RunConfig
from pretrain.data.prepare import ensure_prepared
from pretrain.evaluate import evaluate
from pretrain.models import get_family
from pretrain.runs.checkpoints import find_newest, read_state
from pretrain.runs.folder import RunFolder
from pretrain.runtime.launcher import STOPPED
from pretrain.runtime.world import rank_environment
from pretrain.train import train
from tests.tiny import (
    REPOSITORY,
    clean_environment,
    final_weights,
    metrics,
    run_cli,
    run_on_ranks,
    tiny_config,
    tiny_overrides,
)

pytestmark = pytest.mark.slow
FAMILIES = ("elmo", "bert")
CONFIGS = sorted((REPOSITORY / "configs").glob("**/*.yaml"))
MANY_FLOPS = 1e12
"""Half a minute of one core."""


def test_there_are_configs_of_both_families() -> None:
    assert {load_config(path).model.kind for path in CONFIGS} == set(FAMILIES)


@pytest.fixture(scope="module")
def run_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all configs, so that text which several read is prepared once."""
    return tmp_path_factory.mktemp("configs")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_config_runs(path: Path, run_root: Path) -> None:
    """Nothing but its length is changed; of large ones also the batch and a BERT's layers, and no text is held out."""
    steps, overrides = 4, [f"run_root={run_root}"]
    short = load_config(path, ["schedule.total_steps=4"])
    if plan_run(short, 1).total_flops > MANY_FLOPS:
        steps = 2
        overrides += ["data.lanes=1", "batch={global_size: 1, micro_size: 1}", "data.held_out=0"]
        overrides += ["model.num_layers=1"] if short.model.kind == "bert" else []
    overrides.append(f"schedule.total_steps={steps}")
    run_cli("train", str(path), *overrides)
    config = load_config(path, overrides)
    (line,) = [line for line in metrics(config) if line["step"] == steps]
    assert math.isfinite(line["loss"])
    assert find_newest(config.folder / "checkpoints") is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_one_two_and_four_ranks(family: str, corpus: Path, tmp_path: Path) -> None:
    """The same data and the same held-out loss, which `pretrain evaluate` finds too."""
    more = ["evaluation.every_steps=2", "checkpoint.every_steps=2", "schedule.total_steps=4", "model.dropout=0"]
    configs = {
        ranks: tiny_config(
            family, corpus, tmp_path, *more, f"name=ranks-{ranks}", f"sharding.ranks={ranks}", "sharding.zero_stage=3"
        )
        for ranks in (1, 2, 4)
    }
    for ranks in configs:
        overrides = tiny_overrides(
            family, corpus, tmp_path, *more, f"name=ranks-{ranks}", f"sharding.ranks={ranks}", "sharding.zero_stage=3"
        )
        run_cli("train", f"configs/{family}/demo.yaml", *overrides)
    alone = metrics(configs[1])
    assert len(alone) == 4
    for config in configs.values():
        lines = metrics(config)
        assert [x["data_digest"] for x in lines] == [x["data_digest"] for x in alone]
        assert [x["step"] for x in lines if "held_out_loss" in x] == [2, 4]
        for key in ("held_out_loss", "held_out_perplexity"):
            ours, theirs = ([x[key] for x in side if key in x] for side in (lines, alone))
            assert ours == pytest.approx(theirs, rel=1e-5)
        found = evaluate(config.folder, checkpoint="2", start="zero")
        assert found.losses.loss == pytest.approx(lines[1]["held_out_loss"], rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_trains_and_resumes(family: str, corpus: Path, tmp_path: Path) -> None:
    """On two ranks at every stage; a resumed run is bitwise the same."""
    starts: list[tuple[RunConfig, int | None]] = []
    pairs = {}
    for stage in (0, 1, 2, 3):
        whole, halves = (
            tiny_config(
                family, corpus, tmp_path, "precision=bf16-mixed", f"sharding.zero_stage={stage}", f"name={n}-{stage}"
            )
            for n in ("whole", "halves")
        )
        starts += [(whole, None), (halves, 10), (halves, None)]
        pairs[stage] = (whole, halves)
    ensure_prepared(starts[0][0], get_family(family))
    run_on_ranks(starts, 2, tmp_path)
    for stage, (whole, halves) in pairs.items():
        ours, theirs = metrics(halves), metrics(whole)
        assert [x["data_digest"] for x in ours] == [x["data_digest"] for x in theirs]
        assert theirs[-1]["loss"] < theirs[0]["loss"] - 0.1, f"stage {stage} learns"
        assert [x["loss"] for x in ours] == [x["loss"] for x in theirs], f"stage {stage}"
        weights, expected = final_weights(halves), final_weights(whole)
        assert all(torch.equal(weights[name], value) for name, value in expected.items()), f"stage {stage}"
        assert all(value.dtype == torch.float32 for value in expected.values())
        fine = [not torch.equal(value, value.bfloat16().float()) for value in expected.values()]
        assert any(fine), f"stage {stage} keeps float32 weights in the optimizer"


def test_zero_shards(corpus: Path, tmp_path: Path) -> None:
    """Each of two ranks holds half the optimizer's states, and under ZeRO 3 half the weights."""
    jobs = []
    for family in FAMILIES:
        for stage in (1, 2, 3):
            config = tiny_config(family, corpus, tmp_path, f"name={family}-{stage}", f"sharding.zero_stage={stage}")
            ensure_prepared(config, get_family(family))
            jobs.append(tmp_path / f"{config.name}.yaml")
            jobs[-1].write_text(dump_config(config), encoding="utf-8")
    command = ["-m", "tests.training.sharding_rank", str(tmp_path), *map(str, jobs)]
    script = (
        "import sys; from pretrain.runtime.launcher import spawn_ranks; "
        f"sys.exit(spawn_ranks([sys.executable, *{json.dumps(command)}], 2))"
    )
    environment = clean_environment() | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, env=environment, check=True, timeout=500)
    for rank in range(2):
        for name, counted in json.loads((tmp_path / f"rank-{rank}.json").read_text(encoding="utf-8")).items():
            whole = counted["whole"]
            assert counted["states"] == pytest.approx(whole / 2, rel=0.05), name
            if name.endswith("3"):
                assert counted["held"] == pytest.approx(whole / 2, rel=0.05), name
                assert counted["whole_now"] == 0, "nothing stays gathered between steps"
            else:
                assert counted["held"] == whole, name


def test_a_loss_that_is_no_number_stops_all_ranks(corpus: Path, tmp_path: Path) -> None:
    absurd = "optimizer={kind: adagrad, peak_learning_rate: 1e38, clip_norm: 0}"
    more = [absurd, "schedule.warmup_steps=0", "sharding.ranks=2", "checkpoint.every_steps=5"]
    done = run_cli("train", "configs/bert/demo.yaml", *tiny_overrides("bert", corpus, tmp_path, *more), check=False)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and re.match(r"error: step \d+: the .* is NaN or infinite", errors[0]), done.stderr
    assert "Traceback" not in done.stderr
    config = tiny_config("bert", corpus, tmp_path, *more)
    assert find_newest(config.folder / "checkpoints") is None


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    ("number", "ranks"), [(signal.SIGTERM, 2), (signal.SIGINT, 2), (signal.SIGINT, 1)], ids=["SIGTERM", "Ctrl-C", "one"]
)
def test_a_run_that_is_asked_to_stop_saves_first(
    number: signal.Signals, ranks: int, corpus: Path, tmp_path: Path
) -> None:
    """All ranks at the same step, whatever process got the signal; the same command goes on from there."""
    more = ["schedule.total_steps=100000", "checkpoint.every_steps=100000", "name=ended", f"sharding.ranks={ranks}"]
    config = tiny_config("bert", corpus, tmp_path, *more)
    command = [sys.executable, "-m", "pretrain", "train", "configs/bert/demo.yaml"]
    command += tiny_overrides("bert", corpus, tmp_path, *more)
    environment = clean_environment() | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "stderr").open("wb") as stderr:
        launcher = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=stderr)
        deadline = time.monotonic() + 120
        while len(metrics(config)) < 6:
            assert time.monotonic() < deadline and launcher.poll() is None, (tmp_path / "stderr").read_text()
            time.sleep(0.05)
        started = children(launcher.pid) if ranks > 1 else []
        assert len(started) == (ranks if ranks > 1 else 0)
        launcher.send_signal(number)
        assert launcher.wait(30) == STOPPED, (tmp_path / "stderr").read_text()
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    newest = find_newest(config.folder / "checkpoints")
    assert newest is not None
    step = read_state(newest).step
    assert step == metrics(config)[-1]["step"]
    said = (tmp_path / "stderr").read_text()
    assert f"stopped at step {step} of 100000; the same command goes on" in said and "Traceback" not in said
    run_cli("train", "configs/bert/demo.yaml", *tiny_overrides("bert", corpus, tmp_path, *more), "--stop-after", "2")
    assert [line["step"] for line in metrics(config)] == list(range(1, step + 3))


def test_a_second_start_of_another_seed_is_refused(corpus: Path, tmp_path: Path) -> None:
    """At once, while the first still starts up; the first one's run is not touched."""
    more = ["schedule.total_steps=100000", "name=taken"]
    config = tiny_config("bert", corpus, tmp_path, *more)
    ensure_prepared(config, get_family("bert"))
    command = [sys.executable, "-m", "pretrain", "train", "configs/bert/demo.yaml"]
    command += tiny_overrides("bert", corpus, tmp_path, *more)
    environment = clean_environment() | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL)
    try:
        while not (config.folder / ".lock").exists():
            time.sleep(0.01)
        second = subprocess.run([*command, "seed=9"], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert second.returncode == 2
        assert second.stderr == f"error: {config.folder}: another process is training in this folder\n"
        while not metrics(config):
            assert first.poll() is None
            time.sleep(0.05)
        assert RunFolder(config.folder).read_config().seed == 1
    finally:
        first.kill()
        first.wait()


def test_ranks_that_do_not_share_the_run_folder_are_told_so(corpus: Path, tmp_path: Path) -> None:
    """Before the first step, in one line that names the rank; nothing is trained."""
    for host in ("0", "1"):
        ensure_prepared(tiny_config("bert", corpus, tmp_path / host, "name=apart"), get_family("bert"))
    overrides = tiny_overrides("bert", corpus, tmp_path / "HOST", "name=apart")
    script = (
        "import os, sys; from pretrain.cli import main; "
        "main(['train', 'configs/bert/demo.yaml', *[o.replace('HOST', os.environ['RANK']) for o in sys.argv[1:]]])"
    )
    start = (
        "import sys; from pretrain.runtime.launcher import spawn_ranks; "
        f"sys.exit(spawn_ranks([sys.executable, '-c', {script!r}, *sys.argv[1:]], 2))"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, *overrides],
        cwd=REPOSITORY,
        env=clean_environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "error: rank 1 on " in errors[0], done.stderr
    assert "run_root must be on a file system that all hosts share" in errors[0]
    assert not metrics(tiny_config("bert", corpus, tmp_path / "0", "name=apart"))


def test_a_launched_rank_of_a_finished_run_does_nothing(corpus: Path, tmp_path: Path) -> None:
    more = ["sharding.ranks=1", "sharding.zero_stage=0", "schedule.total_steps=2"]
    config = tiny_config("bert", corpus, tmp_path, *more)
    train(config)
    starts = (config.folder / "starts.jsonl").read_text(encoding="utf-8")
    done = run_cli(
        "train", "configs/bert/demo.yaml", *tiny_overrides("bert", corpus, tmp_path, *more), **rank_environment(0, 1, 1)
    )
    assert "at its last step, 2: nothing to do" in done.stderr
    assert (config.folder / "starts.jsonl").read_text(encoding="utf-8") == starts
