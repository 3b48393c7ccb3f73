"""What the original generator does, step by step, with the same calls of `random.Random` in the same order.

A measure for ours, slow and with the original's faults: a random segment may be of the same document, and the ids that
replace words at random may be special. Instances come out as the shared file has them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Document = Sequence[Sequence[str]]
"""Sentences of pieces."""


@dataclass(frozen=True)
class Original:
    """The original's options; the defaults are those that made the shared file."""

    vocabulary: Sequence[str]
    length: int = 128
    short_sequence_probability: float = 0.1
    mask_probability: float = 0.15
    most_masked: int = 20
    whole_words: bool = False

    def instances(self, documents: Sequence[Document], passes: int, seed: int) -> list[dict[str, Any]]:
        """All instances of `passes` passes over the documents, shuffled."""
        rng = random.Random(seed)
        shuffled = [list(document) for document in documents]
        rng.shuffle(shuffled)
        made = [
            instance
            for _ in range(passes)
            for number in range(len(shuffled))
            for instance in self._of_document(shuffled, number, rng)
        ]
        rng.shuffle(made)
        return made

    def _of_document(
        self, documents: list[list[Sequence[str]]], number: int, rng: random.Random
    ) -> list[dict[str, Any]]:
        document, budget = documents[number], self.length - 3
        wanted = rng.randint(2, budget) if rng.random() < self.short_sequence_probability else budget
        made: list[dict[str, Any]] = []
        chunk: list[Sequence[str]] = []
        place = 0
        while place < len(document):
            chunk.append(document[place])
            if place == len(document) - 1 or sum(map(len, chunk)) >= wanted:
                split = 1 if len(chunk) == 1 else rng.randint(1, len(chunk) - 1)
                first = [piece for sentence in chunk[:split] for piece in sentence]
                is_random = len(chunk) == 1 or rng.random() < 0.5
                if is_random:
                    second = self._elsewhere(documents, number, wanted - len(first), rng)
                    place -= len(chunk) - split
                else:
                    second = [piece for sentence in chunk[split:] for piece in sentence]
                _truncate(first, second, budget, rng)
                made.append(self._instance(first, second, is_random, rng))
                chunk = []
            place += 1
        return made

    @staticmethod
    def _elsewhere(documents: list[list[Sequence[str]]], number: int, wanted: int, rng: random.Random) -> list[str]:
        for _ in range(10):
            other = rng.randint(0, len(documents) - 1)
            if other != number:
                break
        pieces: list[str] = []
        for sentence in documents[other][rng.randint(0, len(documents[other]) - 1) :]:
            pieces += sentence
            if len(pieces) >= wanted:
                break
        return pieces

    def _instance(self, first: list[str], second: list[str], is_random: bool, rng: random.Random) -> dict[str, Any]:
        tokens = ["[CLS]", *first, "[SEP]", *second, "[SEP]"]
        words: list[list[int]] = []
        for place, token in enumerate(tokens):
            if token in ("[CLS]", "[SEP]"):
                continue
            if self.whole_words and words and token.startswith("##"):
                words[-1].append(place)
            else:
                words.append([place])
        rng.shuffle(words)
        most = min(self.most_masked, max(1, round(len(tokens) * self.mask_probability)))
        masked: dict[int, str] = {}
        output = list(tokens)
        for word in words:
            if len(masked) >= most:
                break
            if len(masked) + len(word) > most:
                continue
            for place in word:
                masked[place] = tokens[place]
                if rng.random() < 0.8:
                    output[place] = "[MASK]"
                elif rng.random() >= 0.5:
                    output[place] = self.vocabulary[rng.randint(0, len(self.vocabulary) - 1)]
        positions = sorted(masked)
        return {
            "tokens": output,
            "segment_ids": [0] * (len(first) + 2) + [1] * (len(second) + 1),
            "is_random_next": is_random,
            "masked_lm_positions": positions,
            "masked_lm_labels": [masked[place] for place in positions],
        }


def _truncate(first: list[str], second: list[str], budget: int, rng: random.Random) -> None:
    while len(first) + len(second) > budget:
        longer = first if len(first) > len(second) else second
        longer.pop(0 if rng.random() < 0.5 else -1)
