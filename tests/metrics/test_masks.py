"""Checks of arguments, and the prepared target."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskgym import metrics
from maskgym.metrics import e_measure, f_measure, iasm, iou, mae, match_instances, prepare, s_measure
from maskgym.metrics.masks import PreparedMask

PAIRWISE = (s_measure, mae, iou, f_measure, e_measure)


@pytest.mark.parametrize("metric", PAIRWISE)
@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.zeros((3, 4)), r"differ in shape: \(3, 4\) and \(4, 4\)"),
        (np.zeros((1, 4, 4)), r"differ in shape: \(1, 4, 4\) and \(4, 4\)"),
        (np.zeros(4), r"prediction: expected shape \(H, W\)"),
        (np.zeros((0, 4)), r"prediction: expected shape"),
        (np.where(np.eye(4) > 0, np.nan, 0), r"prediction: expected values in \[0, 1\], got nan at \(0, 0\)"),
        (np.eye(4)[::-1] * 1.5, r"prediction: expected values in \[0, 1\], got 1.5 at \(0, 3\)"),
        (-np.eye(4), r"got -1.0 at \(0, 0\)"),
        (np.eye(4, dtype=np.uint8) * 255, r"got 255.0 at \(0, 0\)"),
    ],
)
def test_bad_prediction_is_named(metric, prediction, message):
    with pytest.raises(ValueError, match=message):
        metric(prediction, np.eye(4, dtype=bool))


@pytest.mark.parametrize("metric", PAIRWISE)
def test_bad_target_is_named(metric):
    with pytest.raises(ValueError, match=r"target: expected values in \[0, 1\], got nan at \(1, 2\)"):
        metric(np.zeros((2, 3)), np.array([[0, 0, 0], [0, 1, np.nan]]))


@pytest.mark.parametrize("metric", PAIRWISE)
@pytest.mark.parametrize("kind", [np.float64, np.float32, bool])
def test_inputs_agree_and_are_not_modified(metric, kind):
    rng = np.random.default_rng(0)
    prediction, target = (rng.random((3, 9, 14)) > 0.4).astype(kind), rng.random((3, 9, 14)) > 0.5
    kept = prediction.copy(), target.copy()
    values = np.array(metric(prediction, target))
    assert values.shape[-1] == 3
    for index in range(3):
        alone = np.array(metric(prediction[index], target[index]))
        np.testing.assert_array_equal(alone, values[..., index])
    for other_prediction, other_target in (
        (torch.from_numpy(prediction), torch.from_numpy(target)),
        (prediction, prepare(target)),
        (prediction.astype(np.float64), target.astype(np.float32)),
        (np.asfortranarray(prediction), np.asfortranarray(target)),
    ):
        np.testing.assert_allclose(metric(other_prediction, other_target), values, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(prediction, kept[0])
    np.testing.assert_array_equal(target, kept[1])


def test_half_precision_tensors_are_read():
    target = torch.eye(5)
    for kind in (torch.float16, torch.bfloat16):
        assert mae(target.to(kind) * 0.5, target) == pytest.approx(0.1)


def test_a_prepared_target_is_a_copy():
    target = np.eye(6, dtype=bool)
    prepared = prepare(target)
    target[:] = False
    assert iou(np.eye(6, dtype=bool), prepared) == 1


def test_prepare_returns_one_or_many():
    assert isinstance(prepare(np.eye(3)), PreparedMask)
    assert len(prepare(np.zeros((4, 3, 3)))) == 4
    with pytest.raises(ValueError, match="differ in shape"):
        s_measure(np.zeros((3, 3, 3)), prepare(np.zeros((4, 3, 3))))


@pytest.mark.parametrize("metric", [s_measure, mae, iou])
def test_true_bytes_that_are_not_one_are_foreground(metric):
    plain = np.zeros((8, 8), bool)
    plain[2:6, 1:5] = True
    odd = (plain * 255).astype(np.uint8).view(bool)  # as masks come out of memory maps and views
    half = np.arange(64).reshape(8, 8) % 3 == 0
    assert metric(odd, odd) == metric(plain, plain)
    assert metric(half, odd) == metric(half, plain) and metric(odd, half) == metric(plain, half)
    assert prepare(odd).area == 16


@pytest.mark.parametrize("metric", PAIRWISE)
@pytest.mark.parametrize("odd", [np.eye(4) * 1j, np.full((4, 4), "1"), np.full((4, 4), None)])
def test_what_is_no_real_number_is_refused(metric, odd):
    with pytest.raises(ValueError, match="prediction: expected bool or real numbers, got"):
        metric(odd, np.eye(4, dtype=bool))


def test_a_tensor_without_values_is_refused():
    with pytest.raises(ValueError, match="target: expected values, got a tensor on the device meta"):
        prepare(torch.zeros(4, 4, device="meta"))


def test_an_empty_batch_gives_no_values():
    nothing = np.zeros((0, 3, 3), bool)
    assert s_measure(nothing, nothing).shape == f_measure(nothing, nothing).max.shape == (0,)
    assert e_measure(nothing, nothing).mean.shape == (0,)


@pytest.mark.parametrize("tight", [True, False])
def test_crops_count_what_the_whole_mask_counts(tight):
    rng = np.random.default_rng(1)
    for _ in range(50):
        height, width = rng.integers(1, 9, 2)
        first, second = rng.random((2, height, width)) > rng.random((2, 1, 1))
        mask, other = PreparedMask.of(first, tight), PreparedMask.of(second)
        assert mask.area == first.sum()
        common = mask.intersection(other)
        assert (common.area if common else 0) == (first & second).sum()
        row, column = rng.integers(0, height + 1), rng.integers(0, width + 1)
        blocks = (first[:row, :column], first[:row, column:], first[row:, :column], first[row:, column:])
        assert mask.count_blocks((row, column)) == tuple(block.sum() for block in blocks)
        np.testing.assert_array_equal(other.select(first), first[second])


@pytest.mark.parametrize("shape", [(700, 300), (255, 256), (256, 513), (3, 900)])
def test_the_blocks_of_a_large_mask_meet_beyond_its_centroid(shape):
    rng = np.random.default_rng(2)
    for share in (0.01, 0.5, 1):  # lines of 256 pixels and more are counted in parts
        mask = rng.random(shape) < share
        mask[-1] = mask[:, -1] = False
        row, column = np.argwhere(mask).mean(axis=0).round().astype(int) + 1
        blocks = prepare(mask).blocks
        assert blocks.cut == (row, column)
        assert blocks.areas == tuple(mask[block].sum() for block in blocks.slices)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_ends_of_the_range(kind):
    target = np.eye(4, dtype=bool)
    assert mae(np.full((4, 4), -0.0, kind), target) == 0.25
    assert mae(np.full((4, 4), 1, kind), target) == 0.75
    for value in (np.nextafter(kind(1), kind(2)), -np.nextafter(kind(0), kind(1)), np.inf, -np.inf, np.nan, -np.nan):
        prediction = np.zeros((4, 4), kind)
        prediction[1, 2] = value
        with pytest.raises(ValueError, match=r"expected values in \[0, 1\], got .* at \(1, 2\)"):
            mae(prediction, target)


def test_instances_need_three_axes_and_one_size():
    with pytest.raises(ValueError, match=r"predictions: expected shape \(instances, H, W\), got \(4, 4\)"):
        iasm(np.eye(4, dtype=bool), np.zeros((1, 4, 4), bool))
    with pytest.raises(ValueError, match=r"differ in image size: \(4, 4\) and \(4, 5\)"):
        match_instances(np.zeros((0, 4, 4), bool), np.zeros((1, 4, 5), bool))


def test_every_public_name_exists():
    assert all(hasattr(metrics, name) for name in metrics.__all__)
