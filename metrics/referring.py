"""Metrics of referring segmentation over a data set: mIoU (gIoU), oIoU (cIoU), P@X, N-acc and T-acc."""

from __future__ import annotations

import numpy as np

from maskgym.metrics.masks import Maps, Masks, PreparedMask, as_maps, as_mask, as_prepared, per_image

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)


class ReferringScores:
    """Accumulate the IoU metrics of referring segmentation, one expression at a time.

    Args:
        empty: IoU of an empty prediction for an empty target: 1 (gRefCOCO, LISA) or 0 (Seg-Zero).

    Convention:
        Maps are thresholded at 0.5. One expression is one row: a photo with three sentences counts three times.
        ``miou`` (gIoU in LISA, gRefCOCO and EVF-SAM) is the mean of IoU over expressions; ``oiou`` (cIoU) is the sum of
        all intersections over the sum of all unions, in which large objects weigh more. ``p@X`` is the share of
        expressions whose IoU is X or more, as in LAVT and later work (others require more than X). An
        empty prediction for an empty target has the IoU ``empty`` and adds nothing to ``oiou``; a non-empty
        prediction for an empty target has IoU 0. A set of empty pairs alone has the ``oiou`` of its ``miou``.

        ``n_acc`` (N-acc) is the share of the expressions without a target whose prediction is empty, and ``t_acc``
        (T-acc) that of the expressions with a target whose prediction is not. Neither is defined where no expression
        is without a target; ``t_acc`` is not where none has one. Published models may have an output of their own that
        says "no target"; here an empty mask says so. A malformed answer does not say so (ours, `add_malformed`): its
        IoU is 0, and it is right in neither accuracy. ``p@X`` counts all expressions, in gRefCOCO's code those with a
        target.

    References:
        Yu et al., Modeling context in referring expressions, ECCV 2016; yz93/LAVT-RIS test.py; hustvl/EVF-SAM eval.py;
        Liu et al., GRES: generalized referring expression segmentation, CVPR 2023, and henghuiding/gRefCOCO
        mdetr/datasets/refexp.py (N-acc, T-acc).

    Example:
        >>> scores, truth = ReferringScores(), np.eye(4, dtype=bool)
        >>> scores.add(truth, truth)
        >>> scores.add(np.ones((4, 4)), truth)
        >>> result = scores.result()
        >>> [result[name] for name in ("miou", "oiou", "p@0.5")]
        [0.625, 0.4, 0.5]
    """

    def __init__(self, empty: float = 1.0) -> None:
        if empty not in (0, 1):
            raise ValueError(f"empty={empty}: expected 0 or 1")
        self.empty = float(empty)
        self._ious: list[float] = []
        self._areas = np.zeros(2)  # intersections and unions, pixels
        self._answers = np.zeros((2, 2), dtype=int)  # expressions by: has a target, the prediction is not empty

    def add(self, prediction: Maps, target: Masks) -> None:
        """Add one expression (H, W), or a batch of them (B, H, W).

        Args:
            prediction: NumPy array or torch tensor, bool or float in [0, 1].
            target: The same shape, bool (or values in [0, 1], above 0.5 is foreground), or the output of `prepare`.

        Raises:
            ValueError: If the shapes differ, or a value is NaN or outside [0, 1]; nothing is added then.
        """
        masks = as_prepared(target, "target")
        of_targets = [mask.area for mask in ([masks] if isinstance(masks, PreparedMask) else masks)]
        for (both, either), own in zip(areas(prediction, masks).reshape(-1, 2), of_targets, strict=True):
            self.add_areas(both, either, own)

    @staticmethod
    def measure(prediction: Maps, target: Masks) -> tuple[float, float, float]:
        """Compute the areas of intersection, union and target of one expression (H, W), which `add_areas` takes."""
        mask = as_prepared(target, "target")
        assert isinstance(mask, PreparedMask)  # of one expression
        both, either = areas(prediction, mask)
        return float(both), float(either), float(mask.area)

    def add_areas(self, intersection: float, union: float, target: float) -> None:
        """Add one expression from the areas of its intersection, its union and its target, in pixels."""
        self._ious.append(intersection / union if union else self.empty)
        self._areas += intersection, union
        self._answers[int(target > 0), int(intersection + union > target)] += 1  # the sum of prediction and target

    def add_malformed(self, target: float) -> None:
        """Add one expression whose answer could not be read, which is no "no target" either.

        Args:
            target: Area of the target in pixels.
        """
        self._ious.append(0.0)
        self._areas += 0, target
        self._answers[int(target > 0), int(target == 0)] += 1

    def result(self) -> dict[str, float]:
        """Compute the metrics over all expressions so far, in [0, 1].

        Returns:
            ``miou``, ``oiou`` and ``p@0.5`` to ``p@0.9``; also ``n_acc`` and ``t_acc`` where they are defined.

        Raises:
            ValueError: If no expression was added.
        """
        if not self._ious:
            raise ValueError("no expression was added: the scores of nothing are not defined")
        ious, (both, either) = np.array(self._ious), self._areas
        found = {"miou": float(ious.mean()), "oiou": float(both / either if either else ious.mean())}
        found |= {f"p@{least}": float((ious >= least).mean()) for least in PRECISIONS}
        (silent, wrong), (missed, answered) = self._answers.tolist()
        if silent + wrong:
            found["n_acc"] = silent / (silent + wrong)
            found |= {"t_acc": answered / (missed + answered)} if missed + answered else {}
        return found


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
