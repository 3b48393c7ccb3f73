"""Minimal pairs: how often a model finds the grammatical sentence of two more probable (Warstadt et al. 2020)."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.data.text import clean
from pretrain.errors import ConfigError, DataError, ExportError
from pretrain.models.family import ScoredSentence
from pretrain.probing.blimp import published_accuracies
from pretrain.probing.intervals import RESAMPLES, bounds
from pretrain.probing.pairs import BAD, GOOD, Pair, draw_pairs, numbers_by_paradigm, read_pairs
from pretrain.probing.results import Outcome, Result
from pretrain.probing.subjects import Subject
from pretrain.probing.tasks import Inputs
from pretrain.runtime.files import write_atomically
from pretrain.runtime.machine import exact_float32
from pretrain.runtime.seeding import generator

log = logging.getLogger(__name__)

TASK = "minimal-pairs"
SENTENCES = 2_000
"""Sentences that are scored at a time."""
EVERY_SECONDS = 60
"""How often the log says how far it is."""
CHANCE = 0.5
FEW = 5
"""Paradigms that a note names."""


@dataclass(frozen=True)
class Scores:
    """What a model makes of pairs."""

    of: dict[str, NDArray[np.float64]]
    """By the name of a score: natural logs [pairs, 2], good beside bad."""
    unknown: NDArray[np.bool_]
    """[pairs]: whether either sentence has a word that the vocabulary lacks."""
    same: NDArray[np.bool_]
    """[pairs]: whether the sentences are the same to the model, whose scores are one number then."""
    same_labels: NDArray[np.bool_]
    """[pairs]: whether the same tokens are predicted in both, unknown words being all alike."""

    @property
    def only_unknown(self) -> NDArray[np.bool_]:
        """[pairs]: whether the sentences differ in nothing but unknown words, as far as predictions tell."""
        return self.unknown & self.same_labels


def probe_minimal_pairs(subjects: Sequence[Subject], inputs: Inputs) -> Outcome:
    """Accuracy of each model beside an untrained one, chance, and published models where the pairs are BLiMP's.

    The score of a sentence is the family's best founded one for `accuracy`; others have metrics of their own, called
    `accuracy_<score>`. Overall and for a phenomenon, accuracy is the mean over paradigms. Raises ConfigError, DataError
    or ExportError.
    """
    pairs = read_pairs(inputs.data)
    drawn = pairs if inputs.pairs is None else draw_pairs(pairs, inputs.pairs, inputs.seed)
    _check(subjects, inputs)
    read = [read_sentences(subject, drawn) for subject in subjects]
    results: list[Result] = []
    notes = [_describe(drawn, len(pairs))]
    unknown_words: dict[str, Any] = {}
    by_model: dict[str, Scores] = {}
    for subject, sentences in zip(subjects, read, strict=True):
        scores = by_model[subject.name] = score_pairs(subject, sentences, inputs.seed)
        results += accuracies(subject, scores, drawn, inputs.seed)
        notes += _notes(subject.name, scores, drawn)
        unknown_words[subject.name] = _count_unknown(scores, drawn)
    if inputs.scores is not None:
        write_atomically(inputs.scores, "".join(_lines(by_model, drawn)))
    for subject, sentences in zip(subjects, read, strict=True):
        untrained = subject.untrained(inputs.seed)
        scores = score_pairs(untrained, sentences, inputs.seed)
        results += accuracies(untrained, scores, drawn, inputs.seed, of=subject.name)
    return Outcome(TASK, (*results, *_floors(drawn)), tuple(notes), {"unknown_words": unknown_words})


def _check(subjects: Sequence[Subject], inputs: Inputs) -> None:
    """Raises what would else be found out after hours."""
    for subject in subjects:
        if (problem := subject.family.scoring.problem(subject.folder)) is not None:
            raise ExportError(f"{subject.name}: sentences cannot be scored: {problem}")
    if inputs.scores is not None:
        if inputs.scores.is_dir() or inputs.scores.resolve() == inputs.data.resolve():
            what = "a folder" if inputs.scores.is_dir() else "the file of --data"
            raise ConfigError(f"--scores {inputs.scores}: {what}: name a file to write")
        inputs.scores.parent.mkdir(parents=True, exist_ok=True)


def read_sentences(subject: Subject, pairs: Sequence[Pair]) -> list[tuple[ScoredSentence, ScoredSentence]]:
    """Both sentences of each pair as the model scores them; raises DataError for one that is too long for it."""
    read = []
    for pair in pairs:
        sentences = []
        for field, text in ((GOOD, pair.good), (BAD, pair.bad)):
            try:
                sentences.append(subject.family.scoring.read(subject.folder, clean(text)))
            except DataError as error:
                raise DataError(f"{pair.where}: {field}: {subject.name}: {error}") from None
        read.append((sentences[0], sentences[1]))
    return read


def score_pairs(subject: Subject, sentences: Sequence[tuple[ScoredSentence, ScoredSentence]], seed: int) -> Scores:
    """Scores of both sentences of each pair; each distinct sentence, as the model reads it, is scored once.

    So two that are the same to the model tie exactly, whatever they were batched with.
    """
    numbers: dict[ScoredSentence, int] = {}
    index = np.array([[numbers.setdefault(sentence, len(numbers)) for sentence in pair] for pair in sentences])
    found = _score_sentences(subject, list(numbers), seed)
    return Scores(
        of={name: values[index] for name, values in zip(subject.family.scoring.scores, found, strict=True)},
        unknown=np.array([good.unknown_words + bad.unknown_words > 0 for good, bad in sentences]),
        same=index[:, 0] == index[:, 1],
        same_labels=np.array([good.labels == bad.labels for good, bad in sentences]),
    )


def _score_sentences(subject: Subject, sentences: Sequence[ScoredSentence], seed: int) -> NDArray[np.float64]:
    """[scores, sentences]; a log says how long it takes, once some are done, and then now and again."""
    scoring = subject.family.scoring
    device = "cuda" if torch.cuda.is_available() else "cpu"
    subject.folder.model.to(device).eval()
    found = np.zeros((len(scoring.scores), len(sentences)))
    # in an order drawn, since what is alike stands together in a file, and would give a wrong idea of the rest
    order = generator("minimal pairs", seed).permutation(len(sentences))
    total, began = f"{len(sentences):,}", time.monotonic()
    told = began
    for start in range(0, len(sentences), SENTENCES):
        some = order[start : start + SENTENCES]
        with exact_float32():
            found[:, some] = scoring.score(
                subject.folder, [sentences[number] for number in some], start=subject.start_state
            )
        done, now = start + len(some), time.monotonic()
        if done < len(sentences) and (start == 0 or now - told > EVERY_SECONDS):
            left = (now - began) * (len(sentences) / done - 1)
            log.info("%s: %s of %s sentences, %s to go", subject.name, f"{done:,}", total, _duration(left))
            told = now
    log.info("%s: %s sentences in %s", subject.name, total, _duration(time.monotonic() - began))
    if not np.isfinite(found).all():
        broken = int((~np.isfinite(found)).any(axis=0).sum())
        raise ExportError(
            f"{subject.name}: the scores of {broken} sentences are NaN or infinite, as its weights may be"
        )
    return found


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def accuracies(
    subject: Subject, scores: Scores, pairs: Sequence[Pair], seed: int, of: str | None = None
) -> list[Result]:
    """By each score: overall, by phenomenon, by paradigm."""
    layer = subject.embedder.num_layers - 1
    groups = _groups(pairs)
    results = []
    for number, (name, both) in enumerate(scores.of.items()):
        metric = "accuracy" if number == 0 else f"accuracy_{name}"
        right, ties = both[:, 0] > both[:, 1], both[:, 0] == both[:, 1]
        for group, paradigms in groups.items():
            counts = np.array([(right[members].sum(), len(members)) for members in paradigms])
            tied = int(sum(ties[members].sum() for members in paradigms))
            figures = macro_interval(counts[:, 0], counts[:, 1], seed)
            results.append(Result(subject.name, TASK, layer, metric, *figures, of=of, group=group, ties=tied))
    return results


def macro_interval(right: NDArray[np.int64], pairs: NDArray[np.int64], seed: int) -> tuple[float, float, float]:
    """The mean over paradigms of the share that is right, both [paradigms]; and the bounds of its 95 % interval.

    The bootstrap draws as many pairs of a paradigm as it has, again and again. Of n pairs, k of them right, that is a
    binomial draw of n at k / n.
    """
    shares = right / pairs
    drawn = generator("bootstrap", seed).binomial(pairs, shares, (RESAMPLES, len(pairs))) / pairs
    return float(shares.mean()), *bounds(drawn.mean(axis=1))


def _groups(pairs: Sequence[Pair]) -> dict[str | None, list[NDArray[np.int64]]]:
    """The numbers of the pairs of each paradigm, [pairs] each: of all, of each phenomenon, of each paradigm."""
    groups: dict[str | None, list[NDArray[np.int64]]] = {None: []}
    paradigms: dict[str | None, list[NDArray[np.int64]]] = {}
    for paradigm, numbers in numbers_by_paradigm(pairs):
        groups[None].append(np.array(numbers))
        by_phenomenon: dict[str | None, list[int]] = {}
        for number in numbers:
            by_phenomenon.setdefault(pairs[number].phenomenon, []).append(number)
        for phenomenon, some in by_phenomenon.items():
            if phenomenon is not None:
                groups.setdefault(phenomenon, []).append(np.array(some))
        if paradigm is not None:
            paradigms[paradigm] = [np.array(numbers)]
    return groups | {paradigm: members for paradigm, members in paradigms.items() if paradigm not in groups}


def _floors(pairs: Sequence[Pair]) -> list[Result]:
    """Chance, and what published models reach on the same paradigms; neither has an interval."""
    results = [Result("majority", TASK, 0, "accuracy", CHANCE, CHANCE, CHANCE)]
    paradigms = [paradigm for paradigm, _ in numbers_by_paradigm(pairs) if paradigm is not None]
    for system, phenomenon, value in published_accuracies(paradigms):
        results.append(Result("published", TASK, 0, "accuracy", value, value, value, of=system, group=phenomenon))
    return results


def _describe(pairs: Sequence[Pair], available: int) -> str:
    """What the figures are of."""
    paradigms = len(list(numbers_by_paradigm(pairs)))
    part = "" if len(pairs) == available else f" of {available:,}"
    return f"{len(pairs):,} pairs{part}, {paradigms} paradigms, whose mean it is; equal scores count as wrong"


def _notes(model: str, scores: Scores, pairs: Sequence[Pair]) -> Iterator[str]:
    """What a reader has to know of a model's figures."""
    first = next(iter(scores.of.values()))
    if ties := int((first[:, 0] == first[:, 1]).sum()):
        yield f"{model}: {ties:,} ties; in {int(scores.same.sum()):,} pairs both sentences are the same to the model"
    if only := int(scores.only_unknown.sum()):
        counts = [
            (int(scores.only_unknown[numbers].sum()), len(numbers), paradigm or "pairs without a UID")
            for paradigm, numbers in numbers_by_paradigm(pairs)
        ]
        most = sorted((count for count in counts if count[0]), key=lambda count: (-count[0] / count[1], count[2]))
        named = ", ".join(f"{name} {some:,} of {all:,}" for some, all, name in most[:FEW])
        yield (
            f"{model}: {int(scores.unknown.sum()):,} pairs have unknown words, {only:,} differ in nothing else, which "
            f"says nothing of grammar; most in {named}"
        )


def _count_unknown(scores: Scores, pairs: Sequence[Pair]) -> dict[str, dict[str, int]]:
    """By paradigm: pairs, those with unknown words, those that differ in nothing else, those that are the same."""
    return {
        paradigm or "": {
            "pairs": len(numbers),
            "unknown": int(scores.unknown[numbers].sum()),
            "only_unknown": int(scores.only_unknown[numbers].sum()),
            "same": int(scores.same[numbers].sum()),
        }
        for paradigm, numbers in numbers_by_paradigm(pairs)
    }


def _lines(by_model: dict[str, Scores], pairs: Sequence[Pair]) -> Iterator[str]:
    """A JSON line a pair: its fields, and of each model each score, [good, bad]."""
    for number, pair in enumerate(pairs):
        found = {
            model: {name: both[number].tolist() for name, both in scores.of.items()}
            for model, scores in by_model.items()
        }
        yield json.dumps(pair.named() | {"scores": found}, ensure_ascii=False) + "\n"
