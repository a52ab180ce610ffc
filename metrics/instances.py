"""Metrics of instance sets: matching, IASM and average precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from maskgym.aliases import JsonObject
from maskgym.metrics.masks import Masks, PreparedMask, as_maps, as_mask
from maskgym.metrics.structure import s_measure_of_masks

RECALLS = np.linspace(0.0, 1.0, 101)  # COCO reads the precision at these recalls
MAX_DETECTIONS = 100  # COCO keeps the best 100 detections per image


class Matches(NamedTuple):
    """Pairs of predictions and targets, in ascending order of the prediction.

    Attributes:
        predictions: int64 (k,), index of the prediction in each pair.
        targets: int64 (k,), index of the target in each pair.
        ious: float64 (k,), IoU of each pair, at least the threshold.
    """

    predictions: np.ndarray
    targets: np.ndarray
    ious: np.ndarray


def match_instances(predictions: Masks, targets: Masks, threshold: float = 0.1) -> Matches:
    """Match predicted to ground-truth instances one to one so that the sum of IoU is maximal.

    Args:
        predictions: (m, H, W), NumPy array or torch tensor, bool (or values in [0, 1], above 0.5 is foreground), or
            the output of `prepare`; m may be 0.
        targets: (n, H, W), the same; n may be 0.
        threshold: Pairs of the optimal assignment with a smaller IoU are dropped, in [0, 1].

    Returns:
        The pairs that reach the threshold.

    Raises:
        ValueError: If the image sizes differ, a value is NaN or outside [0, 1], or the threshold is outside [0, 1].

    Convention:
        The assignment maximises the sum over all pairs before the threshold is applied, as in Saliency-R1. An
        empty mask has IoU 0 with every mask, another empty one included.

    References:
        Saliency-R1, supplement, Eq. 22.
    """
    table, _ = _intersect(*_checked(predictions, targets, threshold))
    return _assign(table, threshold)


def iasm(predictions: Masks, targets: Masks, threshold: float = 0.1, unmatched: str = "zero") -> float:
    """Compute the Instance-Aligned S-Measure (IASM) of predicted instances.

    Instances are matched by IoU (`match_instances`). The sum of the S-measures of the matched pairs is divided by
    L = m + n − matched, the number of pairs when everything unmatched is paired with an empty mask.

    Args:
        predictions: (m, H, W), NumPy array or torch tensor, bool (or values in [0, 1], above 0.5 is foreground), or
            the output of `prepare`; m may be 0.
        targets: (n, H, W), the same; n may be 0.
        threshold: Smallest IoU of a matched pair, in [0, 1].
        unmatched: Contribution of an unmatched instance: ``zero``, or ``published`` for the S-measure of its pair.

    Returns:
        Float in [0, 1], larger is better.

    Raises:
        ValueError: If the image sizes differ, a value is NaN or outside [0, 1], the threshold is outside [0, 1] or
            ``unmatched`` is not one of the two values.

    Convention:
        No prediction and no target: 1. Predictions without a target, or targets without a prediction: 0 by default.
        The published form rewards them: the S-measure of a mask of area share a against an empty target is 1 − a, so
        specks and phrases that select nothing score near 1 each and raise the mean; a missed instance of area share
        a still scores (1 − a) / 2 or more. Use it only to reproduce the paper; train and report with the default.

    References:
        Saliency-R1, supplement, Eq. 22-23.

    Example:
        >>> target = np.eye(4, dtype=bool)[None]
        >>> speck = np.zeros((1, 4, 4), bool)
        >>> both = np.concatenate((target, speck))
        >>> round(iasm(both, target), 6), round(iasm(both, target, unmatched="published"), 6)
        (0.5, 1.0)
    """
    if unmatched not in ("zero", "published"):
        raise ValueError(f"unmatched: expected 'zero' or 'published', got {unmatched!r}")
    guesses, truths = _checked(predictions, targets, threshold)
    if not guesses and not truths:
        return 1.0
    table, common = _intersect(guesses, truths)
    matches = _assign(table, threshold)
    pairs = list(zip(matches.predictions.tolist(), matches.targets.tolist(), strict=True))
    total = sum(s_measure_of_masks(guesses[i], truths[j], common.get((i, j))) for i, j in pairs)
    if unmatched == "published":
        matched_guesses, matched_truths = {i for i, _ in pairs}, {j for _, j in pairs}
        nothing = PreparedMask.empty((guesses or truths)[0].shape)
        total += sum(s_measure_of_masks(mask, nothing) for i, mask in enumerate(guesses) if i not in matched_guesses)
        total += sum(s_measure_of_masks(nothing, mask) for j, mask in enumerate(truths) if j not in matched_truths)
    return total / (len(guesses) + len(truths) - len(pairs))


def average_precision(
    predictions_per_image: Sequence[Masks],
    targets_per_image: Sequence[Masks],
    threshold: float = 0.5,
    scores: Sequence[Sequence[float] | np.ndarray] | None = None,
) -> float:
    """Compute the average precision of instances over a data set at one IoU threshold.

    Args:
        predictions_per_image: One (m_i, H_i, W_i) array per image, as in `match_instances`.
        targets_per_image: One (n_i, H_i, W_i) array per image.
        threshold: Smallest IoU of a true positive, in [0, 1]: 0.5 gives AP50, 0.7 AP70.
        scores: One sequence of m_i confidences per image; without it all predictions are equally confident.

    Returns:
        Float in [0, 1]; NaN if no image has a target.

    Raises:
        ValueError: If the numbers of images or of scores differ, a score is not finite, image sizes differ within an
            image, a value is NaN or outside [0, 1], or the threshold is outside [0, 1].

    Convention:
        The COCO API with one category: predictions of all images pooled and sorted by score; each takes the free target
        of largest IoU; precision made monotone and read at 101 recalls; at most 100 predictions per image. There is no
        crowd and no area range. Predictions on images without targets are false positives. Targets without a
        prediction: 0. No target in the whole set: NaN (the COCO API returns -1).
        Equal scores are handled jointly, so the value does not depend on the order of images or predictions: those of
        an image are assigned so that the most of them find a target, and precision is read only where the score
        changes. The COCO API takes them in the order given (its issue 678). Where an image's hundredth score is shared,
        all that share it are kept. Without scores there is one point: the precision of all predictions, up to their
        recall. Other toolboxes differ: S4Net averages an AP per photo, ILSO's tool ranks by IoU itself.

    References:
        Lin et al., Microsoft COCO: common objects in context, ECCV 2014. cocodataset/cocoapi, COCOeval.
    """
    images = len(targets_per_image)
    if len(predictions_per_image) != images or (scores is not None and len(scores) != images):
        counts = f"{len(predictions_per_image)} predictions, {images} targets" + (
            f", {len(scores)} scores" if scores is not None else ""
        )
        raise ValueError(f"expected one entry per image in each list, got {counts}")
    pooled = InstanceScores((threshold,))
    for index in range(images):
        confidences = None if scores is None else scores[index]
        try:
            pooled.add(predictions_per_image[index], targets_per_image[index], confidences)
        except ValueError as error:
            raise ValueError(f"image {index}: {error}") from None
    return pooled.average_precision(threshold)


class InstanceScores:
    """Accumulate instance metrics over a data set photo by photo, without keeping masks.

    Args:
        thresholds: Smallest IoU of a true positive, each in [0, 1].

    Example:
        >>> scores, target = InstanceScores(), np.eye(4, dtype=bool)[None]
        >>> scores.add(np.concatenate([target, ~target]), target)
        >>> result = scores.result()
        >>> [round(result[name], 3) for name in ("ap50", "precision", "recall", "iasm")]
        [0.5, 0.5, 1.0, 0.5]
    """

    def __init__(self, thresholds: Sequence[float] = (0.5, 0.7)) -> None:
        for threshold in thresholds:
            _check_threshold(threshold)
        self.positives = 0  # number of targets
        self._hits: dict[float, list[np.ndarray]] = {threshold: [] for threshold in thresholds}
        self._confidences: list[np.ndarray] = []
        self._iasm: list[float] = []

    def add(self, predictions: Masks, targets: Masks, scores: Sequence[float] | np.ndarray | None = None) -> None:
        """Add one photo.

        Args:
            predictions: (m, H, W), as in `match_instances`.
            targets: (n, H, W), as in `match_instances`.
            scores: m confidences; without them all predictions are equally confident.

        Raises:
            ValueError: If sizes differ, the number of scores is not m, one is not finite, or a value is NaN or outside
                [0, 1].
        """
        self.add_measures(self.measure(predictions, targets, scores))

    def measure(
        self, predictions: Masks, targets: Masks, scores: Sequence[float] | np.ndarray | None = None
    ) -> JsonObject:
        """Compute the accumulated numbers of one photo without adding them; takes the arguments of `add`."""
        guesses, truths = _checked(predictions, targets, 0)
        confidence = np.zeros(len(guesses)) if scores is None else np.asarray(scores, np.float64)
        if confidence.shape != (len(guesses),) or not np.isfinite(confidence).all():
            raise ValueError(f"scores: expected {len(guesses)} finite numbers, one per prediction, got {confidence}")
        order = np.argsort(-confidence, kind="stable")
        if len(order) > MAX_DETECTIONS:
            order = order[confidence[order] >= confidence[order[MAX_DETECTIONS - 1]]]
        table, _ = _intersect([guesses[i] for i in order], truths)
        groups = np.split(np.arange(len(order)), np.flatnonzero(np.diff(confidence[order])) + 1)
        return {
            "hits": [_take(table, groups, threshold).tolist() for threshold in self._hits],
            "confidences": confidence[order].tolist(),
            "positives": len(truths),
            "iasm": iasm(tuple(guesses), tuple(truths)),
        }

    def add_measures(self, measures: JsonObject) -> None:
        """Add one photo from the output of `measure`, computed with the same thresholds."""
        for hits, own in zip(self._hits.values(), measures["hits"], strict=True):
            hits.append(np.array(own, bool))
        self._confidences.append(np.array(measures["confidences"], np.float64))
        self.positives += measures["positives"]
        self._iasm.append(measures["iasm"])

    def average_precision(self, threshold: float) -> float:
        """Compute the average precision at one of the thresholds; NaN if no photo has a target."""
        if not self.positives:
            return float("nan")
        confidences = np.concatenate(self._confidences)
        ranking = np.argsort(-confidences, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(confidences[ranking]) != 0, True))[: len(ranking)]
        return _interpolate(np.concatenate(self._hits[threshold])[ranking], ends, self.positives)

    def result(self) -> dict[str, float]:
        """Compute the metrics over all photos so far, in [0, 1].

        Returns:
            ``ap50``, ``ap70`` and so on for the thresholds (NaN where no photo has a target); ``precision``,
            ``recall`` and ``f1`` of all instances at the first threshold, independent of their order; and ``iasm``,
            the mean over photos, where unmatched instances score 0.

        Raises:
            ValueError: If no photo was added.
        """
        if not self._iasm:
            raise ValueError("no photo was added: the scores of nothing are not defined")
        found = {f"ap{100 * threshold:.0f}": self.average_precision(threshold) for threshold in self._hits}
        hits = np.concatenate(next(iter(self._hits.values())))
        precision, recall = hits.sum() / max(len(hits), 1), hits.sum() / max(self.positives, 1)
        found |= {"precision": float(precision), "recall": float(recall)}
        found["f1"] = float(2 * precision * recall / (precision + recall)) if hits.any() else 0.0
        return found | {"iasm": float(np.mean(self._iasm))}


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected an IoU in [0, 1], got {threshold}")


def _checked(
    predictions: Masks, targets: Masks, threshold: float
) -> tuple[Sequence[PreparedMask], Sequence[PreparedMask]]:
    """Check the arguments common to these functions, and crop both sets to their bounding boxes."""
    _check_threshold(threshold)
    guesses, guess_shape = _instances(predictions, "predictions")
    truths, truth_shape = _instances(targets, "targets")
    if None not in (guess_shape, truth_shape) and guess_shape != truth_shape:
        raise ValueError(f"predictions and targets differ in image size: {guess_shape} and {truth_shape}")
    return guesses, truths


def _instances(value: Masks, name: str) -> tuple[Sequence[PreparedMask], tuple[int, int] | None]:
    """Crop the masks of one set and find their (H, W); None for an empty tuple."""
    if isinstance(value, tuple) and all(isinstance(mask, PreparedMask) for mask in value):
        return value, value[0].shape if value else None
    maps = as_maps(value, name)
    if maps.ndim != 3:
        raise ValueError(f"{name}: expected shape (instances, H, W), got {maps.shape}")
    masks = as_mask(maps)
    if len(masks) and masks.strides[0] == 0:  # one mask, repeated without copies
        return [PreparedMask.of(masks[0])] * len(masks), maps.shape[1:]
    return [PreparedMask.of(mask) for mask in masks], maps.shape[1:]


def _intersect(
    predictions: Sequence[PreparedMask], targets: Sequence[PreparedMask]
) -> tuple[np.ndarray, dict[tuple[int, int], PreparedMask]]:
    """Compute IoU, float64 (m, n), and the non-empty intersections by pair."""
    table = np.zeros((len(predictions), len(targets)))
    intersections = {}
    for i, guess in enumerate(predictions):
        for j, truth in enumerate(targets):
            common = guess.intersection(truth)
            if common and common.area:
                intersections[i, j] = common
                table[i, j] = common.area / (guess.area + truth.area - common.area)
    return table, intersections


def _assign(table: np.ndarray, threshold: float) -> Matches:
    """Compute the assignment of maximal sum over float64 (m, n) IoU, without its pairs below the threshold."""
    rows, columns = linear_sum_assignment(table, maximize=True)
    ious = table[rows, columns]
    kept = ious >= threshold
    return Matches(rows[kept], columns[kept], ious[kept])


def _take(table: np.ndarray, groups: Sequence[np.ndarray], threshold: float) -> np.ndarray:
    """Check whether each prediction finds a free target of IoU at least the threshold.

    Args:
        table: float64 (m, n), IoU of predictions and targets.
        groups: Rows of equal confidence, the most confident first. Within a group the order does not matter.
        threshold: Smallest IoU of a hit.

    Returns:
        bool (m,).
    """
    # COCO lowers a threshold of 1 so that equal masks pass after rounding.
    least = min(threshold, 1 - 1e-10)
    free = np.ones(table.shape[1], bool)
    hits = np.zeros(len(table), bool)
    for rows in groups if table.size else ():
        values = np.where(free & (table[rows] >= least), table[rows], -1.0)
        if len(rows) == 1:
            chosen = np.array([0]), np.array([values.shape[1] - 1 - int(values[0, ::-1].argmax())])  # as COCO: the last
        else:
            # A hit outweighs any sum of IoUs, so the number of hits is the largest possible.
            chosen = linear_sum_assignment(np.where(values >= 0, values + len(rows) + 1, 0.0), maximize=True)
        found = values[chosen] >= 0
        hits[rows[chosen[0][found]]] = True
        free[chosen[1][found]] = False
    return hits


def _interpolate(hits: np.ndarray, ends: np.ndarray, positives: int) -> float:
    """Compute the mean over 101 recalls of the best precision at that recall or beyond; 0 where it is not reached.

    Args:
        hits: bool (m,), by descending confidence.
        ends: int (k,), the last place of each run of equal confidences, where precision is read.
        positives: Number of targets.
    """
    if not len(hits):
        return 0.0
    true = np.cumsum(hits)[ends]
    precision = true / (ends + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(true / positives, RECALLS, side="left")].mean())
