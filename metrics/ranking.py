"""Metrics of saliency ranking for one photo or a data set: SOR, SA-SOR and the MAE of grey rank maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from maskgym.metrics.masks import Maps, as_maps, as_mask

GREYS = (255, 229, 204, 178, 153)  # levels of the five most salient objects in ASSR's maps
LEVELS = ("mode", "mean")
Numbers: TypeAlias = Sequence[float] | np.ndarray


def rank_map(masks: Maps, scores: Numbers, top: int = len(GREYS)) -> np.ndarray:
    """Render objects in the grey level of their rank.

    Args:
        masks: (n, H, W), NumPy array or torch tensor, bool (or values in [0, 1], above 0.5 is foreground).
        scores: One score per mask, larger is more salient.
        top: Number of most salient objects to render, at most five.

    Returns:
        float64 (H, W) in [0, 1]: `GREYS` / 255 on the objects, 0 elsewhere.

    Raises:
        ValueError: If a value is NaN or outside [0, 1], the number of scores differs, or a score is not finite.

    Convention:
        Where objects overlap, the more salient one is visible. On equal scores the earlier mask is the more salient
        one. There are five grey levels (top 5): objects of lower rank are not rendered.

    References:
        Siris et al., Inferring attention shift ranks of objects for image saliency, CVPR 2020 (their rank maps).
    """
    rows, values = _checked("masks", masks, scores)
    painted = np.zeros(rows.shape[1:])
    best = np.argsort(-values, kind="stable")[:top]
    for grey, row in list(zip(GREYS, best, strict=False))[::-1]:
        painted[rows[row]] = grey / 255
    return painted


def sor(prediction: Maps, targets: Maps, ranks: Numbers, level: str = "mode") -> float:
    """Compute SOR: Spearman's correlation of the ground-truth and the predicted ranks of one photo's objects.

    Args:
        prediction: (H, W), the grey rank map, NumPy array or torch tensor in [0, 1]; brighter is more salient.
        targets: (n, H, W), the ground-truth objects, bool (or values in [0, 1], above 0.5 is foreground).
        ranks: One rank per target, larger is more salient; 0 for an object that is not salient.
        level: Statistic of the map inside an object: ``mode`` (CVPR 2020) or ``mean`` (IJCV 2023).

    Returns:
        Float in [-1, 1], larger is better; NaN if the photo is not used. Over a data set the metric is (m + 1) / 2
        with the mean m over the photos used; `RankingScores` reports their number.

    Raises:
        ValueError: If the shapes differ, a value is NaN or outside [0, 1], there is not one finite rank per target, or
            ``level`` is not one of the two values.

    Convention:
        The map is read as 8-bit grey, round(255 p). ``mode``: the most frequent grey (of equally frequent ones the
        darkest) among the pixels of the object that are not 0, if these are more than half of the object, else 0.
        ``mean``: the mean over all pixels of the object. Objects with 0 there, or of rank 0, are left out; equal values
        share their mean rank. ``mode``: one object left counts 1, none: not used. ``mean``: fewer than two: not used.
        As in both references, the photo is not used either if all remaining objects share one grey or one rank. Missed
        objects are left out, so **a map that shows one object alone scores 1** with ``mode``: report SA-SOR with it.

    References:
        Siris et al., CVPR 2020, and its extension in IJCV 2023. SirisAvishek/Attention_Shift_Ranks,
        evaluation/evaluate.py and IJCV_Extension/evaluate_MAE_SOR.py.
    """
    if level not in LEVELS:
        raise ValueError(f"level: expected one of {', '.join(LEVELS)}, got {level!r}")
    maps = as_maps(prediction, "prediction")
    rows, truth = _checked("targets", targets, ranks)
    if maps.shape != rows.shape[1:]:
        raise ValueError(f"prediction and targets differ in size: {maps.shape} and {rows.shape[1:]}")
    greys = np.rint(255 * maps.astype(np.float64)).astype(np.int64)
    read = _mode if level == "mode" else _mean
    values = np.array([read(greys[row]) for row in rows])
    used = (values > 0) & (truth > 0)
    if level == "mode" and used.sum() == 1:
        return 1.0
    return _pearson(_mean_ranks(truth[used]), _mean_ranks(values[used]))


def sa_sor(predictions: Maps, scores: Numbers, targets: Maps, ranks: Numbers, threshold: float = 0.5) -> float:
    """Compute SA-SOR: the segmentation-aware correlation of ground-truth and predicted ranks of one photo's objects.

    Args:
        predictions: (m, H, W), the detected objects, NumPy array or torch tensor, bool (or values in [0, 1], above 0.5
            is foreground); m may be 0.
        scores: One score per prediction, larger is more salient.
        targets: (n, H, W), the ground-truth objects, as ``predictions``.
        ranks: One rank per target, larger is more salient.
        threshold: Smallest IoU of a match.

    Returns:
        Float in [-1, 1], larger is better; NaN with fewer than two targets: the photo is not used.

    Raises:
        ValueError: If the sizes differ, a value is NaN or outside [0, 1], or there is not one finite number per mask.

    Convention:
        Each target takes the prediction of largest IoU, if that is at least the threshold; if several targets take the
        same one, the one of largest IoU keeps it and the others have none. Matched predictions have ranks 1 to k
        in ascending order of their scores, unmatched targets have 0, and the value is Pearson's correlation with the
        targets' ranks 1 to n (equal numbers share the smallest rank). Ranks that do not vary, as
        without any match, score 0. The range is not rescaled. Spurious predictions change nothing; the reference counts
        them in the numbering if there are more predictions than targets.

    References:
        Liu et al., Instance-level relative saliency ranking with graph reasoning, TPAMI 2021.
        dragonlee258079/Saliency-Ranking, folder metric.

    Example:
        >>> objects = np.eye(3, dtype=bool)[:, :, None].repeat(3, axis=2)  # three rows
        >>> sa_sor(objects, [3, 2, 1], objects, [9, 5, 4])
        1.0
        >>> round(sa_sor(objects[:1], [1], objects, [9, 5, 4]), 3)
        0.866
    """
    guesses, values = _checked("predictions", predictions, scores)
    truths, wanted = _checked("targets", targets, ranks)
    if guesses.shape[1:] != truths.shape[1:]:
        raise ValueError(f"predictions and targets differ in size: {guesses.shape[1:]} and {truths.shape[1:]}")
    if len(truths) < 2:
        return float("nan")
    found = np.zeros(len(truths))
    matches = match_best(guesses, truths, threshold)
    matched = np.flatnonzero(matches >= 0)
    found[matched] = _least_ranks(values[matches[matched]])
    correlation = _pearson(_least_ranks(wanted), found)
    return 0.0 if np.isnan(correlation) else correlation


def match_best(predictions: np.ndarray, targets: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Match each target to a prediction by the rule of `sa_sor`, int64 (n,); -1 for no match.

    Args:
        predictions: bool (m, H, W).
        targets: bool (n, H, W).
        threshold: Smallest IoU of a match.
    """
    table = iou_table(predictions, targets)
    if not len(predictions):
        return np.full(len(targets), -1)
    best = table.argmax(axis=0)
    values = table.max(axis=0, initial=0)
    best[values < threshold] = -1
    for prediction in set(best[best >= 0].tolist()):
        rivals = np.flatnonzero(best == prediction)
        best[np.delete(rivals, values[rivals].argmax())] = -1
    return best


