"""S-measure: by hand, against the reference implementation, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskgym.metrics import prepare, s_measure

masks = arrays(bool, st.tuples(st.integers(2, 9), st.integers(2, 9)))


def reference(prediction, target):
    measure = pytest.importorskip("py_sod_metrics").Smeasure()
    measure.step(np.asarray(prediction, np.float64), target, normalize=False)
    return measure.get_results()["sm"]


def test_by_hand():
    # One row, g = 1 1 0 0, p = 1 0 0 0. Centroid 0.5 rounds to 0, so blocks of 1 and 3 pixels: (1 | 1) is constant: 1;
    # (1 0 0 | 0 0 0) has no covariance: 0. Region 1/4. Object: foreground mean 1/2, sigma sqrt(1/2), background 1.
    target, prediction = np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 0, 0]], bool)
    foreground = 2 * 0.5 / (0.25 + 1 + np.sqrt(0.5))
    assert s_measure(prediction, target) == pytest.approx(0.5 * (0.5 * foreground + 0.5) + 0.5 * 0.25, abs=1e-12)


def test_a_blank_prediction_of_a_box_of_a_quarter():
    target = np.zeros((24, 32), bool)
    target[6:18, 8:24] = True
    assert s_measure(np.zeros_like(target), target) == pytest.approx(0.375, abs=1e-12)


@pytest.mark.parametrize("kind", [bool, float])
def test_edge_cases(kind):
    empty, full = np.zeros((5, 7), bool), np.ones((5, 7), bool)
    part = np.arange(35).reshape(5, 7) < 14
    assert s_measure(empty.astype(kind), empty) == 1
    assert s_measure(full.astype(kind), empty) == 0
    assert s_measure(part.astype(kind), empty) == pytest.approx(0.6, abs=1e-12)
    assert s_measure(empty.astype(kind), full) == 0
    assert s_measure(full.astype(kind), full) == 1
    assert s_measure(part.astype(kind), full) == pytest.approx(0.4, abs=1e-12)


@pytest.mark.parametrize("place", [(4, 0), (0, 6), (4, 6)])
@pytest.mark.parametrize("kind", [bool, float])
def test_a_block_without_pixels_has_no_weight(place, kind):
    target = np.zeros((5, 7), bool)
    target[place] = True
    assert s_measure(target.astype(kind), target) == pytest.approx(1, abs=1e-9)


def test_reference_on_random_maps():
    rng = np.random.default_rng(0)
    for _ in range(150):
        height, width = rng.integers(4, 60, 2)
        target = np.zeros((height, width), bool)
        top, left = rng.integers(0, height - 2), rng.integers(0, width - 2)
        target[top : rng.integers(top + 1, height), left : rng.integers(left + 1, width)] = True
        target ^= rng.random(target.shape) < rng.choice([0, 0.05])
        target[-1] = target[:, -1] = False  # the reference has NaN where the centroid is in the last row or column
        soft = np.clip(0.7 * target + 0.3 * rng.random(target.shape) - rng.choice([0, 0.1]), 0, 1)
        hard = target ^ (rng.random(target.shape) < rng.choice([0.02, 0.3]))
        assert s_measure(soft, target) == pytest.approx(reference(soft, target), abs=1e-9)
        assert s_measure(hard, target) == pytest.approx(reference(hard, target), abs=1e-12)
        assert s_measure(hard, target) == pytest.approx(s_measure(hard.astype(float), target), abs=1e-9)


@pytest.mark.parametrize("shape", [(352, 352), (270, 641), (900, 40)])
def test_reference_on_large_maps(shape):
    rng = np.random.default_rng(3)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    for _ in range(4):
        (row, column), (height, width) = rng.uniform(0.3, 0.7, 2) * shape, rng.uniform(0.2, 0.6, 2) * shape
        target = ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 < 1
        target[-1] = target[:, -1] = False
        hard = target ^ (rng.random(shape) < 0.1)
        soft = np.clip(0.8 * hard + rng.normal(0, 0.1, shape), 0, 1)
        for prediction in (hard, soft):
            assert s_measure(prediction, target) == pytest.approx(reference(prediction, target), abs=1e-12)


@pytest.mark.parametrize("value", [0, 1, 0.5, 0.3, 128 / 255, 1 / 3, 0.7])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_reference_on_constant_maps(value, kind):
    for shape in ((24, 32), (9, 7), (17, 40)):
        box = np.zeros(shape, bool)
        box[2:5, 3:6] = True
        pixel = np.zeros(shape, bool)
        pixel[3, 4] = True
        for target in (box, pixel, ~box, np.zeros(shape, bool), np.ones(shape, bool)):
            prediction = np.full(shape, value, kind)
            measure = pytest.importorskip("py_sod_metrics").Smeasure()
            measure.step(prediction, target, normalize=False)
            assert s_measure(prediction, target) == pytest.approx(measure.sms[0], abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(masks, st.randoms(use_true_random=False))
def test_properties(target, random):
    guess = np.array([random.random() < 0.5 for _ in range(target.size)]).reshape(target.shape)
    score = s_measure(guess, target)
    assert 0 <= score <= 1 and score == s_measure(guess, prepare(target))
    assert s_measure(target, target) == pytest.approx(1, abs=1e-9)  # the reference's epsilon costs 1e-12
    assert score <= 1 - 1e-9 or (guess == target).all()
