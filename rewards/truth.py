"""Objects that masks stand for: the tight box and the deepest point of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt

from maskgym.metrics import PreparedMask
from maskgym.rewards.answers import Located


def true_objects(masks: np.ndarray, phrases: Sequence[str] | None = None) -> tuple[Located, ...]:
    """Describe instances as an ideal answer does: the tight box, the deepest point, and the phrase.

    Args:
        masks: bool (n, H, W). An empty mask, as of an instance that another one hides, is left out.
        phrases: One per instance, or None.

    Returns:
        The objects, in pixels of the image. The point is the centre of the pixel that is farthest from the edge of the
        mask; the image's own edge counts as one.
    """
    found = []
    for number, mask in enumerate(masks):
        if mask.any():
            phrase = None if phrases is None else phrases[number]
            found.append(Located(tight_box(mask), (deepest_point(mask),), (1,), phrase))
    return tuple(found)


def tight_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Find the box (left, top, right, bottom) of a mask, bool (H, W) with foreground, in pixels; it ends after them."""
    rows, columns = PreparedMask.of(mask).box
    return float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)


def deepest_point(mask: np.ndarray) -> tuple[float, float]:
    """Find the centre (x, y) of the pixel that is farthest from the edge of a mask, bool (H, W) with foreground."""
    rows, columns = PreparedMask.of(mask).box
    inside = np.pad(mask[rows, columns], 1)
    y, x = np.unravel_index(int(distance_transform_edt(inside).argmax()), inside.shape)
    return columns.start + int(x) - 0.5, rows.start + int(y) - 0.5
