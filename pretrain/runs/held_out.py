"""Held-out loss: how it is measured, whoever asks, so that two checkpoints answer the same questions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.data.corpus import PreparedCorpus, PreparedSource
from pretrain.data.stream import BlockId, held_out_blocks, held_out_examples
from pretrain.errors import DataError
from pretrain.models import get_family
from pretrain.models.family import ExampleMaker, ModelFolder, Tokenizer
from pretrain.models.loss import Batch, Losses, LossSums, Step, zeroed
from pretrain.runs.sentences import SentenceScorer
from pretrain.runtime.collectives import max_over_ranks
from pretrain.runtime.machine import exact_float32

HELD_OUT_ROWS = 16
"""Rows that an ordered family cuts a held-out block into; fixed, so that no number depends on the batch."""
HELD_OUT_EXAMPLES, HELD_OUT_TOKENS = 32, 16_384
"""Of a held-out batch in families that are not ordered, at most, but one example; fixed, too."""

Counts = np.ndarray[Any, np.dtype[np.int64]]
"""How often each id of a vocabulary occurs, [vocabulary]."""
BatchesOf = Callable[[Any], Sequence[Any]]
"""From a held-out block to its batches."""


def held_out_batches(
    folder: ModelFolder,
    tokenizer: Tokenizer,
    sources: Sequence[PreparedSource],
    maker: ExampleMaker | None = None,
) -> Callable[[BlockId], list[Batch]]:
    """A function from a held-out block to its batches: windows of all its rows, or groups of its examples.

    `maker` is one of `HELD_OUT_ROWS` rows that makes them otherwise than training does.
    """
    family = get_family(folder.config.kind).training
    fitting = max(1, HELD_OUT_TOKENS // folder.objective.tokens_per_example)
    rows, size = (HELD_OUT_ROWS, HELD_OUT_ROWS) if family.ordered else (1, min(HELD_OUT_EXAMPLES, fitting))
    maker = maker or family.build_examples(folder.config, folder.objective, tokenizer, rows)

    def batches_of(block_id: BlockId) -> list[Batch]:
        examples = held_out_examples(sources, block_id, maker)
        starts = range(0, len(examples), size)
        return [maker.collate(examples.take(start, min(start + size, len(examples)))) for start in starts]

    return batches_of


def measure_held_out(
    step: Step, blocks: Sequence[Any], batches_of: BatchesOf, *, rank: int = 0, ranks: int = 1, device: torch.device
) -> Losses:
    """The loss over held-out blocks, each prediction exactly once, whatever the number of ranks.

    Ranks take blocks in turn. State is carried within a block and starts at zero in each, so that no block's loss
    depends on who read the one before. Under ZeRO 3 a forward pass is a collective: ranks that run out of batches
    repeat one and leave it out of the sums. Raises DataError where there is nothing to predict.
    """
    sums = LossSums()
    names: list[str] = []
    spare: Any = None
    for first in range(0, len(blocks), ranks):
        mine = first + rank
        batches = batches_of(blocks[mine]) if mine < len(blocks) else []
        needed = max_over_ranks(len(batches), device)
        carried: Tensor | None = None
        for i in range(needed):
            if i < len(batches):
                spare = batches[i]
            elif spare is None:
                spare = next(batch for block in blocks for batch in batches_of(block))
            terms, state = step(spare, carried if i < len(batches) else None)
            names = names or list(terms)
            if i < len(batches):
                carried = state
                sums.add(terms)
            else:
                sums.add({name: zeroed(term) for name, term in terms.items()})
    if not names:
        raise DataError("the text to evaluate on gives no example: there is too little of it")
    losses = sums.reduce(names, device)
    if not losses.perplexities:
        raise DataError(
            "the text to evaluate on has nothing to predict: none of its words is in the vocabulary, which is "
            "another language's, or the text has no spaces between words"
        )
    return losses


def evaluate_model(
    folder: ModelFolder,
    sources: Sequence[PreparedSource],
    *,
    reset: bool = False,
    start: Tensor | None = None,
    write: Callable[[dict[str, Any]], None] | None = None,
    limit: int | None = None,
    batches: int | None = None,
) -> Losses:
    """The loss of a model over blocks of held-out text, in this process: all, or at most `limit`.

    For families that predict every word: rows of a block, and with `reset` all sentences, start from zero state, or
    from `start`, float32 [state size]; and `write` is called with each sentence's log-probabilities (see
    `SentenceScorer`). Without it, at most the first `batches` of a block are read.
    """
    assert folder.tokenizer is not None
    family = get_family(folder.config.kind).training
    objective = family.build_objective(folder.objective, folder.tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = folder.model.to(device).eval()
    blocks = held_out_blocks(sources, limit)
    start = None if start is None else start.to(device)

    def step(batch: Batch, carried: Any) -> Any:
        tensors = {name: tensor.to(device) for name, tensor in batch.items()}
        if start is not None:
            begins = tensors.pop("begins", torch.zeros(HELD_OUT_ROWS, dtype=torch.int64, device=device))
            carried = start.expand(HELD_OUT_ROWS, -1) if carried is None else carried
            carried = torch.where(begins[:, None] == 1, start, carried)
        with torch.no_grad():
            return objective(model, tensors, carried, seed=0)

    maker = None
    if reset or write is not None:
        assert family.build_sentences is not None
        maker = family.build_sentences(folder.config, folder.objective, folder.tokenizer, HELD_OUT_ROWS, reset=reset)
    with exact_float32():
        if maker is None or write is None:
            every_batch = held_out_batches(folder, folder.tokenizer, sources, maker)
            return measure_held_out(step, blocks, lambda block: every_batch(block)[:batches], device=device)
        scorer = SentenceScorer(maker, sources, HELD_OUT_ROWS, step, write)
        return measure_held_out(scorer.step, blocks, scorer.batches_of, device=device)


def held_out_text(corpus: PreparedCorpus, limit: int | None) -> str:
    """What is measured on, in a few words: equal for equal text, so that losses may be compared."""
    return f"{corpus.identity}, {len(held_out_blocks(corpus.held_out, limit))} blocks"


def unigram_loss(frequencies: Counts, counts: Counts) -> float:
    """Nats per token of tokens that occur `counts` times, under add-one unigrams of the training text's `frequencies`.

    Both are [vocabulary].
    """
    probabilities = frequencies.astype(np.float64) + 1
    losses = np.log(probabilities.sum()) - np.log(probabilities)
    return float((counts * losses).sum() / counts.sum())
