"""Held-out loss while training: the model where the strategy holds it, the text divided among the ranks."""

from typing import Any

import torch
from lightning.pytorch import Trainer

from pretrain.config.run import RunConfig
from pretrain.data.corpus import PreparedCorpus
from pretrain.data.stream import held_out_blocks
from pretrain.errors import DataError
from pretrain.models.family import ModelFolder, Tokenizer
from pretrain.models.loss import Losses, exp
from pretrain.runs.evaluation import Evaluation
from pretrain.runs.held_out import held_out_batches, held_out_text, measure_held_out, unigram_loss
from pretrain.training.module import Pretraining


class HeldOut:
    """The held-out text of a run; raises DataError where it is too little for one example."""

    def __init__(self, config: RunConfig, module: Pretraining, tokenizer: Tokenizer, corpus: PreparedCorpus) -> None:
        limit = config.evaluation.blocks
        self.text = held_out_text(corpus, limit)
        """What is measured on; losses over different text are not compared."""
        self._blocks = held_out_blocks(corpus.held_out, limit)
        self._config = config
        self._unigram_loss: float | None = None
        if len(self._blocks) == len(held_out_blocks(corpus.held_out)):  # else the counts are of other text
            self._unigram_loss = unigram_loss(corpus.unigrams("train"), corpus.unigrams("held_out"))
        folder = ModelFolder(module.model, tokenizer, config.model, config.objective)
        self._batches_of = held_out_batches(folder, tokenizer, corpus.held_out)
        if not any(self._batches_of(block) for block in self._blocks):  # before hours of training, not after them
            raise DataError(f"data.held_out is {config.data.held_out}: that text is too little for one example")

    def verdict(self, losses: Losses) -> list[str]:
        """What losses of this text mean, in a line or two for the log."""
        measured = Evaluation(self._config.name, losses, self._unigram_loss, advice=self._config.advice)
        unigrams = "" if self._unigram_loss is None else f" (a unigram model: {exp(self._unigram_loss):,.1f})"
        verdict = "" if measured.verdict is None else f": {measured.verdict}"
        lines = [f"held-out perplexity {losses.perplexity:,.1f}{unigrams}{verdict}"]
        change = measured.what_to_change
        return lines if change is None else [*lines, f"what could be changed: {change}"]

    def measure(self, trainer: Trainer, module: Pretraining) -> Losses:
        """The loss over all ranks; training's carried states and mode are put aside."""
        model: Any = trainer.strategy.model
        model.eval()
        module.eval()

        def step(batch: Any, carried: Any) -> Any:
            moved = {name: tensor.to(module.device) for name, tensor in batch.items()}
            with torch.no_grad():
                return trainer.strategy.test_step(moved, carried)

        rank, ranks = trainer.global_rank, trainer.world_size
        losses = measure_held_out(step, self._blocks, self._batches_of, rank=rank, ranks=ranks, device=module.device)
        model.train()
        module.train()
        return losses
