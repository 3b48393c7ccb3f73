"""The page of probes: well-formed, self-contained, every figure in it, and whatever stands in names and sentences."""

import re
from html.parser import HTMLParser

import pytest

from pretrain.probing.drawing import Scale, model_mark, scale_of
from pretrain.probing.page import page
from pretrain.probing.page_style import STYLE
from pretrain.probing.results import Layer, Outcome, Result

EVIL = "<script>alert('x')</script>\" onload=\"x & \x00 \ud800"
ONE, OTHER = "runs/one", f"models/{EVIL}"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Tree(HTMLParser):
    """Elements with their attributes and text; tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def figure(model: str, layer: Layer, value: float, of: str | None = None, group: str | None = None) -> Result:
    return Result(model, "pos", layer, "accuracy", value, value - 0.02, value + 0.02, of=of, group=group)


def outcome() -> Outcome:
    """Two models of different depth, all floors, groups, and all that pictures show."""
    results = [figure(ONE, layer, 0.8 + layer / 50) for layer in range(3)]
    results += [figure(OTHER, layer, 0.7 + layer / 99) for layer in range(13)]
    results += [figure(model, "mix", 0.9) for model in (ONE, OTHER)]
    results += [figure(floor, 1, 0.5, of=ONE) for floor in ("untrained", "control")]
    results += [figure(floor, 0, 0.6) for floor in ("majority", "static", "published")]
    results += [figure(model, layer, 0.7, group=EVIL) for model in (ONE, OTHER) for layer in (1, 2, 12)]
    results += [figure("majority", 0, 0.4, group=EVIL), figure("untrained", 2, 0.5, of=ONE, group=EVIL)]
    senses = {"points": [[0.0, 1.0], [2.0, 3.0], [1.0, -1.0]], "senses": ["a", EVIL, "a"], "sentences": [EVIL] * 3}
    maps = [{"model": OTHER, "layer": 12, "word": EVIL, **senses}]
    return Outcome("pos", tuple(results), (EVIL,), {"mixing_weights": {OTHER: [0.25, 0.75]}, "sense_maps": maps})


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree(page([outcome()]))


def test_nothing_runs_and_nothing_is_loaded(tree: Tree) -> None:
    assert not {tag for tag, _ in tree.found} & {"script", "link", "img", "iframe", "object", "embed", "image", "use"}
    for _, attributes in tree.found:
        assert not [name for name in attributes if name.startswith("on") or name in {"src", "href", "xlink:href"}]
    assert "url(" not in STYLE and "@import" not in STYLE
    policies = [found["content"] for found in tree.all("meta") if "http-equiv" in found]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_text_of_others_is_shown_as_it_is(tree: Tree) -> None:
    shown = EVIL.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    for tag in ("li", "td", "figcaption", "title", "span"):
        assert any(where == tag and shown in said for where, said in tree.texts), tag
    assert any(shown in (found.get("aria-label") or "") for found in tree.all("svg"))
    page([outcome()]).encode("utf-8")


def test_every_figure_is_in_the_tables(tree: Tree) -> None:
    cells = [said for where, said in tree.texts if where == "td"]
    for result in outcome().results:
        for value in (result.value, result.low, result.high):
            assert f"{value:.4f}" in cells
    assert len(tree.all("tr")) == len(outcome().results) + 2  # and the heads of two tables


def test_every_figure_is_a_point(tree: Tree) -> None:
    """Each figure over all of the data can be pointed at; of groups, those of the best layer and of the floors."""
    titles = [said for where, said in tree.texts if where == "title"]
    assert f"{ONE}, layer 1: 0.820 [0.800, 0.840]" in titles
    assert f"{ONE}, mix: 0.900 [0.880, 0.920]" in titles
    assert f"untrained ({ONE}), layer 1: 0.500 [0.480, 0.520]" in titles
    assert "majority: 0.600 [0.580, 0.620]" in titles
    group = EVIL.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    of_group = [title for title in titles if title.startswith((f"{group}, {ONE}", f"{group}, untrained"))]
    assert of_group == [
        f"{group}, untrained ({ONE}), layer 2: 0.500 [0.480, 0.520]",
        f"{group}, {ONE}, layer 2: 0.700 [0.680, 0.720]",
    ]


def test_pictures_say_what_they_show(tree: Tree) -> None:
    images = [found for found in tree.all("svg") if found.get("role") == "img"]
    assert len(images) == 1 + 2 + 1 + 1  # layers, two rows, weights, a map
    assert all(found["aria-label"] for found in images)


def test_a_model_has_one_mark_on_the_whole_page() -> None:
    first = Outcome("pos", (figure(ONE, 0, 0.5), figure(ONE, 1, 0.6)))
    second = Outcome("wic", (figure(OTHER, 0, 0.5), figure(OTHER, 1, 0.6), figure(ONE, 0, 0.4), figure(ONE, 1, 0.4)))
    text = page([first, second])
    mark = model_mark(0).draw()
    points = re.findall(r"<title>([^<]*)</title>(?:<path class=\"bar[^>]*>)?(<path class=\"mark[^>]*>)", text)
    assert {drawn for title, drawn in points if title.startswith(ONE)} == {mark}
    assert {drawn for title, drawn in points if title.startswith("models/")} == {model_mark(1).draw()}


def test_figures_that_are_no_numbers_are_not_drawn() -> None:
    nan = float("nan")
    results = (figure(ONE, 0, 0.5), Result(ONE, "pos", 1, "accuracy", 0.6, nan, nan), figure("majority", 0, nan))
    text = page([Outcome("pos", results)])
    assert "nan" not in text
    assert text.count("–") == 2 + 3  # bounds that are not known, and a floor


def test_where_nothing_was_found() -> None:
    assert "No figure" not in page([Outcome("pos", ())])
    assert "<h2>Parts of speech</h2>" in page([Outcome("pos", ())])


def test_one_value_has_a_scale() -> None:
    scale = scale_of([0.5, float("nan")])
    assert scale.low < 0.5 < scale.high
    assert len(scale.ticks()) > 1


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-0.13, 0.52, [0.0, 0.2, 0.4]), (12.0, 88.0, [20, 40, 60, 80])],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert Scale(low, high).ticks() == ticks
