"""How well a model predicts a text: the figures, a verdict in words, and several models side by side."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pretrain.data.corpus import UNKNOWN_WORDS
from pretrain.models.loss import Losses, exp

States = Literal["carried", "reset"]
STATES: dict[States, str] = {
    "carried": "carried from sentence to sentence, from {start} at the start of each row of a block",
    "reset": "reset, so that every sentence starts from {start}",
}
STARTS = {False: "zero", True: "the primed state"}

EQUAL = 0.02
"""Losses that differ by this share of the unigram model's count as equal."""
CLOSE = 0.15
"""Masked language models may rest as far below the unigram model as this for long, before attention is of use to them
(docs/log.md, "Off the plateau")."""
MUCH = math.log(1.25)
"""Sentences by themselves lack what stood before them, which costs a few percent; a perplexity that is higher by a
quarter says that the model is lost where they start."""
FEW = 1_000
"""A mean over fewer predictions is uncertain by about as much as `EQUAL`."""


@dataclass(frozen=True)
class StateLosses:
    """Of a model that carries states, the losses of the same text read in both ways, in nats per prediction."""

    carried: float
    """With states carried from sentence to sentence."""
    reset: float
    """Of each sentence by itself."""
    blocks: int
    """How many blocks of the text were read."""
    primed: float | None = None
    """Of each sentence by itself, from the primed state; None where that was not measured."""

    @property
    def values(self) -> dict[str, float]:
        """The numbers by name."""
        losses = {"states_carried": self.carried, "states_reset": self.reset}
        losses |= {} if self.primed is None else {"states_reset_primed": self.primed}
        values = {f"{name}_loss": loss for name, loss in losses.items()}
        return (
            values | {f"{name}_perplexity": exp(loss) for name, loss in losses.items()} | {"states_blocks": self.blocks}
        )

    @property
    def line(self) -> str:
        """All perplexities."""
        names, losses = ["states carried", "reset before each sentence"], [self.carried, self.reset]
        if self.primed is not None:
            names, losses = [*names, "the same from the primed state"], [*losses, self.primed]
        blocks = "the first block" if self.blocks == 1 else f"the first {self.blocks} blocks"
        return f"{' | '.join(names)}: perplexity {' | '.join(f'{exp(loss):,.2f}' for loss in losses)}, on {blocks}"

    @property
    def verdict(self) -> str | None:
        """What to do where sentences by themselves are much worse than they could be."""
        advice = "train with objective.reset_probability"
        if self.primed is not None and self.reset - self.primed >= MUCH:
            return f"much worse on sentences by themselves than from the primed state: --start primed, or {advice}"
        if self.reset - self.carried >= MUCH:
            return f"much worse on sentences by themselves than with states carried: {advice}"
        return None


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text; losses in nats per prediction."""

    model: str
    """The model folder, or the run and the step."""
    losses: Losses
    unigram_loss: float | None
    """What a unigram model of the training text would have scored on the same tokens; None where that is not known."""
    states: States | None = None
    """Whether states went on from sentence to sentence; None for models that carry none."""
    primed: bool = False
    """Whether they started from the model's primed state, and not from zero."""
    by_states: StateLosses | None = None
    """How much it matters that states are carried, where that was measured."""
    files: tuple[str, ...] = ()
    """What was evaluated on; empty for a run's own held-out text."""
    text: str | None = None
    """16 hex digits, equal for the same text in the same tokens; None where that is not known."""
    unknown_words: float = 0.0
    """The fraction of the text's words that the vocabulary does not hold."""
    advice: tuple[str, ...] = ()
    """What could be changed where the model knows little more than the frequencies of words."""

    @property
    def what(self) -> str:
        """Which model, and on what."""
        return f"{self.model}, on {', '.join(self.files)}" if self.files else self.model

    @property
    def verdict(self) -> str | None:
        """What the figures mean, in words; None where there is nothing to hold them against."""
        parts = [] if self.unigram_loss is None else [_beside_frequencies(self.losses, self.unigram_loss)]
        parts += [_beside_majority(self.losses, name) for name in self.losses.majorities]
        if parts and self.unknown_words > UNKNOWN_WORDS:
            parts.append(f"of little meaning: {self.unknown_words:.1%} of the words are not in the vocabulary")
        if self.by_states is not None and self.by_states.verdict is not None:
            parts.append(self.by_states.verdict)
        return "; ".join(parts) or None

    @property
    def what_to_change(self) -> str | None:
        """The advice, in words, where it is called for."""
        little = self.unigram_loss is not None and self.losses.token_loss > (1 - CLOSE) * self.unigram_loss
        return "; ".join(self.advice) if little and self.advice else None

    def values(self) -> dict[str, Any]:
        """All numbers by name, as `metrics.jsonl` spells them; a loss term without predictions has only their count."""
        losses = self.losses
        values: dict[str, Any] = {"what": self.what, "loss": losses.loss, "perplexity": losses.perplexity}
        values |= losses.metrics
        values |= {f"{name}_perplexity": perplexity for name, perplexity in losses.perplexities.items()}
        if len(losses.perplexities) > 1:
            values |= {
                "perplexity_arithmetic": losses.perplexity_arithmetic,
                "perplexity_geometric": losses.perplexity,
            }
        values |= {f"{name}_predictions": count for name, count in losses.counts.items()}
        values |= {"unigram_loss": self.unigram_loss, "states": self.states}
        if self.states is not None:
            values["start"] = "primed" if self.primed else "zero"
        values |= {} if self.by_states is None else self.by_states.values
        return values | {"text": self.text, "verdict": self.verdict, "what_to_change": self.what_to_change}

    def lines(self) -> list[str]:
        """One readable line per number, the verdict last."""
        losses = self.losses
        lines = [self.what]
        for name, count in losses.counts.items():
            lines += _lines_of_term(losses, name) if count else [f"{losses.titles[name]}: this text has no prediction"]
        lines.append(f"loss {losses.loss:.4f}, perplexity {losses.perplexity:,.2f}")
        if len(losses.perplexities) > 1:
            names = " and ".join(losses.perplexities)
            lines[-1] += f" (geometric mean of {names}; arithmetic mean {losses.perplexity_arithmetic:,.2f})"
        if self.states is not None:
            lines.append(f"states: {STATES[self.states].format(start=STARTS[self.primed])}")
        if self.by_states is not None:
            lines.append(self.by_states.line)
        if self.unigram_loss is not None:
            lines.append(f"unigram baseline: loss {self.unigram_loss:.4f}, perplexity {exp(self.unigram_loss):,.2f}")
        lines += [] if self.verdict is None else [f"verdict: {self.verdict}"]
        return lines if self.what_to_change is None else [*lines, f"what could be changed: {self.what_to_change}"]


