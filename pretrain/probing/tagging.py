"""`--task pos` and `--task entities`: a label for each word, by regressions on frozen vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pretrain.probing.affixes import affix_features
from pretrain.probing.label_probes import Figures, Items, LabelProbes, Labels
from pretrain.probing.regression import Indicators, fit
from pretrain.probing.regression import Inputs as Seen
from pretrain.probing.results import Outcome
from pretrain.probing.sentences import Sentence, divide
from pretrain.probing.spans import read_entities, span_f1, spans
from pretrain.probing.subjects import Subject
from pretrain.probing.tables import refuse_options
from pretrain.probing.tasks import Inputs
from pretrain.probing.treebanks import read_tagged


def probe_pos(subjects: Sequence[Subject], inputs: Inputs) -> Outcome:
    """Accuracy of parts of speech (UPOS of a CoNLL-U file), without and with features of the words themselves."""
    refuse_options(inputs, "pos", {"scores": None})
    parts = divide(inputs, read_tagged)
    training, testing = tagged_words(parts.training), tagged_words(parts.testing)
    probes = LabelProbes("pos", parts, training, testing, WordLearner(training, testing), inputs)
    suffixes = affix_features(parts.training, parts.testing)
    probes.add_majority()
    probes.add_suffixes(suffixes)
    probes.add_static_file()
    for subject in subjects:
        probes.add_subject(subject, suffixes)
    return probes.outcome()


def probe_entities(subjects: Sequence[Subject], inputs: Inputs) -> Outcome:
    """F1 of entities, each with its exact words and type, from a tag for each word; and the accuracy of the tags."""
    refuse_options(inputs, "entities", {"scores": None})
    parts = divide(inputs, read_entities)
    training, testing = tagged_words(parts.training), tagged_words(parts.testing)
    gold = [sentence.tags for sentence in parts.testing]
    ends = np.cumsum([len(tags) for tags in gold])

    def scores(predicted: Sequence[str]) -> Figures:
        tags = [predicted[end - len(true) : end] for end, true in zip(ends, gold, strict=True)]
        return {"f1": span_f1(gold, tags, inputs.seed)}

    probes = LabelProbes("entities", parts, training, testing, WordLearner(training, testing), inputs, scores)
    there = sum(len(spans(tags)) for tags in gold)
    probes.notes.append(
        f"f1: of {there:,} entities, exact words and type, from a tag for each word, as conlleval counts"
    )
    probes.add_majority()
    probes.add_static_file()
    for subject in subjects:
        probes.add_subject(subject)
    return probes.outcome()


def tagged_words(sentences: Sequence[Sentence]) -> Items:
    """The words that have a tag."""
    words = [word for sentence in sentences for word in sentence.words]
    tags = [tag for sentence in sentences for tag in sentence.tags]
    numbers = np.repeat(np.arange(len(sentences)), [len(sentence.words) for sentence in sentences])
    rows = np.array([row for row, tag in enumerate(tags) if tag != "_"], dtype=np.int64)
    return Items(rows, [words[row] for row in rows], [tags[row] for row in rows], numbers[rows])


@dataclass(frozen=True)
class WordLearner:
    """A regression on the vector of each word."""

    training: Items
    testing: Items

    def predict(
        self,
        vectors: tuple[Tensor, Tensor] | None,
        labels: Tensor,
        classes: int,
        suffixes: tuple[Indicators, Indicators] | None = None,
    ) -> Labels:
        """The classes of the test items (`Learner`)."""
        seen, tested = (
            Seen([] if vectors is None else [_rows(vectors[part], items.rows)], suffixes and suffixes[part])
            for part, items in enumerate((self.training, self.testing))
        )
        return fit(seen, labels, classes).predict(tested).numpy()

    def learn_mixing(self, layers: Sequence[Tensor], labels: Tensor, classes: int) -> Tensor:
        """The weights of a scalar mix (`Learner`)."""
        rows = self.training.rows[self.training.rows < len(layers[0])]
        return fit(Seen([_rows(layer, rows) for layer in layers]), labels[: len(rows)], classes).mixing


def _rows(layer: Tensor, rows: Labels) -> Tensor:
    return layer if len(rows) == len(layer) else layer[torch.from_numpy(rows)]
