"""Probes that label words or pairs of words: of every layer, the scalar mix, and all that they must beat."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.probing.intervals import mean_interval
from pretrain.probing.regression import Indicators
from pretrain.probing.results import Layer, Outcome, Result
from pretrain.probing.sentences import Parts
from pretrain.probing.subjects import Subject
from pretrain.probing.tasks import Inputs
from pretrain.probing.vectors import WordVectors, word_vectors
from pretrain.probing.word_files import WordTypes, average_by_type, read_word_vectors
from pretrain.runtime.seeding import seed_of

log = logging.getLogger(__name__)

MAX_MIX_NUMBERS = 2**29
"""A mix holds all layers of its words in memory, at most so many numbers (2 GiB): wider models learn it from fewer."""

Labels = NDArray[np.int64]
"""[items]: classes by number; -1 is a label that the training part has not."""
Figures = Mapping[str, tuple[float, float, float]]
"""Values and bounds by metric."""


@dataclass(frozen=True)
class Items:
    """What is labelled in a part of the data: some of its words."""

    rows: NDArray[np.int64]
    """[items]: each word's number among all words of the part."""
    words: Sequence[str]
    labels: Sequence[str]
    sentences: NDArray[np.int64]
    """[items]: the number of the sentence that each is in; intervals draw these."""


class Learner(Protocol):
    """Learns labels from vectors, and predicts those of the test part."""

    def __call__(
        self,
        training: Sequence[Tensor],
        testing: Sequence[Tensor],
        labels: Tensor,
        classes: int,
        suffixes: tuple[Indicators, Indicators] | None = None,
    ) -> tuple[Labels, list[float]]:
        """The class of each test item, and the mixing weights.

        `training` and `testing` are standardised layers, each [words of the part, width]; `labels` is [items]. Layers
        may have only the first of the training part's words: then the items among these are learned from.
        """
        ...


