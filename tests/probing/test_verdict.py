"""The sentence about a model: what it is above, beyond the intervals, and what not."""

from dataclasses import replace

import pytest

from pretrain.probing.results import Layer, Outcome, Result
from pretrain.probing.verdict import verdict, verdicts

MODEL = "runs/mine"


def figure(model: str, layer: Layer, value: float, of: str | None = None, metric: str = "accuracy") -> Result:
    """A figure that is known to ± 0.01."""
    return Result(model, "pos", layer, metric, value, value - 0.01, value + 0.01, of=of)


OWN = (
    figure(MODEL, 0, 0.871),
    figure(MODEL, 1, 0.899),
    figure(MODEL, 2, 0.913),
    figure(MODEL, "mix", 0.92),
    figure(MODEL, 2, 0.5, metric="macro_f1"),
)
FLOORS = (
    figure("majority", 0, 0.861),
    figure("untrained", 0, 0.842, of=MODEL),
    figure("untrained", 1, 0.83, of=MODEL),
    figure("control", 1, 0.95, of=MODEL),
    figure("control", 2, 0.7, of=MODEL),
)


def said(*results: Result) -> str:
    return verdict(Outcome("pos", results), MODEL)


def test_a_layer_above_everything() -> None:
    assert said(*OWN, *FLOORS) == (
        "Best contextual layer 2: accuracy 0.913 [0.903, 0.923], above layer 0 (0.871), the majority (0.861), the "
        "untrained model (0.842, layer 0) and the control (0.700) beyond the intervals; the learned mix of all layers: "
        "0.920 [0.910, 0.930]."
    )


def test_intervals_that_meet_are_no_difference() -> None:
    assert "; not above the static baseline (0.895) beyond the intervals;" in said(*OWN, figure("static", 0, 0.895))
    assert "above layer 0 (0.871) and the static baseline (0.892) beyond" in said(*OWN, figure("static", 0, 0.892))
    assert "; below published figures (0.940) beyond the intervals;" in said(*OWN, figure("published", 0, 0.94))


def test_figures_from_papers_go_by_whose_they_are() -> None:
    papers = (figure("published", 0, 0.7, of="an LSTM"), figure("published", 0, 0.99, of="GPT-2"))
    sentence = said(*OWN, *papers)
    assert (
        "above layer 0 (0.871) and published an LSTM (0.700) beyond the intervals; below published GPT-2 (0.990)"
        in (sentence)
    )


def test_of_two_answers_the_majority_is_chance() -> None:
    pairs = (
        replace(figure(MODEL, 2, 0.7), task="minimal-pairs"),
        replace(figure("majority", 0, 0.5), task="minimal-pairs"),
    )
    assert "above chance (0.500)" in said(*pairs)


@pytest.mark.parametrize("bound", ["low", "high"])
def test_without_an_interval_nothing_is_beyond_it(bound: str) -> None:
    known = figure("majority", 0, 0.1)
    unknown = replace(known, low=float("nan")) if bound == "low" else replace(known, high=float("nan"))
    other = "above" if bound == "low" else "not above"
    assert f"{other} the majority (0.100) beyond the intervals" in said(figure(MODEL, 1, 0.9), unknown)


def test_floors_of_another_model_do_not_count() -> None:
    other = (figure("runs/other", 1, 0.99), figure("untrained", 0, 0.98, of="runs/other"))
    assert said(*OWN, *FLOORS, *other) == said(*OWN, *FLOORS)
    sentences = verdicts(Outcome("pos", (*OWN, *FLOORS, *other)))
    assert [sentence.split(": ")[0] for sentence in sentences] == [MODEL, "runs/other"]


def test_one_layer_is_not_the_best_of_several() -> None:
    assert said(figure(MODEL, 2, 0.7), figure("majority", 0, 0.5)) == (
        "Accuracy 0.700 [0.690, 0.710], above the majority (0.500) beyond the intervals."
    )


def test_only_a_mix() -> None:
    assert said(figure(MODEL, 0, 0.6), figure(MODEL, "mix", 0.7)) == (
        "Learned mix of all layers: accuracy 0.700 [0.690, 0.710], above layer 0 (0.600) beyond the intervals."
    )


def test_figures_of_groups_only() -> None:
    assert said(replace(figure(MODEL, 1, 0.7), group="bank")) == "No figure for all of the data."


def test_geometry_has_no_better_and_no_worse() -> None:
    results = (figure(MODEL, 0, 0.1, metric="anisotropy"), figure(MODEL, 1, 0.4, metric="anisotropy"))
    assert verdict(Outcome("geometry", results), MODEL) == "anisotropy by layer: 0.100 (0), 0.400 (1)."
