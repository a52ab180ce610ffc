"""All pixel measures of an 8-bit map at once, from counts of its levels.

A map of 256 levels and a truth are, to the S-, E- and F-measure, to the MAE, the IoU and the balanced error, how often
each level occurs on the foreground and off it in each of the S-measure's four blocks. These counts are made once, and
everything else is arithmetic on a table. Only the weighted F-measure looks at places.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maskgym.metrics.masks import FOREGROUND, PreparedMask
from maskgym.metrics.pixels import balanced_error, e_of_counts, f_of_counts
from maskgym.metrics.structure import BlockMoments, s_measure_of_moments, score_uniform_block, score_uniform_target
from maskgym.metrics.weighted import weighted_f

LEVELS = 256
_CLOSE = 1e-9  # a level this near to the adaptive threshold is decided as the reference rounds


def measure_levels(
    levels: np.ndarray, target: PreparedMask, stretch: bool = True, weighted: bool = True
) -> dict[str, Any]:
    """Return the pixel measures of one image, as `SaliencyScores` adds them up.

    Args:
        levels: The prediction, uint8 (H, W); level k stands for k / 255.
        target: The truth, as `prepare` returns it.
        stretch: Whether the prediction is first min-max normalised, unless it is constant: PySODMetrics' default.
        weighted: Whether to measure the weighted F, which takes longer than all the rest together.

    Returns:
        ``s_measure``, ``mae``, ``iou``, ``ber_mean``, ``weighted_f`` (if wanted): floats. ``confusion``: float64 (4,),
        foreground missed, foreground, background marked, background. ``f``, ``e``: float64 (257,), the curve over 256
        thresholds and the adaptive value.

    Raises:
        ValueError: If ``levels`` is no uint8 array of the truth's shape.

    Convention:
        That of the functions of each measure; the values are theirs on the map of k / 255, to rounding.

    Example:
        >>> from maskgym.metrics import SaliencyScores, prepare
        >>> scores = SaliencyScores()
        >>> scores.add_measures(measure_levels(np.eye(4, dtype=np.uint8) * 200, prepare(np.eye(4, dtype=bool))))
        >>> round(scores.result()["s_measure"], 6)
        1.0
    """
    if levels.dtype != np.uint8 or levels.shape != target.shape:
        raise ValueError(f"expected uint8 {target.shape}, got {levels.dtype} {levels.shape}")
    counts = _count(levels, target)  # (blocks, 2, 256): off the foreground, on it
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
    """Return int64 (blocks, 2, 256): how often each level occurs off and on the foreground; one block if uniform."""
    codes = levels.astype(np.uint16)
    codes[target.box] += target.crop.astype(np.uint16) * LEVELS
    blocks = target.blocks.slices if 0 < target.area < target.size else (np.s_[:, :],)
    return np.stack([np.bincount(codes[block].ravel(), minlength=2 * LEVELS) for block in blocks]).reshape(
        -1, 2, LEVELS
    )


def _values(counts: np.ndarray, stretch: bool) -> np.ndarray:
    """Return what each level stands for, float64 (256,), with the reference's own arithmetic."""
    values = np.arange(LEVELS) / 255
    lowest, highest = np.flatnonzero(counts)[[0, -1]]
    if stretch and lowest < highest:
        values = (values - values[lowest]) / (values[highest] - values[lowest])
    return values.clip(0, 1)  # of levels that do not occur


def _s_measure(counts: np.ndarray, values: np.ndarray, levels: np.ndarray, target: PreparedMask) -> float:
    both = counts.sum(axis=1)  # (blocks, 256)
    if len(counts) == 1:
        return score_uniform_target(float(both[0] @ values) / target.size, target.area)
    squares = values * values

    def uniform(block: int) -> float:
        (present,) = np.nonzero(both[block])
        if len(present) > 1:
            return 0.0
        # The mean of many zeros, or ones, is exact; of others it is as the sum is rounded.
        return 1.0 if values[present[0]] in (0, 1) else score_uniform_block(values[levels][target.blocks.slices[block]])

    moments = BlockMoments(both @ values, both @ squares, counts[:, 1] @ values)
    return s_measure_of_moments(target, moments, float(counts[:, 1].sum(axis=0) @ squares), uniform)


def _of_mask(off: np.ndarray, on: np.ndarray, values: np.ndarray, target: PreparedMask) -> dict[str, Any]:
    """Return what the map is worth as a mask, above 0.5."""
    marked = values > FOREGROUND
    hits, false = int(on[marked].sum()), int(off[marked].sum())
    confusion = np.array([target.area - hits, target.area, false, target.size - target.area], dtype=np.float64)
    union = target.area + false
    return {"iou": hits / union if union else 0.0, "ber_mean": balanced_error(confusion), "confusion": confusion}


def _of_thresholds(
    off: np.ndarray, on: np.ndarray, values: np.ndarray, levels: np.ndarray, target: PreparedMask
) -> dict[str, np.ndarray]:
    """Return the curves of F and E with the adaptive value last."""
    both = off + on
    adaptive = values >= _adaptive_threshold(both, values, levels)
    steps = (values * 255).astype(np.uint8)
    hits, marked = (
        np.append(np.bincount(steps, weights=own, minlength=LEVELS)[::-1].cumsum()[::-1], own[adaptive].sum())
        for own in (on, both)
    )
    return {"f": f_of_counts(hits, marked, target.area), "e": e_of_counts(hits, marked, target.area, target.size)}


def _adaptive_threshold(counts: np.ndarray, values: np.ndarray, levels: np.ndarray) -> float:
    """Return twice the mean, at most 1; rounded as the reference rounds it where that decides about a level."""
    threshold = min(2 * float(counts @ values) / levels.size, 1.0)
    if threshold < 1 and (np.abs(values[counts > 0] - threshold) < _CLOSE).any():
        threshold = min(2 * values[levels].mean(), 1.0)
    return threshold
