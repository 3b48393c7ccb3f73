"""The charts of a probe: scores by layer, and parts of the data."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from pretrain.probing.drawing import (
    BAR,
    COLOURS,
    CROSS,
    PLUS,
    SHAPES,
    STAR,
    Key,
    Mark,
    Scale,
    at,
    legend,
    line,
    model_mark,
    number,
    picture,
    scale_of,
    text,
)
from pretrain.probing.results import FLOORS, Outcome, Result
from pretrain.probing.verdict import metrics, models, shown, standing

HEIGHT = 250.0
CROWDED = 8
"""Layers of which not every number is shown, on a narrow screen."""
LABEL = 15.0
"""Pixels between the labels of two reference lines."""
LAYERED = ("untrained", "control")
FLAT = tuple(floor for floor in FLOORS if floor not in LAYERED)
"""Floors that look at no layer: reference lines."""
LINES = {"majority": "dashed", "published": "fine", "untrained": "dotted", "control": "sparse"}
"""The line of each floor; that of the others is `dashdot`."""
POINTS = {"majority": BAR, "suffixes": "M-4 3L0-3L4 3", "published": STAR, "control": CROSS}
"""The marker of each floor; that of the others is a plus."""


def floor_mark(floor: Result, places: Mapping[str, int]) -> Mark:
    """The mark of a floor, in the colour of its model where it belongs to one."""
    place = places.get(floor.of or "")
    colour = "neutral" if place is None else f"c{place % COLOURS}"
    if floor.model == "untrained":
        return Mark(colour, SHAPES[(place or 0) % len(SHAPES)], "hollow")
    return Mark(colour, POINTS.get(floor.model, PLUS), "line")


def floor_name(floor: Result) -> str:
    """What a legend calls a floor."""
    if floor.of is not None and floor.model == "published":
        return f"published {floor.of}"
    return floor.model if floor.of is None else f"{floor.model} ({floor.of})"


def said(result: Result) -> str:
    """A figure in words."""
    name = floor_name(result) if result.model in FLOORS else result.model
    where = "" if result.model in FLAT else f", {'mix' if result.layer == 'mix' else f'layer {result.layer}'}"
    group = "" if result.group is None else f"{result.group}, "
    return f"{group}{name}{where}: {shown(result)}"


def layer_chart(outcome: Outcome, metric: str, places: Mapping[str, int]) -> str:
    """A metric by layer, with intervals, for all models, and what they must beat."""
    results = [r for r in outcome.results if r.group is None and r.metric == metric and math.isfinite(r.value)]
    flat = [result for result in results if result.model in FLAT]
    series: dict[tuple[str, str | None], list[Result]] = {}
    for result in results:
        if result.model not in FLAT:
            series.setdefault((result.model, result.of), []).append(result)
    if not series:
        return ""
    scale = scale_of(value for result in results for value in (result.value, result.low, result.high))
    numbered = [result.layer for found in series.values() for result in found if result.layer != "mix"]
    layers = list(range(min(numbered, default=0), max(numbered, default=-1) + 1))
    columns: list[int | str] = [*layers]
    if any(result.layer == "mix" for result in results):
        columns += ["", "mix"] if len(layers) > CROWDED else ["mix"]
    drawn = [_grid(scale), _columns(columns), *(_reference(result, scale, places) for result in flat)]
    keys = []
    order = sorted(series, key=lambda key: key[0] not in FLOORS)  # models on top of their floors
    for name, of in order:
        found = series[name, of]
        mark = floor_mark(found[0], places) if name in FLOORS else model_mark(places[name])
        shift = _shift(places[name], len(places)) if of is None and name in places else _shift_floor(of, places)
        drawn.append(_series(found, columns, scale, mark, LINES.get(name, "solid"), shift))
        keys.append(Key(floor_name(found[0]), mark, LINES.get(name, "solid")))
    keys = [key for _, key in sorted(zip(order, keys, strict=True), key=lambda pair: list(series).index(pair[0]))]
    keys += [Key(f"{floor_name(r)} {shown(r)}", _plain(r, places), LINES.get(r.model, "dashdot")) for r in flat]
    drawn.append(_labels(flat, scale, places))
    title = f"{metric.replace('_', ' ')} by layer"
    label = f"{outcome.task}: {title}. {'; '.join(map(said, results))}"
    body = picture("".join(drawn), HEIGHT, label)
    frame = f'<div class="plot{" labelled" if flat else ""}">{body}</div>'
    return f'<figure class="layers"><figcaption>{text(title)}</figcaption>{frame}{legend(keys)}</figure>'


def _plain(floor: Result, places: Mapping[str, int]) -> Mark:
    """A reference line has no marker."""
    return Mark(floor_mark(floor, places).colour, "M0 0", "line")


def _shift(place: int, count: int) -> float:
    """Pixels by which the points of a model stand aside, so that intervals do not hide one another."""
    return 9.0 * (place - (count - 1) / 2) if count > 1 else 0.0


def _shift_floor(of: str | None, places: Mapping[str, int]) -> float:
    """To the right of the model that it belongs to."""
    return _shift(places[of], len(places)) + 4.5 if of in places and of is not None else 0.0


def _grid(scale: Scale) -> str:
    parts = []
    for tick in scale.ticks():
        down = HEIGHT * (1 - scale(tick))
        parts.append(line((0, 1), (down, down), "grid"))
        parts.append(f'<text class="tick" x="-6" y="{number(down)}" dy="4" text-anchor="end">{tick:g}</text>')
    return "".join(parts)


def _columns(columns: Sequence[int | str]) -> str:
    every = math.ceil(len(columns) / (2 * CROWDED))
    parts = []
    for place, column in enumerate(columns):
        if column == "mix" and place:
            parts.append(line((place / len(columns),) * 2, (0, HEIGHT), "grid"))
        if column == "mix" or place % every == 0:
            name = f'<text class="tick" y="18" text-anchor="middle">{column}</text>'
            parts.append(at(_across(place, len(columns)), HEIGHT, name))
    return "".join(parts) + at(0.5, HEIGHT, '<text class="tick" y="36" text-anchor="middle">layer</text>')


def _across(place: int, columns: int) -> float:
    return (place + 0.5) / columns


def _reference(floor: Result, scale: Scale, places: Mapping[str, int]) -> str:
    """A line across, and a band for its interval."""
    down = HEIGHT * (1 - scale(floor.value))
    colour, band = floor_mark(floor, places).colour, ""
    if math.isfinite(floor.low) and math.isfinite(floor.high):
        top, bottom = HEIGHT * (1 - scale(floor.high)), HEIGHT * (1 - scale(floor.low))
        size = f'y="{number(top)}" height="{number(bottom - top)}"'
        band = f'<rect class="band {colour}" x="0" width="100%" {size}/>'
    drawn = line((0, 1), (down, down), f"{LINES.get(floor.model, 'dashdot')} {colour}")
    return f"<g><title>{text(said(floor))}</title>{band}{drawn}</g>"


def _labels(flat: Sequence[Result], scale: Scale, places: Mapping[str, int]) -> str:
    """Names beside the reference lines, moved apart."""
    parts, least = [], -math.inf
    for floor in sorted(flat, key=lambda floor: -floor.value):
        down = max(HEIGHT * (1 - scale(floor.value)), least + LABEL)
        least = down
        colour = floor_mark(floor, places).colour
        parts.append(
            at(1, down, f'<text class="name {colour}" x="6" dy="4">{text(_short(floor))} {floor.value:.3f}</text>')
        )
    return "".join(parts)


def _short(floor: Result) -> str:
    """What fits beside a reference line."""
    name = floor.of if floor.of is not None and floor.model == "published" else floor.model
    return name if len(name) <= 12 else f"{name[:11]}…"


def _series(
    found: Sequence[Result], columns: Sequence[int | str], scale: Scale, mark: Mark, lines: str, shift: float
) -> str:
    """The points of a model or a floor, joined from layer to layer; the mix stands alone."""
    points = sorted((columns.index(result.layer), result) for result in found if result.layer in columns)
    ends = [(place, result) for place, result in points if result.layer != "mix"]
    parts = []
    for (a, first), (b, second) in pairwise(ends):
        downs = HEIGHT * (1 - scale(first.value)), HEIGHT * (1 - scale(second.value))
        parts.append(line((_across(a, len(columns)), _across(b, len(columns))), downs, f"{lines} {mark.colour}"))
    for place, result in points:
        down = HEIGHT * (1 - scale(result.value))
        content = _interval(result, scale, HEIGHT, mark, upright=True) + mark.draw()
        parts.append(at(_across(place, len(columns)), down, content, said(result)))
    return f'<g transform="translate({number(shift)} 0)">{"".join(parts)}</g>'


def _interval(result: Result, scale: Scale, length: float, mark: Mark, *, upright: bool) -> str:
    """An error bar with caps, in pixels about the point."""
    if not (upright and math.isfinite(result.low) and math.isfinite(result.high)) or result.low == result.high:
        return ""
    up, down = (-length * (scale(bound) - scale(result.value)) for bound in (result.high, result.low))
    path = f"M0 {number(up)}V{number(down)}M-3 {number(up)}H3M-3 {number(down)}H3"
    return f'<path class="bar {mark.colour}" d="{path}"/>'


def group_chart(outcome: Outcome, metric: str, places: Mapping[str, int]) -> str:
    """A row for all of the data and one for each group: each model at one layer, and the floors; highest first."""
    results = [r for r in outcome.results if r.metric == metric and math.isfinite(r.value)]
    chosen = {model: _layer_of_groups(outcome, model, metric, results) for model in models([outcome])}
    kept = [r for r in results if r.model in FLAT or r.layer == chosen.get(r.of or r.model)]
    scale = scale_of(value for result in kept for value in (result.value, result.low, result.high))
    rows: dict[str | None, list[Result]] = {}
    for result in sorted(kept, key=lambda r: (r.model in FLOORS, places.get(r.model, 0))):
        rows.setdefault(result.group, []).append(result)
    order = sorted(rows, key=lambda group: (group is not None, -rows[group][0].value))
    body = "".join(_row(group, rows[group], scale, places) for group in order)
    keys = [Key(r.model, model_mark(places[r.model])) for r in kept if r.model not in FLOORS]
    keys += [Key(floor_name(r), floor_mark(r, places)) for r in kept if r.model in FLOORS and r.model != "published"]
    if published := list(dict.fromkeys(r.of or "from papers" for r in kept if r.model == "published")):
        keys.append(Key(f"published: {', '.join(published)}", Mark("neutral", STAR, "line")))
    layers = ", ".join(f"{model}: {'mix' if at == 'mix' else f'layer {at}'}" for model, at in chosen.items())
    parts = " of parts of the data" if len(rows) > 1 else ""
    caption = f"{metric.replace('_', ' ')}{parts} ({layers})"
    axis = _axis(scale)
    return f'<figure class="groups"><figcaption>{text(caption)}</figcaption>{legend(keys)}{axis}{body}{axis}</figure>'


def _layer_of_groups(outcome: Outcome, model: str, metric: str, results: Sequence[Result]) -> int | str | None:
    """The layer that is the best over all of the data, where its groups are known; else the last one with most."""
    known = Counter(result.layer for result in results if result.model == model and result.group is not None)
    best = standing(outcome, model, metric).best
    if best is not None and (best.layer in known or not known):
        return best.layer
    return max(known, key=lambda layer: (known[layer], layer != "mix", str(layer).zfill(3)), default=None)


def _axis(scale: Scale) -> str:
    ticks = "".join(
        at(scale(tick), 14, f'<text class="tick" text-anchor="middle">{tick:g}</text>') for tick in scale.ticks()
    )
    return f'<div class="row axis"><span></span><svg class="picture" height="20" aria-hidden="true">{ticks}</svg></div>'


def _row(group: str | None, results: Sequence[Result], scale: Scale, places: Mapping[str, int]) -> str:
    own = [place for name, place in places.items() if any(name in (r.model, r.of) for r in results)]
    height = 12.0 + 12.0 * max(1, len(own))
    drawn = [line((scale(tick),) * 2, (0, height), "grid") for tick in scale.ticks()]
    for result in reversed(results):
        mark = model_mark(places[result.model]) if result.model in places else floor_mark(result, places)
        place = places.get(result.of or result.model)
        down = height / 2 if place is None else 12.0 + 12.0 * own.index(place)
        if result.model in places and math.isfinite(result.low) and math.isfinite(result.high):
            drawn.append(line((scale(result.low), scale(result.high)), (down, down), f"bar {mark.colour}"))
        drawn.append(at(scale(result.value), down, mark.draw(), said(result)))
    label = "; ".join(map(said, results))
    name = "<b>all</b>" if group is None else text(group)
    return f'<div class="row"><span>{name}</span>{picture("".join(drawn), height, label)}</div>'


def has_layers(outcome: Outcome) -> list[str]:
    """The metrics that are worth a chart by layer: those that a model has in several layers."""
    counts = Counter((r.metric, r.model) for r in outcome.results if r.group is None and r.model not in FLOORS)
    return [metric for metric in metrics(outcome) if any(m == metric and n > 1 for (m, _), n in counts.items())]


def has_parts(outcome: Outcome) -> list[str]:
    """The metrics that are worth a chart by parts of the data: those of groups, and those of one layer."""
    grouped = dict.fromkeys(r.metric for r in outcome.results if r.group is not None and r.model not in FLOORS)
    flat = [metric for metric in metrics(outcome) if metric not in has_layers(outcome)]
    return list(dict.fromkeys([*flat, *grouped]))
