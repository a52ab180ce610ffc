"""Masks of boxes and points on photos of any size, by the bundled SAM."""

from __future__ import annotations

import numpy as np
import pytest

from maskgym import segmenters
from maskgym.data.scenes import Scenes
from maskgym.metrics import iou
from maskgym.rewards.truth import true_objects
from maskgym.segmenters.points import objects
from maskgym.segmenters.points.objects import segment_objects


@pytest.fixture(scope="module")
def sam():
    return segmenters.make("sam_tiny", device="cpu")


@pytest.fixture(scope="module")
def samples():
    scenes = Scenes("refer", "test")
    found = [scenes[index] for index in range(12)]
    return [sample for sample in found if len(sample.masks[0])]


def prompts(sample, kind: str):
    found = true_objects(sample.masks[0])
    box = [each.box if "box" in kind else None for each in found]
    points = [each.points if "point" in kind else () for each in found]
    return box, points, [[1] * len(row) for row in points]


@pytest.mark.parametrize("kind, least", [("box", 0.85), ("point", 0.75), ("box and point", 0.85)])
def test_true_prompts_make_true_masks(sam, samples, kind: str, least: float) -> None:
    asked = [prompts(sample, kind) for sample in samples]
    masks = segment_objects(sam, [sample.images[0] for sample in samples], *map(list, zip(*asked, strict=True)))
    quality = [
        iou(mask, truth)
        for sample, found in zip(samples, masks, strict=True)
        for mask, truth in zip(found, sample.masks[0], strict=True)
    ]
    assert np.mean(quality) > least


def test_photos_of_any_size_are_padded_not_stretched(sam, samples) -> None:
    # The bundled SAM knows square scenes alone, so the padding is narrow here.
    wide = [np.pad(sample.images[0], ((0, 0), (0, 8), (0, 0))) for sample in samples]
    boxes = [prompts(sample, "box")[0] for sample in samples]
    none = [[()] * len(row) for row in boxes]
    found = segment_objects(sam, wide, boxes, none, none)
    assert {masks.shape[1:] for masks in found} == {(128, 136)}
    pairs = [
        pair for sample, masks in zip(samples, found, strict=True) for pair in zip(masks, sample.masks[0], strict=True)
    ]
    assert np.mean([iou(mask[:, :128], truth) for mask, truth in pairs]) > 0.8


def test_what_lies_outside_has_no_mask(sam, samples) -> None:
    image = samples[0].images[0]
    nowhere = [(200, 10, 300, 50), (10, 50, 10, 60), (60, 10, 20, 50), (-9, -9, -1, -1)]
    (masks,) = segment_objects(sam, [image], [nowhere], [[()] * 4], [[()] * 4])
    assert masks.shape == (4, 128, 128) and not masks.any()
    (masks,) = segment_objects(sam, [image], [[None] * 3], [[[(500, 5)], [(5, 5)], ()]], [[[1], [0], ()]])
    assert not masks.any()


def test_boxes_are_clipped_and_points_outside_left_out(sam, samples) -> None:
    image = samples[0].images[0]
    (found,) = segment_objects(sam, [image], [[(-50, -50, 60, 60)]], [[[(999, 1)]]], [[[1]]])
    (clipped,) = segment_objects(sam, [image], [[(0, 0, 60, 60)]], [[()]], [[()]])
    np.testing.assert_array_equal(found, clipped)


def test_each_image_is_encoded_once_and_chunks_change_nothing(sam, samples, monkeypatch) -> None:
    images = [sample.images[0] for sample in samples]
    boxes = [[each.box for each in true_objects(sample.masks[0])] * 3 for sample in samples]
    none = [[()] * len(row) for row in boxes]
    whole = segment_objects(sam, images, boxes, none, none)
    monkeypatch.setattr(objects, "ROWS", 5)
    for one, other in zip(whole, segment_objects(sam, images, boxes, none, none), strict=True):
        assert iou(one.any(axis=0), other.any(axis=0)) > 0.999


def test_no_objects_no_masks(sam, samples) -> None:
    (found,) = segment_objects(sam, [samples[0].images[0]], [[]], [[]], [[]])
    assert found.shape == (0, 128, 128) and found.dtype == bool
