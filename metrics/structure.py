"""S-measure: does the prediction have the structure of the truth, as an object and region by region."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from maskgym.metrics.masks import Blocks, PreparedMask, per_image

EPSILON = float(np.spacing(1))  # the reference adds it to denominators


def s_measure(prediction: Any, target: Any) -> float | np.ndarray:
    """Score structural similarity: half object-aware, half region-aware.

    Args:
        prediction: (H, W) or (B, H, W), NumPy array or torch tensor, bool or float in [0, 1].
        target: The same shape, bool (or values in [0, 1], above 0.5 is foreground), or what `prepare` made of it.

    Returns:
        Float in [0, 1] for (H, W), float64 (B,) for (B, H, W), larger is better.

    Raises:
        ValueError: If the shapes differ, or a value is NaN or outside [0, 1].

    Convention:
        As PySODMetrics 1.6 with ``normalize=False``: no min-max normalisation of the prediction, alpha = 0.5.
        An empty target scores 1 − mean(prediction), so both empty is 1; a full target scores mean(prediction). A blank
        prediction is not 0: on a target of area share a it scores (1 − a) / 2 or more. The blocks are cut one pixel
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
    """Score two masks of one shape by counts alone.

    Means, variances and the covariance of two binary maps over a block follow from three counts: the foreground of
    one, of the other and of both. So the score closes over these counts in the four blocks.

    Args:
        prediction: A mask (H, W).
        target: The truth, of the same shape.
        intersection: What the two share, where the caller has it already.

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
    rejections = outside - prediction.area + hits  # background pixels left alone
    foreground = _score_object(area, hits, hits)
    background = _score_object(outside, rejections, rejections)
    region = 0.0
    for pixels, true, guessed, both in zip(blocks.sizes, blocks.areas, guessed_blocks, common_blocks, strict=True):
        if pixels:  # a binary map is its own square
            region += pixels * _score_block(pixels, true, guessed, guessed, both)
    return _combine(foreground, background, area / size, region / size)


def _s_measure(prediction: np.ndarray, target: PreparedMask) -> float:
    if prediction.dtype == bool:
        return s_measure_of_masks(PreparedMask.of(prediction, tight=False), target)
    return _s_measure_of_map(prediction, target)


def _s_measure_of_map(prediction: np.ndarray, target: PreparedMask) -> float:
    """Score a float map (H, W) by its moments: sums of p, p² and p·g over the four blocks and over the foreground."""
    size, area = target.size, target.area
    if area in (0, size):
        return score_uniform_target(float(prediction.mean()), area)
    blocks = target.blocks
    rows, columns = blocks.indicators
    values = prediction.astype(np.float64, copy=False)
    inside = values[target.box] * target.weights
    sums = rows @ (values @ columns)  # (2, 2), one sum a block
    products = rows[:, target.box[0]] @ (inside @ columns[target.box[1]])  # (2, 2)
    squares = _sum_squares(values, blocks)  # (2, 2)

    return s_measure_of_moments(
        target,
        BlockMoments(sums, squares, products),
        float(np.vdot(inside, inside)),
        lambda block: score_uniform_block(prediction[blocks.slices[block]]),
    )


@dataclass(frozen=True)
class BlockMoments:
    """Sums over the four blocks of a map p with a truth g, each float64 (2, 2) or (4,), in the blocks' order.

    Attributes:
        sums: Of p.
        squares: Of p².
        products: Of p · g.
    """

    sums: np.ndarray
    squares: np.ndarray
    products: np.ndarray


def s_measure_of_moments(
    target: PreparedMask, moments: BlockMoments, hit_squares: float, uniform: Callable[[int], float]
) -> float:
    """Score a map by its moments, against a truth that is neither empty nor full.

    Args:
        target: The truth.
        moments: Of the map, in the truth's blocks.
        hit_squares: The sum of p² on the foreground.
        uniform: Called with the number of a block in which the truth does not vary; returns its similarity.

    Returns:
        The S-measure, a float in [0, 1].
    """
    size, area, blocks = target.size, target.area, target.blocks
    hits = float(moments.products.sum())
    total, total_squares = float(moments.sums.sum()), float(moments.squares.sum())
    foreground = _score_object(area, hits, hit_squares)
    # The background is scored on q = 1 - p: sum(q) = n - sum(p), sum(q²) = n - 2 sum(p) + sum(p²).
    outside = size - area
    rest, rest_squares = total - hits, total_squares - hit_squares
    background = _score_object(outside, outside - rest, outside - 2 * rest + rest_squares)

    region = 0.0
    columns = (moments.sums, moments.squares, moments.products)
    rows = zip(blocks.sizes, blocks.areas, *(moment.ravel().tolist() for moment in columns), strict=True)
    for block, (pixels, true, block_sum, block_squares, block_product) in enumerate(rows):
        if 0 < true < pixels:
            region += pixels * _score_block(pixels, true, block_sum, block_squares, block_product)
        elif pixels:
            region += pixels * uniform(block)
    return _combine(foreground, background, area / size, region / size)


def _sum_squares(values: np.ndarray, blocks: Blocks) -> np.ndarray:
    """Return float64 (2, 2): the sum of squares over each block, without an array of squares."""
    row, column = blocks.cut
    halves = values[:row], values[row:]
    left = [float(np.einsum("ij,ij->", half[:, :column], half[:, :column])) for half in halves]
    both = [float(np.vdot(half, half)) for half in halves]
    return np.array([(part, whole - part) for part, whole in zip(left, both, strict=True)])


def score_uniform_target(mean: float, area: int) -> float:
    """Score a prediction of this mean against a target that is all background (area 0) or all foreground."""
    return mean if area else 1 - mean


def _score_object(pixels: int, total: float, squares: float) -> float:
    """Return Eq. 4-5, 2 m / (m² + 1 + sigma), of values over one side of the truth, from their sum and squares' sum."""
    mean = total / pixels
    deviation = sqrt(max(pixels * squares - total * total, 0) / _pairs(pixels))
    return 2 * mean / (mean * mean + 1 + deviation + EPSILON)


def _score_block(pixels: int, true: int, total: float, squares: float, product: float) -> float:
    """Return the similarity (SSIM, Eq. 1-3) of one block from sums of p, p² and p·g and the foreground's count.

    Differences of counts are whole numbers here, so that "does not vary" is exact for binary maps.
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
    """Return n (n − 1), under which n · sum(ab) − sum(a) · sum(b) is the unbiased covariance; 1 for a single pixel."""
    return pixels * (pixels - 1) or 1


def score_uniform_block(block: np.ndarray) -> float:
    """Return the similarity where the truth does not vary: 1 if the prediction does not vary either, else 0.

    The reference asks for a variance of exactly zero, so for a constant such as 0.3 its answer hangs on how the mean
    is rounded. Taking the mean of the same block in the same way gives the same answer.
    """
    mean = block.mean()
    return float(block[0, 0] == mean and bool((block == mean).all()))


def _combine(foreground: float, background: float, share: float, region: float) -> float:
    """Return Eq. 10 with alpha = 0.5, where ``share`` of the image is foreground."""
    return max(0.0, 0.5 * (share * foreground + (1 - share) * background) + 0.5 * region)
