from __future__ import annotations

import numpy as np
import pytest

from maskgym.experiments.annotation.needs import masks
from maskgym.segmenters.points.sam import sam_tiny


@pytest.fixture(scope="module")
def segmenter():
    return sam_tiny(device="cpu")


def drawn() -> np.ndarray:
    mask = np.zeros((5, 4), bool)
    mask[1:3, 2:4] = mask[4, 0] = True
    return mask


def test_boxes_of_masks():
    assert masks.box_of(drawn()) == (0, 1, 4, 5)
    assert masks.box_of(np.zeros((3, 3), bool)) is None


def test_an_appearance_is_the_image_where_the_mask_is():
    image = np.full((40, 60, 3), 200, np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[10:20, 30:50] = True
    mask[15, 35] = False
    shown = masks.appearance(image, mask, (0, 0, 5, 5))
    assert shown.shape == (14, 24, 3)  # 20 long, a margin of 1.6 a side
    assert shown.sum() == 3 * 200 * mask.sum() and not shown[0].any()
    assert (masks.appearance(image, None, (0, 0, 10, 10)) == 200).all()
    assert masks.appearance(image, np.zeros_like(mask), (55, 35, 60, 40)).shape == (6, 6, 3)


def test_boxes_and_clicks_of_an_oblong_image_are_in_its_own_pixels(segmenter):
    from maskgym.data import make

    prompted = masks.Prompted(segmenter)
    square = make("scenes", split="test")[3].images[0]
    image = square[:, :90]  # what is padded is not seen
    (clicked,) = prompted(image, None, [[[40.0, 60.0]]], [[1]])
    assert clicked.shape == (128, 90) and clicked.dtype == bool
    padded = np.full((128, 128, 3), masks.PADDING_COLOUR, np.uint8)
    padded[:, :90] = image
    logits = segmenter.decode(segmenter.encode([padded]), [[[40.0, 60.0]]], [[1]], side=128)
    assert (clicked == (segmenter.resize(logits, [(128, 128)])[0][:, :90] > 0)).all()
    boxed = prompted(image, [(10, 20, 60, 90), (30, 30, 50, 50)])
    assert boxed.shape == (2, 128, 90) and (boxed[0] != boxed[1]).any()
    both = prompted(image, [(10, 20, 60, 90)], [[[40.0, 60.0]]], [[1]])[0]
    assert (both != clicked).any() and (both != boxed[0]).any()
    assert prompted(image, []).shape == (0, 128, 90)
