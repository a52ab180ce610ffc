"""Settings of clicks: their checks, and the spaces that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from maskgym.errors import UserError, brief

LABEL_SOURCES = ("policy", "positive", "srm", "oracle")
INITIAL_PROMPTS = ("auto", "truth", "srm", "none")


@dataclass(frozen=True)
class ClickSettings:
    """Settings of clicks in a `maskgym.envs.point.PointPromptVectorEnv`, which documents them.

    Raises:
        UserError: If a setting is invalid, or the ground truth is used outside the training split.
    """

    split: str
    image_size: int
    patch_size: int
    horizon: int
    allow_repeated_clicks: bool
    label_source: str
    initial_prompts: str

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.image_size < 1 or self.image_size % self.patch_size:
            raise UserError(f"patch_size={self.patch_size}: expected a divisor of image_size={self.image_size}")
        if self.horizon < 1:
            raise UserError(f"horizon={self.horizon}: expected at least 1")
        if not self.allow_repeated_clicks and self.horizon > self.grid**2:
            raise UserError(
                f"horizon={self.horizon}, allow_repeated_clicks=False: expected at most one click per patch"
            )
        for name, value, allowed, cheats in (
            ("label_source", self.label_source, LABEL_SOURCES, "oracle"),
            ("initial_prompts", self.initial_prompts, INITIAL_PROMPTS, "truth"),
        ):
            if value not in allowed:
                raise UserError(f"{name}={value!r}: expected one of {', '.join(allowed)}")
            if value == cheats and self.split != "train":
                raise UserError(f"{name}={value}: uses the ground truth: expected the split train, not {self.split}")

    @property
    def grid(self) -> int:
        """Number of patches per side, g."""
        return self.image_size // self.patch_size

    @property
    def first_prompts(self) -> str:
        """Source of the first prompts: ``initial_prompts``, or what ``auto`` stands for."""
        if self.initial_prompts != "auto":
            return self.initial_prompts
        if self.label_source != "srm":
            return "none"  # training must begin as a test does, where nothing else can choose a prompt
        return "truth" if self.split == "train" else "srm"

    def observation_space(self, channels: int, with_text: bool) -> spaces.Dict:
        """Build the space of one observation, whose features have so many channels."""
        shape = (channels, self.grid, self.grid)
        features, share = spaces.Box(-np.inf, np.inf, shape, np.float32), spaces.Box(0, 1, (1, *shape[1:]), np.float32)
        maps: dict[str, spaces.Space] = {"state": features, "mask": share}
        maps |= {"semantic": features} if with_text else {}
        return spaces.Dict(maps if self.allow_repeated_clicks else maps | {"clicked": share})

    def action_space(self) -> spaces.Space:
        """Build the space of one action."""
        patches = self.grid**2
        return spaces.MultiDiscrete([patches, 2]) if self.label_source == "policy" else spaces.Discrete(patches)

    def read(self, action: int | Sequence[int] | np.ndarray) -> tuple[int, int]:
        """Read patch and label of an action; the label is 1 unless the policy labels its clicks.

        Raises:
            UserError: If the action is not of whole numbers, or names no patch or no label.
        """
        labelled = self.label_source == "policy"
        expected = f"a patch from 0 to {self.grid**2 - 1}" + " and a label 0 or 1" * labelled
        numbers = np.empty((), object)
        with suppress(Exception):  # ragged lists, tensors that NumPy cannot read, and objects that may raise anything
            numbers = np.asarray(action)
        if numbers.dtype.kind not in "iu" or numbers.shape not in ([(2,)] if labelled else [(), (1,)]):
            raise UserError(f"{brief(action)}: expected whole numbers, {expected}")
        patch, label = numbers.tolist() if labelled else (numbers.item(), 1)
        if not 0 <= patch < self.grid**2 or label not in (0, 1):
            raise UserError(f"{numbers.tolist()}: expected {expected}")
        return patch, label
