"""BERT's two losses: masked words and the next sentence, weighted alike (Devlin et al. 2018, §3.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.models import BertConfig
from pretrain.models.bert.model import Predictions
from pretrain.models.family import Batch, Tokenizer
from pretrain.models.loss import LossTerm


class BertObjective:
    """The losses of a batch, as `BertExamples.collate` makes it."""

    def __call__(
        self, model: nn.Module, batch: Batch, carried: Tensor | None, *, seed: int
    ) -> tuple[dict[str, LossTerm], None]:
        """`mlm` over the masked positions and `nsp` over the pairs. Nothing is drawn or carried.

        A batch without a masked position has an `mlm` total of 0, and a gradient of 0 for every parameter.
        """
        predictions: Predictions = model(
            batch["input_ids"], batch["segment_ids"], batch["attention_mask"], batch["masked_positions"]
        )
        return {
            "mlm": _cross_entropy(predictions.words, batch["masked_labels"], predicts_tokens=True),
            "nsp": _cross_entropy(predictions.next_sentence, batch["is_next"], predicts_tokens=False),
        }, None


def _cross_entropy(logits: Tensor, labels: Tensor, *, predicts_tokens: bool) -> LossTerm:
    total = F.cross_entropy(logits.float(), labels, reduction="sum")
    return LossTerm(total, torch.tensor(len(labels), device=labels.device), predicts_tokens=predicts_tokens)


def build_objective(config: BertConfig, tokenizer: Tokenizer) -> BertObjective:
    """The objective; the same for every config."""
    return BertObjective()
