"""Small runs for tests: their configs, starting them on real ranks, and reading what they left."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.config.load import dump_config, load_config
from pretrain.config.run import RunConfig
from pretrain.runs.checkpoints import find_newest, read_weights
from pretrain.runs.folder import RunFolder

REPOSITORY = Path(__file__).parents[1]

TINY = {
    "elmo": [
        "tokenizer.vocabulary_size=150",
        "model.filters=[[1,8],[2,8],[3,16]]",
        "model.character_embedding_size=8",
        "model.cell_size=32",
        "model.projection_size=16",
        "objective.unroll_length=8",
        "objective.softmax=sampled",
        "objective.num_negatives=64",
        'optimizer={"kind":"adagrad","peak_learning_rate":0.2}',  # without spaces, for shells
    ],
    "bert": [
        "tokenizer.vocabulary_size=200",
        "model.hidden_size=32",
        "model.num_layers=2",
        "model.num_heads=2",
        "model.intermediate_size=64",
        "model.dropout=0.1",
        "model.initializer_range=0.02",
        "objective.max_sequence_length=32",
        "objective.stages=[]",
        "model.max_positions=40",
        'optimizer={"kind":"adamw","peak_learning_rate":2.0e-3}',
        "schedule.warmup_steps=4",
    ],
}


def tiny_overrides(family: str, corpus: Path, run_root: Path, *more: str) -> list[str]:
    """Overrides that turn a family's demo config into a run of a second or two."""
    return [
        *TINY[family],
        "batch.global_size=32",
        "batch.micro_size=8",
        f"data.sources=[{{kind: text, files: {json.dumps(str(corpus))}}}]",
        "data.block_tokens=1024",
        "data.held_out=0.05",
        "schedule.total_steps=20",
        "logging.every_steps=1",
        "logging.wandb=off",
        "checkpoint.every_steps=1000",
        "evaluation.every_steps=1000",
        "sharding.persistence_threshold=0",
        f"run_root={run_root}",
        *more,
    ]


def tiny_config(family: str, corpus: Path, run_root: Path, *more: str) -> RunConfig:
    """A family's demo config as a run of a second or two."""
    return load_config(REPOSITORY / "configs" / family / "demo.yaml", tiny_overrides(family, corpus, run_root, *more))


def run_cli(*arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m pretrain …` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:pretrain", "-m", "pretrain", *arguments],
        cwd=REPOSITORY,
        env=clean_environment() | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    if check:
        assert done.returncode == 0, done.stderr[-4000:]
    return done


def clean_environment() -> dict[str, str]:
    """The environment without what tells a process that it is a rank."""
    return {key: value for key, value in os.environ.items() if key not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}


def run_on_ranks(starts: Sequence[tuple[RunConfig, int | None]], ranks: int, folder: Path) -> None:
    """Carries out several starts, one after another, in the same `ranks` processes: importing once saves minutes."""
    jobs = []
    for number, (config, stop_after) in enumerate(starts):
        path = folder / f"job-{ranks}-{number}-{config.name}.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        jobs.append([str(path), stop_after])
    script = (
        "import sys; from pretrain.runtime.launcher import spawn_ranks; "
        f"sys.exit(spawn_ranks([sys.executable, '-m', 'tests.rank', {json.dumps(json.dumps(jobs))}], {ranks}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env=clean_environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def metrics(config: RunConfig) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return RunFolder(config.folder).read_metrics()


def final_weights(config: RunConfig) -> dict[str, Tensor]:
    """The weights of a run's newest checkpoint."""
    newest = find_newest(RunFolder(config.folder).checkpoints)
    assert newest is not None
    return read_weights(newest)
