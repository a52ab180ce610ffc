"""Pictures: one row an image, a column a panel, instances in distinct colours."""

from __future__ import annotations

import numpy as np

from maskgym.data.scenes import Scenes
from maskgym.envs.rendering import PALETTE, overlay, picture


def test_columns_rows_and_text_take_room() -> None:
    sample = Scenes("cosod", group_size=3)[0]
    plain = picture(sample, {})
    with_panel = picture(sample, {"after": sample.masks})
    with_text = picture(sample, {}, "two words\nand more")
    assert plain.dtype == np.uint8 and plain.shape[0] > 3 * 200
    assert with_panel.shape[1] > plain.shape[1]
    assert with_text.shape[0] > plain.shape[0]


def test_instances_have_their_own_colours_and_the_rest_is_dimmed() -> None:
    image = np.full((20, 20, 3), 200, np.uint8)
    masks = np.zeros((2, 20, 20), bool)
    masks[0, :5, :5] = masks[1, 10:, 10:] = True
    shown = overlay(image, masks)
    np.testing.assert_array_equal(shown[0, 0], PALETTE[0])
    np.testing.assert_array_equal(shown[10, 10], PALETTE[1])
    assert shown[7, 7].max() < 100
    assert (image == 200).all()


def test_no_mask_dims_everything() -> None:
    shown = overlay(np.full((8, 8, 3), 200, np.uint8), np.zeros((0, 8, 8), bool))
    assert (shown == 90).all()