@dataclass
class LabelProbes:
    """The probes of one task, and what they have found so far."""

    task: str
    parts: Parts
    training: Items
    testing: Items
    learn: Learner
    inputs: Inputs
    further_scores: Callable[[Sequence[str]], Figures] = lambda predicted: {}
    """More than accuracy, of the labels predicted for all test items."""
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    mixing_weights: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = (self.parts.training, self.parts.testing)
        self._words = tuple([word for sentence in part for word in sentence.words] for part in parts)
        counts = Counter(self.training.labels)
        self._names = [name for name, _ in counts.most_common()]
        self._shares = np.array([count for _, count in counts.most_common()]) / len(self.training.labels)
        numbers = {name: number for number, name in enumerate(self._names)}
        self._labels = np.array([numbers[label] for label in self.training.labels])
        self._answers = np.array([numbers.get(label, -1) for label in self.testing.labels])
        self.notes += self.parts.notes
        unknown = sorted({*self.testing.labels} - {*self._names})
        if unknown:
            self.notes.append(
                f"{int((self._answers < 0).sum()):,} test items have a label that the training part lacks, and count "
                f"as wrong: {', '.join(unknown[:10])}"
            )

    def outcome(self) -> Outcome:
        """What was found."""
        order = {name: number for number, name in enumerate(dict.fromkeys(result.model for result in self.results))}
        results = sorted(self.results, key=lambda result: order[result.model])
        return Outcome(self.task, tuple(results), tuple(self.notes), {"mixing_weights": self.mixing_weights})

    def add_majority(self) -> None:
        """The most frequent label of a word in the training part; of an unknown word, of all words."""
        by_word: dict[str, Counter[int]] = defaultdict(Counter)
        for word, label in zip(self.training.words, self._labels, strict=True):
            by_word[word][int(label)] += 1
        likely = {word: min(counts, key=lambda label: (-counts[label], label)) for word, counts in by_word.items()}
        self._add("majority", 0, np.array([likely.get(word, 0) for word in self.testing.words]))

    def add_static_file(self) -> None:
        """The vectors of `--static`, where it is given."""
        if self.inputs.static is None:
            return
        types = read_word_vectors(self.inputs.static, {*self._words[0], *self._words[1]})
        counts = self._add_static(types)
        self.notes.append(
            f"static: {self.inputs.static} has {counts['found']:,} of {sum(counts.values()):,} test words as they "
            f"stand, {counts['lower case']:,} in lower case, and lacks {counts['unknown']:,}"
        )

    def add_suffixes(self, suffixes: tuple[Indicators, Indicators]) -> None:
        """A regression on words and their endings without any vectors."""
        predicted, _ = self.learn([], [], torch.from_numpy(self._labels), len(self._names), suffixes)
        self._add("suffixes", 0, predicted)

    def add_subject(self, subject: Subject, suffixes: tuple[Indicators, Indicators] | None = None) -> None:
        """All layers of a model and their mix, this also together with `suffixes`; and the floors of this model."""
        self._add_layers(subject, None, suffixes)
        if self.inputs.static is None:
            vectors = word_vectors(subject, self.parts.all_words, self.inputs.vectors)
            words = self._words[0]
            self._add_static(average_by_type(words, vectors.layers[-1][: len(words)]), subject.name)
        self._add_layers(subject.untrained(self.inputs.seed), subject.name)

    def _add_layers(
        self, subject: Subject, of: str | None, suffixes: tuple[Indicators, Indicators] | None = None
    ) -> None:
        log.info("%s: vectors of %s", self.task, _shown(subject.name, of))
        vectors = word_vectors(subject, self.parts.all_words, self.inputs.vectors)
        labels, classes = torch.from_numpy(self._labels), len(self._names)
        words = len(self._words[0])
        for layer in range(len(vectors.layers)):
            training, testing = _standardised_layer(vectors, layer, words, words)
            self._add(subject.name, layer, self.learn([training], [testing], labels, classes)[0], of)
            if of is None:
                self._add_control(subject.name, layer, [training], [testing])
        fewer = self._words_of_mix(vectors, subject.name)
        layers = range(len(vectors.layers))
        both = [_standardised_layer(vectors, layer, fewer, words) for layer in layers]
        mixed, tested = [training for training, _ in both], [testing for _, testing in both]
        predicted, mixing = self.learn(mixed, tested, labels, classes)
        self._add(subject.name, "mix", predicted, of)
        if of is None:
            self.mixing_weights[subject.name] = mixing
            self._add_control(subject.name, "mix", mixed, tested)
        if suffixes is not None:
            predicted, _ = self.learn(mixed, tested, labels, classes, suffixes)
            self._add(subject.name, "mix", predicted, of, "_with_suffixes")

    def _words_of_mix(self, vectors: WordVectors, name: str) -> int:
        """How many words of the training part a mix is learned from: those of whole sentences."""
        layers, _, width = vectors.layers.shape
        ends = vectors.starts[1 : len(self.parts.training) + 1]
        fewer = int(max(ends[0], *ends[ends <= MAX_MIX_NUMBERS // (layers * width)]))
        if fewer < ends[-1]:
            self.notes.append(f"{name}: the mix is learned from {fewer:,} of {ends[-1]:,} words, to save memory")
        return fewer

    def _add_control(self, name: str, layer: Layer, training: Sequence[Tensor], testing: Sequence[Tensor]) -> None:
        """Labels drawn for each word type, as often each as in the training part (Hewitt & Liang 2019)."""
        labels = self._control_labels(self.training.words)
        answers = self._control_labels(self.testing.words)
        predicted, _ = self.learn(training, testing, torch.from_numpy(labels), len(self._names))
        figures = {"accuracy": mean_interval(predicted == answers, self.testing.sentences, self.inputs.seed)}
        self._add_figures("control", layer, figures, name)

    def _control_labels(self, words: Sequence[str]) -> Labels:
        ends = np.cumsum(self._shares)
        drawn = {word: seed_of("control", self.inputs.seed, word) / 2**63 for word in {*words}}
        numbers = np.searchsorted(ends, [drawn[word] for word in words], side="right")
        return np.minimum(numbers, len(ends) - 1)

    def _add_static(self, types: WordTypes, of: str | None = None) -> dict[str, int]:
        training, _ = types.rows(self._words[0])
        testing, counts = types.rows(self._words[1], training.mean(axis=0, dtype=np.float64).astype(np.float32))
        pair = standardised(training, testing)
        predicted, _ = self.learn([pair[0]], [pair[1]], torch.from_numpy(self._labels), len(self._names))
        self._add("static", 0, predicted, of)
        return counts

    def _add(self, model: str, layer: Layer, predicted: Labels, of: str | None = None, suffix: str = "") -> None:
        """What was predicted of the test items."""
        right = predicted == self._answers
        figures: dict[str, tuple[float, float, float]] = {
            **self.further_scores([self._names[number] for number in predicted]),
            "accuracy": mean_interval(right, self.testing.sentences, self.inputs.seed),
        }
        self._add_figures(model, layer, {f"{metric}{suffix}": figure for metric, figure in figures.items()}, of)

    def _add_figures(self, model: str, layer: Layer, figures: Figures, of: str | None) -> None:
        for metric, (value, low, high) in figures.items():
            self.results.append(Result(model, self.task, layer, metric, value, low, high, of))
        shown = ", ".join(f"{metric} {figure[0]:.3f}" for metric, figure in figures.items())
        log.info("%s: %s, layer %s: %s", self.task, _shown(model, of), layer, shown)


def standardised(training: NDArray[np.float32], testing: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Vectors of both parts, [words, width], so that those of the training part have mean 0 and variance 1.

    A dimension that is constant there is 0.
    """
    mean = training.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = training - mean
    deviation = np.sqrt(np.square(centred).mean(axis=0, dtype=np.float64))
    varies = deviation > 1e-6 * np.abs(mean)
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0).astype(np.float32)
    return torch.from_numpy(centred * scale), torch.from_numpy((testing - mean) * scale)


def _standardised_layer(vectors: WordVectors, layer: int, training: int, words: int) -> tuple[Tensor, Tensor]:
    """Of the first `training` words, and of all that follow the `words` of the training part."""
    return standardised(vectors.layers[layer, :training], vectors.layers[layer, words:])


def _shown(model: str, of: str | None) -> str:
    return model if of is None else f"{model} ({of})"
