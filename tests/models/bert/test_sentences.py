from itertools import pairwise

import numpy as np

from pretrain.data.blocks import Block
from pretrain.models.bert.sentences import fill_sentences
from pretrain.models.bert.sequences import join
from pretrain.models.bert.tokens import WordPieceTokenizer


def make_block(documents: list[list[int]]) -> Block:
    """Documents of sentences of so many tokens, which are numbered from 1000 on."""
    lengths = [length for document in documents for length in document]
    return Block(
        tokens=np.arange(1000, 1000 + sum(lengths), dtype=np.int32),
        sentence_starts=np.cumsum([0, *lengths], dtype=np.int64),
        document_starts=np.cumsum([0, *map(len, documents)], dtype=np.int64),
        document_numbers=np.arange(len(documents)),
    )


def sequences(block: Block, budget: int, tokenizer: WordPieceTokenizer) -> list[list[int]]:
    """The sequences as lists of ids, 1000 subtracted, C for [CLS] and S for [SEP]."""
    made = join(block.tokens, fill_sentences(block, budget), tokenizer)
    assert made.is_next is None and not made.segment_ids.any()
    names = {tokenizer.cls_id: -1, tokenizer.sep_id: -2}
    rows = np.split(made.input_ids, made.starts[1:])
    assert [len(row) for row in rows] == made.lengths.tolist()
    return [[names.get(i, i - 1000) for i in row.tolist()] for row in rows]


def test_sequences_are_full_of_whole_sentences_and_go_on_in_the_next_document(tokenizer: WordPieceTokenizer) -> None:
    block = make_block([[2, 3, 2], [1, 2], [4]])
    assert sequences(block, 6, tokenizer) == [
        [-1, 0, 1, 2, 3, 4, -2],
        [-1, 5, 6, -2, 7, 8, 9, -2],
        [-1, 10, 11, 12, 13, -2],
    ]
    # A [SEP] between documents takes a place: with one less, the last sentence of the second document has none.
    assert sequences(block, 5, tokenizer)[1] == [-1, 5, 6, -2, 7, -2]
    assert sequences(block, 100, tokenizer) == [[-1, *range(7), -2, 7, 8, 9, -2, 10, 11, 12, 13, -2]]


def test_long_sentences_are_cut(tokenizer: WordPieceTokenizer) -> None:
    assert sequences(make_block([[1, 9], [2]]), 4, tokenizer) == [
        [-1, 0, -2],
        [-1, 1, 2, 3, 4, -2],
        [-1, 5, 6, 7, 8, -2],
        [-1, 9, -2, 10, 11, -2],
    ]


def test_all_text_is_used_once_in_greedy_sequences(tokenizer: WordPieceTokenizer) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 25, rng.integers(1, 30)).tolist() for _ in range(60)]
    block = make_block(documents)
    made = sequences(block, 40, tokenizer)
    assert [i for row in made for i in row if i >= 0] == list(range(len(block.tokens)))
    assert max(map(len, made)) <= 42
    lengths = np.diff(block.sentence_starts)
    for row, following in pairwise(made):
        sentence = np.searchsorted(block.sentence_starts, following[1])
        separator = following[1] in block.sentence_starts[block.document_starts]
        assert len(row) - 2 + separator + lengths[sentence] > 40, "the next sentence had no room"
    first = {row[1] for row in made}
    ends = set(block.sentence_starts[block.document_starts].tolist())
    for row in made:
        inner = [row[i + 1] for i in range(len(row) - 1) if row[i] == -2]
        assert set(inner) <= ends, "[SEP] stands before a document only"
    assert len(ends - first) > 20, "most documents begin within a sequence"


def test_an_empty_block_has_no_sequences(tokenizer: WordPieceTokenizer) -> None:
    assert len(fill_sentences(make_block([]), 10).starts) == 0
    assert len(join(make_block([]).tokens, fill_sentences(make_block([]), 10), tokenizer).lengths) == 0
