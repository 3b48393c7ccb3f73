"""TF-IDF: texts as counts of their words, weighted by how few texts have them (Salton and Buckley 1988)."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np


@dataclass(frozen=True)
class TfIdf:
    """Weights of words, learned from some texts."""

    frequencies: Mapping[str, int]
    """How many of the texts have each word."""
    texts: int

    def idf(self, word: str) -> float:
        """The inverse document frequency, as if one more text had every word; of unknown words the highest."""
        return float(np.log((1 + self.texts) / (1 + self.frequencies.get(word, 0)))) + 1

    def weights(self, text: str) -> dict[str, float]:
        """The weight of each word of a text, their squares summing to 1; nothing for a text without words."""
        weights = {word: count * self.idf(word) for word, count in Counter(text_words(text)).items()}
        norm = sum(weight**2 for weight in weights.values()) ** 0.5
        return {word: weight / norm for word, weight in weights.items()}

    def cosine(self, first: str, second: str) -> float:
        """Of two texts' weights; 0 where one has no words."""
        weights = self.weights(second)
        return sum(weight * weights.get(word, 0.0) for word, weight in self.weights(first).items())


def fit_tf_idf(texts: Sequence[str]) -> TfIdf:
    """The weights of the words of some texts."""
    frequencies: Counter[str] = Counter()
    for text in texts:
        frequencies.update({*text_words(text)})
    return TfIdf(frequencies, len(texts))


def text_words(text: str) -> list[str]:
    """Runs of letters, digits and their combining marks, in lower case."""
    return ["".join(run) for is_word, run in groupby(text.lower(), _is_of_word) if is_word]


@lru_cache(maxsize=1 << 16)
def _is_of_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"
