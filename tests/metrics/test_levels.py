"""Measures from counts of levels: equal to those of maps, and to the reference implementation's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from maskgym.metrics import SaliencyScores, measure_levels, prepare


def make_pairs():
    """Return 8-bit maps and truths: soft, binary, constant, half of a level; boxes, noise, empty, full, one pixel."""
    rng = np.random.default_rng(0)
    truths = []
    for _ in range(12):
        height, width = rng.integers(4, 60, 2)
        box = np.zeros((height, width), bool)
        box[rng.integers(0, height - 2) : height - 1, rng.integers(0, width - 2) : width - 1] = True
        noise = rng.random(box.shape) > rng.random()
        noise[-1] = noise[:, -1] = False  # the reference has NaN where the centroid is in the last row or column
        pixel = np.zeros_like(box)
        pixel[height // 2, width // 2] = True
        truths += [box, noise, pixel, np.zeros_like(box), np.ones_like(box)]
    for truth in truths:
        half = np.zeros(truth.size, np.uint8)
        half[: truth.size // 2] = rng.integers(1, 256)
        soft = (200 * truth + rng.integers(0, 56, truth.shape)).astype(np.uint8)
        yield from ((soft, truth), (soft // 3 + 20, truth), (np.full(truth.shape, rng.integers(256), np.uint8), truth))
        yield from ((half.reshape(truth.shape), truth), (255 * truth.astype(np.uint8), truth))


def reference(levels, truth, stretch):
    """Return PySODMetrics' values under our names."""
    library = pytest.importorskip("py_sod_metrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measures = library.Fmeasure(), library.Emeasure(), library.MAE(), library.Smeasure(), library.WeightedFmeasure()
    for measure in measures:
        if stretch:
            measure.step(levels, np.uint8(255) * truth, normalize=True)
        else:
            measure.step(levels / 255, truth, normalize=False)
    f, e, mae, s, weighted = measures
    values = {"mae": mae.maes[0], "s_measure": s.sms[0], "weighted_f": weighted.weighted_fms[0]}
    for name, result in (("f", f.get_results()["fm"]), ("e", e.get_results()["em"])):
        values[name] = np.append(result["curve"][::-1], result["adp"])
    return values


@pytest.mark.parametrize("stretch", [False, True])
def test_reference(stretch):
    for levels, truth in make_pairs():
        found = measure_levels(levels, prepare(truth), stretch)
        for name, expected in reference(levels, truth, stretch).items():
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-7, err_msg=name)


def test_the_same_as_of_maps():
    for levels, truth in make_pairs():
        of_map, of_levels = SaliencyScores(), SaliencyScores()
        of_map.add(levels / 255, truth)
        of_levels.add_measures(measure_levels(levels, prepare(truth), stretch=False))
        assert of_levels.result() == pytest.approx(of_map.result(), abs=1e-8)


def test_without_the_weighted_f():
    truth = np.eye(5, dtype=bool)
    assert "weighted_f" not in measure_levels(np.eye(5, dtype=np.uint8), prepare(truth), weighted=False)


@pytest.mark.parametrize("levels", [np.zeros((5, 5)), np.zeros((4, 5), np.uint8)])
def test_what_is_no_map_of_levels_is_refused(levels):
    with pytest.raises(ValueError, match=r"expected uint8 \(5, 5\), got"):
        measure_levels(levels, prepare(np.eye(5, dtype=bool)))
