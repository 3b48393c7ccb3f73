"""Our examples beside the original generator's: its output to the bit from its rules, and ours by its statistics."""

import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pretrain.config.models import BertConfig
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.data.blocks import Arrays, Block
from pretrain.models.bert.examples import build_examples
from pretrain.models.bert.pairs import RANDOM
from pretrain.models.bert.published_tokenizer import load_tokenizer
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.loss import IGNORE_INDEX
from tests.models.bert.original import Document, Original

SharedData = Callable[[str], Path]
READINGS = 24


@pytest.fixture
def tokenizer(shared_data: SharedData) -> WordPieceTokenizer:
    """The original's, with its vocabulary."""
    loaded = load_tokenizer(shared_data("bert/vocab.txt").parent)
    assert loaded is not None
    return loaded


def pieces_of(tokenizer: WordPieceTokenizer) -> list[str]:
    """The vocabulary, by id."""
    return sorted(tokenizer.vocabulary, key=lambda piece: tokenizer.vocabulary[piece])


def encode(tokenizer: WordPieceTokenizer, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """Documents as sentences of ids, without the empty ones of either."""
    flat = iter(tokenizer.encode([sentence for document in texts for sentence in document]).tokens)
    documents = [[list(ids) for _ in document if (ids := next(flat))] for document in texts]
    return [document for document in documents if document]


def sample(shared_data: SharedData) -> list[list[str]]:
    """The original's sample text: a sentence a line, an empty line between documents."""
    text = shared_data("bert/google_sample_text.txt").read_text(encoding="utf-8")
    return [[line for line in part.split("\n") if line.strip()] for part in text.split("\n\n")]


def test_the_original_to_the_bit(shared_data: SharedData, tokenizer: WordPieceTokenizer) -> None:
    path = shared_data("bert/google_sample_L128_dupe5_seed12345.jsonl")
    expected = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    vocabulary = pieces_of(tokenizer)
    documents = [
        [[vocabulary[i] for i in sentence] for sentence in document]
        for document in encode(tokenizer, sample(shared_data))
    ]
    instances = Original(vocabulary).instances(documents, passes=5, seed=12345)
    assert len(instances) == len(expected) == 60
    for ours, theirs in zip(instances, expected, strict=True):
        assert ours == theirs


def textbook(shared_data: SharedData) -> list[list[str]]:
    """Held-out sections of textbooks, cut into sentences after full stops."""
    with gzip.open(shared_data("openstax/valid.jsonl.gz"), "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    return [re.split(r"(?<=[.!?])\s+|\n", text) for text in texts[:20]]


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("name", ["sample", "textbook"])
def test_statistics_of_the_original(
    name: str, whole_words: bool, shared_data: SharedData, tokenizer: WordPieceTokenizer
) -> None:
    """Each figure varies from reading to reading; the means of both lie within four standard errors of each other."""
    documents = encode(tokenizer, {"sample": sample, "textbook": textbook}[name](shared_data))
    readings = READINGS if name == "textbook" else 10 * READINGS
    theirs = original_readings(tokenizer, documents, whole_words, readings)
    ours = our_readings(tokenizer, documents, whole_words, readings)
    for figure, expected in theirs.items():
        error = np.sqrt((expected.var(ddof=1) + ours[figure].var(ddof=1)) / readings)
        assert abs(ours[figure].mean() - expected.mean()) < 4 * error + 1e-9, (figure, ours[figure], expected)
    if name == "textbook":
        # What the original gives on other text too: more than half are random, and rounding loses some masks.
        assert 0.5 < ours["random"].mean() < 0.6
        assert ours["masked"].mean() == pytest.approx(0.1488, abs=0.0005)
        assert ours["[MASK]"].mean() == pytest.approx(0.8, abs=0.01)
        assert ours["kept"].mean() == pytest.approx(0.1, abs=0.01)


def original_readings(
    tokenizer: WordPieceTokenizer, documents: list[list[list[int]]], whole_words: bool, readings: int
) -> dict[str, NDArray[np.float64]]:
    """Figures of several readings of the documents by the original."""
    vocabulary = pieces_of(tokenizer)
    original = Original(vocabulary, whole_words=whole_words)
    text: list[Document] = [[[vocabulary[i] for i in ids] for ids in document] for document in documents]
    rows = []
    for seed in range(readings):
        instances = original.instances(text, passes=1, seed=seed)
        seen = [
            (instance["tokens"][place], label)
            for instance in instances
            for place, label in zip(instance["masked_lm_positions"], instance["masked_lm_labels"], strict=True)
        ]
        lengths = np.array([len(instance["tokens"]) for instance in instances])
        rows.append(
            figures(
                lengths,
                np.array([instance["segment_ids"].index(1) for instance in instances]),
                np.array([instance["is_random_next"] for instance in instances]),
                np.array([token == "[MASK]" for token, _ in seen]),
                np.array([token == label for token, label in seen]),
            )
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def our_readings(
    tokenizer: WordPieceTokenizer, documents: list[list[list[int]]], whole_words: bool, readings: int
) -> dict[str, NDArray[np.float64]]:
    """The same of ours."""
    sentences = [ids for document in documents for ids in document]
    block = Block(
        tokens=np.concatenate(sentences).astype(np.int32),
        sentence_starts=np.cumsum([0, *map(len, sentences)], dtype=np.int64),
        document_starts=np.cumsum([0, *map(len, documents)], dtype=np.int64),
        document_numbers=np.arange(len(documents)),
    )
    config = BertObjectiveConfig(max_sequence_length=128, whole_word_masking=whole_words, packing=False)
    maker = build_examples(BertConfig(), config, tokenizer, 1)
    rows = []
    for seed in range(readings):
        examples = maker.make(block, np.random.default_rng(seed))
        taken: Arrays = examples.take(0, len(examples))
        masked = taken["labels"] != IGNORE_INDEX
        ids, labels = taken["input_ids"][masked], taken["labels"][masked]
        rows.append(
            figures(
                taken["lengths"],
                (taken["input_ids"] == tokenizer.sep_id).argmax(axis=1) + 1,
                taken["is_next"] == RANDOM,
                ids == tokenizer.mask_id,
                ids == labels,
            )
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def figures(
    lengths: NDArray[np.integer],
    firsts: NDArray[np.integer],
    random: NDArray[np.bool_],
    hidden: NDArray[np.bool_],
    kept: NDArray[np.bool_],
) -> dict[str, float]:
    """One reading's: of its sequences, their first segments and classes, and of what became of the predicted tokens."""
    return {
        "sequences": len(lengths),
        "length": lengths.mean(),
        "full": (lengths == 128).mean(),
        "first segment": firsts.mean(),
        "random": random.mean(),
        "masked": len(hidden) / lengths.sum(),
        "[MASK]": hidden.mean(),
        "kept": kept.mean(),
    }
