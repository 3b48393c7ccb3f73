"""Real starts of a run with stages, in one process: what they log and write, and where they go on."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pretrain.data.prepare import ensure_prepared
from pretrain.errors import ConfigError
from pretrain.evaluate import evaluate
from pretrain.export import export
from pretrain.models import get_family
from pretrain.runs.held_out import evaluate_model
from pretrain.runs.trained import read_model, read_trained
from pretrain.train import train
from tests.tiny import final_weights, metrics, tiny_config

STAGES = (
    "objective.stages=[{until_step: 3, max_sequence_length: 8, mask_probability: 0.3, shift_positions: true}, "
    "{until_step: 5, max_sequence_length: 16}]"
)
MORE = ["sharding.ranks=1", "sharding.zero_stage=0", "schedule.total_steps=7", "checkpoint.every_steps=3"]


def test_a_run_with_stages(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With dropout, stopped where a stage ends and within one, it is bitwise the run that was never stopped."""
    staged = (STAGES, "data.held_out=0")
    whole, parts = (
        tiny_config("bert", corpus, tmp_path, *MORE, *staged, f"name={name}") for name in ("whole", "parts")
    )
    with caplog.at_level(logging.INFO, "pretrain"):
        train(whole)
    options = {
        1: "max_sequence_length 8, mask_probability 0.3, shift_positions true",
        4: "max_sequence_length 16, mask_probability 0.15, shift_positions false",
        6: "max_sequence_length 32, mask_probability 0.15, shift_positions false",
    }
    said = [message for message in caplog.messages if message.startswith("from step ")]
    assert said == [f"from step {step} on: {stage}" for step, stage in options.items()]
    lines = metrics(whole)
    shown = [(line["max_sequence_length"], line["mask_probability"], line["shift_positions"]) for line in lines]
    assert shown == [(8, 0.3, True)] * 3 + [(16, 0.15, False)] * 2 + [(32, 0.15, False)] * 2

    caplog.clear()
    with caplog.at_level(logging.INFO, "pretrain"):
        for steps in (3, 1, None):
            train(parts, stop_after=steps)
    said = [message.split(":")[0] for message in caplog.messages if message.startswith("from step ")]
    assert said == [f"from step {step} on" for step in (1, 4, 5, 6)]
    for key in ("data_digest", "loss", "tokens"):
        assert [line[key] for line in metrics(parts)] == [line[key] for line in lines]
    ours, theirs = final_weights(parts), final_weights(whole)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())

    other = tiny_config(
        "bert", corpus, tmp_path, *MORE, "data.held_out=0", STAGES.replace("step: 5", "step: 6"), "name=parts"
    )
    with pytest.raises(ConfigError, match=r"objective\.stages was .*'until_step': 5.* now it is .*'until_step': 6"):
        train(other)


def test_held_out_text_knows_no_stages(corpus: Path, tmp_path: Path) -> None:
    """A checkpoint of the first stage is asked what one of a run without stages is."""
    config = tiny_config("bert", corpus, tmp_path, *MORE, STAGES)
    train(config, stop_after=3)
    (measured,) = (line["held_out_loss"] for line in metrics(config) if "held_out_loss" in line)
    assert evaluate(config.folder).losses.loss == pytest.approx(measured, rel=1e-6)
    folder = read_trained(config.folder, "3").folder
    plain = replace(folder, objective=tiny_config("bert", corpus, tmp_path).objective)
    held_out = ensure_prepared(config, get_family("bert")).held_out
    assert evaluate_model(plain, held_out).loss == pytest.approx(measured, rel=1e-6)
    exported, _ = read_model(export(config.folder, tmp_path / "model"))
    assert exported.objective == plain.objective


def test_a_run_that_ends_before_its_stages_says_so(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config("bert", corpus, tmp_path, *MORE, STAGES, "schedule.total_steps=2")
    with caplog.at_level(logging.INFO, "pretrain"):
        train(config)
    assert "schedule.total_steps is 2: objective.stages has more after step 3, never reached" in caplog.messages
