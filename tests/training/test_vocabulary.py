"""Runs with a vocabulary that is given, or another model's: what is refused before training, and what is taken over."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pretrain.cli import main
from pretrain.config.load import load_config
from pretrain.config.plan import plan_run
from pretrain.config.run import RunConfig
from pretrain.data.prepare import ensure_prepared, prepared_url
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.export import export
from pretrain.models import get_family
from pretrain.prepare import prepare
from pretrain.runs.folder import RunFolder
from pretrain.runs.trained import read_model, read_tokenizer
from pretrain.train import train
from pretrain.training.trainer import build_module
from tests.tiny import metrics, run_cli, tiny_config, tiny_overrides

ONE = ["sharding.ranks=1", "sharding.zero_stage=0", "schedule.total_steps=2"]


@pytest.fixture(scope="module")
def learned(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of two steps with a vocabulary of its own."""
    config = tiny_config("elmo", corpus, tmp_path_factory.mktemp("learned"), *ONE, "name=learned")
    train(config)
    return config


def words_of(config: RunConfig) -> list[str]:
    """The vocabulary of a run that has begun."""
    path = RunFolder(config.folder).tokenizer / "vocabulary.txt"
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def write_words(path: Path, words: list[str]) -> Path:
    path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return path


def given(corpus: Path, root: Path, words: Path, *more: str) -> RunConfig:
    """A tiny run with the vocabulary of a file."""
    options = [f"tokenizer.vocabulary={words}", "tokenizer.vocabulary_size=50000"]
    return tiny_config("elmo", corpus, root, *ONE, *options, *more)


def test_a_given_vocabulary(learned: RunConfig, corpus: Path, tmp_path: Path) -> None:
    """The words that a run would have learned, given to it: it prepares and trains the same."""
    file = write_words(tmp_path / "words.txt", words_of(learned))
    config = given(corpus, tmp_path / "runs", file)
    train(config)
    assert words_of(config) == words_of(learned)
    assert [line["loss"] for line in metrics(config)] == [line["loss"] for line in metrics(learned)]
    parameters = sum(parameter.numel() for parameter in build(config).parameters())
    assert plan_run(config, 1).parameters == parameters


def build(config: RunConfig) -> torch.nn.Module:
    """The model that a fresh start trains."""
    prepared = ensure_prepared(config, get_family(config.model.kind))
    return build_module(config, read_tokenizer(config, prepared.fetch_tokenizer()), fresh=True).model


def test_the_content_of_the_file_decides(learned: RunConfig, corpus: Path, tmp_path: Path) -> None:
    """Not its path: prepared text is shared by equal files, and never by unequal ones."""
    words = words_of(learned)
    first, second = (write_words(tmp_path / name, words) for name in ("first.txt", "second.txt"))
    one, other = (given(corpus, tmp_path / "runs", path) for path in (first, second))
    assert prepared_url(one) == prepared_url(other) != prepared_url(learned)
    before = prepared_url(one)
    write_words(first, words[:-1])
    assert prepared_url(one) != before
    first.unlink()
    with pytest.raises(ConfigError, match=r"tokenizer.vocabulary: .*first.txt: cannot be read: No such file"):
        prepare(one)
    with pytest.raises(ConfigError, match=r"tokenizer.vocabulary: .*first.txt: cannot be read"):
        plan_run(one, 1)
    ensure_prepared(other, get_family("elmo"))
    other = given(corpus, tmp_path / "runs", write_words(second, words[:-1]), f"data.folder={before}")
    with pytest.raises(ConfigError, match=r"prepared with tokenizer.vocabulary '\w{16}', this run has '\w{16}'"):
        prepare(other)
    write_words(second, words[2:])
    with pytest.raises(DataError, match=r"second.txt lacks <S>, </S>"):
        prepare(given(corpus, tmp_path / "runs", second))


def test_a_run_goes_on_with_the_words_that_it_began_with(learned: RunConfig, corpus: Path, tmp_path: Path) -> None:
    """Their file's path is among what must stay; its content is compared with the prepared text's."""
    words = words_of(learned)
    config = given(corpus, tmp_path / "runs", write_words(tmp_path / "words.txt", words))
    train(config, stop_after=1)
    write_words(tmp_path / "words.txt", [*words[:-2], words[-1], words[-2]])
    with pytest.raises(CheckpointError, match="its text or its vocabulary has changed since"):
        train(config)
    write_words(tmp_path / "words.txt", words)
    train(config)
    assert [line["step"] for line in metrics(config)] == [1, 2]


