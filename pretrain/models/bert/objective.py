"""BERT's losses: masked words and, for pairs, the next sentence, weighted alike (Devlin et al. 2018, §3.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.models import BertConfig
from pretrain.models.bert.model import Predictions
from pretrain.models.bert.sequences import IGNORED
from pretrain.models.family import Batch, Tokenizer
from pretrain.models.loss import LossTerm

LABELS = ("masked_labels", "is_next")
"""What of a batch the model does not see."""


class BertObjective:
    """The losses of a batch, as `BertExamples.collate` makes it."""

    def __call__(
        self, model: nn.Module, batch: Batch, carried: Tensor | None, *, seed: int
    ) -> tuple[dict[str, LossTerm], None]:
        """`mlm` over the masked positions and `nsp` over the pairs, if any. Nothing is drawn or carried.

        A batch without a masked position has an `mlm` total of 0, and a gradient of 0 for every parameter.
        """
        predictions: Predictions = model(**{name: tensor for name, tensor in batch.items() if name not in LABELS})
        terms = {"mlm": _cross_entropy(predictions.words, batch["masked_labels"], predicts_tokens=True)}
        if predictions.next_sentence is not None:
            terms["nsp"] = _cross_entropy(predictions.next_sentence, batch["is_next"], predicts_tokens=False)
        return terms, None


def _cross_entropy(logits: Tensor, labels: Tensor, *, predicts_tokens: bool) -> LossTerm:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(wide, labels, ignore_index=IGNORED, reduction="sum")
    return LossTerm(total, (labels != IGNORED).sum(), predicts_tokens=predicts_tokens)


def build_objective(config: BertConfig, tokenizer: Tokenizer) -> BertObjective:
    """The objective; the same for every config."""
    return BertObjective()
