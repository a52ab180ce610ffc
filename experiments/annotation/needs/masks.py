"""Masks of a project: boxes, appearances, and prompted segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskgym.segmenters.points.promptable import PromptableSegmenter

PADDING_COLOUR = (124, 116, 104)  # SAM's mean pixel, to which its padding with zeros is equivalent
MARGIN = 0.08  # around an appearance, as a share of the box's longer side
Box = Sequence[float]  # (left, top, right, bottom), pixels


def box_of(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """Compute the bounding box of bool (H, W), right and bottom exclusive; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def appearance(image: np.ndarray, mask: np.ndarray | None, box: Box) -> np.ndarray:
    """Compute the appearance of an object, M ⊙ I of Eq. 1, cropped to it with a margin.

    Args:
        image: uint8 (H, W, 3).
        mask: bool (H, W); None or empty shows the whole box.
        box: Box of the object, used if there is no mask.

    Returns:
        uint8 (h, w, 3), black outside the mask.
    """
    own_box = None if mask is None else box_of(mask)
    left, top, right, bottom = own_box or box
    margin = MARGIN * max(right - left, bottom - top)
    height, width = image.shape[:2]
    rows = slice(max(0, int(top - margin)), min(height, int(np.ceil(bottom + margin))))
    columns = slice(max(0, int(left - margin)), min(width, int(np.ceil(right + margin))))
    crop = image[rows, columns]
    if mask is None or own_box is None:
        return crop.copy()
    return np.where(mask[rows, columns, None], crop, 0).astype(np.uint8)


class Prompted:
    """Masks at the size of the image from boxes and clicks, by a promptable segmenter.

    Images are padded to squares at the right and bottom, as SAM does, and each is encoded once.

    Args:
        segmenter: The promptable segmenter.
    """

    def __init__(self, segmenter: PromptableSegmenter) -> None:
        self.segmenter = segmenter

    def __call__(
        self,
        image: np.ndarray,
        boxes: Sequence[Box] | None = None,
        points: Sequence[Sequence[Sequence[float]]] | None = None,
        labels: Sequence[Sequence[int]] | None = None,
    ) -> np.ndarray:
        """Segment n objects, each from a box, points, or both; return bool (n, H, W).

        Args:
            image: uint8 (H, W, 3).
            boxes: n boxes, or None.
            points: n lists of equally many (x, y) in pixels, or None.
            labels: n lists of 1 (object) and 0 (background), or None.
        """
        height, width = image.shape[:2]
        count = len(boxes if boxes is not None else points or ())
        if not count:
            return np.zeros((0, height, width), bool)
        side = max(height, width)
        square = np.full((side, side, 3), PADDING_COLOUR, np.uint8)
        square[:height, :width] = image
        given = (None, None) if points is None else (np.array(points, np.float32), np.array(labels))
        logits = self.segmenter.decode(
            self.segmenter.embeddings([square]).expand(count, -1, -1, -1),
            *given,
            side=side,
            boxes=None if boxes is None else np.array(boxes, np.float32),
        )
        return np.stack([row[:height, :width] > 0 for row in self.segmenter.resize(logits, [(side, side)] * count)])
