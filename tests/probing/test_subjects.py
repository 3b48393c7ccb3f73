"""What the texts of a probed model start from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.embedding.embedder import Embedder
from pretrain.errors import ConfigError
from pretrain.models import get_family
from pretrain.probing.subjects import Subject, open_subject
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
