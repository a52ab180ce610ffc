"""Fit images into a square at their aspect ratio, and resize maps over that square back to the image."""

from __future__ import annotations

import numpy as np
from PIL import Image


def fitted_size(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Compute the (height, width) of an image in a square of ``side`` pixels; its shape begins with (H, W).

    Example:
        >>> fitted_size((10, 20), 40), fitted_size((300, 1), 30)
        ((20, 40), (30, 1))
    """
    height, width = shape[:2]
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def letterbox(image: np.ndarray, side: int) -> np.ndarray:
    """Scale an image to fit a square at its aspect ratio, uint8 (side, side, 3), with zeros right and below."""
    if image.shape[:2] == (side, side):
        return image
    height, width = fitted_size(image.shape, side)
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[:height, :width] = resized(image, (height, width))
    return square


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image bilinearly to (height, width), uint8 (height, width, 3)."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def unletterbox(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize a map over a square to the image that was letterboxed there, float32 (H, W).

    The padding is cut off, and the rest is resized bilinearly (with area averaging if it shrinks).

    Args:
        values: float (side, side) in [0, 1].
        shape: Shape of the image, which begins with (H, W).
    """
    height, width = fitted_size(shape, len(values))
    inside = np.ascontiguousarray(values[:height, :width], dtype=np.float32)
    if inside.shape == shape[:2]:
        return inside.copy()
    resized = Image.fromarray(inside).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized).clip(0, 1)  # The weights of the resizing sum to 1 except for rounding.
