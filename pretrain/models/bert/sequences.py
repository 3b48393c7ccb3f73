"""The sequences of a block end to end, as BERT reads them: [CLS] span [SEP], or [CLS] span [SEP] span [SEP] …"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.models.bert.tokens import WordPieceTokenizer


@dataclass(frozen=True)
class Spans:
    """Which tokens of a block its sequences are made of."""

    starts: NDArray[np.int64]
    """[spans]: the first token of each."""
    lengths: NDArray[np.int64]
    """[spans], in tokens."""
    segments: NDArray[np.int8]
    """[spans]: the segment id of each."""
    first: NDArray[np.int64]
    """[sequences]: the first span of each sequence, which holds the spans up to the next one's first."""
    is_next: NDArray[np.int8] | None
    """[sequences]: the class of each pair; None where sequences are no pairs."""


@dataclass(frozen=True)
class Sequences:
    """Sequences with their special tokens, one after the other."""

    input_ids: NDArray[np.int32]
    """[tokens]"""
    segment_ids: NDArray[np.int8]
    """[tokens]"""
    starts: NDArray[np.int64]
    """[sequences]: where each one's [CLS] is."""
    lengths: NDArray[np.int64]
    """[sequences], in tokens, special ones included."""
    is_next: NDArray[np.int8] | None
    """[sequences], as in `Spans`."""


def join(tokens: NDArray[np.int32], spans: Spans, tokenizer: WordPieceTokenizer) -> Sequences:
    """The sequences that `spans` of `tokens` make up."""
    opens = np.zeros(len(spans.starts), dtype=np.int64)
    opens[spans.first] = 1  # a sequence's first span comes after [CLS]
    emitted = opens + spans.lengths + 1
    stops = emitted.cumsum()
    starts = stops - emitted
    # Special tokens too are looked up, whatever is there, and written over: that is cheaper than leaving them out.
    source = np.arange(emitted.sum()) + np.repeat(spans.starts - starts - opens, emitted)
    input_ids = tokens.take(source, mode="clip")
    sequence_starts = starts[spans.first]
    input_ids[sequence_starts] = tokenizer.cls_id
    input_ids[stops - 1] = tokenizer.sep_id
    return Sequences(
        input_ids=input_ids,
        segment_ids=np.repeat(spans.segments, emitted),
        starts=sequence_starts,
        lengths=np.diff(sequence_starts, append=len(input_ids)),
        is_next=spans.is_next,
    )
