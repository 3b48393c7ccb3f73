"""A small random model of each family, in its published format."""

from pathlib import Path

import pytest
import torch

from pretrain.config.models import BertConfig, ElmoConfig, WordPieceConfig, WordsConfig
from pretrain.config.objectives import BertObjectiveConfig, ElmoObjectiveConfig
from pretrain.embedding.embedder import Embedder
from pretrain.models import get_family
from pretrain.models.family import ModelFolder

SENTENCES = [
    "The cat sat on the mat, and the dog did not.",
    "Don't stop!",
    "",
    "A much longer sentence, with many more words than all of the others, stretches a batch to its own length.",
    "cat",
    "Naïve façades cost 3.14 coins.",
    "On the mat sat the cat; on the cat sat the mat.",
]
CONFIGS = {
    "elmo": ElmoConfig(character_embedding_size=4, filters=((1, 8), (3, 16)), cell_size=24, projection_size=12),
    "bert": BertConfig(hidden_size=24, num_layers=3, num_heads=4, intermediate_size=48, max_positions=64),
}
OBJECTIVES = {"elmo": ElmoObjectiveConfig(softmax="full"), "bert": BertObjectiveConfig(max_sequence_length=64)}
TOKENIZERS = {"elmo": WordsConfig(), "bert": WordPieceConfig(vocabulary_size=101, minimum_count=1)}


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return SENTENCES


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders by family. The weights are larger than fresh ones, so that context shows in the vectors."""
    written = {}
    for kind, config in CONFIGS.items():
        family = get_family(kind)
        torch.manual_seed(1)
        objective = OBJECTIVES[kind]
        tokenizer = family.tokenizer.learn(lambda: SENTENCES, TOKENIZERS[kind])
        model = family.training.build_model(config, objective, tokenizer.vocabulary_size)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(5 if kind == "bert" else 2)
        written[kind] = tmp_path_factory.mktemp(kind)
        family.format.write(written[kind], ModelFolder(model, tokenizer, config, objective))
    return written


@pytest.fixture(params=["elmo", "bert"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture
def embedder(folder: Path) -> Embedder:
    return Embedder.load(folder, device="cpu")


@pytest.fixture
def elmo(folders: dict[str, Path]) -> Embedder:
    return Embedder.load(folders["elmo"], device="cpu")


@pytest.fixture
def bert(folders: dict[str, Path]) -> Embedder:
    return Embedder.load(folders["bert"], device="cpu")
