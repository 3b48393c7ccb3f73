"""How probable a masked language model finds sentences: pseudo-log-likelihoods (Salazar et al. 2020).

The score of a sentence is the sum, over its pieces, of log p(piece | the rest), each taken from a copy of the sentence
in which the piece is masked. Where a word has several pieces, what is left of it gives the masked one away; so
`pll_word_l2r` (Kauf and Ivanova 2023) also masks the pieces of the same word to its right. [CLS] and [SEP] are read,
but not predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pretrain.errors import DataError
from pretrain.models.batches import batches_by_length
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.family import FamilyScoring, ModelFolder

TOKENS = 2_048
"""Tokens of a batch of masked copies at most."""


@dataclass(frozen=True)
class BertSentence:
    """A sentence as pieces."""

    tokens: tuple[int, ...]
    """With [CLS] and [SEP]."""
    word_of: tuple[int, ...]
    """The word of each piece; -1 for [CLS] and [SEP]."""
    unknown_words: int

    @property
    def labels(self) -> tuple[int, ...]:
        """The pieces that are predicted."""
        return tuple(token for token, word in zip(self.tokens, self.word_of, strict=True) if word >= 0)


def find_problem(folder: ModelFolder) -> str | None:
    """What keeps the model from predicting pieces."""
    return cast(BertModel, folder.model).problem


def read_sentence(folder: ModelFolder, text: str) -> BertSentence:
    """A sentence; raises DataError for one of more pieces than the model has positions."""
    tokenizer = cast(WordPieceTokenizer, folder.tokenizer)
    pieces = tokenizer.pieces(text)
    tokens = tuple(cast(list[int], pieces.tokens))
    if len(tokens) > folder.config.max_positions:
        raise DataError(
            f"{len(tokens)} pieces, special tokens included: the model reads {folder.config.max_positions} at most"
        )
    return BertSentence(tokens, tuple(pieces.word_of.tolist()), tokens.count(tokenizer.unknown_id))


@dataclass(frozen=True)
class _Copies:
    """Masked copies of sentences, which predict one piece each; int64 arrays, places are those of `tokens`.

    The first copies mask one piece each, in order. Those after them also mask what follows in its word, for each piece
    that something follows: these alone differ between the two scores.
    """

    tokens: NDArray[np.int64]
    """[tokens]: the sentences one after another."""
    sentence: NDArray[np.int64]
    """[copies]"""
    start: NDArray[np.int64]
    """[copies]: the piece that is predicted, the first that is masked."""
    stop: NDArray[np.int64]
    """[copies]: behind the last that is masked."""
    followed: NDArray[np.bool_]
    """[pieces]: which of them have a second copy."""


@torch.no_grad()
def score_sentences(
    folder: ModelFolder, sentences: Sequence[BertSentence], *, start: None = None
) -> NDArray[np.float64]:
    """[2, sentences]: `pll_word_l2r` and `pll`; there is no state to start from.

    Copies of equal length are read together, so that nothing is padding; top layer and logits are computed for one
    place a copy.
    """
    model, tokenizer = cast(BertModel, folder.model), cast(WordPieceTokenizer, folder.tokenizer)
    device = next(model.parameters()).device
    copies = _make_copies(sentences)
    lengths = np.array([len(sentence.tokens) for sentence in sentences], np.int64)
    begins = np.cumsum(lengths) - lengths
    found = np.zeros(len(copies.sentence))
    for length, numbers in batches_by_length(lengths[copies.sentence], TOKENS):
        first = begins[copies.sentence[numbers]]
        places = first[:, None] + np.arange(length)
        masked_from, masked_to = copies.start[numbers], copies.stop[numbers]
        is_masked = (masked_from[:, None] <= places) & (places < masked_to[:, None])
        masked = np.where(is_masked, tokenizer.mask_id, copies.tokens[places])
        arrays = masked, masked_from - first, copies.tokens[masked_from]
        input_ids, predicted, labels = (torch.from_numpy(array).to(device) for array in arrays)
        logits = model.masked_words(model.encoder.at(input_ids, predicted))
        found[numbers] = -F.cross_entropy(logits.float(), labels, reduction="none").double().cpu().numpy()
    pieces = len(copies.followed)
    word_l2r = found[:pieces].copy()
    word_l2r[copies.followed] = found[pieces:]
    totals = [
        np.bincount(copies.sentence[:pieces], weights=values, minlength=len(sentences))
        for values in (word_l2r, found[:pieces])
    ]
    return np.stack(totals)


def _make_copies(sentences: Sequence[BertSentence]) -> _Copies:
    """All masked copies that the two scores need."""
    sentence_of = np.repeat(np.arange(len(sentences)), [len(sentence.tokens) for sentence in sentences])
    word_of = np.array([word for sentence in sentences for word in sentence.word_of], np.int64)
    pieces = np.flatnonzero(word_of >= 0)
    words = sentence_of[pieces] * (word_of.max(initial=0) + 1) + word_of[pieces]  # ascending: a number for each word
    stops = pieces[np.searchsorted(words, words, side="right") - 1] + 1
    followed = stops > pieces + 1
    start = np.concatenate([pieces, pieces[followed]])
    return _Copies(
        tokens=np.array([token for sentence in sentences for token in sentence.tokens], np.int64),
        sentence=sentence_of[start],
        start=start,
        stop=np.concatenate([pieces + 1, stops[followed]]),
        followed=followed,
    )


SCORING = FamilyScoring(scores=("pll_word_l2r", "pll"), problem=find_problem, read=read_sentence, score=score_sentences)
"""BERT's part of its record."""
