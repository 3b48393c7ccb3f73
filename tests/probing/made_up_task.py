"""A task in the place of `pos`, quick and without a probe: its figures are numbers of the model's own vectors."""

import sys
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import pytest
import torch

from pretrain.errors import DataError
from pretrain.probing import tasks
from pretrain.probing.results import Layer, Outcome, Result
from pretrain.probing.subjects import Subject
from pretrain.probing.tasks import Inputs


def probe_pos(subjects: Sequence[Subject], inputs: Inputs) -> Outcome:
    """The share of components above zero, by layer. Raises DataError for fewer than three sentences."""
    sentences = inputs.data.read_text(encoding="utf-8").strip().split("\n\n")
    if len(sentences) < 3:
        raise DataError(f"{inputs.data}: too few sentences")
    torch.manual_seed(1)  # a task may draw, and use what it likes
    np.random.seed(1)
    torch.rand(3)
    results = [_figure("majority", 0, 0.4)]
    for subject in subjects:
        for model, of in ((subject, None), (subject.untrained(inputs.seed), subject.name)):
            encoded = model.embedder.encode(
                [sentence.split() for sentence in sentences], layers="all", is_split_into_words=True
            )
            shares = np.concatenate(encoded, axis=1).__gt__(0).mean(axis=(1, 2))
            results += [_figure(model.name, layer, float(share), of) for layer, share in enumerate(shares)]
        results.append(_figure(subject.name, "mix", 0.9))
    note = f"{len(sentences)} sentences of {inputs.data.name}"
    weights = {subject.name: [0.2, 0.3, 0.5] for subject in subjects}
    return Outcome("pos", tuple(results), (note,), {"mixing_weights": weights, "sense_maps": [{"sentences": ["x"]}]})


def _figure(model: str, layer: Layer, value: float, of: str | None = None) -> Result:
    return Result(model, "pos", layer, "accuracy", value, value - 0.01, value + 0.01, of)


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it what `pos` is."""
    module = ModuleType("pretrain.probing.made_up")
    module.__dict__["probe_pos"] = probe_pos
    monkeypatch.setitem(sys.modules, "pretrain.probing.made_up", module)
    monkeypatch.setitem(tasks.MODULES, "pos", "made_up")
