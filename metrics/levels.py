"""Pixel metrics of an 8-bit map, computed together from its level histogram.

The S-, E- and F-measure, the MAE, the IoU and the balanced error depend only on how often each of the 256 levels occurs
on and off the foreground in each of the S-measure's four blocks. These counts are made once, and every metric is
computed from the table. Only the weighted F-measure needs pixel positions.
"""

from __future__ import annotations

import numpy as np

from maskgym.metrics.masks import FOREGROUND, PreparedMask
from maskgym.metrics.pixels import Measures, balanced_error, e_of_counts, f_of_counts
from maskgym.metrics.structure import BlockMoments, s_measure_of_moments, score_uniform_block, score_uniform_target
from maskgym.metrics.weighted import weighted_f

LEVELS = 256
_CLOSE = 1e-9  # levels this close to the adaptive threshold follow the rounding of the reference


def measure_levels(levels: np.ndarray, target: PreparedMask, stretch: bool = True, weighted: bool = True) -> Measures:
    """Compute the pixel metrics of one image, in the form that `SaliencyScores` accumulates.

    Args:
        levels: The prediction, uint8 (H, W); level k stands for k / 255.
        target: The ground truth, as `prepare` returns it.
        stretch: Whether the prediction is first min-max normalised, unless it is constant: PySODMetrics' default.
        weighted: Whether to compute the weighted F-measure, which takes longer than all other metrics together.

    Returns:
        ``s_measure``, ``mae``, ``iou``, ``ber_mean``, ``weighted_f`` (if wanted): floats. ``confusion``: float64 (4,),
        foreground missed, foreground, background marked, background. ``f``, ``e``: float64 (257,), the curve over 256
        thresholds and the adaptive value.

    Raises:
        ValueError: If ``levels`` is not a uint8 array of the target's shape.

    Convention:
        As in the function of each metric; the values equal theirs on the map k / 255, up to rounding.

    Example:
        >>> from maskgym.metrics import SaliencyScores, prepare
        >>> scores = SaliencyScores()
        >>> scores.add_measures(measure_levels(np.eye(4, dtype=np.uint8) * 200, prepare(np.eye(4, dtype=bool))))
        >>> round(scores.result()["s_measure"], 6)
        1.0
    """
    if levels.dtype != np.uint8 or levels.shape != target.shape:
        raise ValueError(f"expected uint8 {target.shape}, got {levels.dtype} {levels.shape}")
    counts = _count(levels, target)  # (blocks, 2, 256): off and on the foreground
    off, on = counts.sum(axis=0)
    values = _values(off + on, stretch)
    return {
        "s_measure": _s_measure(counts, values, levels, target),
        "mae": float(off @ values + on @ (1 - values)) / target.size,
        **_of_mask(off, on, values, target),
        **_of_thresholds(off, on, values, levels, target),
        **({"weighted_f": weighted_f(values[levels], target)} if weighted else {}),
    }


def _count(levels: np.ndarray, target: PreparedMask) -> np.ndarray:
    """Count each level off and on the foreground, int64 (blocks, 2, 256); one block if the target is uniform."""
    codes = levels.astype(np.uint16)
    codes[target.box] += target.crop.astype(np.uint16) * LEVELS
    blocks = target.blocks.slices if 0 < target.area < target.size else (np.s_[:, :],)
    return np.stack([np.bincount(codes[block].ravel(), minlength=2 * LEVELS) for block in blocks]).reshape(
        -1, 2, LEVELS
    )


def _values(counts: np.ndarray, stretch: bool) -> np.ndarray:
    """Compute the value of each level, float64 (256,), with the arithmetic of the reference."""
    values = np.arange(LEVELS) / 255
    lowest, highest = np.flatnonzero(counts)[[0, -1]]
    if stretch and lowest < highest:
        values = (values - values[lowest]) / (values[highest] - values[lowest])
    return values.clip(0, 1)  # levels that do not occur may leave the range


def _s_measure(counts: np.ndarray, values: np.ndarray, levels: np.ndarray, target: PreparedMask) -> float:
    both = counts.sum(axis=1)  # (blocks, 256)
    if len(counts) == 1:
        return score_uniform_target(float(both[0] @ values) / target.size, target.area)
    squares = values * values

    def uniform(block: int) -> float:
        (present,) = np.nonzero(both[block])
        if len(present) > 1:
            return 0.0
        # The mean of zeros or of ones is exact; other means depend on the rounding of the sum.
        return 1.0 if values[present[0]] in (0, 1) else score_uniform_block(values[levels][target.blocks.slices[block]])

    moments = BlockMoments(*(sums.tolist() for sums in (both @ values, both @ squares, counts[:, 1] @ values)))
    return s_measure_of_moments(target, moments, float(counts[:, 1].sum(axis=0) @ squares), uniform)


def _of_mask(off: np.ndarray, on: np.ndarray, values: np.ndarray, target: PreparedMask) -> Measures:
    """Compute the metrics of the map thresholded at 0.5."""
    marked = values > FOREGROUND
    hits, false = int(on[marked].sum()), int(off[marked].sum())
    confusion = np.array([target.area - hits, target.area, false, target.size - target.area], dtype=np.float64)
    union = target.area + false
    return {"iou": hits / union if union else 0.0, "ber_mean": balanced_error(confusion), "confusion": confusion}


def _of_thresholds(
    off: np.ndarray, on: np.ndarray, values: np.ndarray, levels: np.ndarray, target: PreparedMask
) -> dict[str, np.ndarray]:
    """Compute the F and E curves, each with the adaptive value last."""
    both = off + on
    adaptive = values >= _adaptive_threshold(both, values, levels)
    steps = (values * 255).astype(np.uint8)
    hits, marked = (
        np.append(np.bincount(steps, weights=own, minlength=LEVELS)[::-1].cumsum()[::-1], own[adaptive].sum())
        for own in (on, both)
    )
    return {"f": f_of_counts(hits, marked, target.area), "e": e_of_counts(hits, marked, target.area, target.size)}


def _adaptive_threshold(counts: np.ndarray, values: np.ndarray, levels: np.ndarray) -> float:
    """Compute min(2 · mean, 1), rounded as in the reference where the rounding decides about a level."""
    threshold = min(2 * float(counts @ values) / levels.size, 1.0)
    if threshold < 1 and (np.abs(values[counts > 0] - threshold) < _CLOSE).any():
        threshold = min(2 * values[levels].mean(), 1.0)
    return threshold
