"""Images in a square, aspect ratio kept, and maps over that square back at the image's own size."""

from __future__ import annotations

import numpy as np
from PIL import Image


def fitted_size(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Return the (height, width) that an image of this shape, (H, W) first, has in a square of ``side`` pixels.

    Example:
        >>> fitted_size((10, 20), 40), fitted_size((300, 1), 30)
        ((20, 40), (30, 1))
    """
    height, width = shape[:2]
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def letterbox(image: np.ndarray, side: int) -> np.ndarray:
    """Return uint8 (side, side, 3): the image scaled to fit, aspect ratio kept, zeros right and below."""
    if image.shape[:2] == (side, side):
        return image
    height, width = fitted_size(image.shape, side)
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[:height, :width] = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return square


def unletterbox(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 (H, W): a map over a square at the size of the image that was letterboxed there.

    What lies on the padding is cut, the rest resized bilinearly (with area averaging where it shrinks).

    Args:
        values: float (side, side) in [0, 1].
        shape: Of the image, (H, W) first.
    """
    height, width = fitted_size(shape, len(values))
    inside = np.ascontiguousarray(values[:height, :width], dtype=np.float32)
    if inside.shape == shape[:2]:
        return inside.copy()
    resized = Image.fromarray(inside).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized).clip(0, 1)  # its weights sum to 1 but for rounding
