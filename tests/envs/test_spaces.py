"""The spaces of our own, alone and batched by Gymnasium."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.spaces import Dict
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from maskgym.envs.spaces import FreeText, ImageSpace


@pytest.mark.parametrize("space", [FreeText(30), ImageSpace()])
def test_samples_are_members_and_seeds_repeat(space) -> None:
    space.seed(3)
    first = [space.sample() for _ in range(20)]
    space.seed(3)
    for one, other in zip(first, [space.sample() for _ in range(20)], strict=True):
        assert one in space
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("text", ["", "\x00", "ünïcödé 日本", "<think>", "\ud800"])
def test_any_text_is_legal(text: str) -> None:
    assert text in FreeText(20)


@pytest.mark.parametrize("value", [None, 3, b"bytes", "x" * 21, ["a"]])
def test_what_is_not_a_text(value: object) -> None:
    assert value not in FreeText(20)


@pytest.mark.parametrize("value", [np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2, 3), np.uint8), "x"])
def test_what_is_not_an_image(value: object) -> None:
    assert value not in ImageSpace()


def test_images_are_batched_as_a_tuple() -> None:
    space = Dict({"image": ImageSpace(), "text": FreeText(5)})
    rows = [space.sample() for _ in range(3)]
    batch = concatenate(space, rows, create_empty_array(space, 3))
    assert isinstance(batch["image"], tuple) and batch in batch_space(space, 3)
