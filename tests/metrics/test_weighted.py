"""Weighted F-measure: by hand, against the reference implementation, and its properties."""

from __future__ import annotations

import numpy as np
import pytest

from maskgym.metrics import prepare, weighted_f


def reference(prediction, target):
    measure = pytest.importorskip("py_sod_metrics").WeightedFmeasure()
    measure.step(np.asarray(prediction, np.float64), target, normalize=False)
    return measure.get_results()["wfm"]


def test_a_false_alarm_by_hand():
    # One pixel is found, and one marked wrongly 5 pixels away, where it weighs 1.5: P 1 / 2.5, R 1.
    target = np.zeros((1, 9), bool)
    target[0, 1] = True
    prediction = target.copy()
    prediction[0, 6] = True
    assert weighted_f(prediction, target) == pytest.approx(2 * 0.4 / 1.4, abs=1e-7)
    prediction = target.copy()
    prediction[0, 2] = True  # beside it: 2 - 0.5 ** (1 / 5)
    precision = 1 / (3 - 0.5**0.2)
    assert weighted_f(prediction, target) == pytest.approx(2 * precision / (1 + precision), abs=1e-7)


def test_edge_cases():
    empty, full = np.zeros((5, 7), bool), np.ones((5, 7), bool)
    assert weighted_f(empty, empty) == weighted_f(full, empty) == 0
    assert weighted_f(full, full) == pytest.approx(1) and weighted_f(empty, full) == pytest.approx(0.655, abs=5e-4)


def test_reference_on_random_maps():
    rng = np.random.default_rng(0)
    for number in range(120):
        height, width = rng.integers(2, 60, 2) if number % 10 else rng.integers(200, 420, 2)
        target = rng.random((height, width)) > rng.random()
        if number % 2:
            target[:] = False
            target[rng.integers(0, height) :, rng.integers(0, width) : width // 2 + 1] = True
            target ^= rng.random(target.shape) < rng.choice([0, 0.02])
        for prediction in (rng.random(target.shape), target ^ (rng.random(target.shape) < 0.2), np.ones_like(target)):
            assert weighted_f(prediction, target) == pytest.approx(reference(prediction, target), abs=1e-6)


def test_far_away_nothing_is_looked_at_but_how_much():
    target = np.zeros((40, 900), bool)
    target[10:20, 5:30] = True
    prediction = target * 0.9 + 0.1 * np.random.default_rng(0).random(target.shape)
    assert weighted_f(prediction, target) == pytest.approx(reference(prediction, target), abs=1e-7)


def test_batches_tensors_and_prepared_targets():
    rng = np.random.default_rng(0)
    predictions, targets = rng.random((3, 12, 9)), rng.random((3, 12, 9)) > 0.5
    expected = [weighted_f(*pair) for pair in zip(predictions, targets, strict=True)]
    before = predictions.copy()
    assert weighted_f(predictions, prepare(targets)).tolist() == expected
    assert (predictions == before).all()
