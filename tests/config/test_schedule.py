"""The learning rate against its formulas in float64 NumPy, step by step."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from pretrain.config.training import ScheduleConfig
from tests.config.test_load import problems

TOTAL = 40
OPTIONS: dict[str, dict[str, float]] = {
    "constant": {},
    "linear": {},
    "polynomial": {"power": 0.5},
    "cosine": {},
    "trapezoid": {"decay_share": 0.3},
}
SHAPES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "constant": lambda step, warmup: np.ones_like(step),
    "linear": lambda step, warmup: (TOTAL - step) / (TOTAL - warmup),
    "polynomial": lambda step, warmup: np.sqrt((TOTAL - step) / (TOTAL - warmup)),
    "cosine": lambda step, warmup: 0.5 * (1 + np.cos(np.pi * (step - warmup) / (TOTAL - warmup))),
    "trapezoid": lambda step, warmup: np.where(step < 28, 1.0, (TOTAL - step) / 12),
}


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("decay", SHAPES)
def test_every_decay_is_its_formula(decay: str, warmup: int) -> None:
    schedule = ScheduleConfig(total_steps=TOTAL, warmup_steps=warmup, decay=decay, **OPTIONS[decay])
    steps = np.arange(TOTAL, dtype=np.float64)
    expected = np.where(steps < warmup, (steps + 1) / max(warmup, 1), SHAPES[decay](steps, warmup))
    np.testing.assert_allclose([schedule.factor(step) for step in range(TOTAL)], expected, rtol=1e-13, atol=1e-15)
    after = 1.0 if decay == "constant" else 0.0
    assert schedule.factor(TOTAL) == schedule.factor(10 * TOTAL) == after
    assert max(schedule.factor(step) for step in range(TOTAL)) == 1.0


@pytest.mark.parametrize("decay", [decay for decay in SHAPES if decay != "constant"])
def test_what_is_left_at_the_end(decay: str) -> None:
    """The same shape from the peak to the share, and a line that goes on is a line that was longer."""
    to_zero, to_share = (
        ScheduleConfig(total_steps=TOTAL, warmup_steps=4, decay=decay, final_share=share, **OPTIONS[decay])
        for share in (0.0, 0.25)
    )
    for step in range(4, TOTAL + 2):
        assert to_share.factor(step) == pytest.approx(0.25 + 0.75 * to_zero.factor(step), rel=1e-13)
    assert [to_share.factor(step) for step in range(4)] == [to_zero.factor(step) for step in range(4)]
    longer = ScheduleConfig(total_steps=52, warmup_steps=4)
    if decay == "linear":
        assert all(to_share.factor(step) == pytest.approx(longer.factor(step)) for step in range(TOTAL))
    assert problems("schedule={total_steps: 9, decay: constant, final_share: 0.1}") == [
        "schedule: final_share is 0.1, which decay constant does not have"
    ]


def test_powers() -> None:
    """1 is linear, 2 falls faster: with a half left, a quarter."""
    linear = ScheduleConfig(total_steps=10, warmup_steps=2)
    for power in (1, 2):
        schedule = ScheduleConfig(total_steps=10, warmup_steps=2, decay="polynomial", power=power)
        assert [schedule.factor(step) for step in range(2, 10)] == [
            linear.factor(step) ** power for step in range(2, 10)
        ]


def test_a_trapezoid_that_is_all_decay_is_linear() -> None:
    """A share that reaches back into the warm-up begins after it: nothing jumps."""
    linear = ScheduleConfig(total_steps=10, warmup_steps=4)
    for share in (0.6, 0.9, 1.0):
        schedule = ScheduleConfig(total_steps=10, warmup_steps=4, decay="trapezoid", decay_share=share)
        assert [schedule.factor(step) for step in range(12)] == [linear.factor(step) for step in range(12)]


@pytest.mark.parametrize("decay", SHAPES)
def test_a_total_shorter_than_the_warm_up_ends_in_the_ramp(decay: str) -> None:
    schedule = ScheduleConfig(total_steps=3, warmup_steps=10, decay=decay, **OPTIONS[decay])
    assert [schedule.factor(step) for step in range(3)] == [0.1, 0.2, 0.3]
    assert ScheduleConfig(total_steps=3, warmup_steps=3, decay=decay, **OPTIONS[decay]).factor(2) == 1.0


def test_the_factor_is_a_pure_function() -> None:
    schedule = ScheduleConfig(total_steps=10, warmup_steps=4)
    assert [schedule.factor(step) for step in (7, 2, 7)] == [0.5, 0.75, 0.5]
    assert math.isfinite(schedule.factor(2**62))


def test_options_of_another_decay_are_refused() -> None:
    assert problems("schedule.decay=polynomial") == ["schedule: decay is polynomial, which needs power"]
    assert problems("schedule.decay=trapezoid", "schedule.power=2") == [
        "schedule: power is 2.0, which decay trapezoid does not have: only polynomial does",
        "schedule: decay is trapezoid, which needs decay_share",
    ]
    assert problems("schedule.decay=linear", "schedule.decay_share=0.5") == [
        "schedule: decay_share is 0.5, which decay linear does not have: only trapezoid does"
    ]
    assert problems("schedule.decay=trapezoid", "schedule.decay_share=1.5") == [
        "schedule.decay_share: must be at most 1.0 (given: 1.5)"
    ]
    assert problems("schedule.decay=staircase") == [
        "schedule.decay: must be 'constant', 'linear', 'polynomial', 'cosine' or 'trapezoid' (given: 'staircase')"
    ]
