"""`pretrain embed`: text to vectors, line by line."""

import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tqdm import tqdm

from pretrain.data.files import open_members
from pretrain.data.text import read_lines
from pretrain.embedding.writer import Hdf5Writer
from pretrain.errors import ConfigError, DataError, ExportError, PretrainError

if TYPE_CHECKING:  # torch takes seconds to import: a mistake is said before it is
    from pretrain.embedding.embedder import Embedder, Layers, Output
    from pretrain.embedding.windows import FittedText, Long
    from pretrain.models.start_state import Start

BATCHES_AT_ONCE = 8
"""Batches' worth of texts that are read, sorted by length and held in memory together, at most."""
BYTES_AT_ONCE = 1 << 28
"""Bytes of pieces' vectors that are held in memory together, at most, unless one text has more."""


def embed(
    model: Path,
    input: str | Path,
    out: Path,
    *,
    layers: "Layers" = "all",
    output: "Output" = "words",
    is_split_into_words: bool = False,
    long: "Long" = "error",
    batch_size: int = 32,
    checkpoint: str = "best",
    encoding: str = "utf-8",
    start: "Start" = "auto",
) -> int:
    """Writes vectors of every line of `input` (a file, or "-" for standard input) to `out`; returns how many lines.

    `out` is HDF5 (`Hdf5Writer`), which keeps what is written before an error or an interruption. Lines are cut as
    `pretrain prepare` cuts them (`read_lines`), compressed files included; an archive's files follow one another. A
    line is a text, without the white space around it; with `is_split_into_words`, its words are what white space
    separates. A blank line keeps its number. `model`, `checkpoint` and `start` are as in `Embedder.load`; layers,
    output and `long` as in `Embedder.encode`.

    Raises ConfigError for another kind of file or for layers that the model has not, ExportError for a model that
    cannot be read or an `out` that exists, CheckpointError for a run without that checkpoint, DataError for a line that
    cannot be decoded or is longer than the model reads.
    """
    _check_options(model, out, encoding)
    lines = _read(input, encoding)
    first = list(islice(lines, 1))  # a file that cannot be read is met before the model is loaded
    with Hdf5Writer(out) as writer, tqdm(unit=" texts", disable=None) as bar:
        from pretrain.embedding.windows import Tally

        embedder = _load(model, checkpoint, start, layers)
        texts = _fit(embedder, chain(first, lines), is_split_into_words, long)
        most_pieces = BYTES_AT_ONCE // (4 * embedder.width * len(embedder.layer_numbers(layers)))
        tally = Tally()
        for chunk in _chunks(texts, BATCHES_AT_ONCE * batch_size, most_pieces):
            fitted = [text for _, text in chunk]
            vectors = embedder.encode_fitted(fitted, output, layers=layers, batch_size=batch_size, progress=bar)
            for (line, _), array in zip(chunk, vectors, strict=True):
                writer.write(line, array)
            tally.add(fitted)
    tally.report(output, long, embedder.max_length)
    return writer.count


def parse_layers(text: str) -> "Layers":
    """`all`, a number, or numbers separated by commas, as `--layers` takes them; raises ConfigError for others."""
    if text == "all":
        return "all"
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"--layers is {text!r}: give 'all', or layers by number, such as -1 or 0,2") from None
    return numbers if "," in text else numbers[0]


def _check_options(model: Path, out: Path, encoding: str) -> None:
    """Raises an error for what is wrong without a look into any file."""
    if out.suffix not in Hdf5Writer.suffixes:
        raise ConfigError(f"--out is {out}: its name must end in {' or '.join(Hdf5Writer.suffixes)}")
    try:
        "".encode(encoding)
    except LookupError:
        raise ConfigError(
            f"--encoding is {encoding!r}, which is not a text encoding: give one such as utf-8 or latin-1"
        ) from None
    if not model.is_dir():
        raise ExportError(f"{model} is a file, not a model folder" if model.exists() else f"{model}: no such folder")


def _load(model: Path, checkpoint: str, start: "Start", layers: "Layers") -> "Embedder":
    """The model, once it is known that it has the layers."""
    from pretrain.embedding.embedder import Embedder

    embedder = Embedder.load(model, checkpoint=checkpoint, start=start)
    try:
        embedder.layer_numbers(layers)
    except ValueError as error:
        raise ConfigError(f"--layers: {error}") from error
    return embedder


def _read(input: str | Path, encoding: str) -> Iterator[tuple[str, str]]:
    """Where each line stands, and the line without the white space around it."""
    members: Iterable[tuple[str, BinaryIO]] = (
        [("standard input", sys.stdin.buffer)] if str(input) == "-" else open_members(str(input))
    )
    for name, file in members:
        for number, line in enumerate(read_lines(file, name, encoding), start=1):
            yield f"{name}, line {number}", line.strip()


def _fit(
    embedder: "Embedder", lines: Iterable[tuple[str, str]], is_split_into_words: bool, long: "Long"
) -> "Iterator[tuple[str, FittedText]]":
    """Each line, and as the model reads it."""
    from pretrain.embedding.windows import TextTooLong

    for where, line in lines:
        try:
            (text,) = embedder.fit([line.split() if is_split_into_words else line], long)
        except TextTooLong as error:
            raise DataError(f"{where}: {error.problem}: cut it, or give --long split, truncate or skip") from error
        yield line, text


def _chunks(
    texts: "Iterable[tuple[str, FittedText]]", most_texts: int, most_pieces: int
) -> "Iterator[list[tuple[str, FittedText]]]":
    """Texts that are held in memory together; those before a line that cannot be read are not lost with it."""
    chunk: list[tuple[str, FittedText]] = []
    pieces = 0
    try:
        for line, text in texts:
            pieces += len(text.pieces.tokens)
            if chunk and (len(chunk) == most_texts or pieces > most_pieces):
                yield chunk
                chunk, pieces = [], len(text.pieces.tokens)
            chunk.append((line, text))
    except PretrainError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk
