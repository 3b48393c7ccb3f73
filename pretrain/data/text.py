"""Bytes as text and text as lines, the same for everything that is prepared, evaluated or embedded.

Only a line feed, a carriage return, or both end a line; the line ends of `str.splitlines` (U+2028, NEL, form feed and
others) are white space within one. A byte order mark is no text wherever a file began: at the start of any line.
"""

import contextlib
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from pretrain.errors import DataError

MARK = "\ufeff"
"""The byte order mark."""
_WHITE_SPACE = re.compile(r"\s+")
_MARK_OF_A_LINE = re.compile(rf"(?:^|(?<=[\r\n])){MARK}+")
_SURROGATE = re.compile("[\ud800-\udfff]")

_MAGIC = {
    b"\x1f\x8b": "a gzip file (its name should end in .gz)",
    b"PK\x03\x04": "a zip archive (its name should end in .zip; an office document or an e-book is to be converted)",
    b"BZh9": "a bzip2 file (its name should end in .bz2)",
    b"\xfd7zXZ\x00": "an xz file (its name should end in .xz)",
    b"\x28\xb5\x2f\xfd": "a zstandard file (its name should end in .zst)",
    b"\x04\x22\x4d\x18": "an lz4 file, which is to be unpacked",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive, which is to be unpacked",
    b"Rar!\x1a\x07": "a rar archive, which is to be unpacked",
    b"%PDF-": "a PDF, which is to be converted",
    b"PAR1": "a Parquet file (kind: parquet)",
    b"ARROW1": "an Arrow file (kind: arrow)",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"II*\x00": "an image",
    b"SQLite format 3\x00": "a database",
    b"\x7fELF": "a program",
}
_MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Byte order marks, longer ones first."""
_PEEKED = 1024


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their ends and without byte order marks in front of them."""
    return [line.lstrip(MARK) for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]


def split_paragraphs(lines: Iterable[str]) -> Iterator[list[str]]:
    """Groups of lines between blank ones (white space alone is blank), none of them empty."""
    paragraph: list[str] = []
    for line in lines:
        if not line.isspace() and line:
            paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []
    if paragraph:
        yield paragraph


def clean(text: str) -> str:
    """A sentence, or a text to embed, as the tokenizers get it.

    Runs of white space of any kind are one space (a BERT would remove a form feed and join what it separates), byte
    order marks at the start of a line are gone, and half a surrogate pair, which no encoding can spell, is U+FFFD.
    """
    if not text.isascii():
        text = _SURROGATE.sub("\ufffd", _MARK_OF_A_LINE.sub("", text))
    return _WHITE_SPACE.sub(" ", text).strip()


def clean_word(word: str) -> str:
    """A word that is given as one: only half a surrogate pair is replaced in it."""
    return word if word.isascii() else _SURROGATE.sub("\ufffd", word)


def read_lines(file: BinaryIO, name: str, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a file, without their ends and marks, decoded as they are read; the file is not closed.

    Raises DataError with the file's name where it cannot be read or is no text, with the line and the byte where it
    cannot be decoded.
    """
    number = 0
    # "surrogateescape" smuggles a byte that cannot be decoded into its line, so that the line's number is known
    lines = io.TextIOWrapper(peekable(file), encoding, errors="surrogateescape", newline=None)
    try:
        check_is_text(lines.buffer, name, encoding)
        for number, line in enumerate(lines, 1):
            if not line.isascii():
                _check_decoded(line, f"{name}, line {number}", encoding)
                line = line.lstrip(MARK)
            yield line.removesuffix("\n")
    except DataError:
        raise
    except UnicodeDecodeError as error:  # of an encoding in which bytes cannot be smuggled
        byte = error.object[error.start]
        raise DataError(_undecodable(f"{name}, after line {number}", byte, encoding)) from None
    except MemoryError:
        raise
    except Exception as error:  # every compression, and every file system, has exceptions of its own
        raise DataError(f"{name}: cannot be read: {first_line(error)}") from None
    finally:
        with contextlib.suppress(ValueError):  # the file may be closed before this generator is
            lines.detach()


def peekable(file: Any) -> Any:
    """The file as one whose first bytes can be looked at without being read."""
    return file if hasattr(file, "peek") else io.BufferedReader(file)


def check_is_text(file: Any, name: str, encoding: str | None) -> None:
    """Raises DataError where a (peekable) file begins as no text does."""
    start: bytes = file.peek(_PEEKED)[:_PEEKED]
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{name}: not text but {what}")
    wide = (encoding or "utf-16").startswith(("utf-16", "utf-32"))  # XML says itself how it is encoded
    marked = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    if marked is not None and not wide:
        raise DataError(f"{name}: not text in {encoding}: its byte order mark is that of {marked}: name that encoding")
    if start.count(0) * 3 > len(start) and not wide:
        raise DataError(f"{name}: not text in {encoding}: it is full of NUL bytes; is its encoding utf-16?")


def first_line(error: Exception) -> str:
    """What an exception says, in a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_decoded(line: str, where: str, encoding: str) -> None:
    try:
        line.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(_undecodable(where, ord(line[error.start]) & 0xFF, encoding)) from None


def _undecodable(where: str, byte: int, encoding: str) -> str:
    shown = "UTF-8" if encoding == "utf-8" else encoding
    other = "iconv -f LATIN1 -t UTF-8" if encoding == "utf-8" else f"iconv -f {encoding} -t UTF-8"
    return (
        f"{where}: byte {byte:#04x} is not {shown}: name the source's encoding (such as latin-1), or convert: {other}"
    )
