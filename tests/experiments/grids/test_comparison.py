"""Statistics over runs: against what the conventions say on scores that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from maskgym.experiments.grids import comparison


def test_the_interquartile_mean_leaves_out_the_outer_quarters():
    scores = np.array([[0.0], [0.4], [0.5], [1.0]])
    middle, low, high = comparison.iqm(scores)
    assert middle == pytest.approx(0.45)
    assert 0 <= low < middle < high <= 1
    assert comparison.iqm(scores) == (middle, low, high)  # draws are seeded
    assert comparison.iqm(np.array([[0.3]])) == (0.3, 0.3, 0.3)


def test_draws_are_within_a_task():
    scores = np.array([[0.1, 0.9], [0.1, 0.9], [0.1, 0.9]])  # seeds agree, tasks do not: nothing is uncertain
    assert comparison.iqm(scores) == pytest.approx((0.5, 0.5, 0.5))


def test_numpys_own_draws_go_on_as_if_nothing_had_happened():
    np.random.seed(3)
    expected = np.random.random(2)
    np.random.seed(3)
    first = np.random.random()
    comparison.iqm(np.array([[0.1], [0.2], [0.3]]))
    assert [first, np.random.random()] == expected.tolist()


def test_the_probability_of_improvement_counts_pairs_of_runs():
    first, second = np.array([[0.9], [0.5]]), np.array([[0.4], [0.6]])
    chance, low, high = comparison.probability_of_improvement(first, second)
    assert chance == pytest.approx(3 / 4)
    assert 0 <= low <= chance <= high <= 1
    assert comparison.probability_of_improvement(first, first)[0] == pytest.approx(0.5)
    better = comparison.probability_of_improvement(first + 1, second)
    assert better == (1, 1, 1)


def test_a_curve_is_read_between_its_points():
    curves = [([0, 10, 20], [0.0, 1.0, 2.0]), ([0, 5, 25], [1.0, 1.0, 3.0])]
    np.testing.assert_allclose(comparison.at_budget(curves, 15), [[1.5], [2.0]])


def test_curves_have_a_middle_and_a_band():
    scores = np.array([[[0.0, 1.0]], [[0.2, 1.2]], [[0.4, 1.4]]])
    middle, (low, high) = comparison.iqm_curve(scores)
    np.testing.assert_allclose(middle, [0.2, 1.2])
    assert (low < middle).all() and (middle < high).all()
    picture = comparison.draw_curves({"updates": {"cgpo": [([0, 1], [0.1, 0.2])] * 2}}, "iasm")
    assert picture.startswith(b"\x89PNG")


def test_the_points_of_a_curve_have_the_interquartile_means_of_rliable():
    scores = np.random.default_rng(0).random((5, 3, 4))
    middle, _ = comparison.iqm_curve(scores)
    assert middle == pytest.approx([comparison.iqm(scores[..., point])[0] for point in range(4)])
