"""Senses: whether a word's vector lies with those of the same sense, in sentences where the word is spelled the same.

Each sentence is left out in turn, as in word sense disambiguation by the mean vector of each sense (Peters et al. 2018,
§5.3). Vectors of word types are no floor here: they are the same in all sentences, so that every answer is a tie.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import DataError
from pretrain.probing.intervals import RESAMPLES, bounds
from pretrain.probing.results import Outcome, Result
from pretrain.probing.subjects import Subject
from pretrain.probing.tables import read_rows, refuse_options
from pretrain.probing.tasks import Inputs
from pretrain.probing.vectors import word_vectors
from pretrain.runtime.seeding import generator

COLUMNS = ("word", "sense", "sentence")
TIE = 1e-9
"""Cosines that differ by less are equal: what rounding leaves of vectors that do not depend on their context."""
NO_TEST = "each sentence is tested on by leaving it out"
NO_STATIC = "vectors of word types are the same in every sentence, so that all senses are equally near"


class Occurrence(NamedTuple):
    """A word in one of its senses in a sentence."""

    word: str
    sense: str
    sentence: str
    where: str = "a sentence"
    """Where it was read, for messages."""


def probe_senses(subjects: Sequence[Subject], inputs: Inputs) -> Outcome:
    """How often a word is nearest to its own sense; `inputs.data` has lines of word, sense and sentence."""
    refuse_options(inputs, "senses", {"test": NO_TEST, "static": NO_STATIC, "scores": None})
    return probe_occurrences(subjects, read_occurrences(inputs.data), inputs.vectors, inputs.seed)


def read_occurrences(path: Path) -> list[Occurrence]:
    """The sentences of a file: `word<TAB>sense<TAB>sentence` a line, blank lines and those with # left out."""
    rows = read_rows(path, COLUMNS, comment="#")
    occurrences = [Occurrence(word, sense, sentence, where) for (word, sense, sentence), where in rows]
    check_occurrences(occurrences, str(path))
    return occurrences


def check_occurrences(occurrences: Sequence[Occurrence], name: str) -> None:
    """Raises DataError unless each word has two senses or more, of two sentences or more each."""
    for word, senses in _senses(occurrences).items():
        if len(senses) < 2:
            raise DataError(f"{name}: {word!r} has one sense, {next(iter(senses))!r}: at least two are compared")
        for sense, count in senses.items():
            if count < 2:
                raise DataError(f"{name}: {word!r} has one sentence of the sense {sense!r}: it takes two or more")


def probe_occurrences(
    subjects: Sequence[Subject], occurrences: Sequence[Occurrence], folder: Path, seed: int = 1
) -> Outcome:
    """All figures of some sentences, which `check_occurrences` allows; vectors are kept in `folder`.

    For every layer of every model, and of an untrained one beside it: `nearest_sense`, the share of the sentences whose
    word is nearer to the mean of its own sense than to that of any other, the sentence itself left out, ties being
    wrong, over all sentences and as the mean over words (`nearest_sense_macro`), and by word; `separation`, the mean
    cosine within senses less that across senses, as the mean over words; and what a layer gains in `nearest_sense`
    over layer 0 and over the same layer untrained, sentence by sentence.
    """
    words = Words(occurrences, seed)
    results = words.results("majority", 0, words.most_frequent)
    maps = []
    for subject in subjects:
        vectors = occurrence_vectors(subject, occurrences, folder)
        untrained = occurrence_vectors(subject.untrained(seed), occurrences, folder)
        results += words.beside(subject.name, vectors, untrained)
        maps += sense_maps(subject.name, vectors, occurrences)
    return Outcome("senses", tuple(results), words.notes(), {"sense_maps": maps})


def occurrence_vectors(subject: Subject, occurrences: Sequence[Occurrence], folder: Path) -> NDArray[np.float32]:
    """The vector of each occurrence in all layers, [layers, occurrences, width].

    It is the first word of the sentence, as the model cuts it, that is the same but for case; raises DataError for a
    sentence without one.
    """
    sentences = [subject.embedder.words(occurrence.sentence) for occurrence in occurrences]
    places = []
    for occurrence, words in zip(occurrences, sentences, strict=True):
        folded = [word.casefold() for word in words]
        if occurrence.word.casefold() not in folded:
            raise DataError(
                f"{occurrence.where}: {occurrence.word!r} is not among the words of the sentence, as {subject.name} "
                f"cuts it: {' '.join(words)}"
            )
        places.append(folded.index(occurrence.word.casefold()))
    kept = word_vectors(subject, sentences, folder)
    return np.asarray(kept.layers[:, kept.starts[:-1] + places])


