"""transformers' `BertForPreTraining` on the same weights and batches, for `pretrain bench`."""

import tempfile
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from pretrain.models.bert.export import write
from pretrain.models.bert.model import BertModel
from pretrain.models.bert.sequences import IGNORED
from pretrain.models.bert.tokens import WordPieceTokenizer
from pretrain.models.family import Batch, ModelFolder, Tokenizer
from pretrain.models.loss import LossTerm

NAME = "transformers BertForPreTraining"


def build_peer(model: nn.Module, tokenizer: Tokenizer) -> nn.Module:
    """The peer with the weights and sizes of `model`; raises ModuleNotFoundError where there is no transformers."""
    from transformers import BertForPreTraining
    from transformers.utils import logging

    assert isinstance(model, BertModel) and isinstance(tokenizer, WordPieceTokenizer)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="pretrain-bench-") as folder:
        write(Path(folder), ModelFolder(model, tokenizer, model.config))
        return cast(nn.Module, BertForPreTraining.from_pretrained(folder, dtype=torch.float32))


class PeerObjective:
    """The loss as transformers computes it: logits of every position, the mean over those that have a label."""

    def __call__(
        self, model: nn.Module, batch: Batch, carried: Tensor | None, *, seed: int
    ) -> tuple[dict[str, LossTerm], None]:
        """The term `loss`: both losses of the micro-batch, counted as one."""
        input_ids = batch["input_ids"]
        labels = torch.full_like(input_ids, IGNORED).flatten()
        labels[batch["masked_positions"]] = batch["masked_labels"]
        output = model(
            input_ids=input_ids,
            token_type_ids=batch["segment_ids"],
            attention_mask=batch["attention_mask"],
            labels=labels.view_as(input_ids),
            next_sentence_label=batch["is_next"],
        )
        return {"loss": LossTerm(output.loss.float(), torch.ones((), dtype=torch.int64))}, None


def build_peer_objective(model: nn.Module, tokenizer: Tokenizer) -> PeerObjective:
    """The objective that trains the peer."""
    return PeerObjective()
