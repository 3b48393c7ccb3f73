"""Real starts in one process: what they write, when they measure and save, where they begin and end."""

import json
import logging
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.data.prepare import ensure_prepared
from pretrain.errors import CheckpointError, ConfigError, DataError, TrainingError
from pretrain.evaluate import evaluate
from pretrain.export import export
from pretrain.models import get_family
from pretrain.runs.checkpoints import find_newest, read_state, sha256, steps_in
from pretrain.runs.folder import RunFolder
from pretrain.runs.held_out import evaluate_model
from pretrain.runs.trained import read_model, read_tokenizer
from pretrain.train import Ended, settle, train
from pretrain.training import sharded_states
from pretrain.training.callbacks import count_ratios
from pretrain.training.trainer import build_module
from tests.conftest import write_corpus
from tests.tiny import final_weights, metrics, run_cli, tiny_config, tiny_overrides
from tests.training.wandb_file import read_wandb

FAMILIES = ("elmo", "bert")
TERMS = {"elmo": ("forward", "backward"), "bert": ("mlm", "nsp")}
ONE = ["sharding.ranks=1", "sharding.zero_stage=0"]


def steps_saved(config: RunConfig) -> list[int]:
    return list(steps_in(config.folder / "checkpoints"))


def test_ratios_of_a_steps_counts() -> None:
    assert count_ratios({"forward": 7, "backward": 7, "tokens": 9}) == {}
    counts = {"mlm": 9, "nsp": 8, "nsp.random": 5, "tokens": 60, "token_slots": 64}
    assert count_ratios(counts) == {"nsp_random_share": 5 / 8, "fill": 60 / 64}
    assert count_ratios({"nsp": 0, "nsp.random": 0}) == {}


