"""Files of minimal pairs: JSON lines, each with a grammatical and an ungrammatical sentence, as BLiMP has them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.data.files import open_files
from pretrain.data.text import clean, first_line, read_lines
from pretrain.errors import DataError
from pretrain.probing.blimp import PHENOMENON_OF
from pretrain.runtime.seeding import generator

GOOD, BAD, PARADIGM, PHENOMENON, NUMBER = "sentence_good", "sentence_bad", "UID", "linguistics_term", "pairID"
"""The fields that are read."""


@dataclass(frozen=True)
class Pair:
    """A minimal pair."""

    good: str
    bad: str
    paradigm: str | None
    """Its `UID`: pairs that are made alike."""
    phenomenon: str | None
    """Its `linguistics_term`: what several paradigms are about. BLiMP's have that of its paper."""
    number: Any
    """Its `pairID`, as the file has it."""
    where: str
    """File and line."""

    def named(self) -> dict[str, Any]:
        """Its fields, for JSON."""
        names = {PARADIGM: self.paradigm, NUMBER: self.number}
        return {name: value for name, value in names.items() if value is not None} | {GOOD: self.good, BAD: self.bad}


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file, also of a compressed one; raises DataError naming the line that is none."""
    pairs = [
        _pair(line, f"{name}, line {number}")
        for name, file in open_files(str(path))
        for number, line in enumerate(read_lines(file, name), 1)
        if line and not line.isspace()
    ]
    if not pairs:
        raise DataError(f"{path}: no pair in it")
    return pairs


def _pair(line: str, where: str) -> Pair:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON, of which each line must be an object ({first_line(error)})") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: {line[:40]!r} is no object with {GOOD} and {BAD}")
    sentences = []
    for field in (GOOD, BAD):
        value = record.get(field)
        if not isinstance(value, str) or not clean(value):
            problem = f"{field} is {json.dumps(value)}, not a sentence" if field in record else f"no {field}"
            raise DataError(f"{where}: {problem}")
        sentences.append(value)
    names = []
    for field in (PARADIGM, PHENOMENON):
        value = record.get(field)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {field} is {json.dumps(value)}, not a name")
        names.append(value or None)
    paradigm, phenomenon = names
    if phenomenon is not None:
        phenomenon = PHENOMENON_OF.get(paradigm or "", phenomenon)
    good, bad = sentences
    return Pair(good, bad, paradigm, phenomenon, record.get(NUMBER), where)


def draw_pairs(pairs: Sequence[Pair], most: int, seed: int) -> list[Pair]:
    """At most `most` pairs of each paradigm, in the order of the file; a pure function of the seed and the pairs."""
    kept: list[int] = []
    for paradigm, numbers in numbers_by_paradigm(pairs):
        drawn = generator("pairs", seed, paradigm or "").permutation(len(numbers))[:most]
        kept += [numbers[number] for number in drawn.tolist()]
    return [pairs[number] for number in sorted(kept)]


def numbers_by_paradigm(pairs: Sequence[Pair]) -> Iterator[tuple[str | None, list[int]]]:
    """Each paradigm, None for pairs without one, and its pairs' numbers; by name, whatever the order of the file."""
    numbers: dict[str | None, list[int]] = {}
    for number, pair in enumerate(pairs):
        numbers.setdefault(pair.paradigm, []).append(number)
    yield from sorted(numbers.items(), key=lambda item: item[0] or "")
