"""An n-gram language model to compare with: interpolated modified Kneser-Ney, in numpy.

Chen & Goodman 1998, with counts adjusted as Heafield et al. 2013 (section 3.1) spell it out. The highest order is
estimated from how often an n-gram occurs; a lower one from how many different words stand before it, or, where it
begins a text and nothing can stand before it, from how often it occurs. Each order is interpolated with the next lower
one, the lowest with the uniform distribution over the vocabulary.

An n-gram is a number, `context * vocabulary_size + word`; a context is its index in a sorted table of numbers
`shorter context * (vocabulary_size + 1) + word before it`.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where there is too little text to estimate them."""


@dataclass(frozen=True)
class Texts:
    """Texts as word ids, int64 [words]; text t is `words[starts[t]:starts[t + 1]]`.

    A model predicts every word of every text, and nothing else: a text's last word is the mark of its end, where that
    is to be predicted. What stands before a text's first word is one mark that is no word.
    """

    words: Ids
    starts: Ids

    def before(self, distance: int, begin: int) -> Ids:
        """The word `distance` positions before each word: `begin` where the text begins, -1 where there is nothing."""
        lengths = np.diff(self.starts)
        position = np.arange(len(self.words)) - np.repeat(self.starts[:-1], lengths)
        earlier = np.roll(self.words, distance)
        return np.where(position >= distance, earlier, np.where(position == distance - 1, begin, -1))


@dataclass(frozen=True)
class _Order:
    """One order of a model: its tables, sorted, and what they say."""

    contexts: Ids
    ngrams: Ids
    discounted: Floats
    """Of each n-gram: its probability after discounting, before interpolation."""
    backoff: Floats
    """Of each context: the weight of the lower order's probability."""


def discounts(counts: Ids) -> Floats:
    """What is taken off counts of 0, 1, 2 and of 3 or more, [4], from how many n-grams have counts of 1 to 4."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) > 0:
        y = n1 / (n1 + 2 * n2)
        estimated = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 < discount <= k for k, discount in enumerate(estimated, start=1)):
            return np.array([0.0, *estimated])
    return np.array([0.0, *FALLBACK])


class KneserNey:
    """Interpolated modified Kneser-Ney of a given order over word ids below `vocabulary_size`."""

    def __init__(self, order: int, vocabulary_size: int) -> None:
        self.order = order
        self.vocabulary_size = vocabulary_size
        self._orders: list[_Order] = []

    def fit(self, texts: Texts) -> Self:
        """Counts the texts; order 5 takes about 200 bytes of memory a word."""
        tables: list[tuple[Ids, Ids, Ids]] = []
        contexts, context = np.zeros(1, np.int64), np.zeros(len(texts.words), np.int64)
        for length in range(self.order):
            if length:
                keys = self._longer(context, texts, length)
                contexts = np.unique(keys[keys >= 0])
                if not len(contexts):
                    break  # no text is that long
                context = _find(contexts, keys)
            keys = (context * self.vocabulary_size + texts.words)[context >= 0]
            tables.append((contexts, *np.unique(keys, return_counts=True)))
        self._orders = []
        for length, (contexts, ngrams, counts) in enumerate(tables):
            if length + 1 < len(tables):
                predecessors = self._predecessors(ngrams, *tables[length + 1][:2])
                counts = np.where(predecessors > 0, predecessors, counts)
            self._orders.append(self._estimate(contexts, ngrams, counts))
        return self

    def _longer(self, context: Ids, texts: Texts, length: int) -> Ids:
        """The key of each word's context of `length` words, given where its shorter one is; -1 where there is none."""
        before = texts.before(length, begin=self.vocabulary_size)
        return np.where((context >= 0) & (before >= 0), context * (self.vocabulary_size + 1) + before, -1)

    def _predecessors(self, ngrams: Ids, longer_contexts: Ids, longer_ngrams: Ids) -> Ids:
        """How many different words stand before each n-gram, given the n-grams that are longer by one."""
        context, word = np.divmod(longer_ngrams, self.vocabulary_size)
        shorter = longer_contexts[context] // (self.vocabulary_size + 1)
        return np.bincount(_find(ngrams, shorter * self.vocabulary_size + word), minlength=len(ngrams))

    def _estimate(self, contexts: Ids, ngrams: Ids, counts: Ids) -> _Order:
        context = ngrams // self.vocabulary_size
        discount = discounts(counts)[np.minimum(counts, 3)]
        totals = np.bincount(context, counts, len(contexts))
        return _Order(
            contexts=contexts,
            ngrams=ngrams,
            discounted=(counts - discount) / totals[context],
            backoff=np.bincount(context, discount, len(contexts)) / totals,
        )

    def log_probabilities(self, texts: Texts) -> Floats:
        """The natural log of the probability of each word given those before it in its text, [words]."""
        probability = np.full(len(texts.words), 1 / self.vocabulary_size)
        context = np.zeros(len(texts.words), np.int64)
        for length, order in enumerate(self._orders):
            if length:
                context = _find(order.contexts, self._longer(context, texts, length))
            seen = context >= 0
            ngram = _find(order.ngrams, np.where(seen, context * self.vocabulary_size + texts.words, -1))
            discounted = np.where(ngram >= 0, order.discounted[ngram], 0.0)
            probability = np.where(seen, discounted + order.backoff[context] * probability, probability)
        logs: Floats = np.log(probability)
        return logs


def _find(table: Ids, keys: Ids) -> Ids:
    """The index of each key in a sorted table; -1 where it is not."""
    index = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[index] == keys, index, -1)
