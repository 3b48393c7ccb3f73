"""`pretrain embed`: text to vectors, line by line."""

import sys
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from pretrain.data.text import read_lines
from pretrain.embedding.embedder import Embedder, Layers, Output, Text, TextTooLong, warn_of_words_without_piece
from pretrain.embedding.pooling import count_words_without_piece
from pretrain.embedding.writer import Hdf5Writer
from pretrain.errors import ConfigError, DataError

BATCHES_AT_ONCE = 8
"""Batches' worth of texts that are read, sorted by length and held in memory together."""


def embed(
    model: Path,
    input: str | Path,
    out: Path,
    *,
    layers: Layers = "all",
    output: Output = "words",
    is_split_into_words: bool = False,
    batch_size: int = 32,
) -> int:
    """Writes vectors of every line of `input` (a file, or "-" for standard input) to `out`; returns how many lines.

    `out` is HDF5 (`Hdf5Writer`). A line, whose end is a line feed, a carriage return or both, is a text, without the
    white space around it; with `is_split_into_words`, its words are what white space separates. A blank line keeps its
    number. Layers and output are as in `Embedder.encode`.

    Raises ConfigError for another kind of file or for layers that the model has not, ExportError for a model that
    cannot be read or an `out` that exists, DataError for a line that is not UTF-8 or longer than the model reads.
    """
    if out.suffix not in Hdf5Writer.suffixes:
        raise ConfigError(f"--out is {out}: its name must end in {' or '.join(Hdf5Writer.suffixes)}")
    name = "standard input" if str(input) == "-" else str(input)
    count = words = without_piece = 0
    with _open(input) as file, Hdf5Writer(out) as writer, tqdm(unit=" texts", disable=None) as bar:
        embedder = _load(model, layers)
        lines = map(str.strip, read_lines(file, name))
        while chunk := list(islice(lines, BATCHES_AT_ONCE * batch_size)):
            texts: list[Text] = [line.split() for line in chunk] if is_split_into_words else list(chunk)
            try:
                pieces = embedder.pieces(texts)
            except TextTooLong as error:
                raise DataError(f"{name}, line {count + error.index + 1}: {error.problem}") from error
            vectors = embedder.encode_pieces(pieces, output, layers=layers, batch_size=batch_size, progress=bar)
            for line, array in zip(chunk, vectors, strict=True):
                writer.write(line, array)
            count += len(chunk)
            words += sum(len(text.words) for text in pieces)
            without_piece += sum(map(count_words_without_piece, pieces))
    if output == "words":
        warn_of_words_without_piece(without_piece, words)
    return count


def parse_layers(text: str) -> Layers:
    """`all`, a number, or numbers separated by commas, as `--layers` takes them; raises ConfigError for others."""
    if text == "all":
        return "all"
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"--layers is {text!r}: give 'all', or layers by number, such as -1 or 0,2") from None
    return numbers if "," in text else numbers[0]


def _load(model: Path, layers: Layers) -> Embedder:
    """The model, once it is known that it has the layers."""
    embedder = Embedder.load(model)
    try:
        embedder.layer_numbers(layers)
    except ValueError as error:
        raise ConfigError(f"--layers: {error}") from error
    return embedder


def _open(input: str | Path) -> AbstractContextManager[BinaryIO]:
    if str(input) == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(input).open("rb")
    except OSError as error:
        raise DataError(f"{input} cannot be read: {error.strerror}") from error
