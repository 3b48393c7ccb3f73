"""Verdicts and tables, of losses that are made up."""

import math

import pytest

from pretrain.models.loss import Losses
from pretrain.runs.evaluation import Comparison, Evaluation, StateLosses


def masked(loss: float, right: float | None = None, count: int = 5_000) -> Losses:
    """A model that predicts masked words, and pairs of which 56.7 % are random, if `right` of them are told."""
    pairs = {} if right is None else {"nsp": 0.6}
    return Losses(
        terms={"mlm": loss} | pairs,
        counts={"mlm": count, "nsp": 1_000 * len(pairs)},
        weights={"mlm": 1.0, "nsp": 1.0},
        predicts_tokens={"mlm": True, "nsp": False},
        titles={"mlm": "MLM", "nsp": "NSP"},
        accuracies={"mlm": 0.2663} | ({} if right is None else {"nsp": right}),
        majorities={} if right is None else {"nsp": 0.567},
    )


def directions(loss: float) -> Losses:
    """A model of two directions."""
    names = ("forward", "backward")
    return Losses(
        terms={"forward": loss + 0.1, "backward": loss - 0.1},
        counts=dict.fromkeys(names, 5_000),
        weights=dict.fromkeys(names, 0.5),
        predicts_tokens=dict.fromkeys(names, True),
        titles={name: name for name in names},
        accuracies={},
        majorities={},
    )


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (7.0, "worse than word frequencies"),
        (6.8, "a plateau: it has learned word frequencies only"),
        (6.7, "a plateau: it has learned word frequencies only"),
        (6.1, "little better than word frequencies"),
        (4.6, "better than word frequencies"),
    ],
)
def test_beside_word_frequencies(loss: float, says: str) -> None:
    """The unigram model, and the losses of 6.1 and 4.6, are those of docs/log.md, "Off the plateau"."""
    for losses in (masked(loss), directions(loss)):
        assert Evaluation("a", losses, 6.75).verdict == says
        assert Evaluation("a", losses, 6.75).lines()[-1] == f"verdict: {says}"
        assert Evaluation("a", losses, None).verdict is None
        assert not any("verdict" in line for line in Evaluation("a", losses, None).lines())
    few = masked(loss, count=312)
    assert Evaluation("a", few, 6.75).verdict == f"{says} (uncertain: only 312 predictions)"


@pytest.mark.parametrize(
    ("carried", "reset", "primed", "says"),
    [
        (5.63, 6.34, 4.97, "than from the primed state: --start primed, or train with objective.reset_probability"),
        (7.28, 7.08, 4.92, "than from the primed state: --start primed, or train with objective.reset_probability"),
        (5.63, 6.34, 6.30, "than with states carried: train with objective.reset_probability"),
        (5.63, 6.34, None, "than with states carried: train with objective.reset_probability"),
        (4.95, 4.99, 4.97, None),
        (4.95, 4.99, None, None),
    ],
)
def test_states_carried_and_reset(carried: float, reset: float, primed: float | None, says: str | None) -> None:
    """A model that never started from zero may be bad with states carried, too, if rows begin there."""
    both = StateLosses(carried, reset, 2, primed)
    found = Evaluation("a", directions(carried), None, "carried", by_states=both)
    verdict = says and f"much worse on sentences by themselves {says}"
    assert found.verdict == verdict
    assert Evaluation("a", directions(carried), 9.0, "carried", by_states=both).verdict == "; ".join(
        filter(None, ("better than word frequencies", verdict))
    )
    names = ["states carried", "reset before each sentence", "the same from the primed state"]
    losses = [loss for loss in (carried, reset, primed) if loss is not None]
    perplexities = " | ".join(f"{math.exp(loss):,.2f}" for loss in losses)
    assert f"{' | '.join(names[: len(losses)])}: perplexity {perplexities}, on the first 2 blocks" in found.lines()
    values = found.values()
    assert {name: value for name, value in values.items() if name.startswith("states_")} == {
        "states_carried_loss": carried,
        "states_reset_loss": reset,
        "states_carried_perplexity": math.exp(carried),
        "states_reset_perplexity": math.exp(reset),
        "states_blocks": 2,
    } | (
        {}
        if primed is None
        else {"states_reset_primed_loss": primed, "states_reset_primed_perplexity": math.exp(primed)}
    )


