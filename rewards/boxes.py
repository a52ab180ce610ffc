"""Reward terms of boxes and points: each compares the objects of an answer with those of the ground truth.

All of them match objects one to one, by the assignment with the highest sum, and divide the sum by the larger number of
objects. So a missing object and a spurious one cost the same. The conventions are common to them:

- Ground-truth boxes are the tight boxes of the ground-truth masks.
- A box is clipped to the image, as its prompt is. An object without a box, as points and phrases are, is judged by the
  tight box of its predicted mask. A box without area, or an empty mask in its place, scores 0 with every object.
- No object in the answer and in the ground truth: 1. None in one of them: 0. A malformed answer: 0.
- Void pixels are background of the ground truth. Instances and predicted masks that lie in void are left out, with
  their boxes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from maskgym.errors import UserError
from maskgym.metrics.masks import FOREGROUND
from maskgym.rewards.answers import Located
from maskgym.rewards.terms import MaskTerm, kept_rows
from maskgym.rewards.transition import Transition
from maskgym.rewards.truth import deepest_point, tight_box

KINDS = ("iou", "hard", "squared")


class ObjectTerm(MaskTerm):
    """Measure of pairs of objects: the sum over the best one-to-one pairs, divided by the larger number of objects."""

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Match the objects of one image."""
        objects = kept_objects(len(predictions), transition)
        return matched_mean(self.table(objects, predictions > FOREGROUND, targets))

    @abstractmethod
    def table(self, objects: Sequence[Located], predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Compute the value in [0, 1] of each pair, float64 (m, n).

        Args:
            objects: m objects of the answer; they are blank if the answer has none.
            predictions: bool (m, H, W), their masks.
            targets: bool (n, H, W).
        """


@dataclass(frozen=True)
class BoxIoU(ObjectTerm):
    """IoU of matched boxes.

    Range [0, 1]. The conventions are those of `maskgym.rewards.boxes`.

    Args:
        kind: ``iou``; ``hard`` for the share of pairs with an IoU above the threshold, as VisionReasoner counts them;
            ``squared`` for the squared IoU, as LENS has it, which pays more for the last improvements.
        threshold: IoU that a pair must exceed in ``hard``, in [0, 1).

    Raises:
        UserError: If the kind is unknown, or the threshold is outside [0, 1).

    Convention:
        A box covers the area between its corners, (right - left) · (bottom - top), without VisionReasoner's + 1.
    """

    kind: str = "iou"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"kind={self.kind!r} of box_iou: expected one of {', '.join(KINDS)}")
        if not 0 <= self.threshold < 1:
            raise UserError(f"threshold={self.threshold} of box_iou: expected a number in [0, 1)")

    @property
    def name(self) -> str:  # type: ignore[override]
        """Registered name of this kind."""
        return "box_iou" if self.kind == "iou" else f"box_iou_{self.kind}"

    def table(self, objects: Sequence[Located], predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Compute the IoU of each pair of boxes, by kind."""
        ious = box_ious(boxes_of(objects, predictions), boxes_of((), targets))
        if self.kind == "hard":
            return (ious > self.threshold).astype(np.float64)
        return ious**2 if self.kind == "squared" else ious


@dataclass(frozen=True)
class BoxL1(ObjectTerm):
    """Closeness of the sides of matched boxes: 1 for equal boxes, falling linearly to 0 at the tolerance.

    Range [0, 1]. The conventions are those of `maskgym.rewards.boxes`.

    Args:
        tolerance: Mean distance of the four sides at which the closeness is 0, as a share of the image's width (left
            and right) and height (top and bottom), above 0.

    Raises:
        UserError: If the tolerance is not above 0.

    Convention:
        Shares of the image do not depend on its resolution; VisionReasoner instead counts pairs within 10 pixels of a
        picture with 840 × 840 pixels.
    """

    tolerance: float = 0.1

    name = "box_l1"

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise UserError(f"tolerance={self.tolerance} of box_l1: expected a number above 0")

    def table(self, objects: Sequence[Located], predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Compute the closeness of each pair of boxes."""
        height, width = targets.shape[1:]
        boxes, truths = boxes_of(objects, predictions), boxes_of((), targets)
        apart = np.abs(boxes[:, None] - truths[None]) / (width, height, width, height)  # (m, n, 4)
        closeness = np.clip(1 - apart.mean(axis=2) / self.tolerance, 0, 1)
        return closeness * (boxes[:, 2] > boxes[:, 0])[:, None]


@dataclass(frozen=True)
class PointInMask(ObjectTerm):
    """Points of matched objects on their ground-truth masks.

    Range [0, 1]. A pair scores the share of its foreground points on the mask, times the share of its background points
    off it. Background points alone thereby earn nothing. The conventions are those of `maskgym.rewards.boxes`.

    Convention:
        An object without points is judged by the deepest point of its predicted mask; an empty mask scores 0. A point
        outside the image lies on no mask.
    """

    name = "point_in_mask"

    def table(self, objects: Sequence[Located], predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Compute the value of each pair of an object's points and a mask."""
        table = np.zeros((len(objects), len(targets)))
        for row, found, mask in zip(table, objects, predictions, strict=True):
            if found.points:
                row[:] = _points_on(targets, found.points, found.labels)
            elif mask.any():
                row[:] = _points_on(targets, (deepest_point(mask),), (1,))
        return table


def matched_mean(table: np.ndarray) -> float:
    """Sum float64 (m, n) over the best one-to-one pairs, and divide by the larger of m and n; 1 if both are 0."""
    if not any(table.shape):
        return 1.0
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / max(table.shape))


def kept_objects(count: int, transition: Transition) -> tuple[Located, ...]:
    """Select the objects of an answer whose masks are scored; blank objects if the answer has none.

    Args:
        count: Number of scored masks of an image.
        transition: Its transition.

    Raises:
        ValueError: If there is not one object per predicted mask, which is a bug of the environment.
    """
    objects, sample = transition.objects, transition.sample
    if not objects:
        return (Located(),) * count
    masks = transition.masks[0]
    if len(objects) != len(masks) or len(transition.masks) != 1:
        raise ValueError(f"objects of sample '{sample.key}': expected one per mask, got {len(objects)}: {len(masks)}")
    if sample.void is None:
        return objects
    return tuple(found for found, kept in zip(objects, kept_rows(sample.void[0], masks), strict=True) if kept)


def boxes_of(objects: Sequence[Located], masks: np.ndarray) -> np.ndarray:
    """Compute the box of each object in its image, float64 (m, 4), zeros where nothing remains of it.

    Args:
        objects: One per mask, or none; see `maskgym.rewards.boxes`.
        masks: bool (m, H, W).
    """
    height, width = masks.shape[1:]
    boxes = np.zeros((len(masks), 4))
    for number, mask in enumerate(masks):
        given = objects[number].box if objects else None
        if given is not None:
            boxes[number] = np.clip(given, 0, (width, height, width, height))
        elif mask.any():
            boxes[number] = tight_box(mask)
    blank = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    boxes[blank] = 0
    return boxes


def box_ious(boxes: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Compute the IoU of each pair of boxes (m, 4) and (n, 4), float64 (m, n); boxes without area have 0."""
    low, high = np.maximum(boxes[:, None, :2], truths[None, :, :2]), np.minimum(boxes[:, None, 2:], truths[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas, others = ((each[:, 2:] - each[:, :2]).prod(axis=1) for each in (boxes, truths))
    union = areas[:, None] + others[None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


def _points_on(targets: np.ndarray, points: Sequence[tuple[float, float]], labels: Sequence[int]) -> np.ndarray:
    """Compute the value of an object's points on each mask, float64 (n,)."""
    places, wanted = np.floor(np.asarray(points, float)), np.asarray(labels) == 1
    height, width = targets.shape[1:]
    inside = ((places >= 0) & (places < (width, height))).all(axis=1)
    columns, rows = np.where(inside[:, None], places, 0).astype(int).T
    hits = targets[:, rows, columns] & inside  # (n, points)
    if not wanted.any():
        return np.zeros(len(targets))
    value = hits[:, wanted].mean(axis=1)
    return value if wanted.all() else value * (1 - hits[:, ~wanted].mean(axis=1))
