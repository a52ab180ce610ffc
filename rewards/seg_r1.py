"""Rewards of Seg-R1, as published and mended, for answers in JSON.

References:
    You and Wu, Seg-R1. The arithmetic was read from a copy of its repository, chenqiu1024/Seg-R1,
    seg-r1/src/open_r1/grpo.py and utils/metrics.py, commit ca1256fa, the first one, which its author made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskgym.errors import UserError
from maskgym.metrics import iou
from maskgym.rewards.instances import InstanceIoU
from maskgym.rewards.terms import Format, MaskTerm, SMeasure, Term, union
from maskgym.rewards.transition import Transition
from maskgym.rewards.weighted import WeightedSum

IOU, STRUCTURE = 0.7, 0.3  # weights of the two measures of masks


@dataclass(frozen=True)
class UnionIoU(MaskTerm):
    """IoU of the unions of the predicted masks and of the ground truth.

    Range [0, 1].

    Convention:
        Kept as published: two empty masks score 0. A malformed answer: 0. Void pixels are background.
    """

    name = "seg_r1_iou"

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Compute the IoU of the unions of one image."""
        return float(iou(union(predictions), targets.any(axis=0), empty=0.0))


@dataclass(frozen=True)
class Smallness(MaskTerm):
    """1 minus the share of the image that the union of the predicted masks covers: what the S-measure became.

    Range [0, 1]. The published code makes the ground truth 0 or 1, and then asks which of its pixels are above 128.
    None is, so it computes the S-measure for an empty ground truth, whatever the real one.

    Convention:
        An answer without an object, and a malformed one, scores 0. Void pixels are background.
    """

    name = "seg_r1_s"

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Compute the share of one image that is not covered."""
        return float(1 - union(predictions).mean()) if len(predictions) else 0.0


@dataclass(frozen=True)
class ObjectsAndThinking(Term):
    """1 if the answer has an object and there is a ``<think>`` block somewhere, else 0.

    Range [0, 1].

    Convention:
        Kept as published: an answer without an object has not the form. Ours: objects are those of the environment's
        JSON, and not of ``<bbox>``, ``<points>`` and ``<labels>``, each of which Seg-R1 asks for.
    """

    name = "seg_r1_format"

    def __call__(self, transition: Transition) -> float:
        """Search the blocks; raise a `UserError` if the action is not a text."""
        answer = transition.answer
        if answer is None:
            raise UserError(f"{self.name} scores a text: the action on sample '{transition.sample.key}' is not one")
        start = answer.text.find("<think>")
        thinks = start >= 0 and answer.text.find("</think>", start) >= 0
        return float(thinks and answer.tagged and bool(transition.masks[0].shape[0]))


def seg_r1() -> WeightedSum:
    """Build the published reward of Seg-R1, with its faults, in [0, 2].

    It is 0.7 `UnionIoU` + 0.3 `Smallness` + `ObjectsAndThinking`; its trainer adds the two parts. Where there is no
    target, an empty answer thus earns 0, and a small spurious mask nearly 1.3.
    """
    return WeightedSum([UnionIoU(), Smallness(), ObjectsAndThinking()], [IOU, STRUCTURE, 1.0])


def seg_r1_strict(format_weight: float = 0.5) -> WeightedSum:
    """Build a reward of the parts of `seg_r1`, mended, in [0, 1].

    It is (1 - λ) · (0.7 `InstanceIoU` + 0.3 `SMeasure`) + λ `Format`. Two empty sets score 1, the S-measure sees the
    ground truth, and a repeated object costs.

    Args:
        format_weight: λ, in [0, 1].

    Raises:
        UserError: If the weight is outside [0, 1].
    """
    if not 0 <= format_weight <= 1:
        raise UserError(f"format_weight={format_weight}: expected a number in [0, 1]")
    quality = 1 - format_weight
    return WeightedSum([InstanceIoU(), SMeasure(), Format()], [IOU * quality, STRUCTURE * quality, format_weight])
