"""Cache masks of phrases, keyed by the pixels of the image and the phrase."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from maskgym.segmenters.byte_cache import ByteCache
from maskgym.segmenters.contracts import ReferringSegmenter
from maskgym.segmenters.frozen import pixels_key
from maskgym.segmenters.phrases.masks import segment_checked
from maskgym.segmenters.text import uniform_phrase


class MaskCache:
    """Referring segmenter that caches its masks as bits and returns 0 and 1 instead of probabilities.

    Rounding depends on the batch, by about 1e-6 of a probability. A cached mask may therefore differ from a recomputed
    mask in single pixels at the edge.

    Args:
        segmenter: A referring segmenter.
        max_bytes: Memory bound in bytes, with least-recently-used eviction.

    Raises:
        UserError: If max_bytes is negative.
    """

    def __init__(self, segmenter: ReferringSegmenter, max_bytes: int = 2**30) -> None:
        self.segmenter = segmenter
        self.kept: ByteCache[np.ndarray] = ByteCache(max_bytes)
        self.hits = self.misses = 0

    def segment(self, images: Sequence[np.ndarray], expressions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Compute or look up masks float32 (n_i, H_i, W_i) of 0 and 1; see `ReferringSegmenter`.

        Raises:
            UserError: If the segmenter does not return float (n_i, H_i, W_i) in [0, 1] for each image.
        """
        keys = []
        for image, row in zip(images, expressions, strict=True):
            pixels = pixels_key(image) if row else b""
            keys.append([(pixels, uniform_phrase(phrase)) for phrase in row])
        bits = {key: kept for row in keys for key in row if (kept := self.kept.get(key)) is not None}
        missing = [[key[1] for key in row if key not in bits] for row in keys]
        # An array of another size, or NaN, would become a mask, which nobody could tell from a good one.
        names = [f"image {number} of {len(images)}" for number in range(1, len(images) + 1)]
        found: Sequence[Iterable[np.ndarray]] = [()] * len(images)
        if any(missing):
            found = segment_checked(self.segmenter, images, missing, names)
        new: dict[tuple[bytes, str], np.ndarray] = {}
        for own, phrases, masks in zip(keys, missing, found, strict=True):
            new |= {(own[0][0], phrase): np.packbits(mask > 0.5) for phrase, mask in zip(phrases, masks, strict=True)}
        self.misses += len(new)
        self.hits += sum(map(len, keys)) - len(new)
        bits |= new
        for key in itertools.chain(*keys):
            self.kept.keep(key, bits[key])
        return [
            np.stack([_unpacked(bits[key], image.shape[:2]) for key in row])
            if row
            else np.zeros((0, *image.shape[:2]), np.float32)
            for image, row in zip(images, keys, strict=True)
        ]


def _unpacked(bits: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return np.unpackbits(bits, count=size[0] * size[1]).reshape(size).astype(np.float32)
