"""How long several models took for the same pieces of work, and what follows from it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "ours"


@dataclass
class Timing:
    """One piece of work, done by several models in turn, batch by batch. Tokens are real (unpadded) ones."""

    name: str
    flops_per_token: float
    """By the definition of the model, even where an implementation computes more or less."""
    peak: float
    """FLOP/s of matrix products in the run's precision."""
    tokens: list[int] = field(default_factory=list)
    """Of each step."""
    sequences: list[int] = field(default_factory=list)
    """Of each step, where the tokens make up sequences."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of each step, by model; ours first."""

    def rate(self, name: str, amounts: Sequence[int]) -> float:
        """What a model does per second, of the amounts of each step: median over the steps."""
        return statistics.median(n / time for n, time in zip(amounts, self.seconds[name], strict=True))

    def ratio(self, name: str) -> float:
        """How many times as long a model takes as ours: median over the steps, each timed in the same moment."""
        return statistics.median(
            theirs / ours for theirs, ours in zip(self.seconds[name], self.seconds[OURS], strict=True)
        )

    def values(self) -> dict[str, Any]:
        """All numbers by name."""
        return {
            "flops_per_token": self.flops_per_token,
            "tokens": self.tokens,
            "sequences": self.sequences,
            OURS: self._values(OURS),
            "baselines": {
                name: self._values(name) | {"ratio": self.ratio(name)} for name in self.seconds if name != OURS
            },
        }

    def _values(self, name: str) -> dict[str, Any]:
        rate = self.rate(name, self.tokens)
        flops = rate * self.flops_per_token
        return {
            "tokens_per_second": rate,
            "sequences_per_second": self.rate(name, self.sequences) if self.sequences else None,
            "flops_per_second": flops,
            "share_of_peak": flops / self.peak,
            "seconds": self.seconds[name],
        }

    def lines(self, notes: Mapping[str, str]) -> list[str]:
        """The numbers, readable: a line each, with a note on some."""
        width = max(map(len, self.seconds))
        lines = []
        for name in self.seconds:
            values = self._values(name)
            sequences = f"{values['sequences_per_second']:,.1f} sequences/s, " if self.sequences else ""
            ratio = "" if name == OURS else f", ratio {self.ratio(name):.2f}"
            lines.append(
                f"  {name:<{width}}  {values['tokens_per_second']:,.0f} tokens/s, {sequences}"
                f"{values['flops_per_second'] / 1e12:.4g} TFLOP/s ({values['share_of_peak']:.1%} of the peak)"
                f"{ratio}{notes.get(name, '')}"
            )
        return lines
