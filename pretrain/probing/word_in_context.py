"""Word in context: whether a word means the same in two sentences (Pilehvar and Camacho-Collados 2019).

A pair counts as the same sense where the cosine of the word's two vectors reaches a threshold, which is chosen on the
training part; the area under the ROC curve needs none.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import DataError
from pretrain.probing.agreement import area_under_curve, areas_of_samples, best_threshold, cosines
from pretrain.probing.intervals import bounds, draw_counts, mean_interval
from pretrain.probing.results import Outcome, Result
from pretrain.probing.subjects import Subject, beside_untrained
from pretrain.probing.tables import Row, divide_rows, read_numbered, read_rows, refuse_options
from pretrain.probing.tasks import Inputs
from pretrain.probing.vectors import word_vectors

COLUMNS = ("lemma", "part of speech", "index1-index2", "sentence1", "sentence2")
DATA, GOLD = ".data.txt", ".gold.txt"
LABELS = {"T": True, "F": False}
NO_STATIC = "vectors of word types are the same in both sentences"


class Pair(NamedTuple):
    """A word in two sentences, cut into words at white space."""

    first: list[str]
    second: list[str]
    places: tuple[int, int]
    """Which word it is in each."""
    same: bool


def probe_wic(subjects: Sequence[Subject], inputs: Inputs) -> Outcome:
    """Accuracy and ROC-AUC by layer, beside the majority, the overlap of the sentences (`static`), and `untrained`."""
    refuse_options(inputs, "wic", {"static": NO_STATIC, "scores": None})
    training, test, note = divide_rows(inputs, read_pairs)
    same = np.array([pair.same for pair in (*training, *test)])
    for part, labels in (("training part", same[: len(training)]), ("test part", same[len(training) :])):
        if len({*labels.tolist()}) < 2:
            raise DataError(f"{inputs.data}: all {len(labels):,} pairs of the {part} are {'FT'[int(labels[0])]}")
    frequent = same[: len(training)].mean() >= 0.5
    hits = same[len(training) :] == frequent
    results = [Result("majority", "wic", 0, "accuracy", *mean_interval(hits, seed=inputs.seed))]
    parts = _Parts(same, len(training), draw_counts(len(test), inputs.seed), inputs.seed)
    overlaps = np.array([overlap(pair.first, pair.second) for pair in (*training, *test)])
    results += parts.results("static", 0, overlaps)
    for subject, of in beside_untrained(subjects, inputs.seed):
        for layer, scores in enumerate(pair_cosines(subject, (*training, *test), inputs.vectors)):
            results += parts.results(subject.name, layer, scores, of)
    notes = (note, "static: the share of the two sentences' words that both have (Jaccard), instead of the cosine")
    return Outcome("wic", tuple(results), notes)


@dataclass(frozen=True)
class _Parts:
    """What is right, and how scores are judged by it."""

    same: NDArray[np.bool_]
    """[pairs], those of the training part first."""
    training: int
    draws: NDArray[np.uint16]
    """How often each sample holds each pair of the test part."""
    seed: int

    def results(self, model: str, layer: int, scores: NDArray[np.float64], of: str | None = None) -> list[Result]:
        """The figures of scores [pairs]."""
        threshold = best_threshold(scores[: self.training], self.same[: self.training])
        tested, same = scores[self.training :], self.same[self.training :]
        accuracy = mean_interval((tested >= threshold) == same, seed=self.seed)
        area, areas = area_under_curve(tested, same), areas_of_samples(tested, same, self.draws)
        return [
            Result(model, "wic", layer, "accuracy", *accuracy, of=of),
            Result(model, "wic", layer, "auc", area, *bounds(areas), of=of),
        ]


def pair_cosines(subject: Subject, pairs: Sequence[Pair], folder: Path) -> NDArray[np.float64]:
    """The cosine of the word's vectors in the two sentences, in all layers: [layers, pairs]."""
    sentences = [sentence for pair in pairs for sentence in (pair.first, pair.second)]
    kept = word_vectors(subject, sentences, folder)
    places = kept.starts[:-1] + [place for pair in pairs for place in pair.places]
    return np.stack([cosines(layer[places[::2]], layer[places[1::2]]) for layer in kept.layers])


def overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """The share of the words of two sentences, whatever their case, that both have (Jaccard)."""
    one, other = ({word.lower() for word in sentence} for sentence in (first, second))
    return len(one & other) / len(one | other)


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of `X.data.txt`, with the labels of `X.gold.txt` beside it; or of one file whose first column is them.

    A line is `lemma<TAB>part of speech<TAB>i-j<TAB>sentence1<TAB>sentence2`: the word is number i of the first
    sentence, counted from 0, and j of the second. Raises DataError, with the line, for anything else.
    """
    compressed = ".gz" if path.name.endswith(".gz") else ""
    if not path.name.endswith(f"{DATA}{compressed}"):
        rows = read_rows(path, ("label (T or F)", *COLUMNS))
        return [_pair(Row(row.cells[1:], row.where), _label(row.cells[0], row.where)) for row in rows]
    rows = read_rows(path, COLUMNS)
    gold = path.with_name(path.name.removesuffix(f"{DATA}{compressed}") + GOLD + compressed)
    if not gold.is_file():
        raise DataError(f"{gold}: no such file: it has the label of each line of {path.name}")
    labels = [_label(line.strip(), where) for line, where in read_numbered(gold)]
    if len(labels) != len(rows):
        raise DataError(f"{gold}: {len(labels):,} labels, {path.name} has {len(rows):,} pairs")
    return [_pair(row, label) for row, label in zip(rows, labels, strict=True)]


def _label(text: str, where: str) -> bool:
    if text not in LABELS:
        raise DataError(f"{where}: expected T (the same sense) or F, found {text[:40]!r}")
    return LABELS[text]


def _pair(row: Row, same: bool) -> Pair:
    _, _, indices, *sentences = row.cells
    found = re.fullmatch(r"(\d+)-(\d+)", indices)
    if found is None:
        raise DataError(f"{row.where}: expected the word's place in both sentences as 2-7, found {indices[:40]!r}")
    first, second = (sentence.split() for sentence in sentences)
    places = int(found[1]), int(found[2])
    for place, sentence, name in zip(places, (first, second), COLUMNS[-2:], strict=True):
        if place >= len(sentence):
            raise DataError(f"{row.where}: word {place} of {name}, which has {len(sentence)} words, counted from 0")
    return Pair(first, second, places, same)
