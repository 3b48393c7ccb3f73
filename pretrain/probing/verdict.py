"""What the figures of a probe mean, in a sentence."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pretrain.probing.results import FLOORS, Outcome, Result

DESCRIPTIVE = ("geometry",)
"""Tasks whose figures describe and do not score: there is no better and no worse."""
FLOOR_NAMES = {
    "majority": "the majority",
    "suffixes": "words and endings",
    "untrained": "the untrained model",
    "static": "the static baseline",
    "control": "the control",
}
"""What a sentence calls the floors; figures from papers go by whose they are."""


def models(outcomes: Iterable[Outcome]) -> list[str]:
    """The models that were probed, in the order of their results."""
    found = (result.model for outcome in outcomes for result in outcome.results)
    return [name for name in dict.fromkeys(found) if name not in FLOORS]


def metrics(outcome: Outcome) -> list[str]:
    """The metrics of all of the data, the one that verdicts are about first."""
    return list(dict.fromkeys(result.metric for result in outcome.results if result.group is None))


def best_of(results: Iterable[Result]) -> Result | None:
    """The highest; of equal ones, the first."""
    return max((result for result in results if math.isfinite(result.value)), key=lambda r: r.value, default=None)


def shown(result: Result) -> str:
    """A figure with its interval."""
    if not (math.isfinite(result.low) and math.isfinite(result.high)) or result.low == result.high:
        return f"{result.value:.3f}"
    return f"{result.value:.3f} [{result.low:.3f}, {result.high:.3f}]"


def is_floor_of(result: Result, model: str) -> bool:
    """Whether a result is a floor that a model is held against; figures from papers are, whoever they are `of`."""
    return result.model in FLOORS and (result.model == "published" or result.of in (None, model))


def called(result: Result) -> str:
    """What a sentence calls a floor, or layer 0."""
    if result.model == "published":
        return "published figures" if result.of is None else f"published {result.of}"
    if result.model == "majority" and result.task == "minimal-pairs":
        return "chance"
    return FLOOR_NAMES.get(result.model, f"layer {result.layer}")


@dataclass(frozen=True)
class Standing:
    """One metric of one model: its figures by layer, and what each is held against."""

    layers: tuple[Result, ...]
    """Of the layers by number, ascending."""
    mix: Result | None
    floors: tuple[Result, ...]
    """Those of all models, and those of this one."""

    @property
    def best(self) -> Result | None:
        """The best contextual layer; where there is none, the learned mix, or the only layer."""
        contextual = best_of(result for result in self.layers if result.layer != 0)
        return contextual or self.mix or best_of(self.layers)

    @property
    def tokens(self) -> Result | None:
        """Layer 0, where it is not what is judged itself."""
        return next((result for result in self.layers if result.layer == 0 and result is not self.best), None)

    def floor(self, name: str) -> Result | None:
        """What the best layer is held against: the control of the same layer, else the best figure of that floor."""
        named = [result for result in self.floors if result.model == name]
        if name == "control" and self.best is not None:
            named = [result for result in named if result.layer == self.best.layer] or named
        return best_of(named)

    def rivals(self) -> list[tuple[str, Result]]:
        """All that the best layer is held against, and what to call it."""
        found = [result for result in (self.tokens, *map(self.floor, FLOOR_NAMES)) if result is not None]
        found += [result for result in self.floors if result.model == "published"]
        return [(called(result), result) for result in found]


def standing(outcome: Outcome, model: str, metric: str) -> Standing:
    """A metric of a model, over all of the data."""
    overall = [result for result in outcome.results if result.group is None and result.metric == metric]
    own = [result for result in overall if result.model == model]
    layers = sorted((r for r in own if isinstance(r.layer, int)), key=lambda r: int(r.layer))
    floors = tuple(r for r in overall if is_floor_of(r, model))
    return Standing(tuple(layers), next((r for r in own if r.layer == "mix"), None), floors)


def verdict(outcome: Outcome, model: str) -> str:
    """A sentence about the task's first metric: the best layer, and which floors it is above.

    Above, or below, is only what lies there with the whole of its interval, and the other with the whole of its own.
    """
    named = metrics(outcome)
    if outcome.task in DESCRIPTIVE:
        return _described(outcome, model, named)
    held = standing(outcome, model, named[0]) if named else None
    if held is None or (best := held.best) is None:
        return "No figure for all of the data."
    sentence = f"{_name(best, held)}{_spelled(best.metric)} {shown(best)}"
    rivals = held.rivals()
    above = [pair for pair in rivals if best.low > pair[1].high]
    below = [pair for pair in rivals if best.high < pair[1].low]
    level = [pair for pair in rivals if pair not in above and pair not in below]
    parts = [f"above {_listed(above)} beyond the intervals"] if above else []
    parts += [f"not above {_listed(level)} beyond the intervals"] if level else []
    parts += [f"below {_listed(below)} beyond the intervals"] if below else []
    if parts:
        sentence += f", {'; '.join(parts)}"
    if held.mix is not None and held.mix is not best:
        sentence += f"; the learned mix of all layers: {shown(held.mix)}"
    return f"{sentence[0].upper()}{sentence[1:]}."


def verdicts(outcome: Outcome) -> list[str]:
    """The sentence of each model, named where there are several."""
    names = models([outcome])
    return [verdict(outcome, name) if len(names) == 1 else f"{name}: {verdict(outcome, name)}" for name in names]


def _name(best: Result, held: Standing) -> str:
    """How the sentence begins."""
    if best.layer == "mix":
        return "Learned mix of all layers: "
    if len(held.layers) == 1:  # nothing was chosen among
        return ""
    return f"Best contextual layer {best.layer}: " if best.layer != 0 else f"Layer {best.layer}: "


def _listed(pairs: Sequence[tuple[str, Result]]) -> str:
    parts = [f"{title} ({_spelled_value(result)})" for title, result in pairs]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _spelled(metric: str) -> str:
    return metric.replace("_", " ")


def _spelled_value(result: Result) -> str:
    layer = f", layer {result.layer}" if result.model == "untrained" and isinstance(result.layer, int) else ""
    return f"{result.value:.3f}{layer}"


def _described(outcome: Outcome, model: str, named: Sequence[str]) -> str:
    """The figures layer by layer, for what has no better and no worse."""
    parts = []
    for metric in named:
        found = standing(outcome, model, metric)
        if figures := [f"{result.value:.3f} ({result.layer})" for result in found.layers]:
            parts.append(f"{_spelled(metric)} by layer: {', '.join(figures)}")
    return f"{'; '.join(parts)}." if parts else "No figure for all of the data."
