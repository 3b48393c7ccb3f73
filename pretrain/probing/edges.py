"""`--task dependencies`: the relation of a word to its head, from the frozen vectors of both (Tenney et al. 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pretrain.probing.label_probes import Items, LabelProbes, Labels
from pretrain.probing.published import published
from pretrain.probing.regression import Indicators, mix
from pretrain.probing.results import Outcome
from pretrain.probing.sentences import Sentence, divide
from pretrain.probing.subjects import Subject
from pretrain.probing.tasks import Inputs
from pretrain.probing.treebanks import read_parsed
from pretrain.runtime.seeding import generator, seed_of

HIDDEN_SIZE = 256
DROPOUT = 0.2
EPOCHS = 6
BATCH = 256
"""Edges."""
LEARNING_RATE, MIXING_LEARNING_RATE = 2e-3, 2e-2
"""Of Adam, falling to 0; the few weights of a mix have far to go in few steps."""


def probe_dependencies(subjects: Sequence[Subject], inputs: Inputs) -> Outcome:
    """Accuracy of the labels of edges, whose heads are given: one label an edge, so that it is the micro-F1."""
    parts = divide(inputs, read_parsed)
    (training, training_heads), (testing, testing_heads) = edges(parts.training), edges(parts.testing)
    learner = EdgeLearner(training, testing, (training_heads, testing_heads), inputs.seed)
    probes = LabelProbes("dependencies", parts, training, testing, learner, inputs)
    probes.notes.append("relations with their subtypes; heads are given; a root is its own head, as in the paper")
    probes.add_majority()
    probes.add_static_file()
    for subject in subjects:
        probes.add_subject(subject)
    figures, sources = published("dependencies", inputs.test or inputs.data)
    probes.results += figures
    probes.notes += sources
    return probes.outcome()


def edges(sentences: Sequence[Sentence]) -> tuple[Items, NDArray[np.int64]]:
    """An edge for each word, and the number of its head among all words of the part."""
    words = [word for sentence in sentences for word in sentence.words]
    labels = [relation for sentence in sentences for relation in sentence.relations]
    sizes = np.array([len(sentence.words) for sentence in sentences])
    firsts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    heads = np.concatenate([np.asarray(sentence.heads, dtype=np.int64) for sentence in sentences]) + firsts
    return Items(np.arange(len(words)), words, labels, np.repeat(np.arange(len(sizes)), sizes)), heads


class EdgeClassifier(nn.Module):
    """A label of a pair of words: one hidden layer over both vectors, each the scalar mix of its layers.

    That of Tenney et al. (2019), whose projections and pooling say nothing more of spans of one word, with a softmax
    over labels for their sigmoids.
    """

    def __init__(self, layers: int, width: int, classes: int) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.zeros(layers))
        self.hidden = nn.Linear(2 * width, HIDDEN_SIZE)
        self.norm = nn.LayerNorm(HIDDEN_SIZE)
        self.dropout = nn.Dropout(DROPOUT)
        self.output = nn.Linear(HIDDEN_SIZE, classes)

    def forward(self, layers: Sequence[Tensor], words: Tensor, heads: Tensor) -> Tensor:
        """Logits [edges, classes] of edges between rows of `layers`, each [words, width]."""
        shares = torch.softmax(self.mixing, 0)
        pairs = [mix([layer[rows] for layer in layers], shares) for rows in (words, heads)]
        hidden = torch.tanh(self.hidden(torch.cat(pairs, dim=1)))
        logits: Tensor = self.output(self.dropout(self.norm(hidden)))
        return logits


@dataclass(frozen=True)
class EdgeLearner:
    """An `EdgeClassifier` of the vectors of each word and its head."""

    training: Items
    testing: Items
    heads: tuple[NDArray[np.int64], NDArray[np.int64]]
    seed: int

    def predict(
        self,
        vectors: tuple[Tensor, Tensor] | None,
        labels: Tensor,
        classes: int,
        suffixes: tuple[Indicators, Indicators] | None = None,
    ) -> Labels:
        """The classes of the test items (`Learner`)."""
        assert vectors is not None and suffixes is None
        model = self._fit([vectors[0]], labels, classes).eval()
        words, heads = torch.arange(len(vectors[1])), torch.from_numpy(self.heads[1])
        with torch.no_grad():
            some = [
                model([vectors[1]], words[first : first + BATCH], heads[first : first + BATCH]).argmax(dim=1)
                for first in range(0, len(words), BATCH)
            ]
        return torch.cat(some).numpy()

    def learn_mixing(self, layers: Sequence[Tensor], labels: Tensor, classes: int) -> Tensor:
        """The weights of a scalar mix (`Learner`)."""
        return torch.softmax(self._fit(layers, labels[: len(layers[0])], classes).mixing.detach(), 0)

    def _fit(self, layers: Sequence[Tensor], labels: Tensor, classes: int) -> EdgeClassifier:
        """A classifier trained on all edges among the words of `layers`."""
        heads = torch.from_numpy(self.heads[0][: len(labels)])
        order = generator("edges", self.seed)
        steps = EPOCHS * -(-len(labels) // BATCH)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("edges", self.seed))
            model = EdgeClassifier(len(layers), layers[0].shape[1], classes).train()
            rest = [parameter for name, parameter in model.named_parameters() if name != "mixing"]
            groups: list[dict[str, Any]] = [{"params": rest}, {"params": [model.mixing], "lr": MIXING_LEARNING_RATE}]
            optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
            for _ in range(EPOCHS):
                for rows in torch.split(torch.from_numpy(order.permutation(len(labels))), BATCH):
                    optimizer.zero_grad()
                    loss = functional.cross_entropy(model(layers, rows, heads[rows]), labels[rows])
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
        return model
