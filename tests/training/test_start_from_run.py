"""A run that starts from another run: its best checkpoint, and its tokenizer, without an export between them."""

from pathlib import Path

import pytest
import torch

from pretrain.config.load import load_config
from pretrain.errors import ConfigError
from pretrain.export import export
from pretrain.prepare import prepare
from pretrain.runs.folder import RunFolder
from pretrain.runs.trained import read_tokenizer
from pretrain.train import train
from pretrain.training.trainer import build_module
from tests.conftest import write_corpus
from tests.tiny import REPOSITORY, run_cli, tiny_overrides

ONE = ["sharding.ranks=1", "sharding.zero_stage=0", "schedule.total_steps=3", "evaluation.every_steps=1"]
SAVED = ["checkpoint.every_steps=1"]


@pytest.mark.parametrize("family", ["elmo", "bert"])
def test_a_run_starts_from_a_run(family: str, corpus: Path, tmp_path: Path) -> None:
    """With the weights and the vocabulary that it would have from an export of the best checkpoint."""
    path = REPOSITORY / "configs" / family / "demo.yaml"
    first = load_config(path, tiny_overrides(family, corpus, tmp_path, *ONE, *SAVED, "name=first"))
    train(first)
    exported = export(first.folder, tmp_path / "model")
    other = write_corpus(tmp_path / "other.txt", 80, seed=3)
    size = f"tokenizer.vocabulary_size={read_tokenizer(first, RunFolder(first.folder).tokenizer).vocabulary_size}"
    modules = {}
    for start in (first.folder, exported):
        options = [*ONE, f"name=from-{start.name}", f"model.initialize_from={start}", size]
        second = load_config(path, tiny_overrides(family, other, tmp_path, *options))
        where, _ = prepare(second)
        tokenizer = read_tokenizer(second, Path(where) / "tokenizer")
        modules[start.name] = build_module(second, tokenizer, fresh=True)
    ours, theirs = (module.model.state_dict() for module in modules.values())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    started = build_module(first, tokenizer, fresh=True).model.state_dict()
    assert any(not torch.equal(ours[name], started[name]) for name in ours), "training changed something"


def test_the_whole_of_it_on_the_command_line(corpus: Path, tmp_path: Path) -> None:
    overrides = tiny_overrides("bert", corpus, tmp_path, *ONE)
    config = str(REPOSITORY / "configs" / "bert" / "demo.yaml")
    run_cli("train", config, *overrides, "name=first")
    done = run_cli("train", config, *overrides, "name=second", f"model.initialize_from={tmp_path / 'first'}")
    assert f"initialised from {tmp_path / 'first'}" in done.stderr
    began = RunFolder(tmp_path / "second").read_config()
    assert began.model.initialize_from == tmp_path / "first"


def test_a_run_of_another_family_or_size_is_refused(corpus: Path, tmp_path: Path) -> None:
    """And the message names the run, not the temporary folder that its model was written to."""
    first = load_config(
        REPOSITORY / "configs" / "bert" / "demo.yaml", tiny_overrides("bert", corpus, tmp_path, *ONE, "name=first")
    )
    train(first)
    start = f"model.initialize_from={first.folder}"
    elmo = REPOSITORY / "configs" / "elmo" / "demo.yaml"
    with pytest.raises(ConfigError, match=r"first: holds no model of model.kind elmo, and is no run of one"):
        prepare(load_config(elmo, tiny_overrides("elmo", corpus, tmp_path, *ONE, start)))
    wide = load_config(
        REPOSITORY / "configs" / "bert" / "demo.yaml",
        tiny_overrides("bert", corpus, tmp_path, *ONE, start, "model.num_heads=4", "name=wide"),
    )
    with pytest.raises(ConfigError, match=rf"{first.folder}: model.num_heads is 2 there and 4 in this run"):
        train(wide)
