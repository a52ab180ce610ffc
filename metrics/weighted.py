"""Weighted F-measure: errors are weighted by their position."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d, distance_transform_edt

from maskgym.metrics.masks import Maps, Masks, PreparedMask, per_image
from maskgym.metrics.structure import EPSILON

RADIUS, SIGMA = 3, 5.0  # smoothing window for errors on the foreground, pixels
HALVED_AT = 5.0  # distance from the foreground at which a false alarm weighs 1.5, halfway from 1 to 2, pixels
FAR = 150  # distance beyond which a false alarm weighs 2, to 1e-9, pixels


def weighted_f(prediction: Maps, target: Masks) -> float | np.ndarray:
    """Compute the weighted F-measure, with equal weight on precision and recall.

    Args:
        prediction: (H, W) or (B, H, W), NumPy array or torch tensor, bool or float in [0, 1].
        target: The same shape, bool (or values in [0, 1], above 0.5 is foreground), or the output of `prepare`.

    Returns:
        Float in [0, 1] for (H, W), float64 (B,) for (B, H, W), larger is better.

    Raises:
        ValueError: If the shapes differ, or a value is NaN or outside [0, 1].

    Convention:
        As PySODMetrics 1.6 with ``normalize=False``. An error on the foreground is replaced by the smoothed
        error around it where this is smaller; an error on the background weighs 1 near the foreground and up to 2 far
        from it. An empty target scores 0. The smoothing assumes no errors outside the image, so
        missed pixels at the border count less: **a blank prediction of a full target of 5 x 7 scores 0.655**.

    References:
        Margolin, Zelnik-Manor, Tal, How to evaluate foreground maps?, CVPR 2014, Eq. 9-15.
        lartpang/PySODMetrics, class WeightedFmeasure.

    Example:
        >>> target = np.eye(4, dtype=bool)
        >>> round(weighted_f(target, target), 6), round(weighted_f(np.ones((4, 4)), target), 6)
        (1.0, 0.363275)
    """
    return per_image(_weighted_f, prediction, target)


def _weighted_f(prediction: np.ndarray, target: PreparedMask) -> float:
    if not target.area:
        return 0.0
    near, around = _window(target, FAR), _window(target, RADIUS)
    mask = np.zeros(target.shape, bool)
    mask[target.box] = target.crop
    # The distance is computed from the indices of the nearest foreground pixel, because SciPy's own distances
    # take twice as long.
    nearest = distance_transform_edt(~mask[near], return_distances=False, return_indices=True)
    inner = tuple(slice(a.start - n.start, a.stop - n.start) for a, n in zip(around, near, strict=True))
    missed = _smoothed_errors(prediction[near], mask[near], inner, nearest)
    found, marked = target.area - float(missed.sum()), _sum(prediction)
    # On the foreground the distance is 0 and the weight 1.
    false = _weighted_sum(prediction[near], nearest) - _sum(target.select(prediction))
    false += 2 * (marked - _sum(prediction[near]))
    recall, precision = 1 - float(missed.mean()), found / (found + false + EPSILON)
    return 2 * recall * precision / (recall + precision + EPSILON)


def _sum(values: np.ndarray) -> float:
    return float(values.sum(dtype=np.float64))


def _window(target: PreparedMask, margin: int) -> tuple[slice, slice]:
    """Compute the row and column slices of the foreground with a margin, within the image."""
    rows, columns = target.box
    (height, width) = target.shape
    return (
        slice(max(rows.start - margin, 0), min(rows.stop + margin, height)),
        slice(max(columns.start - margin, 0), min(columns.stop + margin, width)),
    )


def _smoothed_errors(
    prediction: np.ndarray, mask: np.ndarray, window: tuple[slice, ...], nearest: np.ndarray
) -> np.ndarray:
    """Compute the smaller of the error and the smoothed error at each foreground pixel, float64 (n,)."""
    # A background pixel takes the error of the nearest foreground pixel.
    around = 1 - prediction[nearest[0][window], nearest[1][window]].astype(np.float64)
    weights = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        around = correlate1d(around, weights, axis=axis, mode="constant")
    inside = mask[window]
    return np.minimum(1 - prediction[window][inside].astype(np.float64), around[inside])


def _weighted_sum(prediction: np.ndarray, nearest: np.ndarray) -> float:
    """Compute the sum of a map (H, W), weighted by the distance of each pixel from the foreground.

    Args:
        prediction: Bool or float (H, W).
        nearest: Int32 (2, H, W); overwritten.
    """
    rows, columns = nearest
    rows -= np.arange(len(rows), dtype=np.int32)[:, None]
    columns -= np.arange(columns.shape[1], dtype=np.int32)
    np.multiply(nearest, nearest, out=nearest)
    # Single precision is twice as fast and accurate to 1e-7; memory access dominates, so operations are in place.
    weights = np.sqrt(rows + columns, dtype=np.float32)
    weights *= np.float32(np.log(0.5) / HALVED_AT)
    np.exp(weights, out=weights)
    np.subtract(2, weights, out=weights)
    return float(np.einsum("ij,ij->", prediction, weights, dtype=np.float64))
