"""ELMo: a character CNN, and LSTM language models that read forward and backward (Peters et al. 2018)."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.config.models import ElmoConfig
from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.models.elmo import export, tokens
from pretrain.models.elmo.baselines import build_baselines, build_parts
from pretrain.models.elmo.examples import ElmoExampleMaker
from pretrain.models.elmo.model import ElmoEncoder, build_model
from pretrain.models.elmo.objective import ElmoObjective
from pretrain.models.elmo.token_embeddings import write_token_embeddings
from pretrain.models.family import (
    Family,
    FamilyBaselines,
    FamilyFormat,
    FamilyTokenizer,
    FamilyTraining,
    LayerVectors,
    Pieces,
    Tokenizer,
)


def load_tokenizer(folder: Path) -> tokens.WordTokenizer | None:
    """The tokenizer saved in `folder`, which may be a model folder with a vocabulary; None where there is none."""
    if export.recognises(folder) and any(folder.glob("vocab*.txt")):
        return export.read_tokenizer(folder)
    return tokens.load(folder)


@torch.no_grad()
def encode(
    encoder: ElmoEncoder, pieces: Sequence[Pieces], carried: Tensor | None = None
) -> tuple[LayerVectors, Tensor]:
    """Vectors of several texts' words, and the state with which row i can go on, float32 [rows, state_size].

    As published, each text is read between `<S>` and `</S>` (an empty one too), and rows that `carried` has beyond the
    texts keep their state. The encoder is to be in evaluation mode.
    """
    boundaries = [tokens.SENTENCE_BEGIN, tokens.SENTENCE_END]
    texts = [[boundaries[0], *cast(list[str], text.tokens), boundaries[1]] for text in pieces]
    lengths = np.array([len(text) for text in texts])
    row_of: dict[str, int] = {}
    index = np.zeros((len(texts), lengths.max()), np.int64)
    for row, text in enumerate(texts):
        index[row, : len(text)] = [row_of.setdefault(word, len(row_of)) for word in text]
    spelled = tokens.character_ids(list(row_of), encoder.config.max_characters)
    characters = tokens.trim_characters(spelled, max(width for width, _ in encoder.config.filters))
    device = next(encoder.parameters()).device
    state = torch.zeros(max(len(texts), 0 if carried is None else len(carried)), encoder.state_size, device=device)
    if carried is not None:
        state[: len(carried)] = carried
    inputs = [torch.from_numpy(array.astype(np.int64)).to(device) for array in (characters, index, lengths)]
    vectors, state[: len(texts)] = encoder.vectors(inputs[0], inputs[1], inputs[2], state[: len(texts)])
    return vectors, state


def build_examples(
    model: ElmoConfig, objective: ElmoObjectiveConfig, tokenizer: Tokenizer, rows: int
) -> ElmoExampleMaker:
    """The example maker for `rows` rows of continuous text."""
    return build_sentences(model, objective, tokenizer, rows, reset=False)


def build_sentences(
    model: ElmoConfig, objective: ElmoObjectiveConfig, tokenizer: Tokenizer, rows: int, *, reset: bool
) -> ElmoExampleMaker:
    """As `build_examples`; with `reset`, every sentence of a row starts from zero state."""
    return ElmoExampleMaker(model, objective, cast(tokens.WordTokenizer, tokenizer), rows, reset=reset)


def vocabulary_problem(config: ElmoObjectiveConfig, tokenizer: Tokenizer, counts: NDArray[np.int64]) -> str | None:
    """What is wrong with the vocabulary's order, where words are sampled by it; `counts` as `tokens.order_problem`."""
    return tokens.order_problem(cast(tokens.WordTokenizer, tokenizer), counts) if config.softmax == "sampled" else None


def gradient_scale(config: ElmoObjectiveConfig) -> float:
    """The window's length: the original's gradient is a sum over time and a mean over rows."""
    return float(config.unroll_length)


FAMILY = Family(
    kind="elmo",
    encode=encode,
    tokenizer=FamilyTokenizer(learn=tokens.learn, load=load_tokenizer, problem=vocabulary_problem),
    training=FamilyTraining(
        ordered=True,
        build_examples=build_examples,
        build_sentences=build_sentences,
        build_model=build_model,
        build_objective=ElmoObjective,
        gradient_scale=gradient_scale,
        no_decay=lambda name: True,  # the original decays nothing
    ),
    format=FamilyFormat(
        name="bilm",
        recognises=export.recognises,
        read=export.read,
        write=export.write,
        initialize=export.initialize,
        write_token_embeddings=write_token_embeddings,
    ),
    baselines=FamilyBaselines(build=build_baselines, parts=build_parts),
)
"""ELMo's record."""
