"""Reward terms of sets of instances: how well the masks fit one to one, and whether their number is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskgym.errors import UserError
from maskgym.metrics import match_instances
from maskgym.rewards.terms import MaskTerm
from maskgym.rewards.transition import Transition


@dataclass(frozen=True)
class InstanceIoU(MaskTerm):
    """IoU of matched instances: its sum over the best one-to-one pairs, divided by the larger number of instances.

    Range [0, 1]. A missing instance and a spurious one cost the same; a repeated one is spurious.

    Convention:
        No prediction and no instance: 1. None of one of them: 0. An empty predicted mask counts as an instance, and
        scores 0. Void pixels are background, and masks that lie in void are left out. A malformed answer: 0.
    """

    name = "instance_iou"

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Compute the mean IoU of one image."""
        most = max(len(predictions), len(targets))
        return float(match_instances(predictions, targets, threshold=0).ious.sum() / most) if most else 1.0


@dataclass(frozen=True)
class Count(MaskTerm):
    """1 for as many objects as there are instances, else 0.

    Range [0, 1].

    Convention:
        No object and no instance: 1. An object with an empty mask counts. Void as in `InstanceIoU`. A malformed answer,
        which has no objects: 0.
    """

    name = "count"

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Compare the numbers of one image."""
        return float(len(predictions) == len(targets))


@dataclass(frozen=True)
class NoTarget(MaskTerm):
    """1 for an empty answer where there is no instance, and for any other answer where there is one; else 0.

    Range [0, 1]. Over samples without a target its mean is their accuracy, over the others that of finding any.

    Convention:
        An answer is empty if it has no object: one with an empty mask is not. Void as in `InstanceIoU`. A malformed
        answer is no empty answer: 0.

    References:
        Liu et al., GRES: N-acc and T-acc, which instead ask for an empty mask.
    """

    name = "no_target"

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Compare whether both are empty."""
        return float((len(predictions) == 0) == (len(targets) == 0))


@dataclass(frozen=True)
class Solved(MaskTerm):
    """1 if the masks and the instances are matched one to one, and none is left over; else 0: sparse.

    Range [0, 1].

    Args:
        threshold: Smallest IoU of a matched pair.

    Raises:
        UserError: If the threshold is outside [0, 1].

    Convention:
        No prediction and no instance: 1. An empty predicted mask counts as an instance. Void as in `InstanceIoU`. A
        malformed answer: 0.
    """

    threshold: float = 0.5

    name = "solved"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"solved: threshold={self.threshold}: expected a number in [0, 1]")

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Match the masks of one image."""
        pairs = len(match_instances(predictions, targets, threshold=self.threshold).ious)
        return float(pairs == len(predictions) == len(targets))
