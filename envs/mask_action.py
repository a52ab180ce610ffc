"""What environments share whose action is a mask: an image and a need are shown, a soft map over it comes back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from maskgym import data
from maskgym.data import Dataset, Sample
from maskgym.envs.base import SampleVectorEnv
from maskgym.envs.letterbox import letterbox, unletterbox
from maskgym.envs.rendering import picture
from maskgym.envs.spaces import FreeText
from maskgym.errors import UserError
from maskgym.rewards import Reward, Transition

MAX_NEED = 65536  # characters of a need that are shown


class MaskVectorEnv(SampleVectorEnv):
    """Sub-environments that show one image and a need, and take masks over the observed square.

    The padding of the letterbox is cut off a mask, and the rest resized bilinearly to the sample's own size. A subclass
    says what a mask leads to with `_take`, and what else its episodes hold with `_begin`, `_picture` and `_step_info`.

    Args:
        num_envs: As `SampleVectorEnv`.
        reward: As `SampleVectorEnv`.
        render_mode: As `SampleVectorEnv`.
        autoreset_mode: As `SampleVectorEnv`.
        dataset: A name in `maskgym.data`, or a data set whose samples have one image.
        split: ``train`` (default), ``validation`` or ``test``; with a data set object, its own.
        task: Of a data set that is given by name.
        image_size: Side of the observed square in pixels.
        need: Whether the need is shown.

    Raises:
        UserError: If an argument cannot be used.
    """

    action_kind = "masks"

    def __init__(
        self,
        num_envs: int,
        dataset: str | Dataset,
        split: str | None,
        task: str,
        reward: str | Reward,
        image_size: int,
        need: bool,
        render_mode: str | None,
        autoreset_mode: AutoresetMode | str,
    ) -> None:
        if image_size < 1:
            raise UserError(f"image_size={image_size}: expected at least 1")
        shown = data.make(dataset, task=task, split=split or "train") if isinstance(dataset, str) else dataset
        if split not in (None, shown.split):
            raise UserError(f"split={split!r}: the data set given is of split '{shown.split}'")
        super().__init__(num_envs, shown, reward, render_mode, autoreset_mode)
        self.image_size, self.need = image_size, need
        square = (image_size, image_size)
        self.single_observation_space = spaces.Dict(
            {"image": spaces.Box(0, 255, (*square, 3), np.uint8), "need": FreeText(MAX_NEED)}
        )
        self.single_action_space = spaces.Box(0, 1, square, np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._observations: list[dict[str, Any]] = [{}] * num_envs
        self._last: list[Transition | None] = [None] * num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start episodes, all or those of ``options["reset_mask"]`` (bool (num_envs,)).

        Raises:
            UserError: If an index is not one of the data set's, or a sample cannot be shown.
        """
        rows, wanted = self._begin_reset(seed, options)
        infos: dict[str, Any] = {}
        for i in rows:
            infos = self._add_info(infos, self._start(i, wanted[i]), i)
        return self._batched(), infos

    def step(
        self, actions: Sequence[np.ndarray]
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one mask a sub-environment; see the class for what comes back.

        Raises:
            UserError: If an action is no map in [0, 1] of the observed square.
        """
        live = self._live()
        values = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        infos: dict[str, Any] = {}
        maps = [self._soft(i, actions[i]) for i in live]  # all are checked before anything changes
        for i in np.flatnonzero(self._done):  # NEXT_STEP: this step only starts the next episode
            infos = self._add_info(infos, self._start(i, None), i)
        if len(live):
            outcomes = [self._take(i, soft) for i, soft in zip(live, maps, strict=True)]
            values[live], terms = self.reward([transition for transition, _, _ in outcomes])
            for row, (i, (transition, over, out)) in enumerate(zip(live, outcomes, strict=True)):
                terminated[i], truncated[i], self._done[i], self._last[i] = over, out, over or out, transition
                info = self._step_info(i, transition, maps[row])
                info["reward_terms"] = {name: float(term[row]) for name, term in terms.items()}
                self._observations[i] = self._observe(i)
                if self._done[i] and self.autoreset_mode is AutoresetMode.SAME_STEP:
                    final = {"final_obs": self._observations[i], "final_info": info}
                    infos, info = self._add_info(infos, final, i), self._start(i, None)
                infos = self._add_info(infos, info, i)
        if self.render_mode == "human":
            self.render()
        return self._batched(), values, terminated, truncated, infos

    @abstractmethod
    def _take(self, i: int, soft: np.ndarray) -> tuple[Transition, bool, bool]:
        """Return what a map float32 (H, W) at the sample's size led to, and whether it terminates or truncates."""

    def _begin(self, i: int, sample: Sample) -> None:
        """Set up what an episode holds beside its sample."""

    def _picture(self, i: int) -> np.ndarray:
        """Return the image uint8 (H, W, 3) that is shown now."""
        return self._shown(i).images[0]

    def _step_info(self, i: int, transition: Transition, soft: np.ndarray) -> dict[str, Any]:
        """Return the info of a step, without the reward's terms."""
        return {
            "sample_key": transition.sample.key,
            "index": int(self._indices[i]),
            "masks": ((soft > 0.5)[None],),
            "soft": (soft[None],),
        }

    def _shown(self, i: int) -> Sample:
        return self._sample(int(self._indices[i]))

    def _start(self, i: int, index: int | None) -> dict[str, Any]:
        """Begin an episode of sub-environment ``i``; return its info."""
        sample = self._draw(i, index)
        if len(sample.images) != 1:
            raise UserError(f"sample '{sample.key}': has {len(sample.images)} images: expected one to mask")
        self._last[i] = None
        self._begin(i, sample)
        self._observations[i] = self._observe(i)
        return self._start_info(i, sample)

    def _observe(self, i: int) -> dict[str, Any]:
        need = (self._shown(i).need or "")[:MAX_NEED] if self.need else ""
        return {"image": letterbox(self._picture(i), self.image_size), "need": need}

    def _soft(self, i: int, action: Any) -> np.ndarray:
        """Return an action at the size of the sample, float32 (H, W)."""
        values, side = np.asarray(action, dtype=np.float32), self.image_size
        if values.shape != (side, side):
            raise UserError(f"action of shape {values.shape}: expected a mask of shape {(side, side)}")
        if not (values.min() >= 0 and values.max() <= 1):  # NaN too
            raise UserError(f"action with values from {values.min():g} to {values.max():g}: expected a mask in [0, 1]")
        return unletterbox(values, self._shown(i).images[0].shape)

    def _frame(self, i: int) -> np.ndarray:
        last = self._last[i]
        return picture(self._shown(i), self._panels(i, last), self._observations[i]["need"] or None)

    def _panels(self, i: int, last: Transition | None) -> Mapping[str, Sequence[np.ndarray]]:
        """Return the masks to draw, by title."""
        return {} if last is None else {"prediction": [mask > 0.5 for mask in last.masks]}

    def _batched(self) -> dict[str, Any]:
        empty: Any = create_empty_array(self.single_observation_space, self.num_envs)
        return cast(dict[str, Any], concatenate(self.single_observation_space, self._observations, empty))
