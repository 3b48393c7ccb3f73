"""`--task pos` and `--task entities`: a label for each word, by regressions on frozen vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pretrain.probing.affixes import affix_features
from pretrain.probing.label_probes import Items, LabelProbes, Labels
from pretrain.probing.regression import Indicators, fit
from pretrain.probing.regression import Inputs as Seen
from pretrain.probing.results import Outcome
from pretrain.probing.sentences import Sentence, divide
from pretrain.probing.subjects import Subject
from pretrain.probing.tasks import Inputs
from pretrain.probing.treebanks import read_tagged


def probe_pos(subjects: Sequence[Subject], inputs: Inputs) -> Outcome:
    """Accuracy of parts of speech (UPOS of a CoNLL-U file), without and with features of the words themselves."""
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

    def __call__(
        self,
        training: Sequence[Tensor],
        testing: Sequence[Tensor],
        labels: Tensor,
        classes: int,
        suffixes: tuple[Indicators, Indicators] | None = None,
    ) -> tuple[Labels, list[float]]:
        """The class of each test item, and the mixing weights (`Learner`)."""
        rows = self.training.rows if not training else self.training.rows[self.training.rows < len(training[0])]
        seen = Seen(_rows(training, rows), suffixes and suffixes[0].first(len(rows)))
        regression = fit(seen, labels[: len(rows)], classes)
        predicted = regression.predict(Seen(_rows(testing, self.testing.rows), suffixes and suffixes[1]))
        return predicted.numpy(), regression.mixing.tolist()


def _rows(layers: Sequence[Tensor], rows: Labels) -> list[Tensor]:
    return [layer if len(rows) == len(layer) else layer[torch.from_numpy(rows)] for layer in layers]
