"""The cache of masks: equal to the segmenter's, computed once, within a bound."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from maskgym.errors import UserError
from maskgym.segmenters.phrases.mask_cache import MaskCache


class Counting:
    """Segments the left part of an image, as wide as a phrase is long; notes what it was asked."""

    def __init__(self):
        self.asked = []

    def segment(self, images, expressions):
        self.asked += [phrase for row in expressions for phrase in row]
        return [np.stack([self.mask(i, p) for p in row]) if row else np.zeros((0, *i.shape[:2]), np.float32)
                for i, row in zip(images, expressions, strict=True)]  # fmt: skip

    def mask(self, image, phrase):
        mask = np.full(image.shape[:2], 0.2, np.float32)
        mask[:, : len(phrase)] = 0.9
        return mask


@pytest.fixture
def images():
    return [np.full((5, 9, 3), value, np.uint8) for value in (10, 20)]


def test_masks_are_the_segmenters_above_a_half_and_computed_once(images):
    segmenter = Counting()
    cache = MaskCache(segmenter)
    asked = [["ab", "cde", "ab"], []]
    for _ in range(2):
        found = cache.segment(images, asked)
        plain = Counting().segment(images, asked)
        assert [masks.shape for masks in found] == [(3, 5, 9), (0, 5, 9)]
        assert all(
            (one == (two > 0.5)).all() and one.dtype == np.float32 for one, two in zip(found, plain, strict=True)
        )
    assert sorted(set(segmenter.asked)) == ["ab", "cde"] and len(segmenter.asked) <= 3
    assert (cache.hits, cache.misses) == (4, 2)
    cache.segment(images, [[], ["ab"]])  # another image
    assert segmenter.asked[-1] == "ab" and cache.misses == 3
    cache.segment([images[0].copy()], [["cde"]])  # the same pixels
    assert cache.misses == 3


def test_the_least_used_go_first(images):
    segmenter = Counting()
    cache = MaskCache(segmenter, max_bytes=12)  # two masks of 45 bits
    for phrase in ("a", "bb", "a", "ccc", "a", "bb"):
        cache.segment(images[:1], [[phrase]])
    assert segmenter.asked == ["a", "bb", "ccc", "bb"]
    assert cache.kept.bytes == 12
    none = MaskCache(segmenter, max_bytes=0)
    assert none.segment(images[:1], [["a"]])[0].sum() == none.segment(images[:1], [["a"]])[0].sum() == 5
    assert none.kept.bytes == 0
    with pytest.raises(UserError, match="max_bytes=-1"):
        MaskCache(segmenter, max_bytes=-1)


def test_masks_stay_out_of_pickles(images):
    cache = MaskCache(Counting())
    cache.segment(images, [["a"], ["b"]])
    again = pickle.loads(pickle.dumps(cache))
    assert again.kept.bytes == 0
    assert (again.segment(images, [["a"], []])[0] == cache.segment(images, [["a"], []])[0]).all()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda masks: masks[:, :3, :3], r"image 1 of 2, 1 phrases: .*\(1, 3, 3\): expected a float array of shape"),
        (lambda masks: masks[:0], "image 1 of 2, 1 phrases: .*expected a float array of shape"),
        (lambda masks: masks * np.nan, "values from nan to nan: expected probabilities"),
        (lambda masks: masks.astype(int), "expected a float array"),
        (lambda masks: None, "expected a float array"),
    ],
)
def test_what_is_no_mask_of_the_image_is_refused_and_not_kept(images, spoil, expected):
    """Cut to bits, and unpacked at the size of the image, each of these would be an ordinary mask."""
    segmenter = Counting()
    cache, good = MaskCache(segmenter), segmenter.segment
    segmenter.segment = lambda *asked: [spoil(masks) for masks in good(*asked)]
    with pytest.raises(UserError, match=f"^segmenter Counting: .*{expected}"):
        cache.segment(images, [["ab"], ["cde"]])
    segmenter.segment = lambda *asked: good(*asked)[:1]
    with pytest.raises(UserError, match="expected a list of 2 arrays, one per image"):
        cache.segment(images, [["ab"], ["cde"]])
    segmenter.segment = good
    assert cache.segment(images, [["ab"], ["cde"]])[0].sum() == 10
