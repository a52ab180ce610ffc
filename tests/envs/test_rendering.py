"""Pictures: one row an image, a column a panel, instances in distinct colours."""

from __future__ import annotations

import dataclasses

import numpy as np

from maskgym.data.scenes import Scenes
from maskgym.envs.rendering import PALETTE, contact_sheet, overlay, picture


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


def test_a_sheet_breaks_into_rows_and_shows_every_sample() -> None:
    scenes = Scenes("need", size=9)
    narrow, wide = (contact_sheet([scenes[index] for index in range(9)], width) for width in (500, 5000))
    assert narrow.shape[0] > 4 * wide.shape[0] and wide.shape[1] == 5000
    for index in range(9):  # each panel but the first row's begins below another's text
        assert (
            narrow[index // 2 * 260 + 6 : index // 2 * 260 + 226, index % 2 * 230 + 6 : index % 2 * 230 + 200] < 255
        ).any()


def test_a_sheet_says_how_large_a_group_is_and_cuts_long_names() -> None:
    group = Scenes("cosod", group_size=3)[0]
    blank = contact_sheet([dataclasses.replace(group, key="", category=" ")])
    named = contact_sheet([dataclasses.replace(group, key="k" * 500)])
    assert named.shape == blank.shape and (named != blank).any()
