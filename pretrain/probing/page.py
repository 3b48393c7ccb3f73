"""What probes found, as one page of HTML with pictures: it needs no network, no script and no other file."""

import math
from collections.abc import Mapping, Sequence

from pretrain.probing.charts import group_chart, has_layers, has_parts, layer_chart
from pretrain.probing.detail_charts import sense_map, weights_chart
from pretrain.probing.drawing import Key, legend, model_mark, text
from pretrain.probing.page_style import STYLE
from pretrain.probing.results import Outcome, Result
from pretrain.probing.verdict import models, verdict

TITLES = {
    "pos": "Parts of speech",
    "dependencies": "Dependencies",
    "entities": "Named entities",
    "senses": "Senses of words",
    "wic": "Words in context",
    "minimal-pairs": "Minimal pairs",
    "similarity": "Similarity",
    "classification": "Classification",
    "geometry": "Geometry of the vectors",
}
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""That a browser runs and loads nothing, whatever stands in sentences and names."""
OPEN = 40
"""Rows of a table that is not folded."""
HOW = """Bars about the points are 95 % bootstrap intervals: how much a figure would move with other test data of the
same size. A model is above a floor beyond the intervals where its whole interval lies above that floor's. The best
layer is chosen on the test data; the learned mix chooses nothing there."""
FLOOR_HOW = {
    "majority": "always the most frequent answer",
    "suffixes": "the word and its ending, without vectors",
    "untrained": "the same model with random weights",
    "static": "vectors of word types, the same in every sentence, or counts of words",
    "control": "the same probe on labels drawn at random for each word type",
    "published": "figures from papers",
}


def page(outcomes: Sequence[Outcome]) -> str:
    """The page, with a section for each task; colours and marks of the models are the same in all of them."""
    names = models(outcomes)
    places = {name: place for place, name in enumerate(names)}
    tasks = ", ".join(outcome.task for outcome in outcomes)
    used = {result.model for outcome in outcomes for result in outcome.results}
    floors = "; ".join(f"<b>{floor}</b>: {how}" for floor, how in FLOOR_HOW.items() if floor in used)
    keys = legend([Key(name, model_mark(place)) for name, place in places.items()])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>Probes: {text(tasks)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>What each layer knows</h1>
{keys or f"<p>{text(', '.join(names))}</p>"}
<p class="how">{HOW}{f" Floors: {floors}." if floors else ""}</p>
<main>
{"".join(section(outcome, places) for outcome in outcomes)}</main>
</body>
</html>
"""


def section(outcome: Outcome, places: Mapping[str, int]) -> str:
    """A task: the verdicts, the pictures, notes, and the figures."""
    names = models([outcome])
    titled = len(names) > 1
    said = "".join(
        f"<li>{f'<b>{text(name)}</b>' if titled else ''}{text(verdict(outcome, name))}</li>" for name in names
    )
    layers = "".join(layer_chart(outcome, metric, places) for metric in has_layers(outcome))
    groups = "".join(group_chart(outcome, metric, places) for metric in has_parts(outcome))
    weights = weights_chart(outcome.details.get("mixing_weights", {}), places)
    maps = "".join(sense_map(found) for found in outcome.details.get("sense_maps", ()))
    notes = "".join(f"<li>{text(note)}</li>" for note in outcome.notes)
    parts = [
        f'<section>\n<h2>{text(TITLES.get(outcome.task, outcome.task))}</h2>\n<ul class="verdicts">{said}</ul>\n',
        f'<div class="charts">{layers}</div>\n' if layers else "",
        f'<div class="small">{weights}</div>\n' if weights else "",
        groups,
        f'<div class="small">{maps}</div>\n' if maps else "",
        f'<ul class="notes">{notes}</ul>\n' if notes else "",
        tables(outcome),
        "</section>\n",
    ]
    return "".join(parts)


def tables(outcome: Outcome) -> str:
    """Every figure: those of all of the data, and those of groups; many of them are folded."""
    overall = [result for result in outcome.results if result.group is None]
    grouped = [result for result in outcome.results if result.group is not None]
    parts = []
    for results, what in ((overall, "figures"), (grouped, "figures of groups")):
        if results:
            opened = " open" if results is overall and len(results) <= OPEN else ""
            inner = table(results, f"{outcome.task}: {what}")
            parts.append(f"<details{opened}><summary>{len(results):,} {what}</summary>{inner}</details>\n")
    return "".join(parts)


def table(results: Sequence[Result], label: str) -> str:
    """A row for each result; columns that no result fills are left out."""
    columns: dict[str, list[str | None]] = {
        "group": [result.group for result in results],
        "model": [result.model for result in results],
        "of": [result.of for result in results],
        "layer": [str(result.layer) for result in results],
        "metric": [result.metric for result in results],
    }
    numbers: dict[str, list[str | None]] = {
        name: [_figure(getattr(result, name)) for result in results] for name in ("value", "low", "high")
    }
    numbers["ties"] = [None if result.ties is None else f"{result.ties:,}" for result in results]
    kept = {name: cells for name, cells in {**columns, **numbers}.items() if any(cell is not None for cell in cells)}
    style = {name: ' class="number"' if name in numbers else "" for name in kept}
    head = "".join(f'<th scope="col"{style[name]}>{name}</th>' for name in kept)
    rows = [
        "".join(
            f"<td{style[name]}>{'' if cells[row] is None else text(cells[row])}</td>" for name, cells in kept.items()
        )
        for row in range(len(results))
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">'
    return f"{region}<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>\n"


def _figure(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "–"
