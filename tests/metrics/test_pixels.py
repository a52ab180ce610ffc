"""MAE, IoU, F and E: by hand, against the reference implementation, and over data sets."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from maskgym.metrics import SaliencyScores, ber, e_curve, e_measure, f_curve, f_measure, iou, mae, s_measure

DATA = Path(os.environ.get("MASKGYM_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def reference(pairs):
    """Return the reference's values over (prediction, target) pairs, under the names of SaliencyScores."""
    library = pytest.importorskip("py_sod_metrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f, e, error = library.Fmeasure(), library.Emeasure(), library.MAE()
    for prediction, target in pairs:
        for measure in (f, e, error):
            measure.step(np.asarray(prediction, np.float64), target, normalize=False)
    values = {"mae": error.get_results()["mae"]}
    for name, result in (("f", f.get_results()["fm"]), ("e", e.get_results()["em"])):
        values |= {f"{name}_mean": result["curve"].mean(), f"{name}_max": result["curve"].max()}
        values[f"{name}_adaptive"] = result["adp"]
        values[f"{name}_curve"] = result["curve"][::-1]
    return values


def box_of_a_quarter():
    target = np.zeros((24, 32), bool)
    target[6:18, 8:24] = True
    return target


def make_pairs():
    """Return soft and binary pairs and every edge case: empty, full, box, one pixel against blank, full, constant."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(12):
        target = rng.random(rng.integers(3, 40, 2)) > rng.random()
        pairs += [(rng.random(target.shape), target), (target ^ (rng.random(target.shape) < 0.2), target)]
    box, pixel = box_of_a_quarter(), np.zeros((24, 32), bool)
    pixel[5, 9] = True
    for target in (box, pixel, np.zeros_like(box), np.ones_like(box)):
        pairs += [(np.full(box.shape, value), target) for value in (0.0, 1.0, 0.3, 128 / 255)]
        pairs += [
            (prediction, target) for prediction in (target, ~target, np.linspace(0, 1, box.size).reshape(box.shape))
        ]
    return pairs


def test_mae_by_hand():
    target = np.array([[1, 0], [0, 1]], bool)
    assert mae(np.array([[0.75, 0.5], [0, 1]]), target) == pytest.approx(0.75 / 4)
    assert mae(~target, target) == 1 and mae(target, target) == 0


def test_iou_by_hand():
    target = np.array([[1, 1, 1, 0]], bool)
    assert iou(np.array([[0, 1, 1, 1]], bool), target) == 0.5
    assert iou(np.array([[0.5, 0.51, 0.9, 0.6]]), target) == 0.5  # above 0.5, not at it
    assert iou(np.zeros((1, 4), bool), target) == 0
    nothing = np.zeros((1, 4), bool)
    assert iou(nothing, nothing) == 0 and iou(nothing, nothing, empty=1.0) == 1
    assert iou(nothing, target, empty=1.0) == 0


def test_ber_by_hand():
    truth = np.array([[1, 1, 0, 0]], bool)
    assert ber(truth, truth) == 0 and ber(~truth, truth) == 1
    assert ber(np.array([[1, 0, 0, 0]], bool), truth) == pytest.approx((1 / 2 + 0) / 2)
    assert ber(np.array([[1, 1, 1, 0]], bool), truth) == pytest.approx((0 + 1 / 2) / 2)
    nothing = np.zeros((1, 4), bool)
    assert ber(nothing, nothing) == 0 == ber(~nothing, ~nothing)  # one share only
    assert ber(np.array([[1, 0, 0, 0]], bool), nothing) == 0.25


def test_ber_of_a_set_is_pooled_or_a_mean_over_images():
    scores = SaliencyScores()
    scores.add(np.array([[1, 0, 0, 0]], bool), np.array([[1, 1, 0, 0]], bool))  # half of the foreground missed
    scores.add(np.array([[1, 1, 1, 0]], bool), np.array([[1, 1, 1, 0]], bool))
    found = scores.result()
    assert found["ber_mean"] == pytest.approx(0.125)
    assert found["ber_pooled"] == pytest.approx((1 / 5 + 0) / 2)


def test_f_by_hand():
    # Two of three pixels marked are right, two of four found: P 2/3, R 1/2, at each threshold but 0, where P 4/8, R 1.
    target = np.array([[1, 1, 1, 1, 0, 0, 0, 0]], bool)
    prediction = np.array([[1, 1, 0, 0, 1, 0, 0, 0]], bool)
    at_one, at_zero = 1.3 * (2 / 3) * 0.5 / (0.3 * 2 / 3 + 0.5), 1.3 * 0.5 / (0.3 * 0.5 + 1)
    mean, maximum, adaptive = f_measure(prediction, target)
    assert adaptive == pytest.approx(at_one) and maximum == pytest.approx(max(at_one, at_zero))
    assert mean == pytest.approx((255 * at_one + at_zero) / 256)
    curve = f_curve(prediction, target)
    assert curve.shape == (256,) and curve[0] == pytest.approx(at_zero) and curve[255] == pytest.approx(at_one)


def test_adaptive_trap_of_the_reference():
    box, blank = box_of_a_quarter(), np.zeros((24, 32))
    assert f_measure(blank, box).adaptive == pytest.approx(0.302, abs=5e-4)
    assert f_measure(blank, np.ones_like(box)).adaptive == 1
    assert e_measure(blank, np.zeros_like(box)).adaptive == 0


def test_perfect_e_exceeds_one_as_in_the_reference():
    box = box_of_a_quarter()
    assert e_measure(box, box).max == pytest.approx(768 / 767, abs=1e-12)
    assert e_curve(box, box).shape == (256,)


@pytest.mark.parametrize("index", range(len(make_pairs())))
def test_reference_on_single_images(index):
    prediction, target = make_pairs()[index]
    expected = reference([(prediction, target)])
    assert mae(prediction, target) == pytest.approx(expected["mae"], abs=1e-9)
    for name, measure, curve in (("f", f_measure, f_curve), ("e", e_measure, e_curve)):
        values = measure(prediction, target)
        assert values.mean == pytest.approx(expected[f"{name}_mean"], abs=1e-9)
        assert values.max == pytest.approx(expected[f"{name}_max"], abs=1e-9)
        assert values.adaptive == pytest.approx(expected[f"{name}_adaptive"], abs=1e-9)
        np.testing.assert_allclose(curve(prediction, target), expected[f"{name}_curve"], rtol=0, atol=1e-9)


def test_reference_over_a_data_set():
    pairs, scores = make_pairs(), SaliencyScores()
    for prediction, target in pairs:
        scores.add(prediction, target)
    result, expected = scores.result(), reference(pairs)
    for name in ("mae", "f_mean", "f_max", "f_adaptive", "e_mean", "e_max", "e_adaptive"):
        assert result[name] == pytest.approx(expected[name], abs=1e-9), name
    assert result["f_max"] < np.mean([f_measure(*pair).max for pair in pairs])
    assert result["s_measure"] == pytest.approx(np.mean([s_measure(*pair) for pair in pairs]))


def test_a_batch_adds_its_images():
    rng = np.random.default_rng(0)
    predictions, targets = rng.random((4, 8, 8)), rng.random((4, 8, 8)) > 0.5
    batched, single = SaliencyScores(), SaliencyScores()
    batched.add(predictions, targets)
    for prediction, target in zip(predictions, targets, strict=True):
        single.add(prediction, target)
    assert batched.images == 4 and batched.result() == pytest.approx(single.result(), abs=1e-12)
    with pytest.raises(ValueError, match="no image"):
        SaliencyScores().result()


@pytest.mark.skipif(not (DATA / "metric_fixture").is_dir(), reason="no real data")
def test_fixture_of_real_predictions():
    """Values stored by the reference on min-max normalised 8-bit maps, pair by pair and over all pairs."""
    image = pytest.importorskip("PIL.Image")
    folder = DATA / "metric_fixture"
    stored = json.loads((folder / "expected.json").read_text())
    names = {"mae": "MAE", "s_measure": "Smeasure", "iou": "IoU_at_half"}
    for ours, theirs in (("f", "F"), ("e", "E")):
        names |= {f"{ours}_mean": f"mean{theirs}", f"{ours}_max": f"max{theirs}", f"{ours}_adaptive": f"adp{theirs}"}
    total = SaliencyScores()
    for name, expected in stored["per_pair"].items():
        target = np.array(image.open(folder / "gt" / f"{name}.png").convert("L")) > 128
        prediction = np.array(image.open(folder / "pred" / f"{name}.png").convert("L")) / 255
        if prediction.min() < prediction.max():
            prediction = (prediction - prediction.min()) / (prediction.max() - prediction.min())
        alone = SaliencyScores()
        for scores in (alone, total):
            scores.add(prediction, target)
        result = alone.result()
        for ours, theirs in names.items():
            assert result[ours] == pytest.approx(expected[theirs], abs=1e-6), (name, ours)
    assert total.images == 24
    for ours, theirs in names.items():
        assert total.result()[ours] == pytest.approx(stored["mean_all"][theirs], abs=1e-6), ours
