"""Similarity: whether the cosine of two sentences' vectors goes with how alike people find them (Cer et al. 2017).

Raw vectors of a masked language model are often worse here than counts of words, since a few directions that all
vectors share drown the rest; whitened ones (Su et al. 2021) show what else is in them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import DataError, ExportError
from pretrain.probing.agreement import cosines, spearman, spearman_of_samples
from pretrain.probing.intervals import bounds, draw_counts
from pretrain.probing.results import Outcome, Result
from pretrain.probing.subjects import Subject, beside_untrained
from pretrain.probing.tables import divide_rows, read_columns, refuse_options
from pretrain.probing.tasks import Inputs
from pretrain.probing.tf_idf import fit_tf_idf
from pretrain.probing.vectors import sentence_vectors

NAMES = {"score": ("score",), "sentence1": ("sentence1",), "sentence2": ("sentence2",)}
STS_BENCHMARK = (4, 5, 6)
"""Score and sentences in its files: genre, file, year, number, score, sentence1, sentence2, and at times two more."""
LAYOUTS = {7: STS_BENCHMARK, 8: STS_BENCHMARK, 9: STS_BENCHMARK}
WHITENED_SIZE = 256
"""The most directions that whitened vectors have, as in the paper for models of base size."""
NEGLIGIBLE = 1e-7
"""Directions with less than this share of the largest variance are rounding."""


class Pair(NamedTuple):
    """Two sentences, and how similar they are."""

    score: float
    first: str
    second: str


def probe_similarity(subjects: Sequence[Subject], inputs: Inputs) -> Outcome:
    """Spearman's ρ of cosines and scores, of the test part, by layer; beside TF-IDF (`static`) and `untrained`.

    A sentence's vector is the mean of its words' (`spearman`), the same whitened without labels on the training part
    (`spearman_whitened`), and of the top layer what the model's folder says (`spearman_pooled`).
    """
    refuse_options(inputs, "similarity", {"static": "it is TF-IDF here", "scores": None})
    training, test, note = divide_rows(inputs, read_pairs)
    scores = np.array([pair.score for pair in test])
    if len({*scores.tolist()}) < 2:
        raise DataError(f"{inputs.test or inputs.data}: all {len(test):,} pairs to test on have the score {scores[0]}")

    draws = draw_counts(len(test), inputs.seed)

    def result(model: str, layer: int, metric: str, similar: NDArray[np.float64], of: str | None) -> Result:
        samples = spearman_of_samples(similar, scores, draws)
        return Result(model, "similarity", layer, metric, spearman(similar, scores), *bounds(samples), of=of)

    weights = fit_tf_idf(_texts(training))
    counted = np.array([weights.cosine(pair.first, pair.second) for pair in test])
    results = [result("static", 0, "spearman", counted, None)]
    notes = [note, "static: the cosine of TF-IDF weights, counted in the training part"]
    for subject, of in beside_untrained(subjects, inputs.seed):
        texts = [subject.embedder.words(text) for text in _texts((*training, *test))]
        vectors = sentence_vectors(subject, texts, inputs.vectors)
        split = 2 * len(training)
        for layer, every in enumerate(vectors):
            pairs = every[split:]
            results.append(result(subject.name, layer, "spearman", cosines(pairs[::2], pairs[1::2]), of))
            whitening = Whitening.fit(every[:split])
            pairs = whitening(pairs)
            results.append(result(subject.name, layer, "spearman_whitened", cosines(pairs[::2], pairs[1::2]), of))
        try:
            pooled = np.stack([*subject.sentence_embedder.encode(_texts(test), "sentence", long="truncate")])
            top, similar = len(vectors) - 1, cosines(pooled[::2], pooled[1::2])
            results.append(result(subject.name, top, "spearman_pooled", similar, of))
        except ExportError as error:  # its folder has modules that are not read
            notes += [f"{subject.name}: no spearman_pooled: {error}"] * (of is None)
        if of is None:
            empty = sum(not text for text in texts[split:])
            notes.append(f"{subject.name}: whitened to {whitening.size} directions in the top layer")
            notes += [f"{subject.name}: {empty:,} sentences without a word: similarity 0"] * bool(empty)
    return Outcome("similarity", tuple(results), tuple(notes))


class Whitening(NamedTuple):
    """Vectors with their mean subtracted, turned and scaled so that their covariance is the identity."""

    mean: NDArray[np.float64]
    """[width]"""
    matrix: NDArray[np.float64]
    """[width, directions], those of the largest variance first."""

    @classmethod
    def fit(cls, vectors: NDArray[np.floating], most: int = WHITENED_SIZE) -> "Whitening":
        """The whitening of vectors [items, width], to at most so many directions (Su et al. 2021, algorithm 1)."""
        rows = np.asarray(vectors, np.float64)
        mean = rows.mean(axis=0)
        values, directions = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        values, directions = values[::-1], directions[:, ::-1]
        # of n vectors less their mean, only n - 1 directions can vary
        kept = min(most, len(rows) - 1, int(np.count_nonzero(values > NEGLIGIBLE * values[0])))
        return cls(mean, directions[:, :kept] / np.sqrt(values[:kept]))

    @property
    def size(self) -> int:
        """How many directions are left."""
        return int(self.matrix.shape[1])

    def __call__(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """[items, directions] of [items, width]."""
        whitened: NDArray[np.float64] = (np.asarray(vectors, np.float64) - self.mean) @ self.matrix
        return whitened


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file of `score<TAB>sentence1<TAB>sentence2`, with or without a first line that names columns.

    Also of STS Benchmark's own files. Raises DataError, with the line, for anything else.
    """
    return [Pair(_number(cells[0], where), cells[1], cells[2]) for cells, where in read_columns(path, NAMES, LAYOUTS)]


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: expected a score, a number, found {text[:40]!r}")
    return number


def _texts(pairs: Sequence[Pair]) -> list[str]:
    """The sentences of the pairs, two and two."""
    return [text for pair in pairs for text in (pair.first, pair.second)]
