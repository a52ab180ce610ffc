"""S-measure: structural similarity of prediction and ground truth, object-aware and region-aware."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np

from maskgym.metrics.masks import Maps, Masks, PreparedMask, per_image

EPSILON = float(np.spacing(1))  # the reference adds it to denominators


def s_measure(prediction: Maps, target: Masks) -> float | np.ndarray:
    """Compute the S-measure: structural similarity, half object-aware, half region-aware.

    Args:
        prediction: (H, W) or (B, H, W), NumPy array or torch tensor, bool or float in [0, 1].
        target: The same shape, bool (or values in [0, 1], above 0.5 is foreground), or the output of `prepare`.

    Returns:
        Float in [0, 1] for (H, W), float64 (B,) for (B, H, W), larger is better.

    Raises:
        ValueError: If the shapes differ, or a value is NaN or outside [0, 1].

    Convention:
        As PySODMetrics 1.6 with ``normalize=False``: no min-max normalisation of the prediction, alpha = 0.5.
        An empty target scores 1 − mean(prediction), so both empty is 1; a full target scores mean(prediction). A blank
        prediction scores (1 − a) / 2 or more, not 0, on a target of area share a. The blocks are cut one pixel
        beyond the rounded centroid, as the authors' MATLAB code does (other Python ports cut at the centroid: third
        decimal). Where that leaves a block without pixels (centroid in the last row or column) PySODMetrics returns
        NaN; here such a block has weight 0. Binary pairs are computed from counts, exactly.

    References:
        Fan et al., Structure-measure: a new way to evaluate foreground maps, ICCV 2017, Eq. 1-10.
        lartpang/PySODMetrics, class Smeasure.

    Example:
        >>> target = np.eye(4, dtype=bool)
        >>> round(s_measure(target, target), 9), s_measure(~target, target)
        (1.0, 0.0)
    """
    return per_image(_s_measure, prediction, target)


def s_measure_of_masks(
    prediction: PreparedMask, target: PreparedMask, intersection: PreparedMask | None = None
) -> float:
    """Compute the S-measure of two masks of one shape from counts alone.

    Means, variances and the covariance of two binary maps over a block follow from three counts: the foreground of
    each and of both. So these counts in the four blocks determine the score.

    Args:
        prediction: Mask (H, W).
        target: The ground truth, of the same shape.
        intersection: Intersection of the two, if already computed.

    Returns:
        The S-measure, a float in [0, 1].
    """
    size, area = target.size, target.area
    if area in (0, size):
        return score_uniform_target(prediction.area / size, area)
    blocks = target.blocks
    guessed_blocks = prediction.count_blocks(blocks.cut)
    common = intersection or prediction.intersection(target)
    common_blocks = common.count_blocks(blocks.cut) if common else (0, 0, 0, 0)

    hits, outside = sum(common_blocks), size - area
    rejections = outside - sum(guessed_blocks) + hits  # background pixels left unmarked
    foreground = _score_object(area, hits, hits)
    background = _score_object(outside, rejections, rejections)
    region = 0.0
    for pixels, true, guessed, both in zip(blocks.sizes, blocks.areas, guessed_blocks, common_blocks, strict=True):
        if pixels:  # a binary map equals its square
            region += pixels * _score_block(pixels, true, guessed, guessed, both)
    return _combine(foreground, background, area / size, region / size)


def _s_measure(prediction: np.ndarray, target: PreparedMask) -> float:
    if prediction.dtype == bool:
        return s_measure_of_masks(PreparedMask.of(prediction, tight=False), target)
    return _s_measure_of_map(prediction, target)


def _s_measure_of_map(prediction: np.ndarray, target: PreparedMask) -> float:
    """Compute the S-measure of a float map (H, W) from sums of p, p² and p·g over the blocks and the foreground."""
    size, area = target.size, target.area
    if area in (0, size):
        return score_uniform_target(float(prediction.mean()), area)
    blocks = target.blocks
    row, column = blocks.cut
    values = prediction.astype(np.float64, copy=False)
    inside = values[target.box] * target.crop
    edge = max(column - target.left, 0)  # the cut in the crop
    # Sums in each row, left and right of the cut. `vecdot` writes no array of products and stays in one thread, where
    # `vdot` and products of matrices start threads for microseconds of work.
    lines = np.zeros((7, len(values)))
    common = lines[4:, target.box[0]]
    for side, part in enumerate((values[:, :column], values[:, column:])):
        np.vecdot(part, _ones(part.shape[1]), out=lines[side])
        np.vecdot(part, part, out=lines[2 + side])
    for side, part in enumerate((inside[:, :edge], inside[:, edge:])):
        np.vecdot(part, _ones(part.shape[1]), out=common[side])
    np.vecdot(inside, inside, out=common[2])
    above, below = lines[:, :row].sum(axis=1).tolist(), lines[:, row:].sum(axis=1).tolist()

    return s_measure_of_moments(
        target,
        BlockMoments(*(above[kind : kind + 2] + below[kind : kind + 2] for kind in (0, 2, 4))),
        above[6] + below[6],
        lambda block: score_uniform_block(prediction[blocks.slices[block]]),
    )


@lru_cache(maxsize=256)
def _ones(length: int) -> np.ndarray:
    return np.ones(length)


@dataclass(frozen=True)
class BlockMoments:
    """Sums over the four blocks of a map p and a ground truth g, each four floats, in the blocks' order.

    Attributes:
        sums: Sums of p.
        squares: Sums of p².
        products: Sums of p · g.
    """

    sums: list[float]
    squares: list[float]
    products: list[float]


def s_measure_of_moments(
    target: PreparedMask, moments: BlockMoments, hit_squares: float, uniform: Callable[[int], float]
) -> float:
    """Compute the S-measure from moments, for a target that is neither empty nor full.

    Args:
        target: The ground truth.
        moments: Moments of the map in the target's blocks.
        hit_squares: Sum of p² on the foreground.
        uniform: Function of the index of a block in which the target does not vary; returns its similarity.

    Returns:
        The S-measure, a float in [0, 1].
    """
    size, area, blocks = target.size, target.area, target.blocks
    hits, total, total_squares = sum(moments.products), sum(moments.sums), sum(moments.squares)
    foreground = _score_object(area, hits, hit_squares)
    # The background is scored on q = 1 - p: sum(q) = n - sum(p), sum(q²) = n - 2 sum(p) + sum(p²).
    outside = size - area
    rest, rest_squares = total - hits, total_squares - hit_squares
    background = _score_object(outside, outside - rest, outside - 2 * rest + rest_squares)

    region = 0.0
    rows = zip(blocks.sizes, blocks.areas, moments.sums, moments.squares, moments.products, strict=True)
    for block, (pixels, true, block_sum, block_squares, block_product) in enumerate(rows):
        if 0 < true < pixels:
            region += pixels * _score_block(pixels, true, block_sum, block_squares, block_product)
        elif pixels:
            region += pixels * uniform(block)
    return _combine(foreground, background, area / size, region / size)


def score_uniform_target(mean: float, area: int) -> float:
    """Compute the S-measure from the prediction's mean for an empty (area 0) or a full target."""
    return mean if area else 1 - mean


