"""Classification of texts by the mean of their words' vectors, which stay as they are (Conneau and Kiela 2018)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.errors import DataError
from pretrain.probing.intervals import mean_interval
from pretrain.probing.logistic import Features, fit_best
from pretrain.probing.results import Outcome, Result
from pretrain.probing.subjects import Subject, beside_untrained
from pretrain.probing.tables import divide_rows, read_columns, refuse_options
from pretrain.probing.tasks import Inputs
from pretrain.probing.tf_idf import fit_tf_idf, text_words
from pretrain.probing.vectors import sentence_vectors, standardised
from pretrain.runtime.seeding import generator

NAMES = {"label": ("label",), "text": ("text", "sentence")}
OF_VECTORS = (0.001, 0.01, 0.1, 1.0)
OF_COUNTS = (0.1, 1.0, 10.0, 100.0)
"""Inverse strengths of the penalty (C of scikit-learn) that are tried."""
NO_STATIC = "it is a regression on TF-IDF here"


class Labelled(NamedTuple):
    """A text and its class."""

    label: str
    text: str


def probe_classification(subjects: Sequence[Subject], inputs: Inputs) -> Outcome:
    """Accuracy of a logistic regression by layer; beside the majority, one on TF-IDF (`static`), and `untrained`.

    The strength of a regression's penalty is chosen on a fifth of the training part.
    """
    refuse_options(inputs, "classification", {"static": NO_STATIC, "scores": None})
    training, test, note = divide_rows(inputs, read_labelled)
    classes = sorted({item.label for item in training})
    if len(classes) < 2:
        raise DataError(f"{inputs.data}: all {len(training):,} texts to learn from have the label {classes[0]!r}")
    notes = [note, *_remarks(training, test, classes)]
    numbers = {label: number for number, label in enumerate(classes)}
    # a class that is never met in training is never right
    labels = np.array([numbers.get(item.label, -1) for item in (*training, *test)])
    parts = _Parts(labels, len(training), len(classes), inputs.seed)
    frequent = int(np.bincount(labels[: len(training)]).argmax())
    results = [parts.result("majority", 0, np.full(len(test), frequent))]
    results.append(parts.result("static", 0, parts.predict(_counts(training, test), OF_COUNTS)))
    for subject, of in beside_untrained(subjects, inputs.seed):
        texts = [subject.embedder.words(item.text) for item in (*training, *test)]
        for layer, vectors in enumerate(sentence_vectors(subject, texts, inputs.vectors)):
            features = Features.dense(torch.cat(standardised(vectors[: len(training)], vectors[len(training) :])))
            results.append(parts.result(subject.name, layer, parts.predict(features, OF_VECTORS), of))
        if of is None and (empty := sum(not text for text in texts)):
            notes.append(f"{subject.name}: {empty:,} texts without a word, whose vectors are zeros")
    return Outcome("classification", tuple(results), tuple(notes))


class _Parts(NamedTuple):
    """The classes, and what is done with each kind of features."""

    labels: NDArray[np.int64]
    training: int
    classes: int
    seed: int

    def predict(self, features: Features, inverse_strengths: Sequence[float]) -> NDArray[np.int64]:
        """The classes of the test part, [test items], learned from the training part."""
        every = torch.arange(len(self.labels))
        order = torch.from_numpy(generator("validation part", self.seed).permutation(self.training))
        some, others = features.rows(every[: self.training]), features.rows(every[self.training :])
        labels = torch.from_numpy(self.labels[: self.training])
        fitted, _ = fit_best(some, labels, self.classes, inverse_strengths, order)
        predicted: NDArray[np.int64] = fitted.predict(others).numpy()
        return predicted

    def result(self, model: str, layer: int, predicted: NDArray[np.int64], of: str | None = None) -> Result:
        """The accuracy."""
        figures = mean_interval(predicted == self.labels[self.training :], seed=self.seed)
        return Result(model, "classification", layer, "accuracy", *figures, of=of)


def _counts(training: Sequence[Labelled], test: Sequence[Labelled]) -> Features:
    """TF-IDF weights of the words of the training part."""
    weights = fit_tf_idf([item.text for item in training])
    numbers = {
        word: number for number, word in enumerate(dict.fromkeys(w for t in training for w in text_words(t.text)))
    }
    rows = []
    for item in (*training, *test):
        of_item = weights.weights(item.text)
        rows.append({numbers[word]: weight for word, weight in of_item.items() if word in numbers})
    return Features.sparse(rows, len(numbers))


def _remarks(training: Sequence[Labelled], test: Sequence[Labelled], classes: Sequence[str]) -> list[str]:
    counts = Counter(item.label for item in training)
    remarks = [f"{len(classes)} classes: " + ", ".join(f"{label} {n:,}" for label, n in counts.most_common(10))]
    if unknown := sum(item.label not in counts for item in test):
        remarks.append(f"{unknown:,} test texts have a label that no text to learn from has: always wrong")
    known = {item.text for item in training}
    if again := sum(item.text in known for item in test):
        remarks.append(f"{again:,} of {len(test):,} test texts stand word for word in the training part too")
    return remarks


def read_labelled(path: Path) -> list[Labelled]:
    """The texts of a file of `label<TAB>text`, with or without a first line that names columns; raises DataError."""
    return [Labelled(*cells) for cells, _ in read_columns(path, NAMES)]
