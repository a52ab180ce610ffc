"""What one step of an environment hands to a reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from maskgym.data import Sample
from maskgym.rewards.answers import Answer


@dataclass(frozen=True)
class Click:
    """A point prompt.

    Attributes:
        x, y: In pixels of the sample's image.
        label: 1 foreground, 0 background.
        repeated: Whether the same patch was clicked before in the episode.
    """

    x: float
    y: float
    label: int
    repeated: bool = False


@dataclass(frozen=True)
class Unscored:
    """An action that every measure of masks scores 0: the end of an episode by choice, or a mask of nothing left."""


@dataclass(frozen=True)
class Ranked:
    """What an episode of ranking came to.

    Attributes:
        masks: bool (k, H, W), what was detected, in order, the most salient first.
        targets: bool (n, H, W), the true objects.
        ranks: float (n,), theirs, larger is more salient.
    """

    masks: np.ndarray
    targets: np.ndarray
    ranks: np.ndarray


@dataclass(frozen=True)
class Transition:
    """One step: the sample, what the agent did, and the masks it led to.

    Attributes:
        task: ``sod``, ``sis``, ``cosod`` or ``ranking``.
        sample: What was shown, with its truth. In a padded group only the real images are here; in a step of ranking
            the truth is the one object that the step is scored against.
        action: What the agent gave: a text, a `Click`, a mask, or `Unscored`.
        masks: The predicted masks: for each image of the sample bool (m, H_k, W_k), one row an expression. Where the
            action is a mask, float32 in [0, 1]: measures of soft maps take them as they are, others above 0.5.
        previous_masks: The same before the step, or None at the first.
        answer: The parsed answer, or None where the action is not a text.
        ranked: At the last step of an episode of ranking, all of it.

    Raises:
        ValueError: If the predicted masks do not fit the sample's images. That is a fault of the environment.
    """

    task: str
    sample: Sample
    action: Any
    masks: tuple[np.ndarray, ...]
    previous_masks: tuple[np.ndarray, ...] | None = None
    answer: Answer | None = None
    ranked: Ranked | None = None

    def __post_init__(self) -> None:
        sizes = [mask.shape[-2:] for mask in self.sample.masks]
        for name in ("masks", "previous_masks"):
            masks = getattr(self, name)
            if masks is None:
                continue
            if [mask.shape[-2:] for mask in masks] != sizes or any(mask.ndim != 3 for mask in masks):
                shapes = [mask.shape for mask in masks]
                raise ValueError(f"{name} of sample '{self.sample.key}': expected (m, H, W) for {sizes}, got {shapes}")
