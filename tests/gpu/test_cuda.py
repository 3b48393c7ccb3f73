"""On CUDA over NCCL, one rank per GPU: sharding changes nothing, resuming is bitwise, 16 bits train."""

import math
from pathlib import Path

import pytest
import torch

from pretrain.config.compute import ComputeConfig
from pretrain.config.models import BertConfig
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.config.run import RunConfig
from pretrain.data.prepare import ensure_prepared
from pretrain.models import FAMILIES, get_family
from pretrain.models.bert.backends import BACKENDS_BY_SPEED, select_backends
from pretrain.models.bert.model import BertModel
from tests.gpu import DRY
from tests.tiny import final_weights, metrics, run_on_ranks, tiny_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (torch.cuda.is_available() or DRY), reason="needs CUDA (tests/gpu/run.sh)"),
]

RANKS = max(1, torch.cuda.device_count())
MICRO_SIZE = 16 // RANKS
STEPS = 2 if DRY else 12
STAGES = (0, 3) if DRY else (0, 1, 2, 3)
LENGTH = f"schedule={{total_steps: {STEPS}}}"
OPTIMIZERS = {
    "adamw": "optimizer={kind: adamw, peak_learning_rate: 1e-3, clip_norm: 0.5}",
    "adagrad": "optimizer={kind: adagrad, peak_learning_rate: 0.05, clip_norm: 0.5}",
}


def run(family: str, corpus: Path, root: Path, name: str, *overrides: str) -> RunConfig:
    """A tiny config of a family, its text prepared."""
    same = [LENGTH, f"batch.micro_size={MICRO_SIZE}", f"name={family}-{name}"]
    config = tiny_config(family, corpus, root, *same, *overrides)
    ensure_prepared(config, get_family(family))
    return config


def test_every_stage_equals_stage_0(corpus: Path, tmp_path: Path) -> None:
    runs: dict[tuple[str, str], list[RunConfig]] = {}
    for family in FAMILIES:
        for name, optimizer in list(OPTIMIZERS.items())[: 1 if DRY else None]:
            same = ["model.dropout=0", optimizer]
            runs[family, name] = [
                run(family, corpus, tmp_path, f"{name}-{stage}", f"sharding.zero_stage={stage}", *same)
                for stage in STAGES
            ]
    run_on_ranks([(config, None) for group in runs.values() for config in group], RANKS, tmp_path)
    for reference, *sharded in runs.values():
        expected = metrics(reference)
        assert len(expected) == STEPS
        assert DRY or expected[-1]["loss"] < expected[0]["loss"]
        for config in sharded:
            lines = metrics(config)
            assert [line["data_digest"] for line in lines] == [line["data_digest"] for line in expected]
            for key in ("loss", "gradient_norm"):
                ours, theirs = [line[key] for line in lines], [line[key] for line in expected]
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, c=config: f"{c.name}: {m}")
            weights = final_weights(config)
            for name, weight in final_weights(reference).items():
                torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_is_bitwise_the_same(corpus: Path, tmp_path: Path) -> None:
    """With dropout and `deterministic: true`, at every stage."""
    starts: list[tuple[RunConfig, int | None]] = []
    pairs = []
    for family in FAMILIES:
        for stage in STAGES:
            same = ["deterministic=true", f"sharding.zero_stage={stage}"]
            whole, halves = (run(family, corpus, tmp_path, f"{name}-{stage}", *same) for name in ("whole", "halves"))
            assert whole.model.dropout > 0
            starts += [(whole, None), (halves, STEPS // 2), (halves, None)]
            pairs.append((whole, halves))
    run_on_ranks(starts, RANKS, tmp_path)
    for whole, halves in pairs:
        assert [line["loss"] for line in metrics(halves)] == [line["loss"] for line in metrics(whole)], whole.name
        weights, expected = final_weights(halves), final_weights(whole)
        assert all(torch.equal(weights[name], expected[name]) for name in expected), whole.name


def test_bert_uses_the_fastest_backends(capsys: pytest.CaptureFixture[str]) -> None:
    """The fastest backends are used, with dropout of attention one that has it; layers are compiled where it works."""
    device = torch.device("cpu" if DRY else "cuda")
    for dropout in (0.0, None):
        config = BertConfig(attention_dropout=dropout, num_layers=2, hidden_size=128, num_heads=2)
        model = BertModel(config, BertObjectiveConfig(), 1000)
        lines = select_backends(model, ComputeConfig(), device, torch.bfloat16, 0)
        with capsys.disabled():
            print(*lines, sep="\n")
        assert DRY or model.encoder.attention in (BACKENDS_BY_SPEED if dropout == 0 else BACKENDS_BY_SPEED[2:])
        assert DRY or lines[-1] in ("layers and heads are compiled", "nothing is compiled: attention is nested")


def test_16_bits_train(corpus: Path, tmp_path: Path) -> None:
    """Finite losses that fall, and stay near those of float32."""

    def sixteen(family: str, stage: int, precision: str = "bf16-mixed") -> RunConfig:
        same = ["model.dropout=0", f"precision={precision}", f"sharding.zero_stage={stage}"]
        return run(family, corpus, tmp_path, f"{stage}-{precision}", *same)

    exact = {family: sixteen(family, 0, "32-true") for family in FAMILIES}
    rough = {(family, stage): sixteen(family, stage) for family in FAMILIES for stage in STAGES}
    run_on_ranks([(config, None) for config in (*exact.values(), *rough.values())], RANKS, tmp_path)
    for (family, stage), config in rough.items():
        losses = [line["loss"] for line in metrics(config)]
        assert all(map(math.isfinite, losses)), (family, stage)
        assert DRY or losses[-1] < losses[0], (family, stage)
        torch.testing.assert_close(losses, [line["loss"] for line in metrics(exact[family])], rtol=0.05, atol=0.05)
