"""transformers' `BertForPreTraining` on the same weights and batches, for `pretrain bench`.

As its users run it: attention by PyTorch's `scaled_dot_product_attention`, one sequence a row, padded to the longest of
the micro-batch.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from pretrain.models.baselines import Baseline, Part, UnavailableBaseline
from pretrain.models.bert.export import write
from pretrain.models.family import ModelFolder
from pretrain.models.loss import IGNORE_INDEX, Batch, LossTerm

NAME = "transformers BertForPreTraining"
COMPILED = f"{NAME}, compiled"


def build_baselines(ours: ModelFolder, *, compiled: bool) -> list[Baseline | UnavailableBaseline]:
    """transformers' model with the weights and sizes of ours, as it comes and `compiled`."""
    try:
        baseline = Baseline(NAME, _build_model(ours), BaselineObjective())
        return [baseline, _build_compiled(ours)] if compiled else [baseline]
    except ModuleNotFoundError as error:
        return [UnavailableBaseline(NAME, f"{error.name} is not installed")]


def build_parts(model: nn.Module) -> list[Part]:
    """None: whole steps are what is compared."""
    return []


def _build_compiled(ours: ModelFolder) -> Baseline | UnavailableBaseline:
    """The model whole, in one graph for rows of any number and length, which the first step compiles and no other.

    Both vary from batch to batch. The peak memory of its warm-up is the compiler's too.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return UnavailableBaseline(COMPILED, f"there is no C++ compiler {compiler}; CXX names another")
    baseline = _build_model(ours)
    baseline.compile(dynamic=True)
    return Baseline(COMPILED, baseline, BaselineObjective())


def _build_model(ours: ModelFolder) -> nn.Module:
    from transformers import BertForMaskedLM, BertForPreTraining
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="pretrain-bench-") as folder:
        write(Path(folder), ours)
        published = BertForPreTraining if ours.objective.next_sentence else BertForMaskedLM
        return cast(nn.Module, published.from_pretrained(folder, dtype=torch.float32))


class BaselineObjective:
    """The loss as transformers computes it: logits of every position, the mean over those that have a label."""

    def __call__(
        self, model: nn.Module, batch: Batch, carried: Tensor | None, *, seed: int
    ) -> tuple[dict[str, LossTerm], None]:
        """The term `loss`: both losses of the micro-batch, counted as one."""
        output = model(**padded(batch))
        return {"loss": LossTerm(output.loss.float(), torch.ones((), dtype=torch.int64))}, None


def padded(batch: Batch) -> dict[str, Tensor]:
    """The batch as transformers names it, one sequence a row, packed or not."""
    real = batch["masked_labels"] != IGNORE_INDEX
    labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
    labels.view(-1)[batch["masked_positions"][real]] = batch["masked_labels"][real]
    theirs = {
        "input_ids": batch["input_ids"],
        "token_type_ids": batch["segment_ids"],
        "attention_mask": batch["attention_mask"],
        "labels": labels,
    }
    if "sequence_lengths" in batch:
        lengths = batch["sequence_lengths"].flatten()
        mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[lengths > 0, None]
        packed, theirs = theirs, {}
        for name, rows in packed.items():
            theirs[name] = rows.new_full(mask.shape, IGNORE_INDEX if name == "labels" else 0)
            theirs[name][mask] = rows[batch["attention_mask"].bool()]
    if "is_next" in batch:
        theirs["next_sentence_label"] = batch["is_next"][batch["is_next"] != IGNORE_INDEX]
    return theirs
