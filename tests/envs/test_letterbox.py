"""Into the square and back: sizes, padding, and what a map becomes at the image's own size."""

from __future__ import annotations

import numpy as np
import pytest

from maskgym.envs.letterbox import fitted_size, letterbox, unletterbox


@pytest.mark.parametrize("shape", [(20, 30), (40, 24), (32, 32), (1, 500), (7, 3)])
def test_what_lies_on_the_padding_is_cut_and_the_rest_has_the_images_size(shape):
    side = 16
    inside = letterbox(np.full((*shape, 3), 255, np.uint8), side)[..., 0] > 0
    height, width = fitted_size(shape, side)
    assert inside[:height, :width].all() and inside.sum() == height * width and max(height, width) == side
    assert (unletterbox(inside.astype(np.float32), shape) == 1).all()
    assert (unletterbox((~inside).astype(np.float32), shape) == 0).all()
    back = unletterbox(np.random.default_rng(0).random((side, side)), shape)
    assert back.shape == shape and back.dtype == np.float32 and 0 <= back.min() and back.max() <= 1


def test_a_map_keeps_its_place():
    values = np.zeros((40, 40), np.float32)
    values[:20, :20] = 1  # the left half of an image of 10 x 20, which fills the upper half of the square
    back = unletterbox(values, (10, 20, 3))
    assert (back[:, :9] == 1).all() and (back[:, 11:] == 0).all()


def test_at_the_same_size_nothing_changes_and_nothing_is_shared():
    values = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    back = unletterbox(values, (8, 8))
    np.testing.assert_array_equal(back, values)
    back[:] = 0
    assert values.any()
