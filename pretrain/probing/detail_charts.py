"""Pictures of an outcome's details: the mixing weights of layers, and maps of a word's senses."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.probing.drawing import COLOURS, Key, at, legend, line, model_mark, number, picture, text


def weights_chart(weights: Mapping[str, Sequence[float]], places: Mapping[str, int]) -> str:
    """The weight of each layer in each model's mix, beside what a plain mean would give it."""
    return "".join(_weights(model, list(values), places) for model, values in weights.items() if len(values))


def _weights(model: str, values: list[float], places: Mapping[str, int]) -> str:
    colour, step = f"c{places.get(model, 0) % COLOURS}", 20.0
    most, height = max([*values, 1 / len(values)]) / 0.85, step * len(values)
    drawn = [line((1 / len(values) / most,) * 2, (0, height), "dashed neutral")]
    for layer, value in enumerate(values):
        top, share = step * layer, max(0.0, value / most)
        drawn.append(f'<text class="tick" x="-6" y="{number(top + 14)}" text-anchor="end">{layer}</text>')
        size = f'width="{number(100 * share)}%" height="14" y="{number(top + 3)}"'
        drawn.append(f'<rect class="fill {colour}" {size}><title>layer {layer}: {value:.3f}</title></rect>')
        drawn.append(at(share, top + 14, f'<text class="tick" x="5">{value:.2f}</text>'))
    told = ", ".join(f"layer {layer} {value:.3f}" for layer, value in enumerate(values))
    body = picture("".join(drawn), height, f"{model}: weights of the learned mix: {told}")
    return (
        f'<figure class="weights"><figcaption>mixing weights of {text(model)}; dashed: all layers alike</figcaption>'
        f'<div class="plot">{body}</div></figure>'
    )


def sense_map(found: Mapping[str, Any]) -> str:
    """A word's occurrences in the plane, a marker for each sense; the sentences below, for who cannot point."""
    counts = Counter(map(str, found["senses"]))
    marks = {sense: model_mark(place) for place, (sense, _) in enumerate(counts.most_common())}
    points = sorted(
        zip(_placed(found["points"]), map(str, found["senses"]), map(str, found["sentences"]), strict=True),
        key=lambda point: -counts[point[1]],  # so that the rare are on top
    )
    drawn = "".join(
        f'<g transform="translate({number(x)} {number(y)})"><title>{text(f"{sense}: {sentence}")}</title>'
        f"{marks[sense].draw()}</g>"
        for (x, y), sense, sentence in points
    )
    keys = legend([Key(f"{sense} ({count})", marks[sense]) for sense, count in counts.most_common()])
    title = f"{found['word']}, layer {found['layer']} of {found['model']}"
    listed = "".join(f"<li><b>{text(sense)}</b> {text(sentence)}</li>" for _, sense, sentence in points)
    label = f"{title}: {', '.join(f'{count} of {sense}' for sense, count in counts.items())}"
    return (
        f'<figure class="map"><figcaption>{text(title)}</figcaption>'
        f'<svg viewBox="-100 -100 200 200" role="img" aria-label="{text(label)}">{drawn}</svg>{keys}'
        f"<details><summary>the {len(points)} sentences</summary><ul>{listed}</ul></details></figure>"
    )


def _placed(points: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Points as they fit into a picture from -100 to 100, as far from one another across as up."""
    if not points:
        return []
    xs, ys = zip(*((float(x), float(y)) for x, y in points), strict=True)
    middle = [(max(values) + min(values)) / 2 for values in (xs, ys)]
    size = max(max(values) - min(values) for values in (xs, ys)) / 184 or 1.0
    return [((x - middle[0]) / size, (middle[1] - y) / size) for x, y in zip(xs, ys, strict=True)]
