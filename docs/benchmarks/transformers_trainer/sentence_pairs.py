"""Sentence pairs as users of transformers make them for `BertForPreTraining`, once, before training.

transformers 5 makes none any more. These are drawn like those of the `TextDatasetForNextSentencePrediction` of earlier
versions, which goes back to the original's `create_pretraining_data.py`. Its pairs may be too long for the model
(transformers' issue 12188): here they are cut as the original cuts them, which users had to add.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pretrain.data.corpus import PreparedSource
from pretrain.models.bert.tokens import WordPieceTokenizer

Ids = NDArray[np.int32]

NEXT, RANDOM = 0, 1
"""`next_sentence_label`, as `BertForPreTraining` numbers it."""
SPECIAL_TOKENS = 3
"""[CLS] first segment [SEP] second segment [SEP]."""


@dataclass(frozen=True)
class Document:
    """A document, or a part of one."""

    number: int
    """The same for all parts of a document."""
    sentences: list[Ids]


@dataclass(frozen=True)
class Pair:
    """Two segments without special tokens, and whether the second is `NEXT` or `RANDOM`."""

    first: Ids
    second: Ids
    label: int

    def __len__(self) -> int:
        return len(self.first) + len(self.second) + SPECIAL_TOKENS


def read_documents(source: PreparedSource) -> list[Document]:
    """All text of a prepared source, in the order of its shards."""
    documents = []
    for number in range(source.shards.blocks):
        block = source.block(number)
        starts = block.sentence_starts
        for document, first, end in zip(
            block.document_numbers, block.document_starts, block.document_starts[1:], strict=False
        ):
            sentences = [block.tokens[starts[s] : starts[s + 1]] for s in range(first, end)]
            documents.append(Document(int(document), sentences))
    return documents


def draw_pairs(
    documents: Sequence[Document], draw: random.Random, max_length: int, short_sequence_probability: float
) -> Iterator[Pair]:
    """The pairs of all documents, in order, of at most `max_length` tokens, special ones included."""
    room = max_length - SPECIAL_TOKENS
    for document in documents:
        short = draw.random() < short_sequence_probability
        wanted = draw.randint(2, room) if short else room
        chunk: list[Ids] = []
        sentence = 0
        while sentence < len(document.sentences):
            chunk.append(document.sentences[sentence])
            sentence += 1
            if sentence < len(document.sentences) and sum(map(len, chunk)) < wanted:
                continue
            split = draw.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
            first, rest = np.concatenate(chunk[:split]), chunk[split:]
            if not rest or draw.random() < 0.5:
                second, label = _elsewhere(documents, document, draw, wanted - len(first)), RANDOM
                sentence -= len(rest)  # they were not used: they begin the next chunk
            else:
                second, label = np.concatenate(rest), NEXT
            yield Pair(*_cut(first, second, room, draw), label)
            chunk = []


def _elsewhere(documents: Sequence[Document], here: Document, draw: random.Random, wanted: int) -> Ids:
    """`wanted` tokens, at least a sentence, from somewhere in a random document; ten tries for it to be another one."""
    for _ in range(10):
        other = documents[draw.randrange(len(documents))]
        if other.number != here.number:
            break
    taken: list[Ids] = []
    for sentence in other.sentences[draw.randrange(len(other.sentences)) :]:
        taken.append(sentence)
        if sum(map(len, taken)) >= wanted:
            break
    return np.concatenate(taken)


def _cut(first: Ids, second: Ids, room: int, draw: random.Random) -> tuple[Ids, Ids]:
    """Both within `room`: the longer segment loses a token, at its front or back, until they fit."""
    while len(first) + len(second) > room:
        front = draw.random() < 0.5
        if len(first) > len(second):
            first = first[1:] if front else first[:-1]
        else:
            second = second[1:] if front else second[:-1]
    return first, second


class PairDataset(Dataset[dict[str, Any]]):
    """The pairs as rows of what a transformers tokenizer returns; the collator pads and masks them."""

    def __init__(self, pairs: Sequence[Pair], tokenizer: WordPieceTokenizer) -> None:
        self._pairs = pairs
        self._cls, self._sep = [tokenizer.cls_id], [tokenizer.sep_id]

    @property
    def mean_length(self) -> float:
        """Tokens of a pair, special ones included."""
        return sum(map(len, self._pairs)) / len(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self._pairs[index]
        first, second = pair.first.tolist(), pair.second.tolist()
        return {
            "input_ids": self._cls + first + self._sep + second + self._sep,
            "token_type_ids": [0] * (len(first) + 2) + [1] * (len(second) + 1),
            "special_tokens_mask": [1] + [0] * len(first) + [1] + [0] * len(second) + [1],
            "next_sentence_label": pair.label,
        }
