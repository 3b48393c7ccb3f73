"""Log-probabilities of held-out text, word by word, as its loss is measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.blocks import Arrays, Block
from pretrain.data.corpus import PreparedSource
from pretrain.data.stream import BlockId, held_out_generator
from pretrain.models.family import SentenceMaker
from pretrain.models.loss import Batch, LossTerm, Step

DIGITS = 6
"""Decimals of a log-probability; the losses are float32."""


@dataclass
class _BlockScores:
    """What each loss term gives the text positions of a block (see `SentenceExamples`), float64 [positions] each."""

    source: str
    block: Block
    unknown: NDArray[np.bool_]
    """[tokens]"""
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def add(self, text_positions: Arrays, terms: Mapping[str, LossTerm]) -> None:
        """Puts the losses of a batch where they belong."""
        for name, term in terms.items():
            assert term.losses is not None
            size = len(self.block.tokens) + len(self.block.sentence_starts) - 1
            scores = self.scores.setdefault(name, np.full(size, np.nan))
            at = text_positions[name].reshape(-1)
            scores[at[at >= 0]] = -term.losses.double().cpu().numpy()[at >= 0]

    def sentences(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each sentence with its document's number."""
        assert self.block.words is not None and not any(np.isnan(scores).any() for scores in self.scores.values())
        documents = np.repeat(self.block.document_numbers, np.diff(self.block.document_starts)).tolist()
        for number, (start, stop) in enumerate(pairwise(self.block.sentence_starts.tolist())):
            yield (
                documents[number],
                {
                    "words": [self.block.words[token] for token in self.block.tokens[start:stop].tolist()],
                    "unknown": np.flatnonzero(self.unknown[start:stop]).tolist(),
                    **{
                        name: scores[start + number : stop + number + 1].round(DIGITS).tolist()
                        for name, scores in self.scores.items()
                    },
                },
            )


@dataclass(frozen=True)
class _Window:
    """A batch, and where its predictions stand."""

    batch: Batch
    text_positions: Arrays
    scores: _BlockScores
    last: bool
    """Whether the block ends with it."""


class SentenceScorer:
    """Wraps a step that measures batches so that every sentence of a block is written once the block is measured.

    A sentence is {source, document, sentence, words, unknown, and by loss term the log-probabilities}: natural logs,
    in the order of the text, one for each word and one for the boundary; `unknown` are the indexes of words that the
    vocabulary lacks, and `sentence` counts a document's sentences from 0 as they are read.
    """

    def __init__(
        self,
        maker: SentenceMaker,
        sources: Sequence[PreparedSource],
        rows: int,
        step: Step,
        write: Callable[[dict[str, Any]], None],
    ) -> None:
        self._maker, self._sources, self._rows, self._step, self._write = maker, sources, rows, step, write
        self._numbers: dict[tuple[str, int], Iterator[int]] = {}

    def batches_of(self, block_id: BlockId) -> list[_Window]:
        """The batches of a block."""
        source = self._sources[block_id[0]]
        block = source.block(block_id[1])
        examples = self._maker.make(block, held_out_generator(block_id), pad=True)
        scores = _BlockScores(source.name, block, self._maker.unknown(block))
        windows = []
        for start in range(0, len(examples), self._rows):
            stop = start + self._rows
            batch = self._maker.collate(examples.take(start, stop))
            windows.append(_Window(batch, examples.text_positions(start, stop), scores, stop >= len(examples)))
        return windows

    def step(self, window: _Window, carried: Tensor | None) -> tuple[Mapping[str, LossTerm], Tensor | None]:
        """Measures a batch; writes the sentences of the block that ends with it."""
        terms, carried = self._step(window.batch, carried)
        window.scores.add(window.text_positions, terms)
        if window.last:
            for document, sentence in window.scores.sentences():
                key = window.scores.source, document
                number = next(self._numbers.setdefault(key, count()))
                self._write({"source": key[0], "document": document, "sentence": number} | sentence)
        return terms, carried