@dataclass(frozen=True)
class Comparison:
    """Several evaluations, side by side."""

    rows: tuple[Evaluation, ...]

    def values(self) -> list[dict[str, Any]]:
        """The numbers of each."""
        return [row.values() for row in self.rows]

    def lines(self) -> list[str]:
        """A caption, and a table with a row for each; "-" where a number is not known."""
        columns = _columns(self.rows)
        cells = [[title for title, _ in columns], *([cell(row) or "-" for _, cell in columns] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        table = [_aligned(line, widths) for line in cells]
        return [*self._caption(), *table]

    def _caption(self) -> list[str]:
        files = self.rows[0].files
        lines = [f"On {', '.join(files)}:" if files else "Each on its run's held-out text:"]
        if len({row.text for row in self.rows}) == 1:
            return lines
        if files:
            which, advice = "The text is cut into different tokens", ""
        else:
            which, advice = "The held-out texts differ, or are cut into different tokens", ", or give --data FILE"
        return [*lines, f"{which}: compare losses with the baselines of the same row only{advice}."]


Column = tuple[str, Callable[[Evaluation], str | None]]
"""A title, and what a row has there; None where that is not known."""


def _columns(rows: Sequence[Evaluation]) -> list[Column]:
    """Those that any of the rows fills."""
    columns: list[Column] = [
        ("", lambda row: row.model),
        ("loss", lambda row: f"{row.losses.loss:.4f}"),
        ("perplexity", lambda row: f"{row.losses.perplexity:,.2f}"),
        ("unigram", lambda row: None if row.unigram_loss is None else f"{exp(row.unigram_loss):,.2f}"),
    ]
    for name, title in {name: title for row in rows for name, title in row.losses.titles.items()}.items():
        columns += [
            (f"{title} accuracy", partial(_accuracy, name)),
            (f"{title} majority", partial(_majority, name)),
        ]
    columns = [column for column in columns if any(column[1](row) for row in rows)]
    return [*columns, ("verdict", lambda row: row.verdict)]


def _accuracy(name: str, row: Evaluation) -> str | None:
    return _percent(row.losses.accuracies.get(name))


def _majority(name: str, row: Evaluation) -> str | None:
    return _percent(row.losses.majorities.get(name))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Numbers to the right; the first and the last column are words."""
    first, *numbers, last = zip(cells, widths, strict=True)
    line = [f"{first[0]:{first[1]}}", *(f"{cell:>{width}}" for cell, width in numbers), last[0]]
    return "  ".join(line).rstrip()


def _lines_of_term(losses: Losses, name: str) -> list[str]:
    title, loss = losses.titles[name], losses.terms[name]
    shown = f", perplexity {exp(loss):,.2f}," if losses.predicts_tokens[name] else ""
    lines = [f"{title} loss {loss:.4f}{shown} over {losses.counts[name]:,} predictions"]
    if name in losses.accuracies:
        lines.append(f"{title} accuracy {_percent(losses.accuracies[name])}")
    if name in losses.majorities:
        lines[-1] += f" beside the majority-class baseline {_percent(losses.majorities[name])}"
    return lines


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


def _beside_frequencies(losses: Losses, unigram_loss: float) -> str:
    """How the loss of tokens compares with that of a model that knows only how frequent each is."""
    difference = losses.token_loss - unigram_loss
    if difference > EQUAL * unigram_loss:
        words = "worse than word frequencies"
    elif difference > -EQUAL * unigram_loss:
        words = "a plateau: it has learned word frequencies only"
    elif difference > -CLOSE * unigram_loss:
        words = "little better than word frequencies"
    else:
        words = "better than word frequencies"
    count = sum(losses.counts[name] for name in losses.perplexities)
    return words if count >= FEW else f"{words} (uncertain: only {count:,} predictions)"


def _beside_majority(losses: Losses, name: str) -> str:
    """How an accuracy compares with that of always saying the most frequent class, two standard errors allowed for."""
    majority = losses.majorities[name]
    gain, error = losses.accuracies[name] - majority, math.sqrt(majority * (1 - majority) / losses.counts[name])
    how = "better than" if gain > 2 * error else "worse than" if gain < -2 * error else "no better than"
    return f"{losses.titles[name]} {how} the majority class"
