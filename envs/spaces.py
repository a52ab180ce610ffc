"""Spaces that Gymnasium lacks: free text, and images of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Text

SAMPLE_ALPHABET = "abcdefghijklmnopqrstuvwxyz <>/[]"


class FreeText(Text):
    """Text of any script up to a length; it may be empty.

    Gymnasium's ``Text`` checks each character against a set, which takes a second and half a gigabyte for all of
    Unicode. This ``contains`` checks type and length only. Samples come from a small alphabet.

    Args:
        max_length: Maximum number of characters.
        seed: Seed of the samples.

    Example:
        >>> "" in FreeText(10), "日本" in FreeText(10), "x" * 11 in FreeText(10)
        (True, True, False)
    """

    def __init__(self, max_length: int, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length, min_length=0, charset=SAMPLE_ALPHABET, seed=seed)

    def contains(self, x: Any) -> bool:
        """Check that ``x`` is a text of at most ``max_length`` characters."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"FreeText({self.max_length})"


class ImageSpace(Space[np.ndarray]):
    """RGB images, uint8 (H, W, 3), of any height and width from 1 pixel.

    Gymnasium batches them as a tuple. Samples are noise with sides of at most 64 pixels.

    Example:
        >>> np.zeros((5, 7, 3), np.uint8) in ImageSpace(), np.zeros((5, 7)) in ImageSpace()
        (True, False)
    """

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(shape=None, dtype=np.uint8, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """Return False, because the images have no common shape."""
        return False

    def sample(self, mask: None = None, probability: None = None) -> np.ndarray:
        """Draw a noise image."""
        height, width = self.np_random.integers(1, 65, size=2)
        return self.np_random.integers(0, 256, size=(height, width, 3), dtype=np.uint8)

    def contains(self, x: Any) -> bool:
        """Check that ``x`` is such an image."""
        return isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] == 3 and x.size > 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageSpace)

    def __repr__(self) -> str:
        return "ImageSpace()"
