"""Sharding changes nothing: any ZeRO stage, any accumulation, any number of ranks equals one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.data.prepare import ensure_prepared
from pretrain.models import get_family
from tests.tiny import final_weights, metrics, run_on_ranks, tiny_config

OPTIMIZERS = {
    "adamw": ["optimizer={kind: adamw, peak_learning_rate: 1e-3, clip_norm: 0.5}"],
    "adagrad": ["optimizer={kind: adagrad, peak_learning_rate: 0.05, clip_norm: 0.5}"],
    # With an epsilon as large as gradients are, these are not blind to the gradient's scale.
    "lamb": ["optimizer={kind: lamb, peak_learning_rate: 0.01, epsilon: 1e-3, weight_decay: 0.1, clip_norm: 0.5}"],
    "muon": [
        "optimizer={kind: muon, peak_learning_rate: 1e-3, matrix_learning_rate: 2e-3, epsilon: 1e-3, clip_norm: 0.5, "
        "weight_decay: 0.1}"
    ],
    "lamb-plain": [
        "optimizer={kind: lamb, peak_learning_rate: 0.01, epsilon: 1e-3, clip_norm: 0.5, bias_correction: false, "
        "min_trust_ratio: 0.01, max_trust_ratio: 0.3}"
    ],
    "adamw-plain": [
        "optimizer={kind: adamw, peak_learning_rate: 1e-3, epsilon: 1e-3, clip_norm: 0.5, bias_correction: false}"
    ],
}
ODD_SIZES = {"bert": ["model.hidden_size=33", "model.num_heads=3"], "elmo": ["model.projection_size=15"]}
"""Matrices of 33 × 33 do not divide evenly: ZeRO 3 pads their last part. Parts of an LSTM's end within a row."""
MICRO_SIZES = {"adamw": (16, 4), "adagrad": (16, 4), "lamb": (4,), "lamb-plain": (16, 4), "adamw-plain": (16, 4)} | {
    "muon": (4,)
}
"""Examples per rank and pass: accumulation 1 and 4."""


def plain(family: str, corpus: Path, root: Path, optimizer: str, name: str, *more: str) -> RunConfig:
    """A run without dropout, so that every split computes the same thing."""
    return tiny_config(
        family,
        corpus,
        root,
        "model.dropout=0",
        "schedule.decay=constant",
        *OPTIMIZERS[optimizer],
        *(ODD_SIZES[family] if optimizer in ("lamb", "muon") else ()),
        f"name={name}",
        *more,
    )


def same_run(ours: RunConfig, reference: RunConfig) -> None:
    """Equal digests at every step, equal losses and final weights to rounding."""
    a, b = metrics(ours), metrics(reference)
    assert [line["data_digest"] for line in a] == [line["data_digest"] for line in b]
    assert len({line["data_digest"] for line in a}) == len(a) == 20
    for key in (key for key in b[0] if key.endswith("loss")):
        torch.testing.assert_close([x[key] for x in a], [x[key] for x in b], rtol=1e-5, atol=1e-6)
    if "nsp_loss" in b[0]:
        same_next_sentences(a, b)
    torch.testing.assert_close([x["gradient_norm"] for x in a], [x["gradient_norm"] for x in b], rtol=1e-4, atol=1e-6)
    weights, expected = final_weights(ours), final_weights(reference)
    assert weights.keys() == expected.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-5, atol=2e-6)


