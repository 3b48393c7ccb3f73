"""A small ELMo, with every part that the large one has."""

import pytest

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.models.elmo.tokens import SPECIAL_WORDS, WordTokenizer


@pytest.fixture
def config() -> ElmoConfig:
    return ElmoConfig(
        dropout=0.0,
        character_embedding_size=3,
        filters=((1, 4), (2, 4), (4, 3)),
        num_highways=2,
        cell_size=7,
        projection_size=4,
    )


@pytest.fixture
def objective_config() -> ElmoObjectiveConfig:
    return ElmoObjectiveConfig(unroll_length=4, softmax="full", reset_probability=0.0)


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer((*SPECIAL_WORDS, "a", "b", "c", "d", "e", "f"))
