"""Transition: the step of an environment that a reward scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskgym.data import Sample
from maskgym.rewards.answers import Answer, Located


@dataclass(frozen=True)
class Click:
    """A point prompt.

    Attributes:
        x: Column in pixels of the sample's image.
        y: Row in pixels of the sample's image.
        label: 1 foreground, 0 background, -1 neither: on void, by an oracle; it is no prompt.
        repeated: Whether the same patch was clicked before in the episode.
    """

    x: float
    y: float
    label: int
    repeated: bool = False


@dataclass(frozen=True)
class Unscored:
    """Action that every measure of masks scores 0: the chosen end of an episode, or a mask when no object is left."""


@dataclass(frozen=True)
class Ranked:
    """Result of an episode of ranking.

    Attributes:
        masks: bool (k, H, W), the detections in order, the most salient first.
        targets: bool (n, H, W), the ground-truth objects.
        ranks: float (n,), ranks of the targets, larger is more salient.
    """

    masks: np.ndarray
    targets: np.ndarray
    ranks: np.ndarray


@dataclass(frozen=True)
class Transition:
    """One step: the sample, the action, and the resulting masks.

    Attributes:
        task: ``sod``, ``sis``, ``cosod``, ``refer`` or ``ranking``.
        sample: Sample that was shown, with its ground truth. A padded group has only its real images here; in a step
            of ranking the ground truth is the one object that the step is scored against.
        action: Action of the agent: a text, a `Click`, a mask, or `Unscored`.
        masks: Predicted masks: for each image of the sample bool (m, H_k, W_k), one row per expression. If the action
            is a mask, float32 in [0, 1]: measures of soft maps use the values, others threshold them at 0.5.
        previous_masks: Masks before the step, or None at the first step.
        answer: Parsed answer, or None if the action is not a text.
        ranked: Whole episode, at the last step of an episode of ranking.
        objects: Objects of an answer in JSON, in pixels of the sample's image, one per predicted mask.
        shown: (height, width) of the sample's image as the agent saw it, without padding; published rewards measure
            distances there. None where the answer has no coordinates.

    Raises:
        ValueError: If the predicted masks do not fit the images of the sample, which is a bug of the environment.
    """

    task: str
    sample: Sample
    action: str | Click | np.ndarray | Unscored
    masks: tuple[np.ndarray, ...]
    previous_masks: tuple[np.ndarray, ...] | None = None
    answer: Answer | None = None
    ranked: Ranked | None = None
    objects: tuple[Located, ...] = ()
    shown: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        sizes = [mask.shape[-2:] for mask in self.sample.masks]
        for name, masks in (("masks", self.masks), ("previous_masks", self.previous_masks)):
            shapes = sizes if masks is None else [mask.shape[1:] for mask in masks if mask.ndim == 3]
            if shapes != sizes:
                found = [mask.shape for mask in masks or ()]
                raise ValueError(f"{name} of sample '{self.sample.key}': expected (m, H, W) for {sizes}, got {found}")
