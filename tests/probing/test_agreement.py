"""Cosines, ranks and thresholds, against scipy, scikit-learn and loops."""

import numpy as np
import pytest

from pretrain.probing.agreement import (
    area_under_curve,
    areas_of_samples,
    average_ranks,
    best_threshold,
    cosines,
    spearman,
    spearman_of_samples,
)
from pretrain.probing.intervals import bounds, draw_counts, interval

RNG = np.random.default_rng(1)


def test_cosines_are_a_loop_and_equal_vectors_have_equal_ones() -> None:
    first, second = RNG.normal(size=(2, 5, 4))
    expected = [a @ b / np.sqrt(a @ a) / np.sqrt(b @ b) for a, b in zip(first, second, strict=True)]
    assert np.allclose(cosines(first, second), expected, atol=1e-9)
    noise = 1 + 1e-7 * RNG.normal(size=(20, 30))  # what float32 leaves of equal vectors
    rows = (RNG.normal(size=30) * noise).astype(np.float32)
    assert set(cosines(rows, rows[::-1])) == {1.0}
    assert cosines(np.zeros((1, 3)), np.ones((1, 3))).tolist() == [0]


def test_spearman_is_that_of_scipy_with_ties() -> None:
    from scipy.stats import rankdata, spearmanr

    for ties in (3, 8, 1000):
        first, second = RNG.integers(0, ties, (2, 60)).astype(float)
        second += first / 2
        assert average_ranks(first).tolist() == rankdata(first).tolist()
        assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert spearman(np.ones(4), np.arange(4.0)) == 0


def test_area_under_the_curve_is_that_of_scikit_learn_with_ties() -> None:
    from sklearn.metrics import roc_auc_score

    for ties in (2, 7, 1000):
        scores, positive = RNG.integers(0, ties, 70).astype(float), RNG.random(70) < 0.3
        scores += positive
        assert area_under_curve(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    assert area_under_curve(np.ones(5), np.arange(5) < 2) == 0.5
    assert np.isnan(area_under_curve(np.ones(5), np.ones(5, bool)))


def test_figures_of_all_samples_at_once_are_those_of_each() -> None:
    counts = draw_counts(50, seed=3)
    assert (counts.sum(axis=1) == 50).all()
    for ties in (3, 1000):
        first, second = RNG.integers(0, ties, (2, 50)).astype(float)
        positive = RNG.random(50) < 0.3
        value, *expected = interval(lambda drawn, a=first, b=second: spearman(a[drawn], b[drawn]), 50, seed=3)
        assert bounds(spearman_of_samples(first, second, counts)) == pytest.approx(expected, abs=1e-12)
        assert spearman_of_samples(first, second, np.ones((1, 50), int))[0] == pytest.approx(value, abs=1e-12)
        _, *expected = interval(lambda drawn, a=first, p=positive: area_under_curve(a[drawn], p[drawn]), 50, seed=3)
        assert bounds(areas_of_samples(first, positive, counts)) == pytest.approx(expected, abs=1e-12)
    assert spearman_of_samples(np.ones(50), first, counts).tolist() == [0] * 1000
    assert np.isnan(areas_of_samples(first, np.arange(50) < 0, counts)).all()


def test_the_threshold_is_the_best_of_all() -> None:
    for ties in (3, 50):
        for _ in range(20):
            scores, positive = RNG.integers(0, ties, 30) / ties, RNG.random(30) < 0.5
            found = ((scores >= best_threshold(scores, positive)) == positive).sum()
            everywhere = np.linspace(-0.01, 1.01, 400)
            assert found == max(((scores >= threshold) == positive).sum() for threshold in everywhere)
    assert best_threshold(np.array([0.2, 0.4, 0.6]), np.array([False, True, True])) == pytest.approx(0.3)
    assert best_threshold(np.array([0.2, 0.4]), np.array([True, True])) == -np.inf
    assert best_threshold(np.array([0.2, 0.4]), np.array([False, False])) == np.inf
