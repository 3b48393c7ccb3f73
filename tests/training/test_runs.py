"""Real starts in one process: what they write, when they measure and save, where they begin and end."""

import logging
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.data.prepare import ensure_prepared
from pretrain.errors import DataError, TrainingError
from pretrain.evaluate import evaluate, read_model
from pretrain.export import export
from pretrain.models import get_family
from pretrain.models.family import ModelFolder
from pretrain.runtime.run_folder import RunFolder
from pretrain.train import train
from pretrain.training import checkpoint
from pretrain.training.callbacks import shares
from pretrain.training.checkpoint import find_newest
from pretrain.training.trained import evaluate_run, load_tokenizer
from pretrain.training.trainer import build_module
from tests.conftest import write_corpus
from tests.runs import metrics, run_cli, tiny_config, tiny_overrides
from tests.training.wandb_file import read_wandb

FAMILIES = ("elmo", "bert")
TERMS = {"elmo": ("forward", "backward"), "bert": ("mlm", "nsp")}
ONE = ["sharding.ranks=1", "sharding.zero_stage=0"]


def steps_saved(config: RunConfig) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (config.folder / "checkpoints").glob("step-*"))


def test_shares_of_a_steps_counts() -> None:
    assert shares({"forward": 7, "backward": 7, "tokens": 9}) == {}
    counts = {"mlm": 9, "nsp": 8, "nsp.random": 5, "tokens": 60, "places": 64}
    assert shares(counts) == {"nsp_random_share": 5 / 8, "fill": 60 / 64}
    assert shares({"nsp": 0, "nsp.random": 0}) == {"nsp_random_share": 0}


