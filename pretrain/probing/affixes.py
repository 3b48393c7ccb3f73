"""The features of a tagger without vectors: words, their beginnings, endings and shapes."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from pretrain.probing.regression import Indicators
from pretrain.probing.sentences import Sentence

MIN_COUNT = 2
"""A feature that fewer words of the training part have tells nothing."""
SUFFIXES, PREFIXES = range(1, 5), range(1, 3)
"""Lengths in characters."""


def affix_features(training: Sequence[Sentence], testing: Sequence[Sentence]) -> tuple[Indicators, Indicators]:
    """Features of all words of both parts that have a tag; what is one is counted in the training part alone."""
    of_training = [_features(sentence) for sentence in training]
    counts = Counter(feature for words in of_training for word in words for feature in word)
    kept = [feature for feature, count in counts.items() if count >= MIN_COUNT]
    numbers = {feature: number for number, feature in enumerate(kept)}
    return _indicators(of_training, numbers), _indicators([_features(sentence) for sentence in testing], numbers)


def _features(sentence: Sentence) -> list[list[str]]:
    pairs = enumerate(zip(sentence.words, sentence.tags, strict=True))
    return [list(_word_features(word, first=not number)) for number, (word, tag) in pairs if tag != "_"]


def _word_features(word: str, first: bool) -> Iterator[str]:
    lower = word.lower()
    yield f"word {lower}"
    for length in SUFFIXES:
        if len(lower) >= length:
            yield f"suffix {lower[-length:]}"
    for length in PREFIXES:
        if len(lower) >= length:
            yield f"prefix {lower[:length]}"
    if first:
        yield "first"
    if word[:1].isupper():
        yield "first, capitalised" if first else "capitalised"
    if any(character.isdigit() for character in word):
        yield "digit"
    if "-" in word:
        yield "hyphen"


def _indicators(sentences: Sequence[list[list[str]]], numbers: dict[str, int]) -> Indicators:
    entries = [[numbers[feature] for feature in word if feature in numbers] for words in sentences for word in words]
    counts = torch.tensor([len(entry) for entry in entries])
    features = torch.tensor([number for entry in entries for number in entry], dtype=torch.long)
    return Indicators(features, counts.cumsum(0) - counts, len(numbers))
