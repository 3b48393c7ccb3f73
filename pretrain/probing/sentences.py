"""Annotated sentences: what a probe learns from, and what it is tested on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.errors import DataError
from pretrain.probing.tasks import Inputs
from pretrain.runtime.seeding import generator

MAX_WORDS = 50_000
"""More words are not learned from: they take longer and change little."""
MIN_DOCUMENTS = 20
"""So many documents are divided as wholes; where there are fewer, sentences are."""
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Sentence:
    """Words, and what is said of each."""

    words: Sequence[str]
    tags: Sequence[str]
    """A part of speech, or the tag of an entity; `_` where there is none."""
    document: int | None = None
    """The number of its document; None in a file that tells none apart."""
    heads: Sequence[int] = ()
    """The index of each word's head, its own for a root."""
    relations: Sequence[str] = ()
    """What each word is to its head."""


@dataclass(frozen=True)
class Parts:
    """The two parts of the data."""

    training: list[Sentence]
    testing: list[Sentence]
    notes: tuple[str, ...]

    @property
    def all_words(self) -> list[Sequence[str]]:
        """The words of all sentences, those of the training part first."""
        return [sentence.words for sentence in (*self.training, *self.testing)]


def divide(inputs: Inputs, read: Callable[[Path], list[Sentence]], max_words: int = MAX_WORDS) -> Parts:
    """What to learn from and what to test on: `--data` and `--test`, or a fifth of `--data`, drawn by the seed."""
    sentences = read(inputs.data)
    notes = []
    if inputs.test is not None:
        if inputs.test.resolve() == inputs.data.resolve():
            raise DataError(f"{inputs.test}: the file that is learned from too: give --data or --test another")
        training, testing = sentences, read(inputs.test)
    else:
        training, testing, kind = _draw_test(sentences, inputs.seed)
        notes.append(f"tested on {len(testing):,} sentences of {inputs.data}, a fifth of its {kind} drawn by the seed")
    if not training or not testing:
        raise DataError(f"{inputs.data}: {len(sentences)} sentences, too few to learn from some and test on others")
    known = {tuple(sentence.words) for sentence in training}
    if again := sum(tuple(sentence.words) in known for sentence in testing):
        notes.append(f"{again:,} of {len(testing):,} test sentences stand word for word in the training part too")
    words = _words(training)
    training = _draw_words(training, max_words, inputs.seed)
    if not training:
        raise DataError(f"{inputs.data}: a sentence has more than {max_words:,} words: a blank line ends each")
    if (drawn := _words(training)) < words:
        notes.append(f"learned from {drawn:,} of {words:,} words, whole sentences drawn by the seed")
    return Parts(training, testing, tuple(notes))


def _words(sentences: Sequence[Sentence]) -> int:
    return sum(len(sentence.words) for sentence in sentences)


def _draw_test(sentences: list[Sentence], seed: int) -> tuple[list[Sentence], list[Sentence], str]:
    """The sentences of both parts, and what was drawn."""
    documents = {sentence.document for sentence in sentences} - {None}
    by_document = len(documents) >= MIN_DOCUMENTS
    units = [sentence.document if by_document else number for number, sentence in enumerate(sentences)]
    sizes = np.bincount(np.asarray(units, dtype=np.int64), minlength=1)
    order = generator("test part", seed).permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]
    chosen = {int(unit) for unit in order[before < TEST_SHARE * len(sentences) - 0.5]}
    training = [sentence for unit, sentence in zip(units, sentences, strict=True) if unit not in chosen]
    testing = [sentence for unit, sentence in zip(units, sentences, strict=True) if unit in chosen]
    return training, testing, "documents" if by_document else "sentences"


def _draw_words(sentences: list[Sentence], max_words: int, seed: int) -> list[Sentence]:
    """Sentences of at most `max_words` words together, in random order: the first are a sample of all."""
    order = generator("training part", seed).permutation(len(sentences))
    ends = np.cumsum([len(sentences[number].words) for number in order])
    return [sentences[number] for number in order[ends <= max_words]]
