"""The referring agent: what it asks the segmenter for, and what it answers where nothing is asked."""

from __future__ import annotations

import numpy as np
import pytest

from maskgym.agents.masks.referring import ReferringAgent
from maskgym.errors import UserError


def see(*needs: str) -> list[dict]:
    return [{"image": np.zeros((4, 6, 3), np.uint8), "need": need} for need in needs]


def test_the_phrase_is_the_need_without_its_prefix(halves):
    left, right, find, blank, nothing = ReferringAgent(segmenter=halves).act(
        see("find the left one", " FIND the right one ", "the left of what I find right", "find ", "")
    )
    assert left.dtype == np.float32 and left[:, :3].all() and not left[:, 3:].any()
    assert right[:, 3:].all() and not right[:, :3].any()
    assert find.all()
    for empty in (blank, nothing):
        assert empty.shape == (4, 6) and not empty.any()
    assert halves.calls == 1


def test_another_prefix_is_taken_off(halves):
    heard = []
    halves.segment = lambda images, expressions: heard.extend(expressions) or [np.zeros((1, 4, 6), np.float32)] * 2
    ReferringAgent(segmenter=halves, prefix="show ").act(see("show a star", "find a star"))
    assert heard == [["a star"], ["find a star"]]


def test_a_segmenter_of_points_is_refused():
    with pytest.raises(UserError, match="segmenter=None: takes no phrases: expected a referring one"):
        ReferringAgent()
