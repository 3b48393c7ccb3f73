"""The tasks by name."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.probing.results import Outcome
from pretrain.probing.subjects import Subject


@dataclass(frozen=True)
class Inputs:
    """What a task is given beside the models."""

    data: Path
    """The file to probe with; also compressed with gzip."""
    test: Path | None = None
    """What is tested on; by default a fifth of `data`'s sentences, documents or pairs, drawn by their number."""
    vectors: Path = Path("vectors")
    """The folder where vectors are kept."""
    static: Path | None = None
    """Word vectors in the text format of word2vec, GloVe or fastText, for the `static` floor."""
    scores: Path | None = None
    """Minimal pairs only: where both scores of each pair are written, a JSON line a pair."""
    pairs: int | None = None
    """Minimal pairs only: how many of each paradigm are drawn, by default all."""
    seed: int = 1
    """Keys splits, untrained models and bootstrap samples."""


Task = Callable[[Sequence[Subject], Inputs], Outcome]

MODULES = {
    "pos": "tagging",
    "entities": "tagging",
    "dependencies": "edges",
    "senses": "senses",
    "wic": "word_in_context",
    "minimal-pairs": "minimal_pairs",
    "similarity": "similarity",
    "classification": "classification",
    "geometry": "geometry",
}
"""Each task, and the module of this package that has the function `probe_<task>`."""


def get_task(name: str) -> Task:
    """The function of a task."""
    module = importlib.import_module(f"pretrain.probing.{MODULES[name]}")
    task: Task = getattr(module, f"probe_{name.replace('-', '_')}")
    return task
