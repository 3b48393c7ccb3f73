"""bf16 rounds products and nothing else: a step depends neither on the micro-batches, nor on the ranks, nor on ZeRO."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pretrain.config.load import dump_config
from pretrain.config.run import RunConfig
from pretrain.data.prepare import ensure_prepared
from pretrain.models import get_family
from pretrain.runs.checkpoints import Tensors, find_newest
from tests.tiny import REPOSITORY, clean_environment, metrics, run_on_ranks, tiny_config

STAGES = (0, 1, 2, 3)
MICRO_SIZES = (16, 2)
"""On two ranks: accumulation 1 and 8."""
SHOWS_ITS_GRADIENT = "optimizer={kind: adamw, peak_learning_rate: 1e-3, beta1: 0, clip_norm: 0}"
"""With beta1 0, the running mean of the gradient is the last gradient, with its scale; AdamW's update has none."""


def first_gradient(config: RunConfig) -> dict[str, Tensor]:
    """The gradient of the first step, in float64, by parameter."""
    newest = find_newest(config.folder / "checkpoints")
    assert newest is not None and newest.name == "step-00000001"
    tensors = Tensors(newest, "tensors")
    return {key.removeprefix("exp_avg/"): tensors.get(key).double() for key in tensors if key.startswith("exp_avg/")}


Gradients = tuple[dict[str, Tensor], dict[tuple[int, int], dict[str, Tensor]]]
"""Of one process in float32; and in bf16 on two ranks, by stage and micro_size."""


@pytest.fixture(scope="module")
def first_gradients(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Gradients]:
    """The first gradients of a family, however it is split; measured once."""

    @cache
    def measure(family: str) -> Gradients:
        root = tmp_path_factory.mktemp(family)

        def config(name: str, *more: str) -> RunConfig:
            return tiny_config(family, corpus, root, "model.dropout=0", SHOWS_ITS_GRADIENT, f"name={name}", *more)

        one = config("one", "sharding.ranks=1", "sharding.zero_stage=0", "batch.micro_size=32")
        split = {
            (stage, size): config(
                f"zero{stage}-micro{size}",
                "precision=bf16-mixed",
                "sharding.ranks=2",
                f"sharding.zero_stage={stage}",
                f"batch.micro_size={size}",
            )
            for stage in STAGES
            for size in MICRO_SIZES
        }
        ensure_prepared(one, get_family(family))
        run_on_ranks([(one, 1)], 1, root)
        run_on_ranks([(each, 1) for each in split.values()], 2, root)
        found = {key: first_gradient(each) for key, each in split.items()}
        for key, gradient in found.items():
            assert norm(gradient) > 1.1, "clipping to 1, DeepSpeed's default, would show"
            assert metrics(split[key])[0]["gradient_norm"] == pytest.approx(norm(gradient), rel=1e-5)
        return first_gradient(one), found

    return measure


def norm(gradient: dict[str, Tensor]) -> float:
    return torch.stack([tensor.norm() for tensor in gradient.values()]).norm().item()


def distance(gradient: dict[str, Tensor], reference: dict[str, Tensor], part: str = "") -> float:
    """‖gradient - reference‖ ÷ ‖reference‖, over the parameters whose names contain `part`."""
    names = [name for name in reference if part in name]
    assert names and gradient.keys() == reference.keys()
    difference = norm({name: gradient[name] - reference[name] for name in names})
    return difference / norm({name: reference[name] for name in names})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "embeddings", "bound"),
    [
        ("bert", "encoder.embeddings.", 0.01),
        ("elmo", "softmax", 0.01),
        # Rounded to bfloat16, the maximum over a word's windows has ties, and a gradient goes to one of them.
        ("elmo", "characters", 0.02),
    ],
)
def test_a_step_in_bf16_does_not_depend_on_how_it_is_split(
    family: str, embeddings: str, bound: float, first_gradients: Callable[[str], Gradients]
) -> None:
    """Of the first gradient: ZeRO's is DDP's, that of many micro-batches is that of one, and both are nearly float32's.

    Prints the table of docs/decisions/0013-gradients-are-summed-in-float32.md.
    """
    exact, found = first_gradients(family)
    for (stage, size), gradient in found.items():
        from_exact, of_embeddings = distance(gradient, exact), distance(gradient, exact, embeddings)
        from_ddp = max(distance(gradient, found[0, size], part) for part in ("", embeddings))
        from_whole = max(distance(gradient, found[stage, 16], part) for part in ("", embeddings))
        print(
            f"| {family} | {stage} | {size} | {from_exact:.2%} | {embeddings} {of_embeddings:.2%} "
            f"| {from_whole:.2%} | {from_ddp:.0e} |"
        )
        assert from_ddp < 1e-6, "float32 rounding"
        assert from_whole < 4e-3, "one rounding of products, 2⁻⁹, each"
        assert from_exact < 0.01 and of_embeddings < bound


@pytest.mark.slow
def test_a_step_that_deepspeed_would_leave_out_ends_the_run(corpus: Path, tmp_path: Path) -> None:
    """On all ranks alike, at that step, where one rank's gradient is infinite and every loss is finite."""
    names = [f"{precision}-{stage}" for precision in ("32-true", "bf16-mixed") for stage in (1, 2, 3)]
    paths = []
    for name in names:
        precision, _, stage = name.rpartition("-")
        more = [f"precision={precision}", f"sharding.zero_stage={stage}", f"name={name}", "logging.every_steps=1000"]
        config = tiny_config("bert", corpus, tmp_path, "sharding.ranks=2", *more)
        ensure_prepared(config, get_family("bert"))
        paths.append(str(tmp_path / f"{name}.yaml"))
        Path(paths[-1]).write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, "-m", "tests.distributed.infinite_gradient_rank", str(tmp_path), *paths]
    script = f"import sys; from pretrain.runtime.launcher import spawn_ranks; sys.exit(spawn_ranks({command}, 2))"
    environment = clean_environment() | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, env=environment, check=True, timeout=500)
    for rank in range(2):
        ended = json.loads((tmp_path / f"rank-{rank}.json").read_text(encoding="utf-8"))
        assert list(ended) == names
        for name, problem in ended.items():
            assert problem is not None and problem.startswith("step 3: the norm of the gradient is NaN or"), name
            assert find_newest(tmp_path / name / "checkpoints") is None
