"""Base class of environments whose action is a mask: they show an image and a need, and take a soft map."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from maskgym.aliases import Infos, Observation
from maskgym.data import Dataset, Sample
from maskgym.envs.base import Outcome, RowwiseVectorEnv, limited, make_dataset
from maskgym.envs.letterbox import letterbox, unletterbox
from maskgym.envs.rendering import frame
from maskgym.envs.spaces import FreeText
from maskgym.errors import UserError, brief
from maskgym.rewards import AnyReward, Transition

LINES = 2  # lines of a need in a picture
MAX_NEED = 65536  # Longer needs are truncated to so many characters.


class MaskVectorEnv(RowwiseVectorEnv):
    """Vector environment that shows one image and a need, and takes masks over the observed square.

    The padding of the letterbox is cut off a mask, and the rest is resized bilinearly to the size of the sample. A
    subclass computes the effect of a mask with `_take`, and extends `_begin`, `_picture` and `_step_info`.

    Args:
        num_envs: As in `SampleVectorEnv`.
        dataset: Name in `maskgym.data`, or a data set whose samples have one image.
        split: ``train`` (default), ``validation`` or ``test``; a data set object has its own.
        task: Task of a data set that is given by name.
        reward: As in `SampleVectorEnv`.
        image_size: Side of the observed square in pixels.
        need: Whether the need is shown.
        render_mode: As in `SampleVectorEnv`.
        autoreset_mode: As in `SampleVectorEnv`.
        max_episode_steps: Limit that Gymnasium passes; an episode has one step unless a subclass says otherwise.

    Raises:
        UserError: If an argument is invalid.
    """

    action_kind = "masks"

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | Dataset = "scenes",
        split: str | None = None,
        task: str = "need",
        reward: AnyReward = "s_measure",
        image_size: int = 128,
        need: bool = True,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        if image_size < 1:
            raise UserError(f"image_size={image_size}: expected at least 1")
        super().__init__(num_envs, make_dataset(dataset, task, split), reward, render_mode, autoreset_mode)
        self.image_size, self.need, self.horizon = image_size, need, limited(1, max_episode_steps)
        square = (image_size, image_size)
        self.single_observation_space = spaces.Dict(
            {"image": spaces.Box(0, 255, (*square, 3), np.uint8), "need": FreeText(MAX_NEED)}
        )
        self.single_action_space = spaces.Box(0, 1, square, np.float32)
        self._allocate(num_envs)

    @abstractmethod
    def _take(self, i: int, soft: np.ndarray) -> tuple[Transition, bool, bool]:
        """Apply a map float32 (H, W) at the size of the sample.

        Returns:
            The transition, and whether the episode terminates and whether it is truncated.
        """

    def _respond(self, live: np.ndarray, actions: Sequence[np.ndarray]) -> list[Outcome]:
        outcomes = []
        for i, soft in zip(live, actions, strict=True):
            transition, terminated, truncated = self._take(i, soft)
            self._last[i], self._observations[i] = transition, self._observe_row(i)
            outcomes.append(Outcome(transition, terminated, truncated, self._step_info(i, transition, soft)))
        return outcomes

    def _begin(self, i: int, sample: Sample) -> None:
        if len(sample.images) != 1:
            raise UserError(f"sample '{sample.key}': has {len(sample.images)} images: expected one to mask")

    def _picture(self, i: int) -> np.ndarray:
        """Return the image uint8 (H, W, 3) that is shown now."""
        return self._shown(i).images[0]

    def _step_info(self, i: int, transition: Transition, soft: np.ndarray) -> Infos:
        """Build the info of a step, without the terms of the reward."""
        return {
            "sample_key": transition.sample.key,
            "index": int(self._indices[i]),
            "masks": ((soft > 0.5)[None],),
            "soft": (soft[None],),
        }

    def _observe_row(self, i: int) -> Observation:
        need = (self._shown(i).need or "")[:MAX_NEED] if self.need else ""
        return {"image": letterbox(self._picture(i), self.image_size), "need": need}

    def _read(self, i: int, action: np.ndarray) -> np.ndarray:
        """Check an action and resize it to the sample, float32 (H, W)."""
        side, values = self.image_size, np.empty((), object)
        with suppress(Exception):  # ragged lists, tensors that NumPy cannot read, and objects that may raise anything
            values = np.asarray(action)
        if values.dtype.kind not in "fiub" or values.shape != (side, side):
            raise UserError(f"{brief(action)}: expected a mask of shape {(side, side)}, numbers in [0, 1]")
        with np.errstate(over="ignore"):  # Infinity is refused.
            soft = values.astype(np.float32)
        if not (soft.min() >= 0 and soft.max() <= 1):  # This refuses NaN too.
            lowest, highest = float(values.min()), float(values.max())
            raise UserError(f"values from {lowest:g} to {highest:g}: expected a mask in [0, 1]")
        return unletterbox(soft, self._shown(i).images[0].shape)

    def _frame(self, i: int) -> np.ndarray:
        return frame(self._shown(i), self._panels(i, self._last[i]), self._observations[i]["need"], lines=LINES)

    def _panels(self, i: int, last: Transition | None) -> Mapping[str, Sequence[np.ndarray] | None]:
        """Select the masks to draw, by title; None before there are any."""
        return {"prediction": None if last is None else [mask > 0.5 for mask in last.masks]}
