"""What probes find: figures with intervals, of models and of what they must beat."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Layer = int | Literal["mix"]
"""A layer by number, 0 being the token layer, or the learned scalar mix of all."""
FLOORS = ("majority", "suffixes", "untrained", "static", "control", "published")
"""What stands beside models: the most frequent answer, the words and their endings without vectors, a randomly
initialised model of the same shape, vectors of word types, the same probe on labels drawn at random for each word type,
and figures from papers."""


@dataclass(frozen=True)
class Result:
    """One figure, with the bounds of its 95 % interval."""

    model: str
    """The model as it was named on the command line, or one of `FLOORS`."""
    task: str
    layer: Layer
    """Of what looks at words alone (`majority`, `static`): 0."""
    metric: str
    value: float
    low: float
    high: float
    of: str | None = None
    """Of a floor that belongs to one model (`untrained`, `control`): that model; of `published`, the paper's model."""
    group: str | None = None
    """What part of the data it is of, such as a phenomenon or a word; None for all of it."""
    ties: int | None = None
    """Minimal pairs only: pairs with equal scores, which count as wrong."""

    def values(self) -> dict[str, Any]:
        """For JSON; what does not apply is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Outcome:
    """All that a task found."""

    task: str
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()
    """Lines for the reader: what was counted, left out, or fell short."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What pictures show beside the figures, for JSON: `mixing_weights` ({model: [weight of each layer]}) and
    `sense_maps` ([{model, layer, word, points: [[x, y]], senses: [name], sentences: [text]}])."""

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "task": self.task,
            "results": [result.values() for result in self.results],
            "notes": list(self.notes),
            "details": dict(self.details),
        }

    def lines(self) -> list[str]:
        """A table for a terminal: a row for each model and layer, a column for each metric; then the notes."""
        overall = [result for result in self.results if result.group is None]
        metrics = list(dict.fromkeys(result.metric for result in overall))
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for result in overall:
            model = result.model if result.of is None else f"{result.model} ({result.of})"
            shown = f"{result.value:.3f} [{result.low:.3f}, {result.high:.3f}]"
            rows.setdefault((model, str(result.layer)), {})[result.metric] = shown
        cells = [["model", "layer", *metrics]]
        cells += [[model, layer, *(row.get(metric, "-") for metric in metrics)] for (model, layer), row in rows.items()]
        return [f"{self.task}:", *_table(cells), *self.notes]


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
