"""`pretrain bench`: its numbers agree with each other and with the batches; nothing here depends on a clock."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from pretrain.bench import WARM_UP_STEPS, Bench, bench, read_steps
from pretrain.cli import main
from pretrain.config.run import RunConfig
from pretrain.data.prepare import ensure_prepared
from pretrain.models import FAMILIES, get_family
from pretrain.training.trained import load_tokenizer
from tests.runs import tiny_config, tiny_overrides

STEPS = 3


@pytest.fixture(scope="module", params=FAMILIES)
def measured(
    request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Bench]:
    """Steps of one micro-batch without dropout, in which ours and the peer are to say the same."""
    root = tmp_path_factory.mktemp("bench")
    config = tiny_config(request.param, corpus, root, "model.dropout=0", "batch.micro_size=32")
    return config, bench(config, STEPS)


def test_tokens_are_those_of_the_batches(measured: tuple[RunConfig, Bench]) -> None:
    config, result = measured
    store = ensure_prepared(config, get_family(config.model.kind))
    steps = read_steps(config, load_tokenizer(config, store), store, WARM_UP_STEPS + STEPS)
    assert [len(step) for step in steps] == [1] * len(steps)
    counted = []
    for (batch,) in steps[WARM_UP_STEPS:]:
        real = batch.tensors.get("attention_mask")
        counted.append(int(batch.tensors["forward_index"].numel() if real is None else real.sum()))
    assert result.peer is not None
    assert result.ours.tokens == result.peer.tokens == counted


def test_ours_and_the_peer_do_the_same_work(measured: tuple[RunConfig, Bench]) -> None:
    _, result = measured
    assert result.peer is not None
    torch.testing.assert_close(result.ours.losses, result.peer.losses, rtol=2e-4, atol=1e-5)
    assert len(set(result.ours.losses)) == STEPS


def test_numbers_follow_from_each_other(measured: tuple[RunConfig, Bench]) -> None:
    config, result = measured
    values = json.loads(json.dumps(result.values()))
    assert values["flops_per_token"] == config.model.flops_per_token(values["vocabulary_size"])
    assert values["ratio"] == values["ours"]["tokens_per_second"] / values["peer"]["tokens_per_second"]
    for one in (values["ours"], values["peer"]):
        assert len(one["seconds"]) == len(one["tokens"]) == STEPS
        rates = [tokens / seconds for tokens, seconds in zip(one["tokens"], one["seconds"], strict=True)]
        assert one["tokens_per_second"] == statistics.median(rates)
        assert one["examples_per_second"] == config.batch.global_size / statistics.median(one["seconds"])
        assert one["flops_per_second"] == one["tokens_per_second"] * values["flops_per_token"]
        assert one["share_of_peak"] == one["flops_per_second"] / values["matrix_peak"]["float32"]
    assert values["ours"]["peak_memory"] > 0
    assert values["threads"] == torch.get_num_threads()
    assert values["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("family", FAMILIES)
def test_command_in_16_bits_with_accumulation(family: str, corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    overrides = tiny_overrides(family, corpus, tmp_path, "precision=bf16-mixed", "batch.micro_size=16")
    command = ["bench", f"configs/{family}/demo.yaml", *overrides, "--steps", "1", "--json", str(file)]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "ratio: " in done.output and "tokens/s" in done.output
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert set(values["matrix_peak"]) == {"float32", "bfloat16"}
    assert values["ours"]["share_of_peak"] == values["ours"]["flops_per_second"] / values["matrix_peak"]["bfloat16"]
    torch.testing.assert_close(values["ours"]["losses"], values["peer"]["losses"], rtol=0.05, atol=0.05)


def test_without_the_peers_package(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("bert", corpus, tmp_path)
    ensure_prepared(config, get_family("bert"))  # `datasets` looks for transformers as well
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = bench(config, 1)
    assert (result.peer, result.ratio) == (None, None)
    assert result.lines()[-1] == "no peer: transformers BertForPreTraining: transformers is not installed"
    assert result.values()["peer"] is None
