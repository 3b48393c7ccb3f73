"""Entities as tags of words: files of them, their spans, and how well spans are found."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.data.files import open_members
from pretrain.data.text import read_lines
from pretrain.errors import DataError
from pretrain.probing.intervals import interval
from pretrain.probing.sentences import Sentence

DOCUMENT = "-DOCSTART-"
"""The word of the line that begins a document in files of CoNLL-2003."""
_TAG = re.compile(r"O|[BI]-\S+")
_LANGUAGE = re.compile(r"([a-z]{2,3}(?:-[a-z-]+)?):(?=.)")


class Span(NamedTuple):
    """An entity."""

    first: int
    end: int
    """The number of the word after it."""
    kind: str


def read_entities(path: Path) -> list[Sentence]:
    """The sentences of a file with a word and its tag (IOB1 or IOB2) on each line; the tags as IOB2.

    Columns are separated by tabs, or by white space where a line has no tab. The first is the word, the last its tag;
    in a file whose first line has the word's number first (Universal NER), the second is the word and the third its
    tag. A blank line ends a sentence; lines such as `# text = …` are comments. Raises DataError, with the line, for
    what is no tag, and where there is no entity.
    """
    sentences: list[Sentence] = []
    document: int | None = None
    words: list[str] = []
    tags: list[str] = []
    numbered: bool | None = None
    for where, columns in _rows(path):
        if words and (not columns or columns[0] == DOCUMENT):
            sentences.append(Sentence(tuple(words), iob2(tags), document))
            words, tags = [], []
        if not columns:
            continue
        if columns[0] == DOCUMENT:
            document = 0 if document is None else document + 1
            continue
        if numbered is None:
            numbered = len(columns) > 2 and columns[0] == "1" and _TAG.fullmatch(columns[2]) is not None
        word, tag = (columns[1], columns[2]) if numbered and len(columns) > 2 else (columns[0], columns[-1])
        if len(columns) < 2 or not word:
            raise DataError(f"{where}: not a word and its tag: {' '.join(columns)[:40]!r}")
        if not _TAG.fullmatch(tag):
            raise DataError(f"{where}: {tag[:40]!r} is no tag of an entity: those are O, B-TYPE and I-TYPE")
        words.append(word)
        tags.append(tag)
    if document is not None and any(sentence.document is None for sentence in sentences):
        # the mark stands between documents: what is before the first is one too
        sentences = [
            replace(sentence, document=0 if sentence.document is None else sentence.document + 1)
            for sentence in sentences
        ]
    if not any(tag != "O" for sentence in sentences for tag in sentence.tags):
        raise DataError(f"{path}: no entity in {len(sentences):,} sentences")
    return _without_language(sentences)


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The columns of each line, and where it is; none for a blank line, and at the end."""
    for name, file in open_members(str(path)):
        for number, line in enumerate(chain(read_lines(file, name), [""]), 1):
            if not (line.startswith("# ") and "=" in line):
                columns = line.split("\t") if "\t" in line.strip() else line.split()
                yield f"{name}, line {number}", [column.strip() for column in columns]


def _without_language(sentences: list[Sentence]) -> list[Sentence]:
    """Words without the `en:` that some files of WikiANN have in front of every one."""
    matches = [_LANGUAGE.match(word) for sentence in sentences for word in sentence.words]
    if not matches or len({match and match[1] for match in matches}) > 1 or matches[0] is None:
        return sentences
    start = matches[0].end()
    return [Sentence([word[start:] for word in each.words], each.tags, each.document) for each in sentences]


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence's tags, as conlleval counts them.

    An entity begins with B, and with I after O or after another type; a B within an entity begins the next one.
    """
    found: list[Span] = []
    first, kind = 0, ""
    for number, tag in enumerate([*tags, "O"]):
        prefix, _, of = tag.partition("-")
        if kind and (prefix != "I" or of != kind):
            found.append(Span(first, number, kind))
            kind = ""
        if prefix != "O" and not kind:
            first, kind = number, of
    return found


def iob2(tags: Sequence[str]) -> list[str]:
    """The same entities in IOB2, where each begins with B."""
    written = ["O"] * len(tags)
    for span in spans(tags):
        for number in range(span.first, span.end):
            written[number] = f"{'B' if number == span.first else 'I'}-{span.kind}"
    return written


def span_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Of each sentence the entities that are right (words and type), predicted, and there: [sentences, 3]."""
    counts = []
    for true, guessed in zip(gold, predicted, strict=True):
        there, found = {*spans(true)}, {*spans(guessed)}
        counts.append((len(there & found), len(found), len(there)))
    return np.array(counts, dtype=np.int64).reshape(-1, 3)


def span_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], seed: int) -> tuple[float, float, float]:
    """Micro-averaged F1 of entities, as conlleval has it, and the bounds of its interval by sentence.

    Nothing there and nothing predicted is 0.
    """
    counts = span_counts(gold, predicted)

    def f1(drawn: NDArray[np.int64]) -> float:
        right, found, there = counts[drawn].sum(axis=0)
        return float(2 * right / max(1, found + there))

    return interval(f1, len(counts), seed)
