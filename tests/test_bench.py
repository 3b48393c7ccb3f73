"""`pretrain bench`: its numbers agree with each other and with the batches; nothing here depends on a clock."""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from pretrain import bench as module
from pretrain.bench import WARM_UP_STEPS, Bench, bench, measure_reading, read_steps
from pretrain.cli import main
from pretrain.config.models import BertConfig
from pretrain.config.run import RunConfig
from pretrain.data.loader import MicroBatch
from pretrain.data.prepare import ensure_prepared
from pretrain.data.stream import StepExamples, StreamPosition
from pretrain.models import FAMILIES, get_family
from pretrain.runs.trained import read_tokenizer
from pretrain.runtime.timing import OURS
from pretrain.runtime.world import World
from pretrain.training.steps import build_loader
from tests.tiny import tiny_config, tiny_overrides

STEPS = 3


@pytest.fixture(scope="module", params=FAMILIES)
def measured(
    request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Bench]:
    """Steps of one micro-batch without dropout, in which ours and the baselines are to say the same."""
    root = tmp_path_factory.mktemp("bench")
    config = tiny_config(request.param, corpus, root, "model.dropout=0", "batch.micro_size=32")
    return config, bench(config, STEPS)


def test_tokens_are_those_of_the_batches(measured: tuple[RunConfig, Bench]) -> None:
    config, result = measured
    prepared = ensure_prepared(config, get_family(config.model.kind))
    tokenizer, start = read_tokenizer(config, prepared.fetch_tokenizer()), StreamPosition.start(config.data.lanes)
    loader = build_loader(config, tokenizer, prepared, start, World(0, 0, 1, 1))
    steps = read_steps(loader, 1, WARM_UP_STEPS + STEPS)
    assert [len(step) for step in steps] == [1] * len(steps)
    counted = []
    for (batch,) in steps[WARM_UP_STEPS:]:
        real = batch.tensors.get("attention_mask")
        counted.append(int(batch.tensors["forward_index"].numel() if real is None else real.sum()))
    assert result.step.tokens == counted
    assert all(part.tokens == counted for part in result.parts)
    if config.model.kind == "bert":
        lengths = [batch.tensors["sequence_lengths"] for (batch,) in steps[WARM_UP_STEPS:]]
        assert result.step.sequences == [int((of_step > 0).sum()) for of_step in lengths]
        assert result.about["counts"]["attended"] == sum(int((of_step**2).sum()) for of_step in lengths)
        assert result.fill == sum(counted) / sum(
            batch.tensors["input_ids"].numel() for (batch,) in steps[WARM_UP_STEPS:]
        )


def test_ours_and_the_peers_do_the_same_work(measured: tuple[RunConfig, Bench]) -> None:
    _, result = measured
    ours = result.losses.pop(OURS)
    assert len(set(ours)) == STEPS
    assert result.losses and not result.unavailable
    for losses in result.losses.values():
        torch.testing.assert_close(losses, ours, rtol=2e-4, atol=1e-5)


def test_muon_leaves_out_baselines_whose_matrices_it_does_not_know(corpus: Path, tmp_path: Path) -> None:
    """They would be trained with AdamW alone, and not do the same work."""
    result = bench(tiny_config("bert", corpus, tmp_path, "optimizer={kind: muon, peak_learning_rate: 1e-3}"), 1)
    assert result.losses.keys() == {OURS}
    assert "no baseline: transformers" in "\n".join(result.lines())
    assert {baseline.reason for baseline in result.unavailable} == {
        "optimizer.kind is muon, which knows hidden matrices by our names alone"
    }


def test_numbers_follow_from_each_other(measured: tuple[RunConfig, Bench]) -> None:
    config, result = measured
    values = json.loads(json.dumps(result.values()))
    step = values["step"]
    model, vocabulary_size, counts = config.model, values["vocabulary_size"], values["counts"]
    assert counts["tokens"] == sum(step["tokens"])
    assert step["flops_per_token"] == config.flops_per_token(vocabulary_size, counts)
    # BERT's sequences are not all full, and their share of predictions is rounded
    assert (step["flops_per_token"] == config.flops_per_token(vocabulary_size)) == (model.kind == "elmo")
    for timing in (step, *values["parts"].values()):
        ours = timing[OURS]
        assert timing["baselines"]
        for one in (ours, *timing["baselines"].values()):
            assert len(one["seconds"]) == len(timing["tokens"]) == STEPS
            rates = [tokens / seconds for tokens, seconds in zip(timing["tokens"], one["seconds"], strict=True)]
            assert one["tokens_per_second"] == statistics.median(rates)
            rates = [n / seconds for n, seconds in zip(timing["sequences"], one["seconds"], strict=False)]
            assert one["sequences_per_second"] == (statistics.median(rates) if rates else None)
            assert one["flops_per_second"] == one["tokens_per_second"] * timing["flops_per_token"]
            assert one["share_of_peak"] == one["flops_per_second"] / values["matrix_peak"]["float32"]
        for baseline in timing["baselines"].values():
            ratios = [theirs / mine for theirs, mine in zip(baseline["seconds"], ours["seconds"], strict=True)]
            assert baseline["ratio"] == statistics.median(ratios)
    for part in values["parts"].values():
        shares = [statistics.median(timing[OURS]["seconds"]) for timing in (part, step)]
        assert part["share_of_step"] == shares[0] / shares[1]
    assert values["threads"] == torch.get_num_threads()
    assert values["versions"]["torch"] == torch.__version__


