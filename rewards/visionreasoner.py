"""Rewards of VisionReasoner, as published and mended, for answers in JSON.

References:
    Liu et al., VisionReasoner. The arithmetic is that of dvlab-research/Seg-Zero,
    verl/utils/reward_score/vision_reasoner.py, commit 42a33455, which trained it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from maskgym.errors import UserError
from maskgym.rewards.answers import Answer, Located
from maskgym.rewards.boxes import BoxIoU, BoxL1, PointInMask
from maskgym.rewards.instances import InstanceIoU
from maskgym.rewards.repetition import NonRepetition
from maskgym.rewards.terms import Format, Term, scored_masks
from maskgym.rewards.transition import Transition
from maskgym.rewards.truth import true_objects
from maskgym.rewards.weighted import WeightedSum

MOST = 120  # objects that are compared
IOU, SIDES, DISTANCE = 0.5, 10, 30  # of a pair: more IoU; less mean distance of the sides, and of the points, in pixels
KEYS = {"bbox_2d": 4, "point_2d": 2}  # and how many values each has

_OPENING, _CLOSING = "<answer>", "</answer>"
_BETWEEN = re.compile(r"</think>\s*<answer>")


@dataclass(frozen=True)
class ThinkingFormat(Term):
    """1 if the text is ``<think>…</think>``, white space, and ``<answer>…</answer>``, and nothing else; else 0.

    Range [0, 1]. The blocks may contain anything, further tags too.
    """

    name = "visionreasoner_thinking"

    def __call__(self, transition: Transition) -> float:
        """Search the blocks in linear time; raise a `UserError` if the action is no answer in JSON."""
        text = _answer(transition).text
        between = _BETWEEN.search(text, len("<think>"))
        closes = between is not None and between.end() <= len(text) - len(_CLOSING)
        return float(closes and text.startswith("<think>") and text.endswith(_CLOSING))


@dataclass(frozen=True)
class ObjectFormat(Term):
    """Mean over the objects of the number of well-formed keys: ``bbox_2d`` with four values, ``point_2d`` with two.

    Range [0, 2]. An empty list has no object, so it scores 0. Values may be of any type.
    """

    name = "visionreasoner_objects"
    range = (0.0, 2.0)

    def __call__(self, transition: Transition) -> float:
        """Read the first answer block; raise a `UserError` if the action is no answer in JSON."""
        found = _read(_answer(transition).text)
        if not isinstance(found, list):
            return 0.0
        keys = 0
        for item in found:
            if isinstance(item, dict):
                keys += sum(isinstance(item.get(key), list) and len(item[key]) == n for key, n in KEYS.items())
            elif not isinstance(item, (list, str)) or any(key in item for key in KEYS):
                break  # The published loop ends with an exception here, and keeps what it has.
        return keys / max(1, len(found))


@dataclass(frozen=True)
class Accuracy(Term):
    """Sum over matched objects of three hits, divided by the larger number of objects.

    Range [0, 3]. A pair hits if the IoU of its boxes is above 0.5, if their sides are less than 10 pixels apart on the
    mean, and if its points are less than 30 pixels apart and the predicted one lies in its own box. Pixels are those of
    the image as the agent saw it (`Transition.shown`). The pairs are those with the most hits.

    Convention:
        Kept as published: 0 if the answer or the ground truth has no object, both included; boxes include their last
        pixel (+ 1); masks do not matter. Ours: ground-truth boxes are tight boxes of the masks, and their points the
        deepest ones, both rounded to pixels, since the published ones come with its data. The objects are those of
        `maskgym.rewards.parse_objects`, in any coordinates, and a malformed answer, which has none, scores 0; the
        published code reads the first JSON that it finds.
    """

    name = "visionreasoner_accuracy"
    range = (0.0, 3.0)

    def __call__(self, transition: Transition) -> float:
        """Count the hits.

        Raises:
            UserError: If an object lacks a box or a point, or the sample cannot be scored.
        """
        answer = _answer(transition)
        ((_, targets),) = scored_masks(transition)
        if not (answer.tagged and transition.objects and len(targets)):
            return 0.0
        if any(found.box is None or not found.points for found in transition.objects):
            raise UserError("reward=visionreasoner scores a box and a point per object: expected env.form=boxes_points")
        height, width = targets.shape[1:]
        rows, columns = transition.shown or (height, width)
        scale = np.array([columns / width, rows / height] * 3)
        found = _numbers(transition.objects) * scale
        truths = np.floor(_numbers(true_objects(targets)) * scale + 0.5)
        hits = _hits(found[:MOST], truths[:MOST])
        pairs = linear_sum_assignment(hits, maximize=True)
        return float(hits[pairs].sum() / max(hits.shape))


def visionreasoner() -> WeightedSum:
    """Build the published reward of VisionReasoner, with its faults, in [0, 7]; it needs ``form=boxes_points``.

    It is the plain sum of `ThinkingFormat` (1), `ObjectFormat` (2), `Accuracy` (3) and the published `NonRepetition`
    (1). An image without a target pays 4 for any object and 2 for none.
    """
    return WeightedSum([ThinkingFormat(), ObjectFormat(), Accuracy(), NonRepetition(published=True)], [1.0] * 4)


def visionreasoner_strict() -> WeightedSum:
    """Build a reward of the parts of `visionreasoner`, mended, in [0, 1], for any form.

    It is 3/7 `Format`, 1/7 `NonRepetition` of the reasoning, and 3/7 for the objects: a quarter of these each for
    `BoxIoU` (hard), `BoxL1`, `PointInMask` and `InstanceIoU`. An empty answer is right where there is no target, and
    masks count.
    """
    quality = [BoxIoU("hard", IOU), BoxL1(), PointInMask(), InstanceIoU()]
    return WeightedSum([*quality, Format(), NonRepetition()], [*[3 / 28] * len(quality), 3 / 7, 1 / 7])


def _answer(transition: Transition) -> Answer:
    if transition.answer is None or transition.task != "refer":
        raise UserError(
            f"reward=visionreasoner scores answers in JSON (env=refer): sample '{transition.sample.key}' is one of "
            f"{transition.task}"
        )
    return transition.answer


def _read(text: str) -> Any:
    """Read the JSON of the first answer block, or None."""
    start = text.find(_OPENING)
    stop = text.find(_CLOSING, start + len(_OPENING)) if start >= 0 else -1
    if stop < 0:
        return None
    try:
        return json.loads(text[start + len(_OPENING) : stop].strip())
    except (ValueError, RecursionError):  # a number may have too many digits, a list too many levels
        return None


def _numbers(objects: Sequence[Located]) -> np.ndarray:
    """List the box and the first point of each object, float64 (m, 6)."""
    return np.array([[*(found.box or ()), *found.points[0]] for found in objects], np.float64)


def _hits(found: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Count the hits of each pair of (m, 6) and (n, 6), float64 (m, n)."""
    one, other = found[:, None], truths[None]
    sides = np.minimum(one[..., 2:4], other[..., 2:4]) - np.maximum(one[..., :2], other[..., :2]) + 1
    common = np.clip(sides, 0, None).prod(axis=2)
    area, truth = ((each[..., 2:4] - each[..., :2] + 1).prod(axis=2) for each in (one, other))
    with np.errstate(divide="ignore", invalid="ignore"):  # The area of a box with crossed sides may be negative.
        overlap = common / (area + truth - common) > IOU
    near = np.abs(one[..., :4] - other[..., :4]).mean(axis=2) < SIDES
    points = np.sqrt(((one[..., 4:] - other[..., 4:]) ** 2).sum(axis=2)) < DISTANCE
    own = np.all((found[:, 4:] >= found[:, :2]) & (found[:, 4:] <= found[:, 2:4]), axis=1, keepdims=True)
    return overlap.astype(np.float64) + near + (points & own)