def _score_object(pixels: int, total: float, squares: float) -> float:
    """Compute Eq. 4-5, 2 m / (m² + 1 + sigma), over the foreground or background, from sums of p and p²."""
    mean = total / pixels
    deviation = sqrt(max(pixels * squares - total * total, 0) / _pairs(pixels))
    return 2 * mean / (mean * mean + 1 + deviation + EPSILON)


def _score_block(pixels: int, true: int, total: float, squares: float, product: float) -> float:
    """Compute the similarity (SSIM, Eq. 1-3) of one block from sums of p, p² and p·g and the foreground count.

    Differences of counts are integers here, so the zero-variance test is exact for binary maps.
    """
    pairs = _pairs(pixels)
    x, y = total / pixels, true / pixels
    variances = (max(pixels * squares - total * total, 0) + true * (pixels - true)) / pairs
    numerator = 4 * x * y * (pixels * product - total * true) / pairs
    denominator = (x * x + y * y) * variances
    if numerator:
        return numerator / (denominator + EPSILON)
    return 0.0 if denominator else 1.0


def _pairs(pixels: int) -> int:
    """Compute n (n − 1), the divisor of n · sum(ab) − sum(a) · sum(b) in the unbiased covariance; 1 for one pixel."""
    return pixels * (pixels - 1) or 1


def score_uniform_block(block: np.ndarray) -> float:
    """Compute the similarity of a block with a uniform target: 1 if the prediction is uniform too, else 0.

    The reference tests for a variance of exactly zero, so for a constant such as 0.3 its result depends on the rounding
    of the mean. The mean is computed here in the same way and gives the same result.
    """
    mean = block.mean()
    return float(block[0, 0] == mean and bool((block == mean).all()))


def _combine(foreground: float, background: float, share: float, region: float) -> float:
    """Compute Eq. 10 with alpha = 0.5 and ``share`` as the foreground's share of the image."""
    return max(0.0, 0.5 * (share * foreground + (1 - share) * background) + 0.5 * region)
