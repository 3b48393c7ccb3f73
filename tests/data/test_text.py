"""Bytes as lines: what ends one, marks, encodings, and what is no text."""

import io
import time

import pytest

from pretrain.data.text import clean, clean_word, read_lines, split_lines, split_paragraphs
from pretrain.errors import DataError

NO_LINE_ENDS = ["\u2028", "\u2029", "\u0085", "\f", "\v", "\x1c", "\x1d", "\x1e"]
"""Where `str.splitlines` ends a line."""


def lines_of(content: bytes, encoding: str = "utf-8") -> list[str]:
    return list(read_lines(io.BytesIO(content), "a.txt", encoding))


def problem(content: bytes, encoding: str = "utf-8") -> str:
    with pytest.raises(DataError) as caught:
        lines_of(content, encoding)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("inside", NO_LINE_ENDS)
def test_only_line_feeds_and_carriage_returns_end_a_line(inside: str) -> None:
    text = f"one{inside}two\nthree\rfour\r\nfive\n\rsix"
    expected = [f"one{inside}two", "three", "four", "five", "", "six"]
    assert split_lines(text) == expected
    assert lines_of(text.encode()) == expected
    assert lines_of(text.encode("utf-16"), "utf-16") == expected
    assert clean(f"one{inside}two") == "one two", "white space all the same"


def test_a_file_read_in_small_pieces_has_the_same_lines() -> None:
    """A carriage return at the end of a piece, and its line feed at the beginning of the next."""
    text = "".join(f"{'ü' * (i % 7)}{'x' * (8190 - i)}\r\n" for i in range(4))
    assert lines_of(text.encode()) == text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def test_a_mark_is_no_text_wherever_a_file_began() -> None:
    content = "\ufeffone\n\ufeff\ufefftwo\n\ufeff\r\nzero\ufeffwidth".encode()
    assert lines_of(content) == ["one", "two", "", "zero\ufeffwidth"]
    assert split_lines(content.decode()) == lines_of(content)
    assert clean(content.decode()) == "one two zero\ufeffwidth"


def test_paragraphs_lie_between_blank_lines() -> None:
    assert list(split_paragraphs(["", "a", "b", " \t", "\u00a0", "c", ""])) == [["a", "b"], ["c"]]


def test_half_a_surrogate_pair_is_replaced() -> None:
    assert clean("a\ud800b 😀") == "a\ufffdb 😀"
    assert clean_word("\udc00 x") == "\ufffd x"


def test_encodings() -> None:
    assert lines_of("Þórr\nǫ".encode("utf-16")[:10], "utf-16") == ["Þórr"]
    assert lines_of("caf\u00e9\n".encode("latin-1"), "latin-1") == ["café"]
    assert lines_of("日本\n語".encode("shift_jis"), "shift_jis") == ["日本", "語"]


def test_what_cannot_be_decoded_is_told_with_line_and_byte() -> None:
    assert problem("fine\nfiné\r\nbad ".encode() + b"\xff\n") == (
        "a.txt, line 3: byte 0xff is not UTF-8: name the source's encoding (such as latin-1), "
        "or convert: iconv -f LATIN1 -t UTF-8"
    )
    assert problem(b"\xed\xa0\x80\n").startswith("a.txt, line 1: byte 0xed is not UTF-8")
    assert problem(b"fine\nbad \x81\n", "cp1252").startswith("a.txt, line 2: byte 0x81 is not cp1252")
    assert problem("ab\n".encode("utf-16") + b"\x00\xd8", "utf-16").startswith("a.txt, after line 1: byte 0x00 is not")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b\x08\x00", "not text but a gzip file (its name should end in .gz)"),
        (b"PK\x03\x04rest", "not text but a zip archive"),
        (b"%PDF-1.7 ...", "not text but a PDF"),
        (b"PAR1....", "not text but a Parquet file (kind: parquet)"),
        (b"some\0\0\0\0\0\0", "not text in utf-8: it is full of NUL bytes; is its encoding utf-16?"),
        ("one\n".encode("utf-16"), "not text in utf-8: its byte order mark is that of utf-16: name that encoding"),
    ],
)
def test_what_is_no_text_is_told(content: bytes, message: str) -> None:
    assert problem(content).startswith(f"a.txt: {message}")


def test_a_nul_in_a_text_is_a_character_like_others() -> None:
    assert lines_of(b"some words and one \0 among them\n") == ["some words and one \0 among them"]


def test_a_long_line_takes_linear_time() -> None:
    started = time.perf_counter()
    assert [len(line) for line in lines_of("ü".encode() * 10_000_000)] == [10_000_000]
    assert time.perf_counter() - started < 10
