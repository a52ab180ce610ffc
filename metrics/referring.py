"""Metrics of referring segmentation over a data set: mIoU, oIoU and P@X."""

from __future__ import annotations

import numpy as np

from maskgym.metrics.masks import Maps, Masks, PreparedMask, as_maps, as_mask, as_prepared, per_image

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)


class ReferringScores:
    """Accumulate the IoU metrics of referring segmentation, one expression at a time.

    Convention:
        Maps are thresholded at 0.5. One expression is one row: a photo with three sentences counts three times.
        ``miou`` (gIoU in LISA and EVF-SAM) is the mean of IoU over expressions; ``oiou`` (cIoU) is the sum of all
        intersections over the sum of all unions, in which large objects weigh more. ``p@X`` is the share of
        expressions whose IoU is X or more, as in LAVT and later work (others require more than X). An
        empty prediction for an empty target has IoU 1 (the "no target" rule) and adds nothing to ``oiou``; a non-empty
        prediction for an empty target has IoU 0. A set of empty pairs alone has ``oiou`` 1.

    References:
        Yu et al., Modeling context in referring expressions, ECCV 2016; yz93/LAVT-RIS test.py; hustvl/EVF-SAM eval.py.

    Example:
        >>> scores, truth = ReferringScores(), np.eye(4, dtype=bool)
        >>> scores.add(truth, truth)
        >>> scores.add(np.ones((4, 4)), truth)
        >>> result = scores.result()
        >>> [result[name] for name in ("miou", "oiou", "p@0.5")]
        [0.625, 0.4, 0.5]
    """

    def __init__(self) -> None:
        self._ious: list[float] = []
        self._areas = np.zeros(2)  # intersections and unions, pixels

    def add(self, prediction: Maps, target: Masks) -> None:
        """Add one expression (H, W), or a batch of them (B, H, W).

        Args:
            prediction: NumPy array or torch tensor, bool or float in [0, 1].
            target: The same shape, bool (or values in [0, 1], above 0.5 is foreground), or the output of `prepare`.

        Raises:
            ValueError: If the shapes differ, or a value is NaN or outside [0, 1]; nothing is added then.
        """
        for both, either in areas(prediction, target).reshape(-1, 2):
            self.add_areas(both, either)

    def add_areas(self, intersection: float, union: float) -> None:
        """Add one expression from the areas of its intersection and union, in pixels."""
        self._ious.append(intersection / union if union else 1.0)
        self._areas += intersection, union

    def result(self) -> dict[str, float]:
        """Compute ``miou``, ``oiou`` and ``p@0.5`` to ``p@0.9`` over all expressions so far, in [0, 1].

        Raises:
            ValueError: If no expression was added.
        """
        if not self._ious:
            raise ValueError("no expression was added: the scores of nothing are not defined")
        ious, (both, either) = np.array(self._ious), self._areas
        found = {"miou": float(ious.mean()), "oiou": float(both / either) if either else 1.0}
        return found | {f"p@{least}": float((ious >= least).mean()) for least in PRECISIONS}


def areas(prediction: Maps, target: Masks) -> np.ndarray:
    """Compute the areas of intersection and union in pixels, float64 (2,), or (B, 2) of a batch.

    Arguments and errors are those of `ReferringScores.add`.
    """
    return per_image(_areas, as_maps(prediction, "prediction"), as_prepared(target, "target"))


def _areas(prediction: np.ndarray, target: PreparedMask) -> np.ndarray:
    """Compute the areas of intersection and union in pixels, float64 (2,)."""
    marked = as_mask(prediction)
    both = np.count_nonzero(target.select(marked))
    return np.array([both, np.count_nonzero(marked) + target.area - both], dtype=np.float64)
