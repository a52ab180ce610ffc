"""IoU of classes: pooled in a class, a mean over classes."""

from __future__ import annotations

import numpy as np
import pytest

from maskgym.metrics import ClassScores, SaliencyScores


def bar(columns):
    """Mark the first columns of 4 x 8 pixels."""
    return np.broadcast_to(np.arange(8) < columns, (4, 8)).copy()


def test_a_class_pools_its_pixels_and_classes_weigh_the_same():
    scores, images = ClassScores(), SaliencyScores()
    pairs = [(bar(1), bar(2), "cat"), (bar(8), bar(8), "cat"), (bar(8), bar(4), "dog")]
    for prediction, target, name in pairs:
        scores.add(prediction, target, name)
        images.add(prediction, target)
    found = scores.result()
    assert found["class_iou/cat"] == pytest.approx((4 + 32) / (8 + 32))  # the mean of its images is 0.75
    assert found["class_iou/dog"] == 0.5
    assert found["class_iou"] == pytest.approx((0.9 + 0.5) / 2)
    assert images.result()["iou"] == pytest.approx((0.5 + 1 + 0.5) / 3)  # that of images is another number


def test_areas_give_the_same_as_masks():
    masks, counted = ClassScores(), ClassScores()
    masks.add(bar(3), bar(5), "cat")
    counted.add_areas(12, 20, "cat")
    assert masks.result() == counted.result() == {"class_iou": 0.6, "class_iou/cat": 0.6}


def test_a_class_without_a_pixel_is_0_and_nothing_is_an_error():
    scores = ClassScores()
    with pytest.raises(ValueError, match="no image was added"):
        scores.result()
    scores.add(bar(0), bar(0), "cat")
    assert scores.result()["class_iou"] == 0
    with pytest.raises(ValueError, match="shape"):
        scores.add(bar(1), bar(1)[:2], "cat")


def test_scores_as_json_can_be_put_together():
    apart, together = [SaliencyScores(), SaliencyScores()], SaliencyScores()
    for number, columns in enumerate((1, 3, 6)):
        apart[number % 2].add(bar(columns), bar(4))
        together.add(bar(columns), bar(4))
    merged = SaliencyScores()
    for one in apart:
        merged.add_scores(one.to_json())
    assert merged.images == 3 and merged.result() == pytest.approx(together.result())