def iou_table(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Compute pairwise IoU, float64 (m, n), of bool (m, H, W) and bool (n, H, W); 0 where both masks are empty."""
    pixels = targets.shape[1] * targets.shape[2]
    first, second = (masks.reshape(len(masks), pixels).astype(np.float64) for masks in (predictions, targets))
    both = first @ second.T
    either = first.sum(axis=1)[:, None] + second.sum(axis=1) - both
    return both / np.maximum(either, 1)


class RankingScores:
    """Accumulate metrics of ranked detections over a data set photo by photo.

    Example:
        >>> scores, objects = RankingScores(), np.eye(3, dtype=bool)[:, :, None].repeat(3, axis=2)
        >>> _ = scores.add(objects, [1, 2, 3], objects, [1, 2, 3])
        >>> _ = scores.add(objects, [3, 2, 1], objects, [1, 2, 3])
        >>> result = scores.result()
        >>> [result[name] for name in ("sor", "sor_photos", "sa_sor")]
        [0.5, 2, 0.0]
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {"sor": [], "sor_mean": [], "sa_sor": [], "mae": []}

    def add(self, predictions: Maps, scores: Numbers, targets: Maps, ranks: Numbers) -> dict[str, float]:
        """Add one photo and return its values, those of `measure`; arguments and errors are those of `sa_sor`."""
        found = self.measure(predictions, scores, targets, ranks)
        self.add_values(found)
        return found

    @staticmethod
    def measure(predictions: Maps, scores: Numbers, targets: Maps, ranks: Numbers) -> dict[str, float]:
        """Compute the values of one photo without adding them: unscaled correlations, NaN if the photo is not used.

        Arguments and errors are those of `sa_sor`.
        """
        truth = np.asarray(ranks, dtype=np.float64)
        salient = np.zeros_like(truth)  # SOR covers only the objects that the ground-truth map shows
        best = np.argsort(-truth, kind="stable")[: len(GREYS)]
        salient[best] = _least_ranks(truth[best])
        shown, true = rank_map(predictions, scores), rank_map(targets, truth)
        return {
            "sor": sor(shown, targets, salient),
            "sor_mean": sor(shown, targets, salient, level="mean"),
            "sa_sor": sa_sor(predictions, scores, targets, truth),
            "mae": float(np.abs(shown - true).mean()),
        }

    def add_values(self, values: Mapping[str, float]) -> None:
        """Add one photo from the output of `measure`."""
        for name, value in values.items():
            self._values[name].append(value)

    def result(self) -> dict[str, float]:
        """Compute the metrics over all photos so far.

        Returns:
            ``sor`` (mode) and ``sor_mean``, in [0, 1]; ``sa_sor``, in [-1, 1]; NaN if no photo was used;
            the number of photos used by each, ``sor_photos``, ``sor_mean_photos`` and ``sa_sor_photos``; and the
            ``mae`` of the grey maps.

        Raises:
            ValueError: If no photo was added.
        """
        if not self._values["mae"]:
            raise ValueError("no photo was added: the scores of nothing are not defined")
        found: dict[str, float] = {"mae": float(np.mean(self._values["mae"]))}
        for name in ("sor", "sor_mean", "sa_sor"):
            used = [value for value in self._values[name] if not np.isnan(value)]
            mean = float(np.mean(used)) if used else float("nan")
            found |= {name: mean if name == "sa_sor" else (mean + 1) / 2, f"{name}_photos": len(used)}
        return found


def _checked(name: str, masks: Maps, numbers: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Validate masks as bool (n, H, W) and their scores or ranks as float64 (n,)."""
    rows = as_mask(as_maps(masks, name))
    if rows.ndim != 3:
        raise ValueError(f"{name}: expected shape (n, H, W), got {rows.shape}")
    values = np.asarray(numbers, dtype=np.float64)
    if values.shape != (len(rows),) or not np.isfinite(values).all():
        raise ValueError(f"{name}: expected {len(rows)} finite numbers, one per mask, got {np.array2string(values)}")
    return rows, values


def _mode(greys: np.ndarray) -> float:
    """Compute the most frequent non-zero grey if more than half of the pixels are non-zero; else 0."""
    seen = greys[greys > 0]
    return float(np.bincount(seen).argmax()) if 2 * len(seen) > len(greys) else 0.0


def _mean(greys: np.ndarray) -> float:
    return float(greys.mean()) if len(greys) else 0.0


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """Compute ascending ranks from 1; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def _least_ranks(values: np.ndarray) -> np.ndarray:
    """Compute ascending ranks from 1; equal values share their smallest rank."""
    return np.searchsorted(np.sort(values), values) + 1.0


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Compute Pearson's correlation; NaN if one input does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    one, other = first - first.mean(), second - second.mean()
    return float(np.clip(one @ other / np.sqrt((one @ one) * (other @ other)), -1, 1))
