"""What charts in SVG are made of. Positions across are in percent, so that text keeps its size on a narrow screen."""

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # circle
    "M-3.6-3.6h7.2v7.2h-7.2z",  # square
    "M0-4.8L4.6 3.4h-9.2z",  # triangle
    "M0-5L5 0L0 5L-5 0z",  # diamond
    "M0 4.8L4.6-3.4h-9.2z",  # triangle on its tip
)
COLOURS = 8
CROSS = "M-3.5-3.5L3.5 3.5M3.5-3.5L-3.5 3.5"
BAR = "M0-7V7"
PLUS = "M-4.5 0H4.5M0-4.5V4.5"
STAR = "M0-5.5L1.5-1.8L5.3-1.7L2.3.7L3.3 4.5L0 2.3L-3.3 4.5L-2.3.7L-5.3-1.7L-1.5-1.8z"


def text(value: object) -> str:
    """Any text as it may stand in HTML, in an attribute too; what no page can hold is U+FFFD."""
    return html.escape(UNPRINTABLE.sub("\ufffd", str(value)), quote=True)


def number(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Scale:
    """Values as places between 0 and 1."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        """Where a value lies; what is outside lies at the end."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within, at most so many."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(count * step, 10) for count in range(first, last + 1)]


def scale_of(values: Iterable[float]) -> Scale:
    """A scale that holds all values that are finite, and some room."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = 0.06 * (high - low) or 0.05 * max(abs(high), 1.0)
    return Scale(low - room, high + room)


@dataclass(frozen=True)
class Mark:
    """How a series looks: its colour (a class of the page's style) and the path of its marker."""

    colour: str
    path: str
    style: str = "full"
    """`full`, `hollow` or `line`."""

    def draw(self) -> str:
        """The marker, about the origin."""
        return f'<path class="mark {self.style} {self.colour}" d="{self.path}"/>'


def model_mark(place: int) -> Mark:
    """The mark of a model, by its place among all on the page: colour and shape both tell them apart."""
    return Mark(f"c{place % COLOURS}", SHAPES[place % len(SHAPES)])


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    name: str
    mark: Mark
    line: str = ""
    """The class of its line: `solid`, `dotted`, `dashed` …; empty where it has none."""


def legend(keys: Sequence[Key]) -> str:
    """The list of what is drawn; nothing for one entry."""
    unique = list(dict.fromkeys(keys))
    return f'<ul class="legend">{"".join(map(_entry, unique))}</ul>' if len(unique) > 1 else ""


def _entry(key: Key) -> str:
    line = f'<line class="{key.line} {key.mark.colour}" x1="-13" x2="13"/>' if key.line else ""
    sample = f'<svg class="key" viewBox="-14 -8 28 16" aria-hidden="true">{line}{key.mark.draw()}</svg>'
    return f"<li>{sample}{text(key.name)}</li>"


def at(across: float, down: float, content: str, title: str = "") -> str:
    """Puts content at a place: `across` from 0 to 1, `down` in pixels; with a title to read when pointed at."""
    titled = f"<title>{text(title)}</title>" if title else ""
    return f'<svg class="at" x="{number(100 * across)}%" y="{number(down)}">{titled}{content}</svg>'


def line(ends: tuple[float, float], downs: tuple[float, float], classes: str) -> str:
    """A line between places across, from 0 to 1, and down, in pixels."""
    (x1, x2), (y1, y2) = ends, downs
    return (
        f'<line class="{classes}" x1="{number(100 * x1)}%" x2="{number(100 * x2)}%" '
        f'y1="{number(y1)}" y2="{number(y2)}"/>'
    )


def picture(content: str, height: float, label: str) -> str:
    """An SVG as wide as its place, `height` pixels high, that says what it shows."""
    return f'<svg class="picture" role="img" aria-label="{text(label)}" height="{number(height)}">{content}</svg>'
