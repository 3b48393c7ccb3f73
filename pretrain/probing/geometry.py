"""Geometry: how contextual the vectors of each layer are, after Ethayarajh (2019), with all of his measures.

All vectors of a layer lie in a narrow cone, so that the cosine of any two words is well above 0: the anisotropy, which
the adjusted measures subtract.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import DataError
from pretrain.probing.intervals import RESAMPLES, bounds
from pretrain.probing.results import Outcome, Result
from pretrain.probing.subjects import Subject, beside_untrained
from pretrain.probing.tables import read_numbered, refuse_options
from pretrain.probing.tasks import Inputs
from pretrain.probing.treebanks import read_words
from pretrain.probing.vectors import WordVectors, word_vectors
from pretrain.runtime.seeding import generator

MAX_WORDS = 50_000
"""Words of the text that are looked at, in whole sentences."""
MIN_CONTEXTS = 5
MAX_CONTEXTS = 50
MAX_TYPES = 1_000
"""Words whose occurrences are compared: those with at least so many different sentences, at most so many of each."""
NO_TEST = "nothing is learned, so that there is nothing to test"
NO_STATIC = "vectors of word types have self-similarity 1 by construction"
Rows = NDArray[np.float64]
Vectors = NDArray[np.floating]


def probe_geometry(subjects: Sequence[Subject], inputs: Inputs) -> Outcome:
    """The measures of each layer, beside an untrained model's, on CoNLL-U or on text with a sentence a line."""
    refuse_options(inputs, "geometry", {"test": NO_TEST, "static": NO_STATIC, "scores": None})
    results: list[Result] = []
    notes: list[str] = []
    for subject, of in beside_untrained(subjects, inputs.seed):
        sentences, read = read_sentences(inputs.data, subject, inputs.seed)
        kept = word_vectors(subject, sentences, inputs.vectors)
        sample = draw_sample(sentences, kept, inputs)
        for layer, vectors in enumerate(kept.layers):
            for metric, (value, samples) in measure(np.asarray(vectors), sample, inputs.seed).items():
                results.append(Result(subject.name, "geometry", layer, metric, value, *bounds(samples), of=of))
        if of is None:
            notes += [f"{subject.name}: {line}" for line in (read, *sample.notes)]
    return Outcome("geometry", tuple(results), tuple(notes))


def read_sentences(path: Path, subject: Subject, seed: int) -> tuple[list[list[str]], str]:
    """Different sentences of at most `MAX_WORDS` words together, drawn by the seed, and a line that says how many.

    The words are those of CoNLL-U (`.conllu`), else those that the model cuts a line into. Raises DataError for a file
    with fewer than two sentences.
    """
    if ".conllu" in path.suffixes:
        read = read_words(path)
    else:
        read = [subject.embedder.words(line) for line, _ in read_numbered(path)]
    sentences = list({tuple(words): words for words in read if words}.values())
    if len(sentences) < 2:
        raise DataError(f"{path}: {len(sentences)} different sentences: at least two are compared")
    order = generator("geometry", "sentences", seed).permutation(len(sentences))
    ends = np.cumsum([len(sentences[number]) for number in order])
    chosen = sorted(int(number) for number in order[(ends <= MAX_WORDS) | (np.arange(len(ends)) < 2)])
    words = sum(len(sentences[number]) for number in chosen)
    line = f"{len(chosen):,} of {len(sentences):,} different sentences, {words:,} of {ends[-1]:,} words"
    return [sentences[number] for number in chosen], line


@dataclass(frozen=True)
class Sample:
    """Which words are compared with which."""

    sentence_of: NDArray[np.int64]
    """[words]: the sentence of each word that has a vector, -1 for others."""
    occurrences: Sequence[NDArray[np.int64]]
    """Of each word type, words in different sentences."""
    random: Sequence[NDArray[np.int64]]
    """As many random words for each."""
    notes: tuple[str, ...]


def draw_sample(sentences: Sequence[Sequence[str]], kept: WordVectors, inputs: Inputs) -> Sample:
    """Word types with enough contexts, drawn by the seed where they are too many; raises DataError where none has."""
    words = [word for sentence in sentences for word in sentence]
    sentence_of = np.repeat(np.arange(len(sentences)), np.diff(kept.starts))
    # a word without a piece has zeros, which have no direction
    empty = ~np.any(kept.layers[-1] != 0, axis=1)
    sentence_of[empty] = -1
    places: dict[str, dict[int, int]] = {}
    for place, (word, sentence) in enumerate(zip(words, sentence_of, strict=True)):
        if sentence >= 0:
            places.setdefault(word, {}).setdefault(int(sentence), place)
    often = {word: [*found.values()] for word, found in places.items() if len(found) >= MIN_CONTEXTS}
    if not often:
        raise DataError(f"{inputs.data}: no word stands in {MIN_CONTEXTS} different sentences or more")
    rng = generator("geometry", "words", inputs.seed)
    chosen = sorted(rng.permutation(len(often))[:MAX_TYPES].tolist())
    names = list(often)
    occurrences = [np.array(rng.permutation(often[names[number]])[:MAX_CONTEXTS]) for number in chosen]
    usable = np.flatnonzero(sentence_of >= 0)
    random = [rng.choice(usable, len(found), replace=False) for found in occurrences]
    notes = [f"{len(chosen):,} of {len(often):,} words with {MIN_CONTEXTS} different sentences or more"]
    notes += [f"{int(empty.sum()):,} words without a piece left out"] * bool(empty.any())
    return Sample(sentence_of, occurrences, random, tuple(notes))