def test_every_number_has_a_line(measured: tuple[RunConfig, Bench]) -> None:
    config, result = measured
    text = "\n".join(result.lines())
    assert text.count(" tokens/s") == sum(len(timing.seconds) for timing in (result.step, *result.parts)) + 1
    assert ", dropout 0" in text and "\nreading, one process: " in text
    bert = isinstance(config.model, BertConfig)
    assert text.count(" sequences/s") == bert * (len(result.step.seconds) + 1)
    assert (", attention dropout 0" in text) == (", fill " in text) == bert
    assert all(f"\n{part.name}, " in text for part in result.parts)


def test_parts_of_elmo(measured: tuple[RunConfig, Bench]) -> None:
    """Which baselines do a part in a way of their own."""
    config, result = measured
    ways = {part.name: list(part.seconds)[1:] for part in result.parts}
    both = ["AllenNLP's way", "nn.LSTM without clips"]
    expected = {"character CNN": both[:1], "recurrence": both} if config.model.kind == "elmo" else {}
    assert ways == expected


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's highest memory since a moment")
def test_memory_of_each(measured: tuple[RunConfig, Bench]) -> None:
    """Weights, gradients and optimizer states at least."""
    config, result = measured
    least = {"adagrad": 3, "adamw": 4}[config.optimizer.kind] * 4 * result.about["parameters"]
    assert all(peak is not None and peak > least for peak in result.peak_memory.values())


def test_reading_is_measured_over_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step takes 50 s, one that begins a block 9 s, others 1 s; a block is 4 steps of two micro-batches."""
    now = 0.0

    def read() -> Any:
        nonlocal now
        for step in itertools.count():
            now += 1 if step % 4 else 9 if step else 50
            position = StreamPosition({lane: ((step + 1) // 4, 0) for lane in range(2)})
            examples = StepExamples({}, {"mlm": 1, "tokens": 5}, 0, position)
            yield from (MicroBatch({}, index, index == 1, examples) for index in range(2))

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(module, "READING_SECONDS", 14)
    assert measure_reading(read()) == {"tokens": 20 / 12}


@pytest.mark.parametrize("family", FAMILIES)
def test_command_in_16_bits_with_accumulation(family: str, corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    overrides = tiny_overrides(family, corpus, tmp_path, "precision=bf16-mixed", "batch.micro_size=16")
    command = ["bench", f"configs/{family}/demo.yaml", *overrides, "--steps", "1", "--json", str(file)]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert ", ratio " in done.output and "tokens/s" in done.output
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert set(values["matrix_peak"]) == {"float32", "bfloat16"}
    ours = values["step"][OURS]
    assert ours["share_of_peak"] == ours["flops_per_second"] / values["matrix_peak"]["bfloat16"]
    expected = values["losses"].pop(OURS)
    for losses in values["losses"].values():
        torch.testing.assert_close(losses, expected, rtol=0.05, atol=0.05)


def test_without_the_peers_package(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with a first stage of short sequences: what comes after it is measured."""
    config = tiny_config("bert", corpus, tmp_path, "objective.stages=[{until_step: 9, max_sequence_length: 8}]")
    ensure_prepared(config, get_family("bert"))  # `datasets` looks for transformers as well
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = bench(config, 1)
    assert list(result.step.seconds) == [OURS]
    assert result.lines()[-1] == "no baseline: transformers BertForPreTraining: transformers is not installed"
    values = result.values()
    assert values["step"]["baselines"] == {}
    assert values["counts"]["tokens"] > 12 * values["counts"]["sequences"]
    assert values["unavailable"] == {"transformers BertForPreTraining": "transformers is not installed"}
