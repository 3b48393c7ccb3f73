"""BERT's losses: masked words and, for pairs, the next sentence, weighted alike (Devlin et al. 2018, §3.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.objectives import BertObjectiveConfig
from pretrain.models.bert.model import Predictions
from pretrain.models.bert.pairs import NEXT, RANDOM
from pretrain.models.family import Tokenizer
from pretrain.models.loss import IGNORE_INDEX, Batch, LossTerm

LABELS = ("masked_labels", "is_next")
"""What of a batch the model does not see."""


class BertObjective:
    """The losses of a batch, as `BertExampleMaker.collate` makes it."""

    def __call__(
        self, model: nn.Module, batch: Batch, carried: Tensor | None, *, seed: int
    ) -> tuple[dict[str, LossTerm], None]:
        """`mlm` over the masked positions and `nsp` over the pairs, if any. Nothing is drawn or carried.

        A batch without a masked position has an `mlm` total of 0, and a gradient of 0 for every parameter. Correct
        words are counted only in `eval` mode, since that takes a pass over all logits.
        """
        predictions: Predictions = model(**{name: tensor for name, tensor in batch.items() if name not in LABELS})
        words, labels = predictions.words, batch["masked_labels"]
        correct = None if model.training else _correct(words, labels)
        count = (labels != IGNORE_INDEX).sum()
        terms = {"mlm": LossTerm(_cross_entropy(words, labels), count, correct=correct, title="MLM")}
        if predictions.next_sentence is not None:
            logits, labels = predictions.next_sentence, batch["is_next"]
            classes = torch.stack([(labels == NEXT).sum(), (labels == RANDOM).sum()])
            terms["nsp"] = LossTerm(
                _cross_entropy(logits, labels),
                classes.sum(),
                predicts_tokens=False,
                correct=_correct(logits, labels),
                classes=classes,
                title="NSP",
            )
        return terms, None


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, labels, ignore_index=IGNORE_INDEX, reduction="sum")


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=-1) == labels).sum()  # which never equals IGNORE_INDEX


def build_objective(config: BertObjectiveConfig, tokenizer: Tokenizer) -> BertObjective:
    """The objective; the same for every config."""
    return BertObjective()