def test_an_unsorted_vocabulary_is_refused_with_sampled_softmax(
    learned: RunConfig, corpus: Path, tmp_path: Path
) -> None:
    """Before ranks start, in one line, whatever ranks there are to be; a full softmax does not mind."""
    words = words_of(learned)
    file = write_words(tmp_path / "words.txt", words[:3] + words[:2:-1])
    options = [f"tokenizer.vocabulary={file}", "tokenizer.vocabulary_size=50000", "schedule.total_steps=2"]
    overrides = tiny_overrides("elmo", corpus, tmp_path / "runs", *options)
    done = run_cli("train", "configs/elmo/demo.yaml", *overrides, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: tokenizer.vocabulary: {file}: the first tenth of the words covers ")
    assert "most frequent tenth" in line and line.endswith("or set objective.softmax to full")
    assert "Traceback" not in done.stderr
    config = given(corpus, tmp_path / "runs", file, "objective.softmax=full")
    train(config)
    assert len(metrics(config)) == 2


def test_both_ways_to_a_vocabulary_at_once() -> None:
    options = ["tokenizer.vocabulary=words.txt", "tokenizer.minimum_count=2"]
    message = (
        r"tokenizer: vocabulary names a file, which vocabulary_size \(8000\) and minimum_count \(2\) cannot change: "
        "leave vocabulary_size 50000 and minimum_count 1"
    )
    with pytest.raises(ConfigError, match=message):
        load_config("configs/elmo/demo.yaml", options)


def test_a_run_continues_a_model_with_another_vocabulary(
    learned: RunConfig, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Words that both have keep their softmax row; the log says how many do not."""
    model = export(learned.folder, tmp_path / "model")
    words = words_of(learned)
    kept = [*words[:100], "entirely", "new"]
    file = write_words(tmp_path / "words.txt", kept)
    config = given(corpus, tmp_path / "runs", file, f"model.initialize_from={model}")
    with caplog.at_level(logging.INFO):
        begun = build(config).state_dict()
    expected = f"initialised from {model}; new: the softmax of 2 of 102 words, which the folder's vocabulary lacks"
    assert expected in caplog.messages
    held = read_model(model)[0].model.state_dict()
    assert torch.equal(begun["softmax.weight"][:100], held["softmax.weight"][:100])
    assert all(torch.equal(begun[name], held[name]) for name in held if not name.startswith("softmax."))
    train(config)
    assert len(metrics(config)) == 2


def test_a_published_model_goes_on_with_its_own_softmax(
    shared_data: Callable[[str], Path], corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every parameter is as published when training starts."""
    model = tmp_path / "published"
    model.mkdir()
    published = shared_data("elmo_fixtures/skip_and_clips")
    for name in ("options.json", "lm_weights.hdf5", "vocab_test.txt", "elmo_token_embeddings.hdf5"):
        shutil.copy(published / name, model)
    shutil.copy(shared_data("elmo_fixtures/softmax") / "elmo_softmax_weights.hdf5", model)
    read, _ = read_model(model)
    keep = ("filters", "num_highways", "cell_size", "projection_size", "character_embedding_size")
    sizes = [f"model.{key}={json.dumps(getattr(read.config, key))}" for key in keep]
    options = [*ONE, *sizes, f"model.initialize_from={model}", "objective.softmax=full"]
    options += ["tokenizer.word_split=whitespace"]
    config = tiny_config("elmo", corpus, tmp_path / "runs", *options)
    held = read.model.state_dict()
    with caplog.at_level(logging.INFO):
        begun = build(config).state_dict()
    assert f"initialised from {model}" in caplog.messages
    assert begun.keys() == held.keys() and all(torch.equal(begun[name], held[name]) for name in held)
    train(config)
    assert len(metrics(config)) == 2


def test_a_published_model_of_other_text_is_refused_if_its_words_are_unsorted(
    learned: RunConfig, corpus: Path, tmp_path: Path
) -> None:
    model = export(learned.folder, tmp_path / "model")
    words = words_of(learned)
    write_words(model / "vocabulary.txt", words[:3] + words[:2:-1])
    config = tiny_config("elmo", corpus, tmp_path / "runs", *ONE, f"model.initialize_from={model}")
    with pytest.raises(ConfigError, match=rf"model.initialize_from: {model}: the first tenth of the words"):
        train(config)


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_a_model_of_another_family_is_refused_before_preparing(
    command: str, learned: RunConfig, corpus: Path, tmp_path: Path
) -> None:
    model = export(learned.folder, tmp_path / "model")
    overrides = tiny_overrides("bert", corpus, tmp_path / "runs", *ONE, f"model.initialize_from={model}")
    done = CliRunner().invoke(main, [command, "configs/bert/demo.yaml", *overrides])
    assert done.exit_code == 2
    line = f"error: model.initialize_from: {model}: holds no model of model.kind bert, and is no run of one\n"
    assert line in done.stderr
    assert not list((tmp_path / "runs").rglob("train"))


def test_token_embeddings(learned: RunConfig, tmp_path: Path) -> None:
    """A file beside the model, with a row for each word of its vocabulary; and a folder that is read as any other."""
    out = tmp_path / "model"
    done = CliRunner().invoke(main, ["export", str(learned.folder), "--out", str(out), "--token-embeddings"])
    assert done.exit_code == 0, done.stderr
    words = words_of(learned)
    with h5py.File(out / "token_embeddings.hdf5") as file:
        rows = file["embedding"][()]
    assert len(rows) == len(words)
    read, _ = read_model(out)
    assert read.tokenizer is not None
    vectors, _ = get_family("elmo").encode(read.model.encoder, [read.tokenizer.pieces(words)])
    np.testing.assert_allclose(rows, vectors.layers[0][0, :, : rows.shape[1]], rtol=1e-5, atol=1e-6)
    plain = export(learned.folder, tmp_path / "plain")
    assert {path.name for path in out.iterdir()} - {path.name for path in plain.iterdir()} == {"token_embeddings.hdf5"}
    for path in plain.glob("*.hdf5"):
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256((out / path.name).read_bytes()).digest()


def test_a_continued_model_must_be_of_the_same_sizes(learned: RunConfig, corpus: Path, tmp_path: Path) -> None:
    model = export(learned.folder, tmp_path / "model")
    options = [f"model.initialize_from={model}", "model.cell_size=48", "model.num_highways=2"]
    config = tiny_config("elmo", corpus, tmp_path / "runs", *ONE, *options)
    for start in (train, prepare):
        with pytest.raises(ConfigError) as error:
            start(config)
        assert sorted(str(error.value).splitlines()) == [
            f"model.initialize_from: {model}: model.cell_size is 32 there and 48 in this run",
            f"model.initialize_from: {model}: model.num_highways is 1 there and 2 in this run",
        ]
    assert not list((tmp_path / "runs").rglob("*.parquet")), "nothing is prepared before"
