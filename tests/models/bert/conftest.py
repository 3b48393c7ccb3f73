"""A small tokenizer, its text as a block, and a small model: what the tests of BERT share."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pretrain.config.models import BertConfig, WordPieceConfig
from pretrain.config.objectives import BertObjectiveConfig
from pretrain.data.blocks import Block
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.tokens import WordPieceTokenizer, learn_tokenizer

TINY = BertConfig(hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, max_positions=64)
TINY_OBJECTIVE = BertObjectiveConfig(max_sequence_length=64)


def tiny_configs(**options: object) -> tuple[BertConfig, BertObjectiveConfig]:
    """The two configs of a small model, with some options of either changed."""
    asked = {name: value for name, value in options.items() if name in BertObjectiveConfig.model_fields}
    sizes = {name: value for name, value in options.items() if name not in asked}
    return (
        BertConfig.model_validate(TINY.model_dump() | sizes),
        BertObjectiveConfig.model_validate(TINY_OBJECTIVE.model_dump() | asked),
    )


def make_sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of 3 to 14 made-up words, drawn with a few frequent ones."""
    rng = np.random.default_rng(seed)
    letters = list("abcdefghijklmnop")
    words = ["".join(rng.choice(letters, rng.integers(1, 9))) for _ in range(300)]
    share = 1 / np.arange(1, len(words) + 1)
    return [" ".join(rng.choice(words, rng.integers(3, 15), p=share / share.sum())) + "." for _ in range(count)]


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return make_sentences(2000)


@pytest.fixture(scope="session")
def tokenizer(sentences: list[str]) -> WordPieceTokenizer:
    return learn_tokenizer(lambda: sentences, WordPieceConfig(vocabulary_size=200))


@pytest.fixture
def model(tokenizer: WordPieceTokenizer) -> BertModel:
    torch.manual_seed(0)
    return BertModel(TINY, TINY_OBJECTIVE, tokenizer.vocabulary_size).eval()


@pytest.fixture(scope="session")
def make_block(tokenizer: WordPieceTokenizer, sentences: list[str]) -> Callable[[list[int], list[int]], Block]:
    """(sentences per document, document numbers) -> a block of the first of the sentences."""

    def make(per_document: list[int], numbers: list[int]) -> Block:
        encoded = tokenizer.encode(sentences[: sum(per_document)])
        return Block(
            tokens=encoded.ids.astype(np.int32),
            sentence_starts=np.cumsum([0, *map(len, encoded.tokens)], dtype=np.int64),
            document_starts=np.cumsum([0, *per_document], dtype=np.int64),
            document_numbers=np.array(numbers, dtype=np.int64),
        )

    return make
