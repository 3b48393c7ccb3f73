"""The n-gram model against a worked example and plain dictionaries.

Run it after a change: `pytest docs/benchmarks/kneser_ney/check_kneser_ney.py`.
"""

import math
import sys
import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # a study is no package
from kneser_ney import KneserNey, Texts, discounts

Gram = tuple[int, ...]


def make_texts(*texts: Sequence[int]) -> Texts:
    words = np.array([word for text in texts for word in text], np.int64)
    return Texts(words, np.cumsum([0, *map(len, texts)]))


def probabilities(model: KneserNey, *text: int) -> list[float]:
    return np.exp(model.log_probabilities(make_texts(text))).tolist()  # type: ignore[no-any-return]


A, B, C, D, END = range(5)


def test_a_worked_example() -> None:
    """Two texts, `a b .` and `a c .`, over five words; too few to estimate discounts, so 1 loses 0.5 and 2 loses 1.

    Words: before a stands only the beginning, before b and c only a, before the end b and c: counts 1 1 1 2, in all 5.
    Left to the uniform 0.2: (3 * 0.5 + 1) / 5 = 0.5. So p(a) = p(b) = p(c) = 0.5/5 + 0.5 * 0.2 = 0.2,
    p(d) = 0.5 * 0.2 = 0.1, p(.) = 1/5 + 0.1 = 0.3.

    Pairs: (begin a) begins texts and so counts 2, though nothing stands before it. The others stand behind one word.
    p(a | begin) = (2 - 1)/2 + 1/2 * 0.2 = 0.6
    p(b | a) = (1 - 0.5)/2 + (2 * 0.5)/2 * 0.2 = 0.35, p(d | a) = 0.5 * 0.1 = 0.05
    p(. | b) = (1 - 0.5)/1 + 0.5 * 0.3 = 0.65

    Triples: p(b | begin a) = (1 - 0.5)/2 + (2 * 0.5)/2 * 0.35 = 0.425, p(. | a b) = 0.5 + 0.5 * 0.65 = 0.825
    """
    texts = make_texts([A, B, END], [A, C, END])
    two = KneserNey(2, 5).fit(texts)
    assert probabilities(two, A, B, END) == pytest.approx([0.6, 0.35, 0.65])
    assert probabilities(two, A, D, END) == pytest.approx([0.6, 0.05, 0.3]), "nothing is known of what follows d"
    three = KneserNey(3, 5).fit(texts)
    assert probabilities(three, A, B, END) == pytest.approx([0.6, 0.425, 0.825])
    assert probabilities(three, B, A, C) == pytest.approx([0.5 * 0.2, 0.5 * 0.2, 0.35]), "(b a) is new, (a c) is not"
    assert probabilities(KneserNey(9, 5).fit(texts), A, B) == pytest.approx([0.6, 0.425]), "longer than the texts"


def test_words_alone_are_counted() -> None:
    """Order 1: counts 3, 1, 1, 0 and 2 ends of 7; they lose 1.5, 0.5, 0.5 and 1, which is spread over five words."""
    model = KneserNey(1, 5).fit(make_texts([A, A, B, END], [A, C, END]))
    spread = 3.5 / 7 / 5
    expected = [1.5 / 7 + spread, 0.5 / 7 + spread, 0.5 / 7 + spread, spread, 1 / 7 + spread]
    for text in ([A, B, C, D, END], [END, D, C, B, A]):
        assert probabilities(model, *text) == pytest.approx([expected[word] for word in text])


def test_discounts() -> None:
    """4, 3, 2 and 1 n-grams seen 1 to 4 times: y = 4 / (4 + 2 * 3) = 0.4.

    1 - 2y * 3/4 = 0.4; 2 - 3y * 2/3 = 1.2; 3 - 4y * 1/2 = 2.2
    """
    counts = np.array([1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 9, 100])
    assert discounts(counts) == pytest.approx([0, 0.4, 1.2, 2.2])
    assert discounts(counts[counts != 4]) == pytest.approx([0, 0.5, 1, 1.5]), "none is seen four times"
    assert discounts(np.array([1, 2, 3, 3, 3, 4])) == pytest.approx([0, 0.5, 1, 1.5]), "2 - 3/3 * 3 is negative"


