"""Stopping and starting again changes nothing: bitwise on the same ranks, to rounding on others."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.data.prepare import ensure_prepared
from pretrain.models import get_family
from pretrain.runs.checkpoints import Tensors, checkpoint_name
from pretrain.runs.trained import build_initial_model, read_tokenizer
from tests.tiny import (
    REPOSITORY,
    clean_environment,
    final_weights,
    metrics,
    run_on_ranks,
    tiny_config,
    tiny_overrides,
)


def digests(config: RunConfig) -> list[str]:
    return [line["data_digest"] for line in metrics(config)]


LAMB = "optimizer={kind: lamb, peak_learning_rate: 0.01, clip_norm: 0.5}"
MUON = "optimizer={kind: muon, peak_learning_rate: 2e-3, clip_norm: 0.5}"
PLAIN_ADAMW = "optimizer={kind: adamw, peak_learning_rate: 1e-3, bias_correction: false}"
BF16 = "precision=bf16-mixed"
STAGES = (
    "objective.stages=[{until_step: 4, max_sequence_length: 8, mask_probability: 0.3, shift_positions: true}, "
    "{until_step: 10, max_sequence_length: 16}]"
)


@pytest.mark.parametrize(
    ("family", "variants", "stages"),
    [
        ("elmo", [("objective.reset_probability=0.5",)], (2, 3)),
        ("bert", [()], (2, 3)),
        ("bert", [(LAMB,), (MUON,)], (3,)),
        pytest.param("bert", [(LAMB,), (MUON,)], (0, 1, 2), marks=pytest.mark.slow),
        pytest.param("bert", [(LAMB, BF16)], (1, 2, 3), marks=pytest.mark.slow),
        pytest.param("bert", [(PLAIN_ADAMW,)], (1, 3), marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_bitwise_the_same(
    family: str, variants: list[tuple[str, ...]], stages: tuple[int, ...], corpus: Path, tmp_path: Path
) -> None:
    """With dropout, on two ranks."""
    starts = []
    pairs = []
    for (number, more), stage in itertools.product(enumerate(variants), stages):
        options = [f"sharding.zero_stage={stage}", *more]
        whole, halves = (
            tiny_config(family, corpus, tmp_path, f"name={name}-{number}-{stage}", *options)
            for name in ("whole", "halves")
        )
        assert whole.model.dropout > 0
        starts += [(whole, None), (halves, 10), (halves, None)]
        pairs.append((whole, halves))
    ensure_prepared(pairs[0][0], get_family(family))
    run_on_ranks(starts, 2, tmp_path)
    for whole, halves in pairs:
        assert len(digests(whole)) == 20
        assert digests(halves) == digests(whole)
        assert [x["loss"] for x in metrics(halves)] == [x["loss"] for x in metrics(whole)]
        weights, expected = final_weights(halves), final_weights(whole)
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


BEGINNINGS = {
    "adamw": "optimizer={kind: adamw, peak_learning_rate: 1e-3}",
    "lamb": LAMB,
    "muon": MUON,
    "adagrad": "optimizer={kind: adagrad, peak_learning_rate: 0.05, initial_accumulator: 0.5}",
}


@pytest.mark.parametrize(
    ("optimizer", "stages"),
    [
        ("adagrad", (3,)),
        ("lamb", (2,)),
        pytest.param("adamw", (0, 1, 2, 3), marks=pytest.mark.slow),
        pytest.param("lamb", (0, 1, 3), marks=pytest.mark.slow),
        pytest.param("muon", (1, 3), marks=pytest.mark.slow),
        pytest.param("adagrad", (0, 1, 2), marks=pytest.mark.slow),
    ],
)
def test_the_untrained_model_is_the_runs_beginning(
    optimizer: str, stages: tuple[int, ...], corpus: Path, tmp_path: Path
) -> None:
    """`--stop-after 0` on two ranks saves the initial weights and states; training on from them is bitwise the run."""
    starts: list[tuple[RunConfig, int | None]] = []
    pairs = []
    for stage in stages:
        more = [BEGINNINGS[optimizer], f"sharding.zero_stage={stage}", "schedule.total_steps=4"]
        whole, halves = (
            tiny_config("bert", corpus, tmp_path, f"name={name}-{stage}", *more) for name in ("whole", "halves")
        )
        starts += [(whole, None), (halves, 0), (halves, None)]
        pairs.append((whole, halves))
    prepared = ensure_prepared(pairs[0][0], get_family("bert"))
    run_on_ranks(starts, 2, tmp_path)
    tokenizer = read_tokenizer(pairs[0][0], prepared.fetch_tokenizer())
    for whole, halves in pairs:
        saved = Tensors(halves.folder / "checkpoints" / checkpoint_name(0), "tensors")
        initial = dict(build_initial_model(whole, tokenizer).named_parameters())
        assert {key.partition("/")[2] for key in saved} == initial.keys()
        for key in saved:
            state, _, name = key.partition("/")
            expected = initial[name].detach() if state == "weight" else torch.full(initial[name].shape, 0.0)
            assert torch.equal(saved.get(key), expected + 0.5 if state == "sum" else expected), key
        assert [x["loss"] for x in metrics(halves)] == [x["loss"] for x in metrics(whole)]
        assert len(metrics(whole)) == 4
        weights, expected_weights = final_weights(halves), final_weights(whole)
        assert all(torch.equal(weights[name], value) for name, value in expected_weights.items())


ADAGRAD = "optimizer={kind: adagrad, peak_learning_rate: 0.05, clip_norm: 0.5}"
COARSE_MUON = "optimizer={kind: muon, peak_learning_rate: 2e-3, epsilon: 1e-3, clip_norm: 0.5}"
COARSE_LAMB = "optimizer={kind: lamb, peak_learning_rate: 0.01, epsilon: 1e-3, clip_norm: 0.5}"


@pytest.mark.parametrize(
    ("family", "optimizer"),
    [
        ("elmo", ADAGRAD),
        ("bert", ADAGRAD),
        pytest.param("bert", COARSE_LAMB, marks=pytest.mark.slow),
        pytest.param("bert", COARSE_MUON, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_other_ranks_stages_and_workers(
    family: str, optimizer: str, corpus: Path, tmp_path: Path
) -> None:
    """10 steps on two ranks, then 10 on one, and the other way round; equal to rounding without dropout.

    An ELMo's rows carry states across, and begin anew with the default `reset_probability`.
    """
    same = ["model.dropout=0", optimizer]
    two = ["sharding.ranks=2", "sharding.zero_stage=2", "batch.micro_size=8"]
    one = ["sharding.ranks=1", "sharding.zero_stage=0", "batch.micro_size=16", "data.workers=2"]
    three = ["sharding.ranks=2", "sharding.zero_stage=3", "batch.micro_size=16", "data.workers=1"]

    def config(name: str, how: list[str]) -> RunConfig:
        return tiny_config(family, corpus, tmp_path, *same, *how, f"name={name}")

    whole = config("whole", two)
    ensure_prepared(whole, get_family(family))
    run_on_ranks([(whole, None), (config("down", two), 10), (config("stages", two), 10)], 2, tmp_path)
    run_on_ranks([(config("down", one), None), (config("up", one), 10)], 1, tmp_path)
    run_on_ranks([(config("up", three), None), (config("stages", three), None)], 2, tmp_path)
    for name in ("down", "up", "stages"):
        resumed = config(name, two)
        assert digests(resumed) == digests(whole)
        weights, expected = final_weights(resumed), final_weights(whole)
        for key in expected:
            torch.testing.assert_close(weights[key], expected[key], rtol=1e-5, atol=2e-6)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text()]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone_within(seconds: float, pids: list[int]) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive(pids)


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.parametrize(
    ("killed", "launcher", "more"),
    [
        ("launcher", [], []),
        ("rank", [], []),
        pytest.param("launcher", TORCHRUN, [], marks=pytest.mark.slow),
        pytest.param("rank", [], [STAGES], marks=pytest.mark.slow),
    ],
    ids=["our-launcher", "a-rank", "torchrun", "in-a-stage"],
)
def test_a_kill_leaves_nothing_behind_and_loses_nothing(
    killed: str, launcher: list[str], more: list[str], corpus: Path, tmp_path: Path
) -> None:
    """kill -9 of the launcher ends the ranks within 5 s; of a rank, the whole run; both resume to the same weights.

    In a stage: from the checkpoint at its begin, or a later one.
    """
    overrides = ["checkpoint.every_steps=4", "name=killed", "data.workers=1", *more]
    config = tiny_config("bert", corpus, tmp_path, *overrides)
    ensure_prepared(config, get_family("bert"))
    command = [sys.executable, *launcher, "-m", "pretrain", "train", "configs/bert/demo.yaml"]
    command += tiny_overrides("bert", corpus, tmp_path, *overrides)
    environment = clean_environment() | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(metrics(config)) < 6:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    ranks = children(process.pid)
    workers = [worker for rank in ranks for worker in children(rank)]
    assert len(ranks) == 2 and workers
    os.kill(process.pid if killed == "launcher" else ranks[1], signal.SIGKILL)
    assert gone_within(5 if killed == "launcher" else 10, ranks)
    process.wait(10)
    assert process.returncode not in (0, 2)
    assert gone_within(15, workers), "torch's loader workers look every 5 s whether their rank is there"
    whole = tiny_config("bert", corpus, tmp_path, "name=whole", "checkpoint.every_steps=4", *more)
    run_on_ranks([(config, None), (whole, None)], 2, tmp_path)
    assert digests(config) == digests(whole)
    weights, expected = final_weights(config), final_weights(whole)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