def nearest_sense(vectors: NDArray[np.floating], senses: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each vector [sentences, width] of a word is nearer to the others of its sense than to any other sense.

    Near is the cosine with the mean of a sense's vectors, the vector itself left out; ties are wrong.
    """
    names, of = np.unique(senses, return_inverse=True)
    rows = np.asarray(vectors, np.float64)
    belongs = of[:, None] == np.arange(len(names))
    sums = belongs.T.astype(np.float64) @ rows
    # a sum has the direction of its mean
    left_out = sums[None] - belongs[..., None] * rows[:, None]
    norms = np.linalg.norm(left_out, axis=-1) * np.linalg.norm(rows, axis=-1)[:, None]
    cosines = (left_out * rows[:, None]).sum(axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    own = cosines[belongs]
    others = np.where(belongs, -np.inf, cosines).max(axis=1)
    nearest: NDArray[np.bool_] = own > others + TIE
    return nearest


def sense_maps(
    name: str, vectors: NDArray[np.floating], occurrences: Sequence[Occurrence], layer: int | None = None
) -> list[dict[str, Any]]:
    """Per word, its vectors [layers, occurrences, width] of a layer (None: the top) in the plane of most variance."""
    layer = len(vectors) - 1 if layer is None else layer
    maps = []
    for word, rows in _rows(occurrences).items():
        maps.append(
            {
                "model": name,
                "layer": layer,
                "word": word,
                "points": principal_plane(vectors[layer][rows]).tolist(),
                "senses": [occurrences[row].sense for row in rows],
                "sentences": [occurrences[row].sentence for row in rows],
            }
        )
    return maps


def principal_plane(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """The first two principal components [items, 2] of vectors [items, width]; the largest of each is positive."""
    centred = np.asarray(vectors, np.float64)
    centred = centred - centred.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(centred), 2))
    found = (left * scale)[:, :2]
    points[:, : found.shape[1]] = found
    largest = points[np.abs(points).argmax(axis=0), [0, 1]]
    signed: NDArray[np.float64] = points * np.where(largest < 0, -1.0, 1.0)
    return signed


@dataclass(frozen=True)
class Words:
    """The sentences by word, and the samples of them that intervals are of: drawn word by word, the same for all."""

    occurrences: Sequence[Occurrence]
    seed: int

    @cached_property
    def rows(self) -> dict[str, list[int]]:
        """The occurrences of each word."""
        return _rows(self.occurrences)

    @cached_property
    def draws(self) -> NDArray[np.float32]:
        """How often each sample holds each occurrence, [samples, occurrences]."""
        counts = np.empty((RESAMPLES, len(self.occurrences)), np.float32)
        rng = generator("senses", "bootstrap", self.seed)
        for rows in self.rows.values():
            counts[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=RESAMPLES)
        return counts

    @cached_property
    def most_frequent(self) -> NDArray[np.bool_]:
        """Whether the sense of each occurrence is its word's most frequent."""
        frequent = {word: counts.most_common(1)[0][0] for word, counts in _senses(self.occurrences).items()}
        return np.array([frequent[occurrence.word] == occurrence.sense for occurrence in self.occurrences])

    def nearest(self, vectors: NDArray[np.floating]) -> NDArray[np.bool_]:
        """`nearest_sense` in each layer, [layers, occurrences] of [layers, occurrences, width]."""
        right = np.empty(vectors.shape[:2], np.bool_)
        for rows in self.rows.values():
            senses = [self.occurrences[row].sense for row in rows]
            for layer, of_layer in enumerate(vectors):
                right[layer, rows] = nearest_sense(of_layer[rows], senses)
        return right

    def beside(self, model: str, vectors: NDArray[np.floating], untrained: NDArray[np.floating]) -> list[Result]:
        """All figures of a model's vectors [layers, occurrences, width], and of the same model's untrained."""
        nearest, floor = self.nearest(vectors), self.nearest(untrained)
        results = []
        for layer, right in enumerate(nearest):
            results += [*self.results(model, layer, right), self.separation(model, layer, vectors[layer])]
            against = {"untrained": floor[layer]} | ({"layer_0": nearest[0]} if layer else {})
            for name, other in against.items():
                results.append(self.result(model, layer, f"gain_over_{name}", right.astype(float) - other))
        for layer, right in enumerate(floor):
            results += self.results("untrained", layer, right, of=model)
            results.append(self.separation("untrained", layer, untrained[layer], of=model))
        return results

    def results(self, model: str, layer: int, right: NDArray[np.bool_], of: str | None = None) -> list[Result]:
        """Over all sentences, as the mean over words, and by word."""
        overall = self.result(model, layer, "nearest_sense", right, of)
        by_word = {word: self._samples(right, rows) for word, rows in self.rows.items()}
        mean = float(np.mean([right[rows].mean() for rows in self.rows.values()]))
        macro = bounds(np.mean(list(by_word.values()), axis=0))
        return [
            overall,
            Result(model, "senses", layer, "nearest_sense_macro", mean, *macro, of=of),
            *(
                Result(model, "senses", layer, "nearest_sense", float(right[rows].mean()), *bounds(samples), of, word)
                for (word, rows), samples in zip(self.rows.items(), by_word.values(), strict=True)
            ),
        ]

    def result(
        self, model: str, layer: int, metric: str, values: NDArray[np.floating | np.bool_], of: str | None = None
    ) -> Result:
        """The mean of `values` [occurrences]."""
        samples = self._samples(values, range(len(values)))
        return Result(model, "senses", layer, metric, float(np.mean(values)), *bounds(samples), of=of)

    def separation(self, model: str, layer: int, vectors: NDArray[np.floating], of: str | None = None) -> Result:
        """The mean cosine within senses less that across senses, of [occurrences, width], as the mean over words."""
        values, samples = [], []
        for rows in self.rows.values():
            every = np.concatenate([np.ones((1, len(rows)), np.float32), self.draws[:, rows]])
            value, *drawn = _separation(vectors[rows], [self.occurrences[row].sense for row in rows], every)
            values.append(value)
            samples.append(drawn)
        # a sample without a pair within senses, or across them, has none
        means = np.mean(samples, axis=0)
        return Result(model, "senses", layer, "separation", float(np.mean(values)), *bounds(means), of=of)

    def notes(self) -> tuple[str, ...]:
        """What was counted, and what chance is."""
        senses = _senses(self.occurrences)
        chance = sum(sum(counts.values()) / len(counts) for counts in senses.values()) / len(self.occurrences)
        return (
            f"{len(self.occurrences):,} sentences of {len(senses):,} words, "
            f"{sum(map(len, senses.values())):,} senses: one sense drawn at random is right for {chance:.3f}",
            "Vectors of word types (static) are no floor here: they are the same in every sentence.",
        )

    def _samples(self, values: NDArray[np.floating | np.bool_], rows: Sequence[int]) -> NDArray[np.float64]:
        means: NDArray[np.float64] = self.draws[:, rows] @ np.asarray(values, np.float64)[rows] / len(rows)
        return means


def _separation(
    vectors: NDArray[np.floating], senses: Sequence[str], counts: NDArray[np.floating]
) -> NDArray[np.float64]:
    """By sample, where `counts` [samples, sentences] says how often it holds each; NaN where there is no pair.

    A sentence makes no pair with itself, also where a sample holds it twice.
    """
    rows = np.asarray(vectors, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    same = np.equal.outer(senses, senses)
    means = []
    for pairs in (same & ~np.eye(len(senses), dtype=bool), ~same):
        weights = ((counts @ pairs) * counts).sum(axis=1)
        total = ((counts @ (rows @ rows.T * pairs)) * counts).sum(axis=1)
        means.append(np.divide(total, weights, out=np.full(len(counts), np.nan), where=weights > 0))
    difference: NDArray[np.float64] = means[0] - means[1]
    return difference


def _senses(occurrences: Sequence[Occurrence]) -> dict[str, Counter[str]]:
    """How many sentences each sense of each word has."""
    counted: dict[str, Counter[str]] = {}
    for occurrence in occurrences:
        counted.setdefault(occurrence.word, Counter())[occurrence.sense] += 1
    return counted


def _rows(occurrences: Sequence[Occurrence]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, occurrence in enumerate(occurrences):
        rows.setdefault(occurrence.word, []).append(row)
    return rows
