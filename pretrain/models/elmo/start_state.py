"""A state to start texts from: the one in which the most frequent words leave both directions.

A biLM whose state is carried for ever has met zero state once, at its first step. After a few words from there it is
still on its way; after some hundred it is where it always was in training.
"""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pretrain.config.objectives import ElmoObjectiveConfig
from pretrain.data.blocks import Block
from pretrain.errors import ExportError
from pretrain.models.elmo.examples import ElmoExampleMaker
from pretrain.models.elmo.model import ElmoModel
from pretrain.models.elmo.objective import ElmoObjective
from pretrain.models.elmo.tokens import SPECIAL_WORDS, WordTokenizer
from pretrain.models.family import ModelFolder
from pretrain.models.loss import Batch
from pretrain.models.start_state import StartState
from pretrain.runtime.machine import exact_float32

SENTENCES, WORDS = 20, 20
"""The text that is read: so many sentences of so many words."""
CHECK_SENTENCES, CHECK_WORDS = 40, 10
"""The text on which it is checked."""


def make_start_state(folder: ModelFolder) -> StartState:
    """The state after the most frequent words, read as text in the order of the vocabulary.

    With a softmax, sentences from it and from zero are measured: of words drawn log-uniformly by their rank, which is
    about how often they occur (a list of words is too unlike text: a model may predict it best from zero). It is no
    folder's default. Raises ExportError where the vocabulary has no words.
    """
    tokenizer = cast(WordTokenizer, folder.tokenizer)
    words = [word for word in tokenizer.vocabulary if word not in SPECIAL_WORDS]
    if not words:
        raise ExportError(
            "a primed start state is made of the most frequent words, and the folder has no vocab*.txt that lists "
            "them in that order"
        )
    model = cast(ElmoModel, folder.model)
    text = list(islice(cycle(words), SENTENCES * WORDS))
    made_of = f"the {min(len(words), len(text))} most frequent words, in {SENTENCES} sentences of {WORDS}"
    with torch.no_grad(), exact_float32():
        state = _state_after(model, _sentences(text, WORDS), tokenizer)
        if model.softmax is None:
            return StartState(state.cpu(), made_of)
        drawn = np.random.default_rng(0).random(CHECK_SENTENCES * CHECK_WORDS)
        ranks = np.exp(drawn * np.log(len(words) + 1)).astype(np.int64) - 1
        check = _sentences([words[rank] for rank in ranks.clip(0, len(words) - 1)], CHECK_WORDS)
        loss, zero_loss = (_loss(model, check, start, tokenizer) for start in (state, None))
    return StartState(state.cpu(), made_of, loss=loss, zero_loss=zero_loss, measured_on="words drawn by their rank")


def _sentences(words: Sequence[str], length: int) -> list[Sequence[str]]:
    """Words as sentences of `length` each."""
    return [words[start : start + length] for start in range(0, len(words), length)]


def _state_after(model: ElmoModel, sentences: Sequence[Sequence[str]], tokenizer: WordTokenizer) -> Tensor:
    """[state size]: after the last sentence forward, and after the first backward, as in training."""
    batch = _batch(model, sentences, tokenizer, rows=1)
    _, _, state = cast(
        tuple[Tensor, Tensor, Tensor],
        model.encoder(batch["characters"], batch["forward_index"], batch["backward_index"]),
    )
    return state[0]


def _loss(
    model: ElmoModel, sentences: Sequence[Sequence[str]], start: Tensor | None, tokenizer: WordTokenizer
) -> float:
    """Mean loss of sentences of equal length, each by itself, from one state; None is zero."""
    batch = _batch(model, sentences, tokenizer, rows=len(sentences))
    objective = ElmoObjective(ElmoObjectiveConfig(softmax="full"), tokenizer)
    carried = None if start is None else start.expand(len(sentences), -1)
    terms, _ = objective(model, batch, carried, seed=0)
    return sum(term.weight * float(term.total) / int(term.count) for term in terms.values())


def _batch(model: ElmoModel, sentences: Sequence[Sequence[str]], tokenizer: WordTokenizer, *, rows: int) -> Batch:
    """One window of every row: a row is so many sentences as there are for each."""
    lengths = [len(sentence) for sentence in sentences]
    words = [word for sentence in sentences for word in sentence]
    distinct = tuple(dict.fromkeys(words))
    number = {word: index for index, word in enumerate(distinct)}
    block = Block(
        tokens=np.array([number[word] for word in words], np.int32),
        sentence_starts=np.cumsum([0, *lengths]),
        document_starts=np.array([0, len(sentences)]),
        document_numbers=np.array([0]),
        words=distinct,
    )
    objective = ElmoObjectiveConfig(unroll_length=(len(words) + len(sentences)) // rows, reset_probability=0.0)
    maker = ElmoExampleMaker(model.encoder.config, objective, tokenizer, rows)
    batch = maker.collate(maker.make(block, np.random.default_rng(0)).take(0, rows))
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}
