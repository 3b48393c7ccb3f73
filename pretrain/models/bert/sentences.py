"""Full sentences one after the other, for models without next-sentence prediction (RoBERTa: Liu et al. 2019, §4.2)."""

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from pretrain.data.blocks import Block
from pretrain.models.bert.sequences import Spans

SPECIAL_TOKENS = 2
"""[CLS] sentences [SEP]; one more [SEP] where a sequence goes on into the next document."""


def fill_sentences(block: Block, budget: int) -> Spans:
    """Sequences of as many whole sentences as `budget` tokens hold, in the order of the text; nothing is left out.

    The paper's FULL-SENTENCES: a sequence that reaches the end of a document goes on in the next one of the block,
    after a [SEP], which counts. A sentence longer than the budget is cut. All of it is segment 0.
    """
    starts, documents = _cut_long(block, budget)
    ends = np.append(starts[1:], block.sentence_starts[-1:])
    # Where sentences stand in a text with a [SEP] between documents.
    begin: list[int] = (starts + documents).tolist()
    end: list[int] = (ends + documents).tolist()
    firsts: list[int] = []
    sentence = 0
    while sentence < len(begin):
        firsts.append(sentence)
        sentence = bisect_right(end, begin[sentence] + budget, sentence + 1)
    opens = np.zeros(len(starts), dtype=bool)
    opens[firsts] = True
    cuts = np.flatnonzero(opens | (np.diff(documents, prepend=-1) > 0))
    return Spans(
        starts=starts[cuts],
        lengths=np.append(starts[cuts[1:]], ends[-1:]) - starts[cuts],
        segments=np.zeros(len(cuts), dtype=np.int8),
        first=np.flatnonzero(opens[cuts]),
        is_next=None,
    )


def _cut_long(block: Block, budget: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First tokens of the sentences, the long ones in pieces of at most `budget`, and the document each is of."""
    starts = block.sentence_starts[:-1]
    documents = np.repeat(np.arange(len(block.document_starts) - 1), np.diff(block.document_starts))
    pieces = -(-np.diff(block.sentence_starts) // budget)
    piece = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)
    return np.repeat(starts, pieces) + budget * piece, np.repeat(documents, pieces)
