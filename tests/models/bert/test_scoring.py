"""Pseudo-log-likelihoods against a loop over transformers' model, one masked copy at a time; batches; limits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pretrain.errors import DataError
from pretrain.models.bert import FAMILY, scoring
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.scoring import BertSentence
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.family import ModelFolder
from tests.models.bert.conftest import TINY_OBJECTIVE


@pytest.fixture
def folder(model: BertModel, tokenizer: WordPieceTokenizer) -> ModelFolder:
    """A model far enough from its initial values for its answers to differ."""
    for parameter in model.parameters():
        parameter.data.mul_(5)
    return ModelFolder(model, tokenizer, model.config, TINY_OBJECTIVE)


@pytest.fixture
def texts(sentences: list[str]) -> list[str]:
    return [*sentences[:5], "ab", "ω ab", "ab, don't."]


def read(folder: ModelFolder, texts: list[str]) -> list[BertSentence]:
    return [scoring.read_sentence(folder, text) for text in texts]


def one_copy_at_a_time(tokenizer: Any, model: Any, text: str) -> tuple[float, float]:
    """Both scores by transformers' tokenizer and model alone, a forward pass for each masked copy."""
    encoded = tokenizer(text, return_tensors="pt")
    ids, words = encoded["input_ids"], encoded.word_ids()

    def log_probability(place: int, masked: list[int]) -> float:
        copy = ids.clone()
        copy[0, masked] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=copy, attention_mask=encoded["attention_mask"]).logits
        return float(logits[0, place].double().log_softmax(dim=0)[ids[0, place]])

    places = [place for place, word in enumerate(words) if word is not None]
    to_the_right = [[p for p in places if p >= place and words[p] == words[place]] for place in places]
    word_l2r = sum(log_probability(place, masked) for place, masked in zip(places, to_the_right, strict=True))
    return word_l2r, sum(log_probability(place, [place]) for place in places)


def test_against_transformers(folder: ModelFolder, texts: list[str], tmp_path: Path) -> None:
    FAMILY.format.write(tmp_path / "model", folder)
    found = scoring.score_sentences(folder, read(folder, texts))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    model = transformers.BertForMaskedLM.from_pretrained(tmp_path / "model").eval()
    expected = np.array([one_copy_at_a_time(tokenizer, model, text) for text in texts]).T
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert (np.abs(expected[0] - expected[1]) > 0.01).sum() > 3, "words of several pieces, whose scores differ"
    assert np.ptp(expected) > 10


def test_order_and_batches_change_nothing(
    folder: ModelFolder, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = scoring.score_sentences(folder, read(folder, texts))
    monkeypatch.setattr(scoring, "TOKENS", 50)
    turned = scoring.score_sentences(folder, read(folder, texts[::-1]))[:, ::-1]
    np.testing.assert_allclose(turned, together, atol=1e-4)
    alone = [scoring.score_sentences(folder, read(folder, [text]))[:, 0] for text in texts]
    np.testing.assert_allclose(np.stack(alone, axis=1), together, atol=1e-4)


def test_no_sentence(folder: ModelFolder) -> None:
    assert scoring.score_sentences(folder, []).shape == (2, 0)


def test_no_copy_is_computed_twice(folder: ModelFolder, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores share the copies of words of one piece and of the last piece of a word; nothing is padding."""
    seen: list[tuple[int, ...]] = []
    assert isinstance(folder.model, BertModel)
    at = folder.model.encoder.at

    def counting(input_ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        seen.extend(map(tuple, input_ids.tolist()))
        return at(input_ids, places)

    monkeypatch.setattr(folder.model.encoder, "at", counting)
    sentences = read(folder, texts)
    scoring.score_sentences(folder, sentences)
    pieces = sum(len(sentence.labels) for sentence in sentences)
    words = sum(len({word for word in sentence.word_of if word >= 0}) for sentence in sentences)
    assert len(seen) == pieces + (pieces - words) and pieces > words
    padding = folder.tokenizer.padding_id  # type: ignore[union-attr]
    assert not any(padding in copy for copy in seen)


def test_what_a_sentence_is(folder: ModelFolder) -> None:
    same, other, unknown = read(folder, ["ab  cd", "ab cd", "ω"])
    assert same == other
    assert unknown.unknown_words == 1 and len(unknown.labels) == 1


def test_longer_than_the_model_reads(folder: ModelFolder) -> None:
    limit = folder.config.max_positions
    scoring.read_sentence(folder, "a " * (limit - 2))
    with pytest.raises(DataError, match=rf"^{limit + 1} pieces, special tokens included: the model reads {limit} at m"):
        scoring.read_sentence(folder, "a " * (limit - 1))
