"""Small random models of both families, made of the words of the sentences that they are to read."""

from collections.abc import Sequence

import torch

from pretrain.config.models import BertConfig, ElmoConfig, WordPieceConfig, WordsConfig
from pretrain.config.objectives import BertObjectiveConfig, ElmoObjectiveConfig
from pretrain.models import get_family
from pretrain.models.family import ModelFolder
from pretrain.probing.subjects import Subject

CONFIGS = {
    "elmo": ElmoConfig(character_embedding_size=4, filters=((1, 8), (3, 16)), cell_size=24, projection_size=12),
    "bert": BertConfig(hidden_size=24, num_layers=2, num_heads=4, intermediate_size=48, max_positions=64),
}
OBJECTIVES = {"elmo": ElmoObjectiveConfig(softmax="full"), "bert": BertObjectiveConfig(max_sequence_length=64)}
TOKENIZERS = {"elmo": WordsConfig(), "bert": WordPieceConfig(vocabulary_size=120, minimum_count=1)}


def small_subject(kind: str, sentences: Sequence[str], seed: int = 1) -> Subject:
    """A model called `kind`; its weights are larger than fresh ones, so that context shows in the vectors."""
    family = get_family(kind)
    tokenizer = family.tokenizer.learn(lambda: sentences, TOKENIZERS[kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.training.build_model(CONFIGS[kind], OBJECTIVES[kind], tokenizer.vocabulary_size)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5 if kind == "bert" else 3)
    return Subject(kind, ModelFolder(model.eval(), tokenizer, CONFIGS[kind], OBJECTIVES[kind]))
