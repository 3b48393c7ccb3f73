"""Texts of more pieces than the model reads: refused, read in windows, cut short, or skipped."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pretrain.embedding.pooling import Vectors, count_words_without_piece
from pretrain.models.family import Pieces

log = logging.getLogger(__name__)

Long = Literal["error", "split", "truncate", "skip"]
"""What becomes of a text that is too long."""

_SENTENCE_END = re.compile(r"[.!?…‽。！？｡।॥؟۔։።][\"'”’»›」』)\]]*$")


class TextTooLong(ValueError):
    """A text has more pieces than the model reads; `index` is its number among the texts given."""

    def __init__(self, index: int, num_pieces: int, limit: int) -> None:
        self.index = index
        self.problem = f"{num_pieces} pieces, special tokens included; the model reads at most {limit}"
        super().__init__(f"text {index} has {self.problem}: give long='split', 'truncate' or 'skip'")


@dataclass(frozen=True)
class FittedText:
    """A text in windows, each of no more pieces than the model reads."""

    pieces: Pieces
    """What gets vectors: the whole text, or what is kept of it."""
    windows: list[Pieces]
    """What the model reads, one after another: special tokens around consecutive parts of `pieces`."""
    is_long: bool = False
    """Whether the text had more pieces than the model reads."""
    left_out: int = 0
    """Words without a vector."""

    def put(self, vectors: Vectors, window: int, whole: Vectors) -> None:
        """Puts the `vectors` [layers, pieces or more, width] of a window in their place among the `whole` text's.

        Special tokens at the beginning are taken from the first window, those at the end from the last.
        """
        before, after = _special_tokens(self.pieces.word_of)
        lengths = [len(part.tokens) - before - after for part in self.windows[: window + 1]]
        start, end = before + sum(lengths[:-1]), before + sum(lengths)
        first, last = window == 0, window == len(self.windows) - 1
        to = slice(0 if first else start, end + after if last else end)
        of = slice(0 if first else before, before + lengths[-1] + (after if last else 0))
        whole[:, to] = vectors[:, of]


def fit_texts(texts: Sequence[Pieces], limit: int | None, long: Long = "error") -> list[FittedText]:
    """Texts in windows of at most `limit` pieces, special tokens included; without a limit, in one window each.

    A text that is longer is, by `long`: an error (TextTooLong); `split` into windows that do not overlap, which end
    with a sentence where one ends in their second half, else with a word, and within a word that alone is too long;
    `truncate`d to the words all of whose pieces the first window holds; or a text without words (`skip`).
    Raises ValueError for another word.
    """
    if long not in get_args(Long):
        raise ValueError(f"long is {long!r}, not one of {', '.join(map(repr, get_args(Long)))}")
    return [_fit(index, pieces, limit, long) for index, pieces in enumerate(texts)]


def _fit(index: int, pieces: Pieces, limit: int | None, long: Long) -> FittedText:
    if limit is None or len(pieces.tokens) <= limit:
        return FittedText(pieces, [pieces])
    before, after = _special_tokens(pieces.word_of)
    start, stop, room = before, len(pieces.tokens) - after, limit - before - after
    if long == "error" or room < 1:
        raise TextTooLong(index, len(pieces.tokens), limit)
    if long == "skip":
        return FittedText(_part(pieces, start, start, 0), [], is_long=True, left_out=len(pieces.words))
    words = start + np.flatnonzero(np.diff(pieces.word_of[start:stop], prepend=-1))  # where each word begins
    if long == "truncate":
        end = _last_between(words, start, start + room) or start
        num_words = int(pieces.word_of[end])
        kept = _part(pieces, start, end, num_words)
        return FittedText(kept, [kept], is_long=True, left_out=len(pieces.words) - num_words)
    sentences = np.array([word for word in words[1:] if _begins_sentence(pieces, word)], dtype=np.int64)
    windows = []
    while start < stop:
        end = start + room
        if end < stop:
            end = _last_between(sentences, start + room // 2, end) or _last_between(words, start, end) or end
        windows.append(_part(pieces, start, min(end, stop), len(pieces.words)))
        start = end
    return FittedText(pieces, windows, is_long=True)


def _special_tokens(word_of: NDArray[np.int64]) -> tuple[int, int]:
    """How many special tokens are before the text's pieces, and how many after them."""
    real = np.flatnonzero(word_of >= 0)
    return (int(real[0]), len(word_of) - 1 - int(real[-1])) if len(real) else (len(word_of), 0)


def _part(pieces: Pieces, start: int, stop: int, num_words: int) -> Pieces:
    """The pieces from `start` to `stop` between the text's special tokens, with its first words."""
    before, after = _special_tokens(pieces.word_of)
    tokens: Any = pieces.tokens
    end = len(tokens) - after
    word_of = pieces.word_of
    return Pieces(
        tokens=tokens[:before] + tokens[start:stop] + tokens[end:],
        word_of=np.concatenate([word_of[:before], word_of[start:stop], word_of[end:]]),
        words=pieces.words[:num_words],
    )


def _last_between(places: NDArray[np.int64], low: int, high: int) -> int | None:
    """The last of ascending `places` above `low` and up to `high`; None where there is none."""
    found = int(np.searchsorted(places, high, side="right")) - 1
    return int(places[found]) if found >= 0 and places[found] > low else None


def _begins_sentence(pieces: Pieces, place: int) -> bool:
    """Whether a sentence seems to begin with the word whose first piece is at `place`.

    A rough guess: it only says where a text may be cut.
    """
    last, word = (pieces.words[pieces.word_of[piece]] for piece in (place - 1, place))
    return _SENTENCE_END.search(last) is not None and not (word[0].islower() or word[0].isdigit())


@dataclass
class Tally:
    """What there is to say of texts once all are done."""

    texts: int = 0
    words: int = 0
    words_without_piece: int = 0
    long_texts: int = 0
    windows: int = 0
    """Those of the long texts."""
    words_left_out: int = 0

    def add(self, texts: Iterable[FittedText]) -> None:
        """Counts texts."""
        for text in texts:
            self.texts += 1
            self.words += len(text.pieces.words)
            self.words_without_piece += count_words_without_piece(text.pieces)
            if text.is_long:
                self.long_texts += 1
                self.windows += len(text.windows)
                self.words_left_out += text.left_out

    def report(self, output: str, long: Long, limit: int | None) -> None:
        """Logs, in a line each, how many texts were too long and how many words have vectors of zeros."""
        if self.long_texts:
            done = {
                "split": f"read in {self.windows:,} windows",
                "truncate": f"cut short; {self.words_left_out:,} words have no vector",
                "skip": f"skipped; {self.words_left_out:,} words have no vector",
            }
            log.warning(
                "texts of more pieces than the model reads (%s): %d of %d, %s",
                limit, self.long_texts, self.texts, done[long],
            )  # fmt: skip
        if output == "words" and self.words_without_piece:
            log.warning(
                "%d of %d words have no piece, as control characters have none: their vectors are 0",
                self.words_without_piece,
                self.words,
            )