def same_next_sentences(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    """The shares of right predictions, and of the more frequent class, as the step's examples have it."""
    for ours, theirs in zip(a, b, strict=True):
        # Rounding may decide one of the 32 that is almost a tie.
        assert ours["nsp_accuracy"] == pytest.approx(theirs["nsp_accuracy"], abs=1.01 / 32)
        assert ours["nsp_majority"] == max(ours["nsp_random_share"], 1 - ours["nsp_random_share"])
    assert a[-1]["held_out_nsp_majority"] == b[-1]["held_out_nsp_majority"]
    for key in ("held_out_nsp_accuracy", "held_out_mlm_accuracy"):
        assert a[-1][key] == pytest.approx(b[-1][key], rel=0.02)


@pytest.mark.parametrize(
    ("family", "optimizers"),
    [
        ("elmo", ("adamw", "adagrad")),
        ("bert", ("adamw", "muon")),
        pytest.param("elmo", ("muon",), marks=pytest.mark.slow),
        pytest.param("bert", ("adagrad", "lamb", "lamb-plain", "adamw-plain"), marks=pytest.mark.slow),
    ],
)
def test_every_stage_equals_one_process(family: str, optimizers: tuple[str, ...], corpus: Path, tmp_path: Path) -> None:
    references, sharded = {}, []
    for optimizer in optimizers:
        one = ["sharding.ranks=1", "sharding.zero_stage=0", "batch.micro_size=32"]
        references[optimizer] = plain(family, corpus, tmp_path, optimizer, f"{optimizer}-one", *one)
        for stage in (0, 1, 2, 3):  # 0 is DDP
            for micro_size in MICRO_SIZES[optimizer]:
                name = f"{optimizer}-zero{stage}-micro{micro_size}"
                split = ["sharding.ranks=2", f"sharding.zero_stage={stage}", f"batch.micro_size={micro_size}"]
                sharded.append((optimizer, plain(family, corpus, tmp_path, optimizer, name, *split)))
    ensure_prepared(next(iter(references.values())), get_family(family))
    run_on_ranks([(config, None) for config in references.values()], 1, tmp_path)
    run_on_ranks([(config, None) for _, config in sharded], 2, tmp_path)
    for optimizer, config in sharded:
        same_run(config, references[optimizer])
    for reference in references.values():
        losses = [line["loss"] for line in metrics(reference)]
        assert sum(losses[-5:]) < sum(losses[:5]), "the runs learn, so the comparison says something"
        assert max(line["gradient_norm"] for line in metrics(reference)) > 0.5, "clipping is at work"
        if reference.objective.kind == "elmo":
            assert 0 < reference.objective.reset_probability < 1, "rows carry states, and begin anew"


@pytest.mark.slow
def test_four_ranks_equal_one_process(corpus: Path, tmp_path: Path) -> None:
    """With and without accumulation; the update depends on the gradient's scale. ZeRO 3 gathers weights once more for
    layers that are computed again."""
    one = ["sharding.ranks=1", "sharding.zero_stage=0", "batch.micro_size=32"]
    reference = plain("bert", corpus, tmp_path, "adagrad", "one", *one)
    sharded = [
        plain("bert", corpus, tmp_path, "adagrad", name, "sharding.ranks=4", f"batch.micro_size={micro_size}", *more)
        for name, micro_size, more in (
            ("ddp", 2, ["sharding.zero_stage=0"]),
            ("zero3", 8, ["sharding.zero_stage=3", "compute.activation_checkpointing=true"]),
        )
    ]
    ensure_prepared(reference, get_family("bert"))
    run_on_ranks([(reference, None)], 1, tmp_path)
    run_on_ranks([(config, None) for config in sharded], 4, tmp_path)
    for config in sharded:
        same_run(config, reference)


@pytest.mark.slow
def test_full_softmax_and_independent_streams(corpus: Path, tmp_path: Path) -> None:
    """Its backward pass reads the weights a second time, which ZeRO 3 has let go of by then."""
    options = ["objective.softmax=full", "objective.backward_text=independent", "objective.reset_probability=0.5"]
    one = ["sharding.ranks=1", "sharding.zero_stage=0", "batch.micro_size=32"]
    reference = plain("elmo", corpus, tmp_path, "adagrad", "one", *one, *options)
    split = ["sharding.ranks=2", "sharding.zero_stage=3", "batch.micro_size=4"]
    sharded = plain("elmo", corpus, tmp_path, "adagrad", "zero3", *split, *options)
    ensure_prepared(reference, get_family("elmo"))
    run_on_ranks([(reference, None)], 1, tmp_path)
    run_on_ranks([(sharded, None)], 2, tmp_path)
    same_run(sharded, reference)
