"""Scores of sentences against the biLM in numpy; batches; what is the same to the model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.models.elmo import FAMILY, scoring
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.scoring import ElmoSentence
from pretrain.models.elmo.tokens import WordTokenizer
from pretrain.models.family import ModelFolder
from tests.models.elmo.reference import ReferenceBilm

WORDS = ["a", "b", "c", "d", "naïve", "unseen", "f"]


@pytest.fixture
def folder(config: ElmoConfig, objective_config: ElmoObjectiveConfig, tokenizer: WordTokenizer) -> ModelFolder:
    torch.manual_seed(0)
    model = ElmoModel(config.model_copy(update={"cell_clip": 0.5}), tokenizer.vocabulary_size)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return ModelFolder(model.eval(), tokenizer, config.model_copy(update={"cell_clip": 0.5}), objective_config)


@pytest.fixture
def texts() -> list[str]:
    """Distinct sentences of 1 to 9 words, some of them unknown."""
    rng = np.random.default_rng(0)
    return sorted({" ".join(rng.choice(WORDS, rng.integers(1, 10))) for _ in range(60)})


def read(folder: ModelFolder, texts: list[str]) -> list[ElmoSentence]:
    return [scoring.read_sentence(folder, text) for text in texts]


def test_against_numpy(folder: ModelFolder, texts: list[str], tmp_path: Path) -> None:
    FAMILY.format.write(tmp_path / "model", folder)
    bilm = ReferenceBilm(tmp_path / "model")
    expected = np.array([[-losses.sum() for losses in bilm.sentence_losses(text.split())] for text in texts]).T
    found = scoring.score_sentences(folder, read(folder, texts))
    np.testing.assert_allclose(found[1:], expected, rtol=1e-5)
    np.testing.assert_allclose(found[0], expected.sum(axis=0), rtol=1e-5)
    assert np.ptp(expected) > 10 and (expected[0] != expected[1]).all()


def test_order_and_batches_change_nothing(
    folder: ModelFolder, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = scoring.score_sentences(folder, read(folder, texts))
    monkeypatch.setattr(scoring, "TOKENS", 7)
    turned = scoring.score_sentences(folder, read(folder, texts[::-1]))[:, ::-1]
    np.testing.assert_allclose(turned, together, atol=1e-5)
    alone = [scoring.score_sentences(folder, read(folder, [text]))[:, 0] for text in texts]
    np.testing.assert_allclose(np.stack(alone, axis=1), together, atol=1e-5)


def test_no_sentence(folder: ModelFolder) -> None:
    assert scoring.score_sentences(folder, []).shape == (3, 0)


def test_what_is_the_same_to_the_model(folder: ModelFolder) -> None:
    limit = folder.config.max_characters - 2
    long = "x" * limit
    first, second, shorter, known = read(folder, [f"a {long}y", f"a {long}zz", f"a {long[1:]}", "a b"])
    assert first == second and hash(first) == hash(second), "they differ behind what is read of a word"
    assert shorter != first and shorter.labels == first.labels and shorter.unknown_words == 1
    assert known.labels != first.labels and known.unknown_words == 0


def test_problems(folder: ModelFolder, config: ElmoConfig) -> None:
    assert scoring.find_problem(folder) is None
    without = ModelFolder(ElmoModel(config, None), folder.tokenizer, config, folder.objective)
    assert "no *softmax_weights.hdf5" in (scoring.find_problem(without) or "")
    other = ModelFolder(ElmoModel(config, 7), folder.tokenizer, config, folder.objective)
    assert "predicts 7 words, the vocabulary has 9" in (scoring.find_problem(other) or "")
