"""What one step of an environment hands to a reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import Sample
from .answers import Answer


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
class Transition:
    """One step: the sample, what the agent did, and the masks it led to.

    Attributes:
        task: ``sod``, ``sis`` or ``cosod``.
        sample: What was shown, with its truth. In a padded group only the real images are here.
        action: What the agent gave: a text, a `Click`, a mask.
        masks: The predicted masks: for each image of the sample bool (m, H_k, W_k), one row an expression.
        previous_masks: The same before the step, or None at the first.
        answer: The parsed answer, or None where the action is not a text.

    Raises:
        ValueError: If the predicted masks do not fit the sample's images. That is a fault of the environment.
    """

    task: str
    sample: Sample
    action: Any
    masks: tuple[np.ndarray, ...]
    previous_masks: tuple[np.ndarray, ...] | None = None
    answer: Answer | None = None

    def __post_init__(self) -> None:
        sizes = [mask.shape[-2:] for mask in self.sample.masks]
        for name in ("masks", "previous_masks"):
            masks = getattr(self, name)
            if masks is None:
                continue
            if [mask.shape[-2:] for mask in masks] != sizes or any(mask.ndim != 3 for mask in masks):
                shapes = [mask.shape for mask in masks]
                raise ValueError(f"{name} of sample '{self.sample.key}': expected (m, H, W) for {sizes}, got {shapes}")
