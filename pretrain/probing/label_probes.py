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
from pretrain.probing.vectors import WordVectors, standardised, word_vectors
from pretrain.probing.word_files import WordTypes, average_by_type, read_word_vectors
from pretrain.runtime.seeding import seed_of

log = logging.getLogger(__name__)

MIX_WORDS = 20_000
"""The weights of a mix, which are few, are learned from so many words."""

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
    """Learns the labels of the training items from vectors of all words of that part, [words, width], standardised."""

    def predict(
        self,
        vectors: tuple[Tensor, Tensor] | None,
        labels: Tensor,
        classes: int,
        suffixes: tuple[Indicators, Indicators] | None = None,
    ) -> Labels:
        """The classes of the test items, learned from `labels` [training items]; `vectors` are those of both parts."""
        ...

    def learn_mixing(self, layers: Sequence[Tensor], labels: Tensor, classes: int) -> Tensor:
        """The weights of a scalar mix, [layers]. `layers` have but the first words: items among these are learned."""
        ...


@dataclass
class LabelProbes:
    """The probes of one task, and what they have found so far."""

    task: str
    parts: Parts
    training: Items
    testing: Items
    learner: Learner
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
        self._add("suffixes", 0, self._predict(None, suffixes))

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
        split = int(vectors.starts[len(self.parts.training)])
        few = int(vectors.starts[np.searchsorted(vectors.starts, min(MIX_WORDS, split), side="right") - 1]) or split
        firsts = []
        for layer in range(len(vectors.layers)):
            pair = standardised(vectors.layers[layer, :split], vectors.layers[layer, split:])
            self._add_pair(subject.name, layer, pair, of)
            firsts.append(pair[0][:few].clone())
        mixing = self.learner.learn_mixing(firsts, torch.from_numpy(self._labels), len(self._names))
        del firsts
        pair = _mixed(vectors, split, mixing)
        self._add_pair(subject.name, "mix", pair, of)
        if of is None:
            self.mixing_weights[subject.name] = [round(share, 6) for share in mixing.tolist()]
        if suffixes is not None:
            self._add(subject.name, "mix", self._predict(pair, suffixes), of, "_with_suffixes")

    def _add_pair(self, name: str, layer: Layer, pair: tuple[Tensor, Tensor], of: str | None) -> None:
        """What is learned from the vectors of both parts; of a model, not a floor, the control beside it."""
        self._add(name, layer, self._predict(pair), of)
        if of is None:
            answers = self._control_labels(self.testing.words)
            labels = torch.from_numpy(self._control_labels(self.training.words))
            predicted = self.learner.predict(pair, labels, len(self._names))
            figures = {"accuracy": mean_interval(predicted == answers, self.testing.sentences, self.inputs.seed)}
            self._add_figures("control", layer, figures, name)

    def _predict(
        self, vectors: tuple[Tensor, Tensor] | None, suffixes: tuple[Indicators, Indicators] | None = None
    ) -> Labels:
        return self.learner.predict(vectors, torch.from_numpy(self._labels), len(self._names), suffixes)

    def _control_labels(self, words: Sequence[str]) -> Labels:
        """Labels drawn for each word type, as often each as in the training part (Hewitt & Liang 2019)."""
        ends = np.cumsum(self._shares)
        drawn = {word: seed_of("control", self.inputs.seed, word) / 2**63 for word in {*words}}
        numbers = np.searchsorted(ends, [drawn[word] for word in words], side="right")
        return np.minimum(numbers, len(ends) - 1)

    def _add_static(self, types: WordTypes, of: str | None = None) -> dict[str, int]:
        training, _ = types.rows(self._words[0])
        testing, counts = types.rows(self._words[1], training.mean(axis=0, dtype=np.float64).astype(np.float32))
        self._add("static", 0, self._predict(standardised(training, testing)), of)
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


def _mixed(vectors: WordVectors, split: int, mixing: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of standardised layers, standardised, of both parts: one layer at a time in memory."""
    total: tuple[Tensor, Tensor] | None = None
    for layer, share in enumerate(mixing):
        pair = standardised(vectors.layers[layer, :split], vectors.layers[layer, split:])
        if total is None:
            total = pair[0].mul_(share), pair[1].mul_(share)
        else:
            total[0].add_(pair[0], alpha=float(share))
            total[1].add_(pair[1], alpha=float(share))
    assert total is not None
    return standardised(total[0].numpy(), total[1].numpy())


def _shown(model: str, of: str | None) -> str:
    return model if of is None else f"{model} ({of})"