def test_what_a_run_writes(corpus: Path, tmp_path: Path) -> None:
    """metrics.jsonl, the console and W&B's offline file hold the same numbers."""
    more = [*ONE, "name=told", "logging.wandb=offline", "schedule.total_steps=6", "logging.every_steps=2"]
    done = run_cli("train", "configs/bert/demo.yaml", *tiny_overrides("bert", corpus, tmp_path, *more))
    config = tiny_config("bert", corpus, tmp_path, *more)
    assert done.stdout == f"run folder: {config.folder}\n"
    lines = metrics(config)
    assert [line["step"] for line in lines] == [2, 4, 6]
    keys = {"step", "loss", "mlm_loss", "nsp_loss", "learning_rate", "tokens_per_second", "data_digest"}
    assert all(0 < line[share] <= 1 for line in lines for share in ("fill", "nsp_random_share"))
    assert all(line.keys() >= keys | {"gradient_norm", "tokens", "time"} for line in lines)
    assert all(len(line["data_digest"]) == 16 and line["tokens_per_second"] > 0 for line in lines)
    assert all(0.5 <= line["nsp_majority"] < 1 and "mlm_accuracy" not in line for line in lines)
    measured = {"loss", "perplexity", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy", "nsp_majority"}
    assert {f"held_out_{name}" for name in measured} <= lines[-1].keys()

    table = [row.split() for row in done.stderr.splitlines()[-4:]]
    assert table[0] == ["step", "loss", "lr", "tokens/s", "held-out"]
    assert [row[0] for row in table[1:]] == ["2", "4", "6"]
    assert [float(row[1]) for row in table[1:]] == pytest.approx([line["loss"] for line in lines], abs=1e-4)
    assert float(table[-1][4]) == pytest.approx(lines[-1]["held_out_loss"], abs=1e-4)
    assert len({len(row) for row in done.stderr.splitlines()[-4:]}) == 1, "fixed columns"

    recorded = read_wandb(config.folder)
    assert recorded.config["model"] == config.model_dump(mode="json")["model"]
    assert recorded.config["schedule"]["total_steps"] == 6
    assert [line["_step"] for line in recorded.history] == [2, 4, 6]
    for ours, theirs in zip(lines, recorded.history, strict=True):
        assert ours == {key: theirs[key] for key in ours}


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_loss_and_the_best_checkpoint(family: str, corpus: Path, tmp_path: Path) -> None:
    more = [*ONE, "evaluation.every_steps=2", "checkpoint.every_steps=2", "checkpoint.keep_last=9"]
    config = tiny_config(family, corpus, tmp_path, *more, "schedule.total_steps=6")
    train(config)
    measured = {line["step"]: line for line in metrics(config) if "held_out_loss" in line}
    assert list(measured) == [2, 4, 6] == steps_saved(config)
    for step, line in measured.items():
        found = evaluate(config.folder, checkpoint=str(step))
        assert found.losses.loss == pytest.approx(line["held_out_loss"], rel=1e-6)
        for term in TERMS[family]:
            assert found.losses.terms[term] == pytest.approx(line[f"held_out_{term}_loss"], rel=1e-6)
    lowest = min(measured, key=lambda step: measured[step]["held_out_loss"])
    assert (config.folder / "checkpoints" / "best").resolve().name == f"step-{lowest:08d}"


def test_the_best_checkpoint_stays_when_the_loss_rises(corpus: Path, tmp_path: Path) -> None:
    more = ["evaluation.every_steps=1", "checkpoint.every_steps=1", "checkpoint.keep_last=1", "schedule.total_steps=5"]
    rising = "optimizer={kind: adamw, peak_learning_rate: 3.0, clip_norm: 0}"
    config = tiny_config("bert", corpus, tmp_path, *ONE, *more, rising, "schedule.warmup_steps=3")
    train(config)
    losses = [line["held_out_loss"] for line in metrics(config)]
    best = losses.index(min(losses)) + 1
    assert best < 5, "else this says nothing"
    assert steps_saved(config) == [best, 5]
    assert evaluate(config.folder).losses.loss == pytest.approx(min(losses), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_held_out(family: str, corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(family, corpus, tmp_path, *ONE, "data.held_out=0", "schedule.total_steps=2")
    train(config)
    assert not any("held_out_loss" in line for line in metrics(config))
    assert not (config.folder / "checkpoints" / "best").exists()
    with pytest.raises(DataError, match="nothing is held out"):
        evaluate(config.folder)


def test_held_out_text_without_an_example_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("One.\n", encoding="utf-8")
    corpus = write_corpus(tmp_path / "corpus.txt", 100)
    config = tiny_config("bert", corpus, tmp_path, *ONE, f"data.held_out=[{{kind: text, files: {tmp_path}/short.txt}}]")
    with pytest.raises(DataError, match=r"data\.held_out"):
        train(config)
    assert not metrics(config)


def test_stopping_after_some_steps_and_going_on(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`--stop-after` counts the steps of this start, and ends as a success that saves."""
    config = tiny_config("elmo", corpus, tmp_path, *ONE, "schedule.total_steps=7")
    for expected in (3, 6, 7):
        assert train(config, stop_after=3) == config.folder
        assert [line["step"] for line in metrics(config)] == list(range(1, expected + 1))
        assert steps_saved(config)[-1] == expected
    starts = (config.folder / "starts.jsonl").read_text(encoding="utf-8")
    files = {path: path.stat().st_mtime_ns for path in config.folder.rglob("*")}
    with caplog.at_level(logging.INFO, "pretrain"):
        train(config)
    assert f"{config.folder} is at its last step, 7: nothing to do" in caplog.text
    assert (config.folder / "starts.jsonl").read_text(encoding="utf-8") == starts
    assert {path: path.stat().st_mtime_ns for path in config.folder.rglob("*")} == files


def test_a_loss_that_is_no_number_ends_the_run(corpus: Path, tmp_path: Path) -> None:
    """Steps that are not logged are noticed when the run would be saved."""
    absurd = "optimizer={kind: adagrad, peak_learning_rate: 1e38, clip_norm: 0}"
    for name, more in {"logged": "logging.every_steps=1", "saved": "logging.every_steps=1000"}.items():
        config = tiny_config("bert", corpus, tmp_path, *ONE, absurd, f"name={name}", more, "checkpoint.every_steps=4")
        with pytest.raises(TrainingError, match=r"^step \d+: the .* is (nan|inf): nothing was saved") as error:
            train(config)
        assert "\n" not in str(error.value)
        assert find_newest(config.folder / "checkpoints") is None


def test_weights_that_are_no_numbers_are_not_saved(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's loss may be fine, and what it makes of the weights not."""
    monkeypatch.setattr(checkpoint, "collect", lambda *_, **__: {"weight/a": torch.tensor([1.0, math.inf])})
    config = tiny_config("bert", corpus, tmp_path, *ONE, "data.held_out=0")
    with pytest.raises(TrainingError, match=r"^step 1: weight/a is nan"):
        train(config, stop_after=1)
    assert find_newest(config.folder / "checkpoints") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_starts_from_a_model_folder(family: str, corpus: Path, tmp_path: Path) -> None:
    """With its tokenizer; its held-out loss at step 0 is the model's."""
    first = tiny_config(family, corpus, tmp_path, *ONE, "name=first", "schedule.total_steps=12")
    train(first)
    model = export(first.folder, tmp_path / "model")
    text = write_corpus(tmp_path / "more.txt", 120, seed=8)
    more = [f"model.initialize_from={model}", "name=second", "tokenizer.vocabulary_size=110"]
    second = tiny_config(family, text, tmp_path, *ONE, *more)
    store = ensure_prepared(second, get_family(family))
    tokenizer = load_tokenizer(second, store)
    theirs = replace(read_model(model), config=second.model)  # a model folder says nothing of examples' lengths
    assert theirs.tokenizer is not None
    assert tokenizer.vocabulary_size == theirs.tokenizer.vocabulary_size > 110
    assert tokenizer.encode(["A mat."]).ids.tolist() == theirs.tokenizer.encode(["A mat."]).ids.tolist()
    expected = evaluate_run(theirs, store)
    begun, fresh = (
        evaluate_run(ModelFolder(build_module(second, tokenizer, fresh=start).model, tokenizer, second.model), store)
        for start in (True, False)
    )
    assert begun.loss == pytest.approx(expected.loss, rel=1e-6)
    assert abs(fresh.loss - expected.loss) > 0.05
    train(second, stop_after=2)
    assert RunFolder(second.folder).read_metrics()[0]["loss"] < fresh.loss


def test_training_leaves_the_process_as_it_was(corpus: Path, tmp_path: Path) -> None:
    """So that a notebook may train again, on other ranks too."""
    before = dict(os.environ)
    config = tiny_config("bert", corpus, tmp_path, *ONE, "schedule.total_steps=1")
    train(config)
    assert {key for key in os.environ if "RANK" in key or "WORLD" in key} <= before.keys()
    assert not torch.distributed.is_initialized()


def test_a_run_without_pairs(corpus: Path, tmp_path: Path) -> None:
    """Full sentences in packs, whole words: one loss, and a model without the heads that nothing would train."""
    more = [
        "objective.next_sentence=false",
        "objective.whole_word_masking=true",
        "batch={global_size: 8, micro_size: 4}",
    ]
    config = tiny_config("bert", corpus, tmp_path, *ONE, *more)
    train(config, stop_after=3)
    lines = metrics(config)
    assert all(line["loss"] == line["mlm_loss"] and 0.6 < line["fill"] <= 1 for line in lines)
    assert not [key for key in lines[-1] if "nsp" in key] and "held_out_mlm_accuracy" in lines[-1]
    assert lines[-1]["held_out_loss"] == lines[-1]["held_out_mlm_loss"]
    folder = read_model(export(config.folder, tmp_path / "model"))
    assert folder.config.next_sentence is False and folder.config.whole_word_masking is True
    assert evaluate_run(folder, ensure_prepared(config, get_family("bert"))).loss == pytest.approx(
        lines[-1]["held_out_loss"], rel=1e-5
    )
