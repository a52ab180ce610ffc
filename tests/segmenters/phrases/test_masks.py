"""Masks of phrases from any segmenter: asked once, in bounded memory, in order."""

from __future__ import annotations

import numpy as np
import pytest

from maskgym.errors import UserError
from maskgym.segmenters.outputs import check_finite
from maskgym.segmenters.phrases import masks
from maskgym.segmenters.phrases.masks import find_masks


class Lengths:
    """Segments the first columns, as many as the phrase has letters; notes what it is asked."""

    fingerprint = "lengths"

    def __init__(self) -> None:
        self.asked: list[list[list[str]]] = []

    def segment(self, images, expressions):
        self.asked.append([list(row) for row in expressions])
        found = []
        for image, row in zip(images, expressions, strict=True):
            found.append(np.zeros((len(row), *image.shape[:2]), np.float32))
            for mask, phrase in zip(found[-1], row, strict=True):
                mask[:, : len(phrase)] = 0.9
        return found


def sizes(found: list[np.ndarray]) -> list[list[int]]:
    return [mask[:, 0].sum(axis=1).tolist() for mask in found]


IMAGES = [np.zeros((4, 8, 3), np.uint8), np.zeros((6, 8, 3), np.uint8), np.zeros((2, 8, 3), np.uint8)]
ASKED = [["a", "bbb", "a", "cc"], [], ["dddd", "dddd"]]


def test_equal_phrases_are_asked_once_and_come_back_in_order() -> None:
    segmenter = Lengths()
    found = find_masks(segmenter, IMAGES, ASKED, ["x", "y", "z"])
    assert segmenter.asked == [[["a", "bbb", "cc"], [], ["dddd"]]]
    assert sizes(found) == [[1, 3, 1, 2], [], [4, 4]]
    assert [mask.shape for mask in found] == [(4, 4, 8), (0, 6, 8), (2, 2, 8)] and found[0].dtype == bool
    assert np.shares_memory(found[2][0], found[2][1])  # a policy that repeats itself fills no memory


def test_calls_are_cut_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "CALL_BYTES", 2 * 4 * 4 * 8)  # two masks of the first image
    segmenter = Lengths()
    found = find_masks(segmenter, IMAGES, ASKED, ["x", "y", "z"])
    assert segmenter.asked == [[["a", "bbb"]], [["cc"], [], ["dddd"]]]
    assert sizes(found) == [[1, 3, 1, 2], [], [4, 4]]


def test_numbers_that_are_not_finite_are_told_by_row() -> None:
    torch = pytest.importorskip("torch")
    values = torch.zeros(3, 2, 2)
    check_finite(values, (3, None, None), "x")
    values[1, 0, 1] = float("inf")
    for given, words in (
        (values, "x: row 1 has NaN or infinite values"),
        (torch.zeros(2, 2, 2), r"x: Tensor torch.float32 \(2, 2, 2\): expected a float tensor of shape \(3, …, …\)"),
        (torch.zeros(3, 2), "expected a float tensor"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), "expected a float tensor"),
        (np.zeros((3, 2, 2)), "ndarray float64"),
    ):
        with pytest.raises(UserError, match=words):
            check_finite(given, (3, None, None), "x")
