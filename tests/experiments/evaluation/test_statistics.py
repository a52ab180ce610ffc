"""Statistics over runs: values worked out by hand, and rliable's definitions where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from maskgym.experiments.evaluation import statistics


def test_the_interval_of_a_mean_is_that_of_the_central_limit():
    assert statistics.bootstrap_interval([0.3] * 9) == pytest.approx((0.3, 0.3))
    values = np.random.default_rng(1).normal(2, 1, 400)
    low, high = statistics.bootstrap_interval(values)
    # The mean ± 1.96 standard errors of 0.05.
    assert low == pytest.approx(values.mean() - 0.098, abs=0.02)
    assert high == pytest.approx(values.mean() + 0.098, abs=0.02)
    narrow = statistics.bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert statistics.bootstrap_interval(values) == (low, high)
    assert statistics.bootstrap_interval(values, resamples=100) != (low, high)


def test_the_interval_of_a_mean_is_that_of_earlier_versions():
    values = [0.2, 0.4, 0.9]
    draws = np.random.default_rng(0).integers(3, size=(2000, 3))
    expected = np.quantile(np.array(values)[draws].mean(axis=1), [0.025, 0.975])
    assert statistics.bootstrap_interval(values) == tuple(expected)
    assert statistics.bootstrap_interval([0.3]) == (0.3, 0.3)


def test_the_interquartile_mean_leaves_out_the_outer_quarters():
    scores = np.array([[0.0], [0.4], [0.5], [1.0]])
    middle, low, high = statistics.interquartile_mean(scores)
    assert middle == pytest.approx(0.45)
    assert 0 <= low < middle < high <= 1
    assert statistics.interquartile_mean(scores) == (middle, low, high)  # draws are seeded
    assert statistics.interquartile_mean(np.array([[0.3]])) == (0.3, 0.3, 0.3)


def test_draws_are_within_a_task():
    scores = np.array([[0.1, 0.9], [0.1, 0.9], [0.1, 0.9]])  # seeds agree, tasks do not: nothing is uncertain
    assert statistics.interquartile_mean(scores) == pytest.approx((0.5, 0.5, 0.5))


def test_numpys_own_draws_go_on_as_if_nothing_had_happened():
    np.random.seed(3)
    expected = np.random.random(2)
    np.random.seed(3)
    first = np.random.random()
    statistics.interquartile_mean(np.array([[0.1], [0.2], [0.3]]))
    statistics.bootstrap_interval([0.1, 0.2])
    assert [first, np.random.random()] == expected.tolist()


def test_the_probability_of_improvement_counts_pairs_of_runs():
    first, second = np.array([[0.9], [0.5]]), np.array([[0.4], [0.6]])
    chance, low, high = statistics.probability_of_improvement(first, second)
    assert chance == pytest.approx(3 / 4)
    assert 0 <= low <= chance <= high <= 1
    assert statistics.probability_of_improvement(first, first)[0] == pytest.approx(0.5)
    assert statistics.probability_of_improvement(first + 1, second) == (1, 1, 1)
    unequal = statistics.probability_of_improvement(np.array([[0.9]]), np.array([[0.4], [0.9], [1.0]]))
    assert unequal[0] == pytest.approx((1 + 0.5 + 0) / 3)


def test_curves_have_a_middle_and_a_band():
    scores = np.array([[[0.0, 1.0]], [[0.2, 1.2]], [[0.4, 1.4]]])
    middle, (low, high) = statistics.interquartile_curve(scores)
    np.testing.assert_allclose(middle, [0.2, 1.2])
    assert (low < middle).all() and (middle < high).all()


def test_seeds_that_show_a_difference():
    # Cohen's tables (1988, table 2.4.1): 17 of each for one standard deviation, 64 for a half, at a power of 80 %.
    high = np.tile([1.0, -1.0], 50) * np.sqrt(0.99)  # 100 seeds, whose deviation is 1
    assert statistics.seeds_needed(high + 1.0, high) == 17
    assert statistics.seeds_needed(high, high + 0.5) == 64
    assert statistics.seeds_needed(high, high) is None
    assert statistics.seeds_needed([0.5, 0.5], [0.6, 0.6]) == 2
    assert statistics.smallest_difference([0.5, 0.5], [0.6, 0.6]) == 0
    least = statistics.smallest_difference([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])  # a deviation of 0.1
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 0.1, (4000, 3)), rng.normal(least, 0.1, (4000, 3))
    assert (ttest_ind(first, second, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.02)


def test_definitions_are_those_of_rliable():
    library, metrics = pytest.importorskip("rliable.library"), pytest.importorskip("rliable.metrics")
    rng = np.random.default_rng(0)
    first, second = rng.random((10, 3)), rng.random((9, 3)) + 0.1
    second[0] = first[0]  # ties
    np.random.seed(0)  # rliable draws from NumPy's global generator
    for given, expected, found in (
        (first, lambda drawn: np.array([metrics.aggregate_iqm(drawn)]), statistics.interquartile_mean(first)),
        (
            [first, second],
            lambda *drawn: np.array([metrics.probability_of_improvement(*drawn)]),
            statistics.probability_of_improvement(first, second),
        ),
    ):
        values, intervals = library.get_interval_estimates({"": given}, expected, reps=statistics.RESAMPLES)
        assert found[0] == pytest.approx(values[""][0])
        np.testing.assert_allclose(found[1:], intervals[""][:, 0], atol=0.02)  # other random draws