def test_no_figure_over_no_prediction(tmp_path: Path) -> None:
    """A step may meet nothing but unknown words: it has no loss of masked words then, least of all one of 0."""
    unknown, known = " ".join(["x" * 101] * 12), "the cat sat on the mat"
    documents = [f"{unknown if number % 12 else known}\n{unknown}" for number in range(400)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    for pairs in ("true", "false"):
        more = [*ONE, f"name=pairs-{pairs}", f"objective.next_sentence={pairs}", "objective.pack_length=32"]
        more += ["data.block_tokens=64", "data.held_out=0", "batch={global_size: 8, micro_size: 4}"]
        config = tiny_config("bert", tmp_path / "text.txt", tmp_path, *more, "schedule.total_steps=6")
        train(config)
        lines = metrics(config)
        without = [line for line in lines if "mlm_loss" not in line]
        assert 0 < len(without) < 6 and len(lines) == 6
        assert all(line["loss"] == line.get("nsp_loss") for line in without)
        assert all(line["loss"] >= line["mlm_loss"] > 1 for line in lines if line not in without)


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

    told = done.stderr.splitlines()
    first = next(number for number, row in enumerate(told) if row.split()[:1] == ["step"])
    table = [row.split() for row in told[first : first + 4]]
    assert table[0] == ["step", "loss", "lr", "tokens/s", "held-out"]
    assert [row[0] for row in table[1:]] == ["2", "4", "6"]
    assert [float(row[1]) for row in table[1:]] == pytest.approx([line["loss"] for line in lines], abs=1e-4)
    assert float(table[-1][4]) == pytest.approx(lines[-1]["held_out_loss"], abs=1e-4)
    assert len({len(row) for row in told[first : first + 4]}) == 1, "fixed columns"
    perplexity = f"{lines[-1]['held_out_perplexity']:,.1f}"
    assert told[first + 4].startswith(f"held-out perplexity {perplexity} (a unigram model: ")
    assert told[first + 5].startswith("what could be changed: ") and "optimizer.kind=muon" in told[first + 5]

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
        found = evaluate(config.folder, checkpoint=str(step), start="zero")
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
        assert train(config, stop_after=3) == Ended(config.folder)
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
        with pytest.raises(
            TrainingError, match=r"^step \d+: the .* is NaN or infinite \((nan|inf)\): nothing was saved"
        ) as error:
            train(config)
        assert "\n" not in str(error.value)
        assert find_newest(config.folder / "checkpoints") is None


def test_weights_that_are_no_numbers_are_not_saved(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's loss may be fine, and what it makes of the weights not."""
    monkeypatch.setattr(sharded_states, "collect", lambda *_, **__: {"weight/a": torch.tensor([1.0, math.inf])})
    config = tiny_config("bert", corpus, tmp_path, *ONE, "data.held_out=0")
    with pytest.raises(TrainingError, match=r"^step 1: weight/a is NaN or infinite"):
        train(config, stop_after=1)
    assert find_newest(config.folder / "checkpoints") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_starts_from_a_model_folder(family: str, corpus: Path, tmp_path: Path) -> None:
    """With its tokenizer; its held-out loss at step 0 is the model's."""
    first = tiny_config(family, corpus, tmp_path, *ONE, "name=first", "schedule.total_steps=12")
    train(first)
    model = export(first.folder, tmp_path / "model")
    text = write_corpus(tmp_path / "more.txt", 120, seed=8)
    more = [f"model.initialize_from={model}", "name=second"]
    second = tiny_config(family, text, tmp_path, *ONE, *more)
    second = settle(second, RunFolder(second.folder))
    corpus_of_second = ensure_prepared(second, get_family(family))
    tokenizer = read_tokenizer(second, corpus_of_second.fetch_tokenizer())
    theirs, _ = read_model(model)
    theirs = replace(theirs, objective=second.objective)  # a model folder may not say how long examples are
    assert theirs.tokenizer is not None
    assert tokenizer.vocabulary_size == theirs.tokenizer.vocabulary_size
    assert tokenizer.encode(["A mat."]).ids.tolist() == theirs.tokenizer.encode(["A mat."]).ids.tolist()
    expected = evaluate_model(theirs, corpus_of_second.held_out)
    begun, fresh = (
        evaluate_model(
            replace(theirs, model=build_module(second, tokenizer, fresh=start).model), corpus_of_second.held_out
        )
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
    folder, _ = read_model(export(config.folder, tmp_path / "model"))
    assert folder.objective.next_sentence is False and folder.objective.whole_word_masking is True
    held_out = ensure_prepared(config, get_family("bert")).held_out
    assert evaluate_model(folder, held_out).loss == pytest.approx(lines[-1]["held_out_loss"], rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_untrained_model_can_be_saved_and_trained_on(family: str, corpus: Path, tmp_path: Path) -> None:
    """What `--stop-after 0` writes is bitwise what the run starts from."""
    more = [*ONE, "schedule.total_steps=3"]
    whole, halves = (tiny_config(family, corpus, tmp_path, *more, f"name={name}") for name in ("whole", "halves"))
    train(whole)
    assert train(halves, stop_after=0) == Ended(halves.folder)
    assert steps_saved(halves) == [0] and not metrics(halves)
    assert evaluate(halves.folder).losses.loss > evaluate(whole.folder).losses.loss
    train(halves)
    assert [line["loss"] for line in metrics(halves)] == [line["loss"] for line in metrics(whole)]
    ours, theirs = final_weights(halves), final_weights(whole)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_every_saved_step_is_measured(corpus: Path, tmp_path: Path) -> None:
    """So that the best is the best of all that can be loaded, however often each happens."""
    more = [*ONE, "schedule.total_steps=9", "checkpoint.every_steps=2", "evaluation.every_steps=3"]
    config = tiny_config("bert", corpus, tmp_path, *more, "checkpoint.keep_last=9")
    train(config)
    measured = {line["step"]: line["held_out_loss"] for line in metrics(config) if "held_out_loss" in line}
    assert list(measured) == [2, 3, 4, 6, 8, 9] and steps_saved(config) == [2, 4, 6, 8, 9]
    newest = find_newest(config.folder / "checkpoints")
    assert newest is not None
    best = read_state(newest).best
    assert best is not None and best.loss == min(measured[step] for step in steps_saved(config))


def test_losses_over_other_text_are_not_compared(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`evaluation.blocks` may change when a run is resumed: then the best is chosen anew."""
    more = [*ONE, "schedule.total_steps=4", "data.block_tokens=128", "data.held_out=0.2"]
    train(tiny_config("bert", corpus, tmp_path, *more, "evaluation.blocks=1"), stop_after=2)
    config = tiny_config("bert", corpus, tmp_path, *more, "evaluation.blocks=2")
    with caplog.at_level(logging.INFO, "pretrain"):
        train(config)
    assert "the best step is chosen anew" in caplog.text
    newest = find_newest(config.folder / "checkpoints")
    assert newest is not None
    best = read_state(newest).best
    assert best is not None and best.step == 4 and best.text.endswith("2 blocks")


def test_a_run_is_trained_longer_when_asked(corpus: Path, tmp_path: Path) -> None:
    config, longer = (tiny_config("bert", corpus, tmp_path, *ONE, f"schedule.total_steps={n}") for n in (8, 12))
    train(config)
    with pytest.raises(ConfigError, match="--extend"):
        train(longer)
    train(longer, extend=True)
    lines = metrics(longer)
    assert [line["step"] for line in lines] == list(range(1, 13))
    peak = longer.optimizer.peak_learning_rate
    assert lines[8]["learning_rate"] == pytest.approx(peak * longer.schedule.factor(8))
    assert lines[8]["learning_rate"] > lines[7]["learning_rate"]
    assert train(longer) == Ended(longer.folder), "from now on it is the run's own length"


def test_a_run_of_which_nothing_was_saved_starts_over(corpus: Path, tmp_path: Path) -> None:
    """Its name is not taken by what was lost."""
    config = tiny_config("bert", corpus, tmp_path, *ONE, "schedule.total_steps=2")
    train(config)
    shutil.rmtree(config.folder / "checkpoints")
    other = tiny_config("bert", corpus, tmp_path, *ONE, "schedule.total_steps=2", "seed=9")
    train(other)
    assert RunFolder(config.folder).read_config().seed == 9
    assert [line["step"] for line in metrics(other)] == [1, 2]


def test_the_run_owns_its_tokenizer(corpus: Path, tmp_path: Path) -> None:
    """Prepared text that is made anew from other text is refused; the run is exported with the words it began with."""
    text = tmp_path / "text.txt"
    shutil.copy(corpus, text)
    config = tiny_config("elmo", text, tmp_path, *ONE, "schedule.total_steps=4", f"data.folder={tmp_path}/prepared")
    train(config, stop_after=2)
    tokenizer = read_tokenizer(config, RunFolder(config.folder).tokenizer)
    write_corpus(text, 300, seed=3)
    shutil.rmtree(tmp_path / "prepared")
    with pytest.raises(CheckpointError, match="its text or its vocabulary has changed since") as error:
        train(config)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"holds another text than .* was trained on"):
        evaluate(config.folder)
    exported, _ = read_model(export(config.folder, tmp_path / "model"))
    assert exported.tokenizer is not None
    assert exported.tokenizer.vocabulary == tokenizer.vocabulary  # type: ignore[attr-defined]
    shutil.copy(corpus, text)
    shutil.rmtree(tmp_path / "prepared")
    train(config)
    assert [line["step"] for line in metrics(config)] == [1, 2, 3, 4], "the same text again is the same corpus"


def test_a_moved_tree_is_evaluated_and_exported(corpus: Path, tmp_path: Path) -> None:
    config = tiny_config("bert", corpus, tmp_path / "runs", *ONE, "schedule.total_steps=2")
    train(config)
    expected = evaluate(config.folder).losses.loss
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / config.name
    assert evaluate(moved).losses.loss == pytest.approx(expected)
    export(moved, tmp_path / "model")


def test_stopping_at_once_leaves_what_was_saved(corpus: Path, tmp_path: Path) -> None:
    """A complete checkpoint is never put aside for the same step's."""
    config = tiny_config("bert", corpus, tmp_path, *ONE, "schedule.total_steps=4")
    train(config, stop_after=2)
    (saved,) = steps_in(config.folder / "checkpoints").values()
    before = {path: path.stat().st_ino for path in saved.iterdir()}
    assert train(config, stop_after=0) == Ended(config.folder)
    assert {path: path.stat().st_ino for path in saved.iterdir()} == before


def test_a_best_step_that_is_gone_is_chosen_anew(corpus: Path, tmp_path: Path) -> None:
    config = tiny_config("bert", corpus, tmp_path, *ONE, "schedule.total_steps=4")
    train(config, stop_after=2)
    newest = find_newest(config.folder / "checkpoints")
    assert newest is not None
    text = (newest / "state.json").read_text()
    (newest / "state.json").write_text(text.replace('"best": {"step": 2', '"best": {"step": 1'))
    marker = json.loads((newest / "complete.json").read_text())
    marker["state.json"] = sha256(newest / "state.json")
    (newest / "complete.json").write_text(json.dumps(marker))
    train(config)
    best = read_state(config.folder / "checkpoints" / "step-00000004").best
    assert best is not None and best.step == 4


def test_a_continued_run_needs_the_model_that_it_began_with_no_more(corpus: Path, tmp_path: Path) -> None:
    first = tiny_config("elmo", corpus, tmp_path, *ONE, "name=first", "schedule.total_steps=1")
    train(first)
    model = export(first.folder, tmp_path / "model")
    config = tiny_config("elmo", corpus, tmp_path, *ONE, f"model.initialize_from={model}", "schedule.total_steps=4")
    train(config, stop_after=2)
    shutil.rmtree(model)
    train(config)
    assert [line["step"] for line in metrics(config)] == [1, 2, 3, 4]
