"""Vectors of word types: read from files of word2vec, GloVe and fastText, or made of a model's own."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.data.files import open_members
from pretrain.data.text import read_lines
from pretrain.errors import DataError

Vector = NDArray[np.float32]
BLOCK = 4096
"""Words whose vectors are added up at a time."""


@dataclass(frozen=True)
class WordTypes:
    """A vector for each of some words."""

    vectors: dict[str, Vector]
    width: int

    def rows(self, words: Sequence[str], unknown: Vector | None = None) -> tuple[NDArray[np.float32], dict[str, int]]:
        """Vectors [words, width]; and how many words were `found`, in `lower case` only, or are `unknown`.

        These have the vector `unknown`, by default the mean of the others.
        """
        rows = np.zeros((len(words), self.width), np.float32)
        lacking, lower = [], 0
        for number, word in enumerate(words):
            vector = self.vectors.get(word)
            if vector is None and (vector := self.vectors.get(word.lower())) is not None:
                lower += 1
            if vector is None:
                lacking.append(number)
            else:
                rows[number] = vector
        known = len(words) - len(lacking)
        rows[lacking] = rows.sum(axis=0, dtype=np.float64) / max(1, known) if unknown is None else unknown
        return rows, {"found": known - lower, "lower case": lower, "unknown": len(lacking)}


def read_word_vectors(path: Path, words: Collection[str]) -> WordTypes:
    """The vectors of those of `words` that a text file has, as they stand there or in lower case.

    A line is a word and its numbers, separated by spaces or tabs; the first line may say how many lines and numbers
    there are (word2vec, fastText) or not (GloVe). Raises DataError, with the line, for anything else.
    """
    wanted = {*words} | {word.lower() for word in words}
    vectors: dict[str, Vector] = {}
    width = 0
    for name, file in open_members(str(path)):
        for number, line in enumerate(read_lines(file, name), 1):
            word, _, rest = line.strip().replace("\t", " ", 1).partition(" ")
            if not width:
                width = len(rest.split())
                if number == 1 and width == 1 and word.isdecimal() and rest.strip().isdecimal():
                    width = int(rest)
                    continue
                if not width:
                    raise DataError(f"{name}, line {number}: {line[:40]!r} is not a word and its numbers")
            if word not in wanted or word in vectors:
                continue
            values = rest.split()
            if len(values) > width and line.rsplit(None, width)[0] != word:
                continue  # a "word" with spaces in it, which some files have: no word of a sentence
            vectors[word] = _vector(values, width, f"{name}, line {number}")
    if not vectors:
        raise DataError(f"{path}: has a vector of none of the {len(wanted):,} words that are probed")
    return WordTypes(vectors, width)


def _vector(values: list[str], width: int, where: str) -> Vector:
    if len(values) != width:
        raise DataError(f"{where}: {len(values)} numbers, where other lines have {width}")
    try:
        vector = np.array(values, dtype=np.float32)
    except ValueError:
        raise DataError(f"{where}: not numbers: {' '.join(values)[:40]!r}") from None
    if not np.isfinite(vector).all():
        raise DataError(f"{where}: a number that is infinite or none")
    return vector


def average_by_type(words: Sequence[str], vectors: NDArray[np.float32]) -> WordTypes:
    """The mean of the vectors, [words, width], of all occurrences of each word."""
    names = list(dict.fromkeys(words))
    numbers = {name: number for number, name in enumerate(names)}
    types = np.array([numbers[word] for word in words])
    sums = np.zeros((len(names), vectors.shape[1]))
    for first in range(0, len(words), BLOCK):
        np.add.at(sums, types[first : first + BLOCK], vectors[first : first + BLOCK])
    means = (sums / np.bincount(types)[:, None]).astype(np.float32)
    return WordTypes(dict(zip(names, means, strict=True)), vectors.shape[1])
