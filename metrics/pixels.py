"""Pixel metrics of one image or a data set: MAE, IoU, balanced error, F-measure and E-measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from maskgym.metrics.masks import Maps, Masks, PreparedMask, as_maps, as_mask, as_prepared, per_image
from maskgym.metrics.structure import EPSILON, s_measure
from maskgym.metrics.weighted import weighted_f

Measures: TypeAlias = dict[str, float | np.ndarray]  # measures of one image, by name

BETA_SQUARED = 0.3  # weight of precision in the F-measure, the common choice in the saliency literature


class FMeasure(NamedTuple):
    """F-measure of a prediction: floats, or float64 (B,) for a batch.

    Attributes:
        mean: Mean over the 256 thresholds.
        max: Maximum over the 256 thresholds.
        adaptive: Value at the adaptive threshold, twice the prediction's mean.
    """

    mean: float | np.ndarray
    max: float | np.ndarray
    adaptive: float | np.ndarray


class EMeasure(NamedTuple):
    """E-measure of a prediction: floats, or float64 (B,) for a batch.

    Attributes:
        mean: Mean over the 256 thresholds.
        max: Maximum over the 256 thresholds.
        adaptive: Value at the adaptive threshold, twice the prediction's mean.
    """

    mean: float | np.ndarray
    max: float | np.ndarray
    adaptive: float | np.ndarray


def mae(prediction: Maps, target: Masks) -> float | np.ndarray:
    """Compute the mean absolute error.

    Args:
        prediction: (H, W) or (B, H, W), NumPy array or torch tensor, bool or float in [0, 1].
        target: The same shape, bool (or values in [0, 1], above 0.5 is foreground), or the output of `prepare`.

    Returns:
        Float in [0, 1] for (H, W), float64 (B,) for (B, H, W), smaller is better.

    Raises:
        ValueError: If the shapes differ, or a value is NaN or outside [0, 1].

    Convention:
        As PySODMetrics 1.6 with ``normalize=False``: the prediction is not normalised. (With ``normalize=True`` it is
        min-max normalised first, which changes the error.) Both empty: 0. Full prediction and empty target: 1.

    References:
        Perazzi et al., Saliency filters, CVPR 2012.
    """
    return per_image(_mae, prediction, target)


def iou(prediction: Maps, target: Masks, empty: float = 0.0) -> float | np.ndarray:
    """Compute the intersection over union of two masks.

    Args:
        prediction: (H, W) or (B, H, W), NumPy array or torch tensor, bool or float in [0, 1].
        target: The same shape, bool (or values in [0, 1], above 0.5 is foreground), or the output of `prepare`.
        empty: Value if both masks are empty.

    Returns:
        Float in [0, 1] for (H, W), float64 (B,) for (B, H, W), larger is better.

    Raises:
        ValueError: If the shapes differ, or a value is NaN or outside [0, 1].

    Convention:
        Both maps are thresholded at 0.5. Both empty: ``empty``, 0 as in PySODMetrics and the mirror literature;
        pass 1 for the "no target" rule of referring segmentation. One of them empty: 0. A batch is not averaged: its
        mean is mIoU (gIoU), not the ratio of summed areas (oIoU, cIoU).
    """
    return per_image(lambda image, mask: _iou(image, mask, empty), prediction, target)


def ber(prediction: Maps, target: Masks) -> float | np.ndarray:
    """Compute the balanced error rate: the mean of the error rates on the foreground and on the background.

    Args:
        prediction: (H, W) or (B, H, W), NumPy array or torch tensor, bool or float in [0, 1].
        target: The same shape, bool (or values in [0, 1], above 0.5 is foreground), or the output of `prepare`.

    Returns:
        Float in [0, 1] for (H, W), float64 (B,) for (B, H, W), smaller is better; papers print it times 100.

    Raises:
        ValueError: If the shapes differ, or a value is NaN or outside [0, 1].

    Convention:
        Both maps are thresholded at 0.5. A target without foreground, or without background, has one error rate
        only, which is the value: a perfect prediction always scores 0. (PySODMetrics counts the missing rate as 1.)
        The authors of the shadow benchmark pool the counts of all images first: `SaliencyScores` computes both forms.

    References:
        Vicente et al., Leave-one-out kernel optimization for shadow detection, ICCV 2015.
    """
    return per_image(lambda image, mask: balanced_error(_confusion(image, mask)), prediction, target)


def f_measure(prediction: Maps, target: Masks) -> FMeasure:
    """Compute the F-measure, F = 1.3 · P · R / (0.3 · P + R).

    Args:
        prediction: (H, W) or (B, H, W), NumPy array or torch tensor, bool or float in [0, 1].
        target: The same shape, bool (or values in [0, 1], above 0.5 is foreground), or the output of `prepare`.

    Returns:
        Mean, maximum and adaptive value of each image, in [0, 1], larger is better.

    Raises:
        ValueError: If the shapes differ, or a value is NaN or outside [0, 1].

    Convention:
        As PySODMetrics 1.6 with ``normalize=False``, for a set of one image. Over several images papers average the
        curves before they take mean and maximum: `SaliencyScores` does that; the mean of ``max`` here is larger.
        Predictions are binarised at 256 thresholds: floor(255 p) >= k. An empty target scores 0 throughout. Threshold 0
        marks every pixel, so ``max`` is at least the F of a full prediction, and a blank prediction reaches it. The
        adaptive threshold is min(2 · mean(p), 1), compared with >=. It is 0 for an all-zero map: **a blank prediction
        scores as a full one** (0.302 for a target of a quarter of the image, 1 for a full one). Guard against
        it in a reward.

    References:
        Achanta et al., Frequency-tuned salient region detection, CVPR 2009. lartpang/PySODMetrics, class Fmeasure.
    """
    values = _curves(_f_values, prediction, target)
    return FMeasure(*map(_float_or_batch, _summarise(values)))


def e_measure(prediction: Maps, target: Masks) -> EMeasure:
    """Compute the E-measure: how far prediction and target deviate from their means together at each pixel.

    Args:
        prediction: (H, W) or (B, H, W), NumPy array or torch tensor, bool or float in [0, 1].
        target: The same shape, bool (or values in [0, 1], above 0.5 is foreground), or the output of `prepare`.

    Returns:
        Mean, maximum and adaptive value of each image, in [0, H·W / (H·W − 1)], larger is better.

    Raises:
        ValueError: If the shapes differ, or a value is NaN or outside [0, 1].

    Convention:
        As PySODMetrics 1.6 with ``normalize=False``, for a set of one image; over several images see `SaliencyScores`.
        The sum is divided by H·W − 1, as in the reference, so **a perfect score is just above 1** (1.0013 at 24 x 32;
        undefined on an image of one pixel): clip it in a reward. An empty target scores the share of pixels left
        unmarked, a full target the share marked, over the same H·W − 1. Thresholds are those of `f_measure`, with the
        same trap: **an all-zero prediction counts as full in the adaptive form**, so both empty has adaptive 0,
        and at threshold 0 of the curve, so both empty has mean 255/256 of the maximum.

    References:
        Fan et al., Enhanced-alignment measure for binary foreground map evaluation, IJCAI 2018, Eq. 2-5.
        lartpang/PySODMetrics, class Emeasure.
    """
    values = _curves(_e_values, prediction, target)
    return EMeasure(*map(_float_or_batch, _summarise(values)))


def f_curve(prediction: Maps, target: Masks) -> np.ndarray:
    """Compute the F-measure at each threshold, float64 (256,) or (B, 256): entry k marks floor(255 p) >= k.

    Arguments, errors and convention are those of `f_measure`. Average curves over images, then take mean or maximum.
    """
    return _curves(_f_values, prediction, target)[..., :-1]


def e_curve(prediction: Maps, target: Masks) -> np.ndarray:
    """Compute the E-measure at each threshold, float64 (256,) or (B, 256): entry k marks floor(255 p) >= k.

    Arguments, errors and convention are those of `e_measure`. Average curves over images, then take mean or maximum.
    """
    return _curves(_e_values, prediction, target)[..., :-1]


class SaliencyScores:
    """Accumulate pixel metrics over a data set image by image, as saliency papers report them.

    Curves are averaged over the images before their mean and maximum are taken; every other metric is the mean over
    images. Images may differ in size. The values equal those of PySODMetrics over the same images.

    Example:
        >>> scores = SaliencyScores()
        >>> for size in (4, 6):
        ...     scores.add(np.eye(size) * 0.8, np.eye(size, dtype=bool))
        >>> round(scores.result()["mae"], 6)
        0.041667
    """

    def __init__(self) -> None:
        self.images = 0
        self._sums: dict[str, np.ndarray] = {}

    def add(self, prediction: Maps, target: Masks) -> None:
        """Add one image (H, W) or a batch (B, H, W).

        Args:
            prediction: NumPy array or torch tensor, bool or float in [0, 1].
            target: The same shape, bool (or values in [0, 1], above 0.5 is foreground), or the output of `prepare`.

        Raises:
            ValueError: If the shapes differ, or a value is NaN or outside [0, 1]; nothing is added then.
        """
        maps, masks = as_maps(prediction, "prediction"), as_prepared(target, "target")
        measures = _accumulated(maps, masks)
        if maps.ndim == 2:
            self.add_measures(measures)
        else:
            self._add({name: np.sum(value, axis=0) for name, value in measures.items()}, len(maps))

    @staticmethod
    def measure(prediction: Maps, target: Masks) -> dict[str, float | np.ndarray]:
        """Compute the accumulated numbers of one image (H, W) without adding them; takes the arguments of `add`."""
        return _accumulated(as_maps(prediction, "prediction"), as_prepared(target, "target"))

    def add_measures(self, measures: Mapping[str, float | np.ndarray]) -> None:
        """Add one image from the output of `measure` or `maskgym.metrics.measure_levels`."""
        self._add(measures, 1)

    def add_scores(self, others: Mapping[str, Sequence[float] | float]) -> None:
        """Add the images of other scores, as `to_json` gives them."""
        sums = {name: np.array(value) for name, value in others.items() if name != "images"}
        self._add(sums, int(np.asarray(others["images"])))

    def to_json(self) -> dict[str, list[float] | float]:
        """Return the number of ``images``, and the sum of each measure over them, as JSON types."""
        return {"images": float(self.images), **{name: value.tolist() for name, value in self._sums.items()}}

    def _add(self, sums: Mapping[str, float | np.ndarray], images: int) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, np.zeros(())) + value
        self.images += images

    def result(self) -> dict[str, float]:
        """Compute the metrics over all images so far.

        Returns:
            ``s_measure``, ``mae``, ``iou``, ``ber_mean``, ``weighted_f`` and ``f_mean``, ``f_max``, ``f_adaptive``,
            ``e_mean``, ``e_max``, ``e_adaptive``; and ``ber_pooled``, the balanced error over the pixels of all images
            together. ``weighted_f`` is absent if it was not computed.

        Raises:
            ValueError: If no image was added.
        """
        if not self.images:
            raise ValueError("no image was added: the scores of nothing are not defined")
        names = ("s_measure", "mae", "iou", "ber_mean", "weighted_f")
        scores = {name: float(self._sums[name] / self.images) for name in names if name in self._sums}
        scores["ber_pooled"] = balanced_error(self._sums["confusion"])
        for name in ("f", "e"):
            mean, maximum, adaptive = _summarise(self._sums[name] / self.images)
            scores |= {f"{name}_mean": float(mean), f"{name}_max": float(maximum), f"{name}_adaptive": float(adaptive)}
        return scores


def _accumulated(maps: np.ndarray, masks: PreparedMask | Sequence[PreparedMask]) -> dict[str, float | np.ndarray]:
    """Compute what `SaliencyScores` accumulates of an image, or of each image of a batch."""
    return {
        "s_measure": s_measure(maps, masks),
        "mae": mae(maps, masks),
        "iou": iou(maps, masks),
        "ber_mean": ber(maps, masks),
        "weighted_f": weighted_f(maps, masks),
        "confusion": per_image(_confusion, maps, masks),
        "f": per_image(_f_values, maps, masks),
        "e": per_image(_e_values, maps, masks),
    }


def _mae(prediction: np.ndarray, target: PreparedMask) -> float:
    # |p - g| is 1 - p on the foreground and p elsewhere.
    inside = target.select(prediction)
    return (
        float(prediction.sum(dtype=np.float64)) + target.area - 2 * float(inside.sum(dtype=np.float64))
    ) / target.size


def _iou(prediction: np.ndarray, target: PreparedMask, empty: float) -> float:
    guess = PreparedMask.of(as_mask(prediction), tight=False)
    common = guess.intersection(target)
    both = common.area if common else 0
    union = guess.area + target.area - both
    return both / union if union else empty


def _confusion(prediction: np.ndarray, target: PreparedMask) -> np.ndarray:
    """Count pixels, float64 (4,): foreground missed, foreground, background marked, background."""
    marked = as_mask(prediction)
    hits = int(np.count_nonzero(target.select(marked)))
    false = int(np.count_nonzero(marked)) - hits
    return np.array([target.area - hits, target.area, false, target.size - target.area], dtype=np.float64)


def balanced_error(counts: np.ndarray) -> float:
    """Compute the balanced error from counts (4,): foreground missed, foreground, background marked, background."""
    missed, foreground, false, background = counts
    shares = [wrong / of for wrong, of in ((missed, foreground), (false, background)) if of]
    return float(np.mean(shares))


def _f_values(prediction: np.ndarray, target: PreparedMask) -> np.ndarray:
    return f_of_counts(*_count(prediction, target), target.area)


def _e_values(prediction: np.ndarray, target: PreparedMask) -> np.ndarray:
    return e_of_counts(*_count(prediction, target), target.area, target.size)


def f_of_counts(hits: np.ndarray, marked: np.ndarray, area: int) -> np.ndarray:
    """Compute the F-measure at n thresholds, float64 (n,).

    Args:
        hits: Number of foreground pixels marked at each threshold, int64 (n,).
        marked: Number of pixels marked at each threshold, int64 (n,).
        area: Number of foreground pixels.
    """
    # Where no pixel is marked there are no hits, so the score is 0 for any denominator.
    precision, recall = hits / np.maximum(marked, 1), hits / max(area, 1)
    denominator = BETA_SQUARED * precision + recall
    return (1 + BETA_SQUARED) * precision * recall / np.where(hits > 0, denominator, 1)


def e_of_counts(hits: np.ndarray, marked: np.ndarray, area: int, size: int) -> np.ndarray:
    """Compute the E-measure at n thresholds, float64 (n,); as `f_of_counts`, with ``size`` the number of pixels."""
    if area in (0, size):
        return (marked if area else size - marked) / (size - 1 + EPSILON)
    share, truth = marked / size, area / size
    total = np.zeros(len(marked))
    # A binary pair has four kinds of pixels, and all pixels of a kind have the same alignment.
    for count, guess_deviation, truth_deviation in (
        (hits, 1 - share, 1 - truth),
        (marked - hits, 1 - share, -truth),
        (area - hits, -share, 1 - truth),
        (size - marked - area + hits, -share, -truth),
    ):
        alignment = 2 * guess_deviation * truth_deviation / (guess_deviation**2 + truth_deviation**2 + EPSILON)
        total += count * (alignment + 1) ** 2 / 4
    return total / (size - 1 + EPSILON)


def _count(prediction: np.ndarray, target: PreparedMask) -> tuple[np.ndarray, np.ndarray]:
    """Count foreground pixels marked, and all pixels marked, at each threshold.

    Args:
        prediction: Bool or float (H, W).
        target: The ground truth, of the same shape.

    Returns:
        Two int64 (257,): at floor(255 p) >= k for k from 0 to 255, and at the adaptive threshold.
    """
    if prediction.dtype == bool:
        prediction = prediction.astype(np.float64)
    # The reference truncates 255 p in the prediction's own precision, where rounding decides.
    levels = (prediction * 255).astype(np.uint8)
    adaptive = prediction >= min(2 * prediction.mean(), 1)
    counts = []
    for level, above in (
        (target.select(levels), target.select(adaptive)),
        (levels.ravel(), adaptive),
    ):
        at_least = np.bincount(level, minlength=256)[::-1].cumsum()[::-1]
        counts.append(np.append(at_least, np.count_nonzero(above)))
    return counts[0], counts[1]


def _curves(score: Callable[[np.ndarray, PreparedMask], np.ndarray], prediction: Maps, target: Masks) -> np.ndarray:
    """Apply `_f_values` or `_e_values` to each image, (257,) or (B, 257); a batch of no image is (0, 257)."""
    values = per_image(score, prediction, target)
    assert isinstance(values, np.ndarray)
    return values if values.size else np.zeros((0, 257))


def _summarise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the mean, maximum and adaptive value of (257,) or (B, 257)."""
    curve, adaptive = values[..., :-1], values[..., -1]
    return curve.mean(axis=-1), curve.max(axis=-1), adaptive


def _float_or_batch(values: np.ndarray) -> float | np.ndarray:
    return values if values.ndim else float(values)
