"""Metrics of semantic segmentation over a data set: the IoU of each class, and their mean."""

from __future__ import annotations

import numpy as np

from maskgym.metrics.masks import Maps, Masks
from maskgym.metrics.referring import areas


class ClassScores:
    """Accumulate the IoU of each class, one image and class at a time.

    Convention:
        Maps are thresholded at 0.5. The IoU of a class is the sum of intersections over the sum of unions of all images
        that were added for it, as in PASCAL VOC's evaluation, so a large object weighs more than a small one; it is 0
        if both sums are. ``class_iou`` is the mean over classes, so each class weighs the same however many images it
        has. The mean of IoU over images is another number: see `maskgym.metrics.SaliencyScores`, ``iou``. Unlike VOC's
        own evaluation, pixels marked as a class in images that do not show it are not counted unless they are added.

    References:
        Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010.

    Example:
        >>> scores, truth = ClassScores(), np.eye(4, dtype=bool)
        >>> scores.add(truth, truth, "cat")
        >>> scores.add(np.ones((4, 4)), truth, "cat")
        >>> scores.add(truth, truth, "dog")
        >>> scores.result()
        {'class_iou': 0.7, 'class_iou/cat': 0.4, 'class_iou/dog': 1.0}
    """

    def __init__(self) -> None:
        self._areas: dict[str, np.ndarray] = {}  # intersections and unions of each class, pixels

    def add(self, prediction: Maps, target: Masks, name: str) -> None:
        """Add one image (H, W) of a class.

        Args:
            prediction: NumPy array or torch tensor, bool or float in [0, 1].
            target: The same shape, bool (or values in [0, 1], above 0.5 is foreground), or the output of `prepare`.
            name: Name of the class.

        Raises:
            ValueError: If the shapes differ, or a value is NaN or outside [0, 1]; nothing is added then.
        """
        both, either = areas(prediction, target)
        self.add_areas(both, either, name)

    def add_areas(self, intersection: float, union: float, name: str) -> None:
        """Add one image of a class from the areas of its intersection and union, in pixels."""
        self._areas[name] = self._areas.get(name, 0.0) + np.array([intersection, union], np.float64)

    def result(self) -> dict[str, float]:
        """Compute ``class_iou``, the mean over classes, and ``class_iou/NAME`` of each, in [0, 1].

        Raises:
            ValueError: If no image was added.
        """
        if not self._areas:
            raise ValueError("no image was added: the scores of nothing are not defined")
        ious = {name: float(both / either) if either else 0.0 for name, (both, either) in sorted(self._areas.items())}
        mean = float(np.mean(list(ious.values())))
        return {"class_iou": mean} | {f"class_iou/{name}": value for name, value in ious.items()}