class Dictionaries:
    """The same model written for the eye: n-grams are tuples, and a probability is a recursion."""

    def __init__(self, order: int, vocabulary_size: int, texts: Sequence[Sequence[int]]) -> None:
        self.order, self.size = order, vocabulary_size
        begin = vocabulary_size
        seen: Counter[Gram] = Counter()
        before: dict[Gram, set[int]] = defaultdict(set)
        for text in texts:
            marked = (begin, *text)
            for stop in range(2, len(marked) + 1):
                for n in range(1, min(order, stop) + 1):
                    gram = marked[stop - n : stop]
                    seen[gram] += 1
                    if stop > n:
                        before[gram].add(marked[stop - n - 1])
        self.counts: dict[Gram, dict[int, int]] = defaultdict(dict)
        for gram, count in seen.items():
            adjusted = count if len(gram) == order or gram[0] == begin else len(before[gram])
            self.counts[gram[:-1]][gram[-1]] = adjusted
        self.discounts = {}
        for n in range(order):
            every = [c for context, follow in self.counts.items() if len(context) == n for c in follow.values()]
            self.discounts[n] = discounts(np.array(every))

    def probability(self, word: int, context: Gram) -> float:
        lower = self.probability(word, context[1:]) if context else 1 / self.size
        if context not in self.counts:
            return lower
        follow, off = self.counts[context], self.discounts[len(context)]
        total = sum(follow.values())
        freed = sum(off[min(count, 3)] for count in follow.values()) / total
        count = follow.get(word, 0)
        return float((count - off[min(count, 3)]) / total + freed * lower)

    def log_probabilities(self, texts: Sequence[Sequence[int]]) -> list[float]:
        result = []
        for text in texts:
            marked = (self.size, *text)
            for stop in range(1, len(marked)):
                context = marked[max(0, stop + 1 - self.order) : stop]
                result.append(math.log(self.probability(marked[stop], context)))
        return result


def random_texts(rng: np.random.Generator, number: int, vocabulary_size: int) -> list[list[int]]:
    """Texts in which a word depends on the last two, some of them empty."""
    texts = []
    for _ in range(number):
        words = [int(rng.integers(vocabulary_size)) for _ in range(2)]
        for _ in range(int(rng.integers(0, 12))):
            follows = (3 * words[-1] + 7 * (words[-2] % 4) + min(rng.geometric(0.5), 6)) % vocabulary_size
            words.append(int(follows))
        texts.append(words[2:])
    return texts


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_against_dictionaries(order: int) -> None:
    rng = np.random.default_rng(order)
    learned, asked = random_texts(rng, 400, 40), random_texts(rng, 60, 40)
    model, plain = KneserNey(order, 42).fit(make_texts(*learned)), Dictionaries(order, 42, learned)
    assert order == 1 or any(off[1] != 0.5 for off in plain.discounts.values()), "some are estimated"
    for texts in (asked, learned):
        found = model.log_probabilities(make_texts(*texts))
        np.testing.assert_allclose(found, plain.log_probabilities(texts), rtol=1e-10)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_probabilities_sum_to_one(order: int) -> None:
    rng = np.random.default_rng(0)
    model = KneserNey(order, 22).fit(make_texts(*random_texts(rng, 200, 20)))
    contexts = [text[:4] for text in random_texts(rng, 20, 20)] + [[], [21], [3, 21, 3], [21, 21, 21, 21, 21]]
    for context in contexts:
        each = make_texts(*([*context, word] for word in range(22)))
        last = np.exp(model.log_probabilities(each)[each.starts[1:] - 1])
        assert last.min() > 0
        assert last.sum() == pytest.approx(1, abs=1e-12)


def test_longer_contexts_help() -> None:
    rng = np.random.default_rng(1)
    learned, asked = make_texts(*random_texts(rng, 3000, 40)), make_texts(*random_texts(rng, 200, 40))
    losses = [-KneserNey(order, 40).fit(learned).log_probabilities(asked).mean() for order in (1, 2, 3)]
    assert losses[0] > losses[1] + 0.3 and losses[1] > losses[2] + 0.3


def test_two_million_words() -> None:
    """In under two minutes and 3 GiB: Zipf-like words of a vocabulary of 10,000, sentences of 26 words."""
    rng = np.random.default_rng(0)
    words = np.minimum(rng.zipf(1.3, 2_000_000), 10_000) - 1
    texts = Texts(words, np.append(np.arange(0, len(words), 26), len(words)))
    tracemalloc.start()
    started = time.monotonic()
    losses = KneserNey(5, 10_000).fit(texts).log_probabilities(texts)
    assert time.monotonic() - started < 120
    assert tracemalloc.get_traced_memory()[1] < 3 * 2**30
    tracemalloc.stop()
    assert np.isfinite(losses).all()
