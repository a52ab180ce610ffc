"""Masks of phrases computed once: keyed by the pixels of the image and the phrase."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from .frozen import pixels_key
from .text import uniform_phrase


class MaskCache:
    """A referring segmenter that remembers its masks, as bits: it returns 0 and 1 in place of probabilities.

    What a phrase's mask is rounds differently with what else is segmented in the same call, by about 1e-6 of a
    probability. So a mask found here may differ from one computed anew in single pixels at the edge.

    Args:
        segmenter: A referring segmenter.
        max_bytes: How much memory the masks may take; the least recently used ones go first.

    Raises:
        UserError: If max_bytes is negative.
    """

    def __init__(self, segmenter: Any, max_bytes: int = 2**30) -> None:
        if max_bytes < 0:
            raise UserError(f"max_bytes={max_bytes}: expected at least 0")
        self.segmenter, self.max_bytes, self.bytes = segmenter, max_bytes, 0
        self.hits = self.misses = 0
        self._kept: OrderedDict[tuple[bytes, str], np.ndarray] = OrderedDict()

    @property
    def fingerprint(self) -> str:
        """Return the segmenter's."""
        return self.segmenter.fingerprint

    @property
    def input_size(self) -> int:
        """Return the segmenter's."""
        return self.segmenter.input_size

    def segment(self, images: Sequence[np.ndarray], expressions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Return float32 (n_i, H_i, W_i), 0 or 1; arguments and errors are those of the segmenter."""
        keys = [
            [(pixels_key(image), uniform_phrase(phrase)) for phrase in row]
            for image, row in zip(images, expressions, strict=True)
        ]
        missing = [[phrase for key, phrase in row if (key, phrase) not in self._kept] for row in keys]
        found = self.segmenter.segment(images, missing) if any(missing) else []
        new: dict[tuple[bytes, str], np.ndarray] = {}
        for row, phrases, masks in zip(keys, missing, found, strict=False):
            new |= {(row[0][0], phrase): np.packbits(mask > 0.5) for phrase, mask in zip(phrases, masks, strict=True)}
        asked = [key for row in keys for key in row]
        self.misses += len(new)
        self.hits += len(asked) - len(new)
        bits = new | {key: self._kept[key] for key in asked if key not in new}
        for key in dict.fromkeys(asked):
            self._keep(key, bits[key])
        return [
            np.stack([_unpacked(bits[key], image.shape[:2]) for key in row]) if row else _nothing(image)
            for image, row in zip(images, keys, strict=True)
        ]

    def __getstate__(self) -> dict:
        """Leave the masks behind: the receiving process computes its own."""
        return {**self.__dict__, "_kept": OrderedDict(), "bytes": 0}

    def _keep(self, key: tuple[bytes, str], bits: np.ndarray) -> None:
        if key not in self._kept:
            self._kept[key] = bits
            self.bytes += bits.nbytes
        self._kept.move_to_end(key)
        while self.bytes > self.max_bytes:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes


def _unpacked(bits: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return np.unpackbits(bits, count=size[0] * size[1]).reshape(size).astype(np.float32)


def _nothing(image: np.ndarray) -> np.ndarray:
    return np.zeros((0, *image.shape[:2]), np.float32)
