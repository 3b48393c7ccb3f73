"""How probable a biLM finds sentences: the log-probabilities of both directions (Peters et al. 2018, section 3.1).

A sentence of n words is n + 1 predictions of each direction, as in training: forward of `w1 … wn </S>`, backward of
`wn … w1 <S>`. A word that the vocabulary lacks is read by its characters and predicted as `<UNK>`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.models.batches import batches_by_length
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.objective import DIRECTIONS
from pretrain.models.elmo.softmax import softmax_problem
from pretrain.models.elmo.tokens import (
    SENTENCE_BEGIN,
    SENTENCE_END,
    UNKNOWN,
    WordTokenizer,
    character_ids,
    trim_characters,
)
from pretrain.models.family import FamilyScoring, ModelFolder

TOKENS = 2_048
"""Positions of a batch at most."""


@dataclass(frozen=True)
class ElmoSentence:
    """A sentence as the biLM reads it and predicts it."""

    words: tuple[str, ...] = field(compare=False)
    spellings: tuple[bytes, ...]
    """What of each word is read: two that differ later than that are the same to the model."""
    labels: tuple[int, ...]
    unknown_words: int


def find_problem(folder: ModelFolder) -> str | None:
    """What keeps the model from predicting words."""
    assert folder.tokenizer is not None
    return softmax_problem(cast(ElmoModel, folder.model).softmax, folder.tokenizer.vocabulary_size)


def read_sentence(folder: ModelFolder, text: str) -> ElmoSentence:
    """A sentence of any length."""
    tokenizer = cast(WordTokenizer, folder.tokenizer)
    words = tuple(cast(list[str], tokenizer.pieces(text).tokens))
    labels = tokenizer.ids(words)
    visible = folder.config.max_characters - 2  # the marks of begin and end
    return ElmoSentence(
        words=words,
        spellings=tuple(word.encode("utf-8", "ignore")[:visible] for word in words),
        labels=tuple(labels.tolist()),
        unknown_words=int((labels == tokenizer.ids([UNKNOWN])).sum()),
    )


@torch.no_grad()
def score_sentences(
    folder: ModelFolder, sentences: Sequence[ElmoSentence], *, start: Tensor | None = None
) -> NDArray[np.float64]:
    """[3, sentences]: both directions together, forward, and backward, each from `start` [state size], or zero.

    Over the whole vocabulary. Each distinct word is spelled once; sentences of equal length are read together.
    """
    model, tokenizer = cast(ElmoModel, folder.model), cast(WordTokenizer, folder.tokenizer)
    assert model.softmax is not None
    every_word = (word for sentence in sentences for word in sentence.words)
    row_of = {word: row for row, word in enumerate(dict.fromkeys([SENTENCE_BEGIN, SENTENCE_END, *every_word]))}
    words = _encode_words(model, list(row_of))
    read_first = [row_of[SENTENCE_BEGIN], row_of[SENTENCE_END]]
    predicted_last = [tokenizer.sentence_end, tokenizer.sentence_begin]
    lengths = np.array([len(sentence.words) + 1 for sentence in sentences], np.int64)
    found = np.zeros((len(DIRECTIONS), len(sentences)))
    for length, numbers in batches_by_length(lengths, TOKENS):
        shape = (len(numbers), length - 1)
        rows = np.array([[row_of[word] for word in sentences[n].words] for n in numbers], np.int64).reshape(shape)
        ids = np.array([sentences[n].labels for n in numbers], np.int64).reshape(shape)
        inputs = _both_ways(rows, 0, read_first, words.device)
        labels = _both_ways(ids, length - 1, predicted_last, words.device)
        carried = None if start is None else start.to(words.device).expand(len(numbers), -1)
        *hidden, _ = model.encoder.read(words, inputs[0], inputs[1], carried)
        for direction, (outputs, predicted) in enumerate(zip(hidden, labels, strict=True)):
            losses = model.softmax(outputs.flatten(0, 1), predicted.flatten()).view(len(numbers), length)
            found[direction, numbers] = -losses.double().sum(dim=1).cpu().numpy()
    return np.concatenate([found.sum(axis=0, keepdims=True), found])


def _both_ways(rows: NDArray[np.int64], at: int, boundaries: Sequence[int], device: torch.device) -> list[Tensor]:
    """Of each direction, in the order of reading: `rows` [B, n] with its boundary put in at a column, [B, n + 1]."""
    ordered = zip((rows, rows[:, ::-1]), boundaries, strict=True)
    return [torch.from_numpy(np.insert(array, at, boundary, axis=1)).to(device) for array, boundary in ordered]


def _encode_words(model: ElmoModel, words: Sequence[str]) -> Tensor:
    """Layer 0 of words, [words, projection size]."""
    config = model.encoder.config
    spelled = character_ids(words, config.max_characters)
    characters = trim_characters(spelled, max(width for width, _ in config.filters)).astype(np.int64)
    encoded: Tensor = model.encoder.token_encoder(torch.from_numpy(characters).to(next(model.parameters()).device))
    return encoded


SCORING = FamilyScoring(scores=("bilm", *DIRECTIONS), problem=find_problem, read=read_sentence, score=score_sentences)
"""ELMo's part of its record."""
