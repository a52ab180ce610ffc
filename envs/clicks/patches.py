"""Geometry of the observed square: patch centres, means over patches, stretched images, points of a target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F


def patch_centres(grid: int, patch_size: int) -> np.ndarray:
    """Compute the centre of each of grid² patches, row by row, float32 (grid², 2), (x, y) in pixels (Eq. 3).

    Example:
        >>> patch_centres(2, 10).tolist()
        [[5.0, 5.0], [15.0, 5.0], [5.0, 15.0], [15.0, 15.0]]
    """
    middle = (np.arange(grid, dtype=np.float32) + 0.5) * patch_size
    return np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2)


def pooling_weights(size: Sequence[int], grid: int) -> torch.Tensor:
    """Compute the weight of each cell of a map (h, w) in the mean over each patch, float32 (h·w, grid²).

    A product with these weights takes a third of the time of PyTorch's adaptive pooling.

    Example:
        >>> pooling_weights((4, 4), 2).sum(dim=0)
        tensor([1., 1., 1., 1.])
    """
    cells = size[0] * size[1]
    each = torch.eye(cells).reshape(1, cells, *size)
    return F.adaptive_avg_pool2d(each, grid)[0].flatten(1)


def stretch(image: np.ndarray, side: int) -> np.ndarray:
    """Stretch an image to a square, uint8 (side, side, 3), so that every patch shows image."""
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def random_prompts(
    target: np.ndarray, side: int, generator: np.random.Generator, void: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a point of the foreground and one of the background (Algorithm 1, line 2), never one of void.

    Args:
        target: bool (H, W), without void.
        side: Side of the observed square, pixels.
        generator: Source of randomness.
        void: bool (H, W), pixels that are neither foreground nor background, or None.

    Returns:
        Points (k, 2), (x, y) in pixels of the square, and labels (k,); k is 1 if there is no foreground, or no
        background, else 2.
    """
    points, labels = [], []
    for label, where in ((1, target), (0, ~target if void is None else ~(target | void))):
        cells = np.flatnonzero(where)
        if len(cells):
            y, x = divmod(int(generator.choice(cells)), target.shape[1])
            points.append((np.array([x, y]) + 0.5) / target.shape[::-1] * side)
            labels.append(label)
    return np.array(points), np.array(labels)