def measure(vectors: Vectors, sample: Sample, seed: int) -> dict[str, tuple[float, Rows]]:
    """Each measure of one layer's vectors [words, width], and its values in samples of sentences, or of words."""
    rng = generator("geometry", "bootstrap", seed)
    real = sample.sentence_of >= 0
    of = sample.sentence_of[real]
    sums = _sums(_units(vectors[real]), of)
    counts = np.bincount(of).astype(np.float64)
    sentences = _draws(rng, len(sums))
    baseline = anisotropy(sums, counts, sentences)
    within = intra_sentence_similarity(vectors[real], of)
    # a sentence of one word is its own mean
    long = counts > 1
    own = np.array([self_similarity(vectors[rows]) for rows in sample.occurrences])
    explained = np.array([maximum_explainable_variance(vectors[rows]) for rows in sample.occurrences])
    by_chance = np.array([maximum_explainable_variance(vectors[rows]) for rows in sample.random])
    types = _draws(rng, len(own))
    similar, sentence_similar = _means(own, types), _means(within[long], sentences[:, long])
    return {
        name: (float(values[0]), values[1:])
        for name, values in {
            "anisotropy": baseline,
            "self_similarity": similar,
            "self_similarity_adjusted": similar - baseline,
            "intra_sentence_similarity": sentence_similar,
            "intra_sentence_similarity_adjusted": sentence_similar - baseline,
            "maximum_explainable_variance": _means(explained, types),
            "maximum_explainable_variance_adjusted": _means(explained - by_chance, types),
        }.items()
    }


def anisotropy(sums: Rows, counts: Rows, draws: Rows) -> Rows:
    """The mean cosine of two words of different sentences, in each sample [samples].

    Not of some pairs, as in the paper, but of all: the square of a sum of unit vectors is that of all its pairs. `sums`
    [sentences, width] are those of each sentence's words, `counts` [sentences] how many these are; `draws` [samples,
    sentences] says how often a sample holds a sentence, which makes no pair with itself.
    """
    norms = np.square(sums).sum(axis=1)
    total = np.square(draws @ sums).sum(axis=1) - np.square(draws) @ norms
    pairs = np.square(draws @ counts) - np.square(draws) @ np.square(counts)
    return _divided(total, pairs)


def self_similarity(vectors: Vectors) -> float:
    """The mean cosine of two of a word's occurrences, of vectors [occurrences, width]."""
    number = len(vectors)
    total = np.square(_units(vectors.astype(np.float64)).sum(axis=0)).sum()
    return float((total - number) / (number * number - number))


def intra_sentence_similarity(vectors: Vectors, sentence_of: NDArray[np.int64]) -> Rows:
    """The mean cosine of each sentence's words with their mean, [sentences]; 0 where there is no word."""
    counts = np.bincount(sentence_of)
    means = _units(_sums(vectors, sentence_of))
    sums = _sums(_units(vectors), sentence_of)
    similarities: Rows = (sums * means).sum(axis=1) / np.maximum(counts, 1)
    return similarities


def maximum_explainable_variance(vectors: Vectors) -> float:
    """What one direction can explain of vectors [occurrences, width]: the share of the largest squared singular value.

    The vectors are not centred, as in the paper's formula (its program centred them).
    """
    rows = vectors.astype(np.float64)
    squares = np.linalg.eigvalsh(rows @ rows.T)
    return float(squares[-1] / squares.sum())


def _units(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: Vectors = vectors / np.where(norms > 0, norms, 1)
    return units


def _sums(vectors: Vectors, groups: NDArray[np.int64]) -> Rows:
    """The sum of each group's vectors, [groups, width]; groups are in ascending order."""
    sums = np.zeros((int(groups.max()) + 1, vectors.shape[1]))
    present, starts = np.unique(groups, return_index=True)
    sums[present] = np.add.reduceat(vectors, starts, dtype=np.float64)
    return sums


def _draws(rng: np.random.Generator, items: int) -> Rows:
    """How often each sample holds each item, [1 + samples, items]; the first holds each once."""
    drawn = rng.multinomial(items, np.full(items, 1 / items), size=RESAMPLES)
    return np.concatenate([np.ones((1, items)), drawn])


def _means(values: Rows, draws: Rows) -> Rows:
    """The mean of `values` [items] in each sample."""
    return _divided(draws @ values, draws.sum(axis=1))


def _divided(sums: Rows, counts: Rows) -> Rows:
    """Means; NaN of nothing."""
    means: Rows = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return means
