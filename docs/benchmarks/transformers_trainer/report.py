"""What compare.py found, for a reader: `result.json`, `curves.png` and `result.md`."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Curve = Sequence[dict[str, float]]

SIDES = ("pretrain", "Trainer")
BUSY = 0.1
"""Cores that others may use meanwhile, on average, on a machine that counts as idle."""
DRIFT = 0.05
"""Share of the minutes by which a side may miss them."""


def write_report(result: dict[str, Any], folder: Path) -> None:
    """Writes all three files."""
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, folder / "curves.png")
    (folder / "result.md").write_text("\n".join(lines(result)) + "\n", encoding="utf-8")


def lines(result: dict[str, Any]) -> list[str]:
    """The page: how it was made, a table, who reaches whose loss when, and what to be careful about."""
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in ("pretrain", "torch", "transformers"))
    unigram, threads = result["corpus"]["unigram_loss"], result["threads"]
    return [
        "# pretrain beside transformers' Trainer",
        "",
        f"{versions}; {result['date']}; {result['machine']}, {threads} thread{'s' * (threads > 1)}.",
        "",
        "```bash",
        f"python {result['command']}",
        "```",
        "",
        f"Held-out MLM loss in nats against training time (unigram baseline: {unigram:.3f}):",
        "",
        *_table(result),
        "",
        *_catching_up(result),
        *_cautions(result),
        "",
        "![curves](curves.png)",
    ]


def _table(result: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, list[str]]] = []
    ends = [result[side]["curve"][-1] for side in SIDES]
    common = min(end["minutes"] for end in ends)
    for quarter in (1, 2, 3, 4):
        minutes = common * quarter / 4
        losses = [loss_at(result[side]["curve"], minutes) for side in SIDES]
        rows.append((f"at {minutes:.1f} minutes", ["-" if loss is None else f"{loss:.3f}" for loss in losses]))
    rows += [
        ("at the end", [f"**{end['mlm_loss']:.3f}**" for end in ends]),
        ("perplexity", [f"{math.exp(end['mlm_loss']):,.1f}" for end in ends]),
        ("NSP accuracy (majority)", [f"{end['nsp_accuracy']:.1%} ({end['nsp_majority']:.1%})" for end in ends]),
        ("minutes", [f"{end['minutes']:.1f}" for end in ends]),
        ("steps", [f"{end['step']:,}" for end in ends]),
        ("tokens", [f"{end['tokens']:,}" for end in ends]),
        ("tokens per second", [f"{end['tokens'] / end['minutes'] / 60:,.0f}" for end in ends]),
        ("peak learning rate", [f"{result[side]['learning_rate']:g}" for side in SIDES]),
    ]
    head = ["", *SIDES]
    return [
        f"| {' | '.join(head)} |",
        "|---|---|---|",
        *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows),
    ]


def loss_at(curve: Curve, minutes: float) -> float | None:
    """The MLM loss at a time, on the line between the evaluations beside it; None before the first, after the last."""
    for before, after in itertools.pairwise(curve):
        if before["minutes"] <= minutes <= after["minutes"]:
            share = (minutes - before["minutes"]) / (after["minutes"] - before["minutes"])
            return before["mlm_loss"] + share * (after["mlm_loss"] - before["mlm_loss"])
    return None


def reached(curve: Curve, loss: float) -> dict[str, float] | None:
    """The first evaluation of a curve that is at or below a loss."""
    return next((point for point in curve if point["mlm_loss"] <= loss), None)


def _catching_up(result: dict[str, Any]) -> list[str]:
    """For each side, when the other is where it ends."""
    found = []
    for side, other in (SIDES, SIDES[::-1]):
        loss = result[side]["curve"][-1]["mlm_loss"]
        point = reached(result[other]["curve"], loss)
        when = "at no evaluation"
        if point is not None:
            when = f"after {point['minutes']:.1f} minutes and {point['tokens']:,} tokens"
        found.append(f"* Where {side} ends ({loss:.3f}), {other} is {when}.")
    return found


def _cautions(result: dict[str, Any]) -> list[str]:
    """What makes the figures worth less."""
    found = []
    for side in SIDES:
        minutes, others = result[side]["curve"][-1]["minutes"], result[side]["cores_used_by_others"]
        if abs(minutes - result["minutes"]) > DRIFT * result["minutes"]:
            found.append(
                f"* Caution: {side} took {minutes:.1f} minutes instead of {result['minutes']:g}: its speed was not "
                "that of the trial. Where both are read at equal minutes, one's learning rate has decayed less."
            )
        if others is None:
            found.append(f"* Caution: whether the machine was idle beside {side} is not known.")
        elif others > BUSY:
            found.append(f"* Caution: the machine was not idle: others used {others:.2f} cores beside {side}.")
    return found


def draw(result: dict[str, Any], path: Path) -> None:
    """Both curves against minutes and against tokens, with the unigram baseline."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, label in zip(
        axes, ("minutes", "tokens"), ("minutes of training", "tokens trained on, millions"), strict=True
    ):
        scale = 1e6 if key == "tokens" else 1.0
        for side in SIDES:
            curve = result[side]["curve"]
            axis.plot([point[key] / scale for point in curve], [point["mlm_loss"] for point in curve], "o-", label=side)
        axis.axhline(result["corpus"]["unigram_loss"], color="grey", linestyle="--", label="unigrams")
        axis.set(xlabel=label)
    axes[0].set(ylabel="held-out MLM loss (nats)")
    axes[0].legend()
    figure.savefig(path, dpi=110)