@pytest.mark.parametrize(("primed", "says"), [(False, "zero"), (True, "the primed state")])
def test_where_states_start(primed: bool, says: str) -> None:
    for states, ending in (("carried", f"from {says} at the start of each row of a block"), ("reset", f"from {says}")):
        found = Evaluation("a", directions(4.6), None, states, primed)  # type: ignore[arg-type]
        (line,) = [line for line in found.lines() if line.startswith("states: ")]
        assert line.endswith(ending) and found.values()["start"] == ("primed" if primed else "zero")
    assert "start" not in Evaluation("a", masked(4.6), None).values()


@pytest.mark.parametrize(
    ("right", "says"),
    [
        (0.693, "NSP better than the majority class"),
        (0.59, "NSP no better than the majority class"),  # two standard errors of 1,000 pairs are 3.1 %
        (0.54, "NSP no better than the majority class"),
        (0.5, "NSP worse than the majority class"),
    ],
)
def test_beside_the_majority_class(right: float, says: str) -> None:
    assert Evaluation("a", masked(4.6, right), None).verdict == says
    assert Evaluation("a", masked(4.6, right), 6.75).verdict == f"better than word frequencies; {says}"


def test_the_lines_of_one() -> None:
    assert Evaluation("runs/a, step 2000", masked(4.6, 0.693), 6.75, files=("b.txt",)).lines() == [
        "runs/a, step 2000, on b.txt",
        f"MLM loss 4.6000, perplexity {math.exp(4.6):.2f}, over 5,000 predictions",
        "MLM accuracy 26.6 %",
        "NSP loss 0.6000 over 1,000 predictions",
        "NSP accuracy 69.3 % beside the majority-class baseline 56.7 %",
        f"loss 5.2000, perplexity {math.exp(4.6):.2f}",
        f"unigram baseline: loss 6.7500, perplexity {math.exp(6.75):.2f}",
        "verdict: better than word frequencies; NSP better than the majority class",
    ]


def test_no_figure_over_no_prediction() -> None:
    found = Evaluation("a", masked(4.6), 6.75)
    assert "NSP: this text has no prediction" in found.lines()
    assert not any("over 0" in line for line in found.lines())
    assert {name: value for name, value in found.values().items() if "nsp" in name} == {"nsp_predictions": 0}
    assert found.values()["loss"] == 4.6


def test_several_side_by_side() -> None:
    rows = (
        Evaluation("runs/a, step 2000", masked(4.6, 0.693), 6.75, text="t"),
        Evaluation("b", masked(6.7), None, text="t"),
    )
    found = Comparison(rows)
    assert found.values() == [row.values() for row in rows]
    assert found.lines() == [
        "Each on its run's held-out text:",
        "                     loss  perplexity  unigram  MLM accuracy  NSP accuracy  NSP majority  verdict",
        "runs/a, step 2000  5.2000       99.48   854.06        26.6 %        69.3 %        56.7 %  "
        "better than word frequencies; NSP better than the majority class",
        "b                  6.7000      812.41        -        26.6 %             -             -  -",
    ]
    others = Comparison((rows[0], Evaluation("runs/c, step 9", directions(4.5), 6.3, "carried", text="u")))
    assert others.lines()[1] == (
        "The held-out texts differ, or are cut into different tokens: compare losses with the baselines of the same "
        "row only, or give --data FILE."
    )
    assert "forward accuracy" not in others.lines()[2], "a column that no row fills"


def test_several_on_one_text() -> None:
    same, other = (Evaluation("a", masked(4.6), None, files=("x.txt", "y.txt"), text=text) for text in "tu")
    assert Comparison((same, same)).lines()[0] == "On x.txt, y.txt:"
    assert len(Comparison((same, same)).lines()) == 4
    assert Comparison((same, other)).lines()[1] == (
        "The text is cut into different tokens: compare losses with the baselines of the same row only."
    )


@pytest.mark.parametrize(("loss", "called_for"), [(7.0, True), (6.7, True), (5.8, True), (5.7, False), (4.6, False)])
def test_what_to_change_is_said_where_little_was_learned(loss: float, called_for: bool) -> None:
    """Up to 15 % below the unigram model's 6.75, as far as a plateau goes."""
    measured = Evaluation("a", masked(loss), 6.75, advice=("more steps", "other weights"))
    assert measured.what_to_change == ("more steps; other weights" if called_for else None)
    assert (measured.lines()[-1] == "what could be changed: more steps; other weights") == called_for
    assert measured.values()["what_to_change"] == measured.what_to_change
    assert Evaluation("a", masked(loss), None, advice=("more steps",)).what_to_change is None
    assert Evaluation("a", masked(loss), 6.75).what_to_change is None
