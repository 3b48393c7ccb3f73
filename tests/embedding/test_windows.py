"""Texts that are too long: what of them is read, where they are cut, and how windows are put together again."""

import logging
from collections.abc import Sequence

import numpy as np
import pytest

from pretrain.embedding.windows import FittedText, Tally, TextTooLong, fit_texts
from pretrain.models.family import Pieces

CLS, SEP = 1, 2


def make(text: str, counts: Sequence[int] = ()) -> Pieces:
    """Words between [CLS] and [SEP]; word w has `counts[w]` pieces, else one. Pieces are numbered from 10."""
    words = text.split()
    counts = counts or [1] * len(words)
    word_of = np.repeat(np.arange(len(words)), counts)
    tokens = [CLS, *range(10, 10 + len(word_of)), SEP]
    return Pieces(tokens, np.concatenate([[-1], word_of, [-1]]), words)


def cuts(text: FittedText) -> list[int]:
    """How many pieces each window has, special tokens apart; checks that windows are the text, in order."""
    for window in text.windows:
        assert window.tokens[0] == CLS and window.tokens[-1] == SEP
        assert window.word_of[0] == window.word_of[-1] == -1
    body = [token for window in text.windows for token in window.tokens[1:-1]]
    assert body == text.pieces.tokens[1:-1]
    word_of = np.concatenate([window.word_of[1:-1] for window in text.windows])
    assert np.array_equal(word_of, text.pieces.word_of[1:-1])
    return [len(window.tokens) - 2 for window in text.windows]


@pytest.mark.parametrize(
    ("text", "counts", "expected"),
    [
        ("a b c d e f g h", (), [8]),
        ("a b c d e f g h i", (), [8, 1]),
        ("a b c d e f g h i j k l m n o p q", (), [8, 8, 1]),
        ("a b c d E . F g h i", (), [6, 4]),  # with the sentence
        ("a . B c d . E f g h", (), [6, 4]),  # with the last that fits
        ("a b . C d e f g h i", (), [8, 2]),  # which would leave the window more than half empty
        ("a b c d e f g . H i", (), [8, 2]),
        ("a b c d 3 . 14 e f g", (), [8, 2]),  # a point within a number
        ("a b c d e.g. f g h i j", (), [8, 2]),  # before a small letter
        ('a b c d "e!" „F g h i j', (), [5, 5]),
        ("a b c d 是。 你 g h i j", (), [5, 5]),
        ("a b c", (3, 4, 3), [7, 3]),  # not within a word
        ("a b c", (3, 19, 3), [3, 8, 8, 6]),  # but within one that is too long
        ("a", (20,), [8, 8, 4]),
    ],
)
def test_where_a_text_is_split(text: str, counts: tuple[int, ...], expected: list[int]) -> None:
    (fitted,) = fit_texts([make(text, counts)], 10, "split")
    assert cuts(fitted) == expected
    assert fitted.is_long == (len(expected) > 1) and fitted.left_out == 0
    assert fitted.pieces.words == text.split()


@pytest.mark.parametrize("special", [(0, 0), (1, 0), (0, 2), (1, 1)])
def test_windows_are_put_together_as_the_text_was(special: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    before, after = special
    for _ in range(200):
        counts = rng.integers(0, 12, rng.integers(1, 12))
        body = np.repeat(np.arange(len(counts)), counts)
        word_of = np.concatenate([[-1] * before, body, [-1] * after]).astype(np.int64)
        words = [str(rng.choice(["Word", "end.", "two", "."])) for _ in counts]
        (fitted,) = fit_texts([Pieces(list(range(len(word_of))), word_of, words)], 10, "split")
        vectors = rng.standard_normal((2, len(word_of), 3)).astype(np.float32)
        whole = np.full_like(vectors, np.nan)
        for number, window in enumerate(fitted.windows):
            assert len(window.tokens) <= 10
            padding = np.full((2, 3, 3), np.nan, np.float32)
            fitted.put(np.concatenate([vectors[:, window.tokens], padding], axis=1), number, whole)
        assert np.array_equal(whole, vectors)


@pytest.mark.parametrize(
    ("text", "counts", "words", "pieces"),
    [
        ("a b c d e f g h", (), 8, 8),
        ("a b c d e f g h i", (), 8, 8),
        ("a b c d", (3, 3, 3, 1), 2, 6),  # the third does not fit whole
        ("a b c d", (3, 5, 0, 1), 3, 8),  # the third has no piece
        ("a b", (9, 1), 0, 0),
    ],
)
def test_a_text_that_is_cut_short(text: str, counts: tuple[int, ...], words: int, pieces: int) -> None:
    (fitted,) = fit_texts([make(text, counts)], 10, "truncate")
    assert fitted.pieces.words == text.split()[:words]
    assert cuts(fitted) == [pieces]
    assert fitted.left_out == len(text.split()) - words


def test_a_text_that_is_skipped() -> None:
    (fitted,) = fit_texts([make("a b c d e f g h i")], 10, "skip")
    assert fitted.windows == [] and fitted.pieces.words == [] and fitted.pieces.tokens == [CLS, SEP]
    assert fitted.left_out == 9


def test_mistakes_are_named() -> None:
    texts = [make("a"), make("a b c d e f g h i")]
    with pytest.raises(
        TextTooLong, match=r"^text 1 has 11 pieces, .* reads at most 10: give long='split', 't"
    ) as raised:
        fit_texts(texts, 10)
    assert raised.value.index == 1
    with pytest.raises(TextTooLong, match="reads at most 2"):  # no room beside the special tokens
        fit_texts(texts, 2, "split")
    with pytest.raises(ValueError, match="long is 'cut', not one of 'error', 'split', 'truncate', 'skip'"):
        fit_texts([], 10, "cut")  # type: ignore[arg-type]
    assert [len(text.windows) for text in fit_texts(texts, None)] == [1, 1]


@pytest.mark.parametrize(
    ("long", "message"),
    [
        ("split", "texts of more pieces than the model reads (10): 2 of 3, read in 5 windows"),
        ("truncate", "texts of more pieces than the model reads (10): 2 of 3, cut short; 12 words have no vector"),
        ("skip", "texts of more pieces than the model reads (10): 2 of 3, skipped; 28 words have no vector"),
    ],
)
def test_they_are_reported_in_a_line(long: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    tally = Tally()
    tally.add(fit_texts([make("a b")], 10, long))  # type: ignore[arg-type]
    tally.add(fit_texts([make("a " * 9), make("a " * 19)], 10, long))  # type: ignore[arg-type]
    tally.report("words", long, 10)  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records] == [message]
    caplog.set_level(logging.INFO)
    caplog.clear()
    Tally(texts=3).report("words", "split", 10)
    assert not caplog.records
