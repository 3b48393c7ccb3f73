"""What the texts of a probed model start from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.config.models import WordPieceConfig
from pretrain.embedding.embedder import Embedder
from pretrain.errors import ConfigError
from pretrain.evaluate import evaluate
from pretrain.models import get_family
from pretrain.probe import probe
from pretrain.probing.subjects import Subject, open_subject
from pretrain.probing.tasks import Inputs
from pretrain.probing.vectors import word_vectors
from tests.probing.small_models import small_subject

TEXT = ["the cat sat on the mat .", "a dog saw the cat .", "the mat was on a dog ."]
SENTENCES = [sentence.split() for sentence in TEXT]


def written(kind: str, folder: Path) -> tuple[Subject, Path]:
    """A small model, and its folder."""
    subject = small_subject(kind, TEXT)
    folder.mkdir()
    subject.family.format.write(folder, subject.folder)
    return subject, folder


def test_vectors_start_where_the_embedders_do(tmp_path: Path) -> None:
    _, folder = written("elmo", tmp_path / "model")
    for start in ("auto", "zero", "primed"):
        subject = open_subject(folder, start=start)
        assert (subject.start_state is not None) == (start == "primed")
        kept = word_vectors(subject, SENTENCES, tmp_path)
        expected = Embedder.load(folder, device="cpu", start=start).encode(
            SENTENCES, layers="all", is_split_into_words=True
        )
        assert np.array_equal(np.asarray(kept.layers), np.concatenate(expected, axis=1))
    assert len(list(tmp_path.glob("*.npy"))) == 2, "those from the primed state are others, and kept beside"
    assert open_subject(folder, start="primed").untrained().start_state is None


def test_sentences_are_scored_from_there_too(tmp_path: Path) -> None:
    subject, _ = written("elmo", tmp_path / "model")
    scoring = get_family("elmo").scoring
    read = [scoring.read(subject.folder, text) for text in TEXT]
    size = subject.folder.model.get_submodule("encoder").state_size
    zero = scoring.score(subject.folder, read)
    assert np.allclose(scoring.score(subject.folder, read, start=torch.zeros(size)), zero, rtol=0, atol=1e-6)
    assert not np.allclose(scoring.score(subject.folder, read, start=torch.full((size,), 0.5)), zero, rtol=0, atol=1e-3)


def test_a_family_without_state(tmp_path: Path) -> None:
    _, folder = written("bert", tmp_path / "model")
    with pytest.raises(ConfigError, match=r"start primed: .* is a bert, which carries no state"):
        open_subject(folder, start="primed")
    assert replace(open_subject(folder), name="x").start_state is None


def test_another_architecture_or_tokenizer_has_other_vectors(tmp_path: Path) -> None:
    """Weights of the same shapes may be read otherwise."""
    subject = small_subject("bert", TEXT)
    word_vectors(subject, SENTENCES, tmp_path)
    word_vectors(small_subject("bert", TEXT), SENTENCES, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 1
    config = subject.folder.config.model_copy(update={"num_heads": 2})
    word_vectors(replace(subject, folder=replace(subject.folder, config=config)), SENTENCES, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2
    other = subject.family.tokenizer.learn(lambda: TEXT[:1], WordPieceConfig(vocabulary_size=101, minimum_count=1))
    word_vectors(replace(subject, folder=replace(subject.folder, tokenizer=other)), SENTENCES, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_a_folder_of_sentence_transformers_with_the_model_in_a_folder_of_its_own(tmp_path: Path) -> None:
    _, folder = written("bert", tmp_path / "model")
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in list(folder.iterdir()):
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(inner / file.name)
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules[0]["path"] = inner.name
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    subject = open_subject(folder)
    assert subject.sentence_modules is not None
    expected = Embedder.load(folder, device="cpu").encode(SENTENCES, layers="all", is_split_into_words=True)
    assert np.array_equal(
        np.asarray(word_vectors(subject, SENTENCES, tmp_path).layers), np.concatenate(expected, axis=1)
    )


def test_a_checkpoint_of_what_is_no_run(tmp_path: Path) -> None:
    _, folder = written("bert", tmp_path / "model")
    with pytest.raises(ConfigError, match="--checkpoint 3: none of what is probed is a run folder"):
        probe([folder], "pos", Inputs(folder / "vocab.txt"), "3")
    with pytest.raises(ConfigError, match="not a run folder, so that there is no checkpoint 3 to choose"):
        evaluate(folder, [str(folder / "vocab.txt")], "3")
