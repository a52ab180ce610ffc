"""Saliency ranking: detect the most salient object, erase it, detect again, with a need or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from maskgym.data import Dataset, Sample
from maskgym.envs.base import ScalarEnv
from maskgym.envs.mask_action import MaskVectorEnv
from maskgym.errors import UserError
from maskgym.metrics.ranking import iou_table
from maskgym.rewards import Ranked, Reward, Transition, Unscored

FOUND = 0.5  # smallest IoU of an object that counts as found, as in SA-SOR


class RankingVectorEnv(MaskVectorEnv):
    """Sub-environments in which the order of detection is the rank.

    Description:
        An episode shows one image and, where the data set has one and ``need`` is set, what a user looks for. Each
        action is a mask of the most salient object that is left. What it covers is erased, by the mean colour of all
        that is not erased yet, and the next step shows the rest.

    Observation Space:
        ``Dict(image, need)``.
        image: uint8 (S, S, 3), with what was detected erased, letterboxed with zeros right and below, S = image_size.
        need: what the user looks for, as text, or the empty text.

    Action Space:
        ``Box(0, 1, (S, S), float32)``: as of `maskgym.envs.need.UserNeedVectorEnv`. A mask without a pixel above 0.5 at
        the sample's size is the end of the episode.

    Reward:
        That of ``reward``. A step is scored against the object of largest IoU among those that no step was scored
        against yet (of equal ones the most salient); the empty mask, and a mask when no object is left, earn 0. So
        every object pays once, and nothing is gained by putting the end off. The default, ``ranking``, is the
        S-measure of each step, and SA-SOR of the whole episode at the last one.

    Starting State:
        A sample drawn uniformly, or the one that ``options={"index": i}`` names (an int, or one for each).

    Episode End:
        Termination: when every object is found (by a mask of IoU 0.5 or more), or the mask is empty. Truncation: after
        ``steps`` masks.

    Info:
        reset: ``sample_key``, ``index``; on the training split also ``target`` (the true masks, a tuple of one bool
        (n, H, W)), ``ranks`` (a tuple of one float (n,), larger is more salient) and ``rationale`` (None).
        step: ``sample_key``, ``index``, ``reward_terms`` (dict), ``iou`` (with the object that the step is scored
        against), ``found`` (objects so far), ``detected`` (masks so far), ``masks`` (a tuple of one bool (1, H, W)) and
        ``soft`` (a tuple of one float32 (1, H, W)), both of this step.

    Arguments:
        num_envs: Number of sub-environments.
        dataset: A name in `maskgym.data`, or a data set whose samples have one image and ranks.
        split: ``train`` (default), ``validation`` or ``test``; with a data set object, its own.
        task: Of a data set that is given by name: ``ranking``, or ``ranking_need`` where needs change the order.
        reward: A name in `maskgym.rewards`, or a reward.
        image_size: Side of the observed square in pixels.
        steps: Most masks an episode (TOP-5: 5).
        need: Whether the need is shown.
        render_mode: ``rgb_array``, ``human`` or None.
        autoreset_mode: SAME_STEP, NEXT_STEP (RLlib) or DISABLED (agents that reset by index).

    Raises:
        UserError: If an argument cannot be used.

    Version History:
        v0: first.

    References:
        UserSOD, Figure 2 and Section 4 (ranking by detection, erasing and detection). `maskgym.metrics.sa_sor`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | Dataset = "scenes",
        split: str | None = None,
        task: str = "ranking",
        reward: str | Reward = "ranking",
        image_size: int = 128,
        steps: int = 5,
        need: bool = True,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    ) -> None:
        if steps < 1:
            raise UserError(f"steps={steps}: expected at least 1")
        super().__init__(num_envs, dataset, split, task, reward, image_size, need, render_mode, autoreset_mode)
        self.steps = self.horizon = steps
        self._taken = np.zeros(num_envs, int)
        self._detected: list[list[np.ndarray]] = [[]] * num_envs  # bool (H, W) each, in order
        self._targets: list[np.ndarray] = [np.zeros((0, 1, 1), bool)] * num_envs  # most salient first, without void
        self._ranks: list[np.ndarray] = [np.zeros(0)] * num_envs
        self._open: list[np.ndarray] = [np.zeros(0, bool)] * num_envs  # no step was scored against it
        self._found: list[np.ndarray] = [np.zeros(0, bool)] * num_envs
        self._quality = np.zeros(num_envs)  # IoU with the object that the last step was scored against

    def _begin(self, i: int, sample: Sample) -> None:
        if sample.ranks is None:
            raise UserError(f"sample '{sample.key}' has no ranks: expected ranked objects, as of scenes, task=ranking")
        order = np.argsort(-sample.ranks[0], kind="stable")
        targets = sample.masks[0][order] if sample.void is None else sample.masks[0][order] & ~sample.void[0]
        left = targets.any(axis=(1, 2))
        self._targets[i], self._ranks[i] = targets[left], sample.ranks[0][order][left]
        self._open[i], self._found[i] = np.ones(left.sum(), bool), np.zeros(left.sum(), bool)
        self._taken[i], self._detected[i], self._quality[i] = 0, [], 0

    def _take(self, i: int, soft: np.ndarray) -> tuple[Transition, bool, bool]:
        sample, targets, open_ = self._shown(i), self._targets[i], self._open[i]
        mask = soft > 0.5
        empty = not mask.any()
        self._taken[i] += 1
        action: Any = Unscored()
        scored, self._quality[i] = sample, 0
        if not empty:
            self._detected[i].append(mask)
            shares = iou_table((mask if sample.void is None else mask & ~sample.void[0])[None], targets)[0]
            self._found[i] |= shares >= FOUND
            if open_.any():
                best = int(np.where(open_, shares, -1).argmax())
                action, open_[best], self._quality[i] = soft, False, shares[best]
                scored = replace(sample, masks=(targets[best][None],))
        over = empty or bool(len(targets) and self._found[i].all())
        out = not over and self._taken[i] >= self.steps
        ranked = Ranked(self._masks(i), targets, self._ranks[i]) if over or out else None
        return Transition("ranking", scored, action, (soft[None],), ranked=ranked), over, out

    def _masks(self, i: int) -> np.ndarray:
        """Return what was detected so far, bool (k, H, W), in order."""
        return np.array(self._detected[i], bool).reshape(-1, *self._shown(i).images[0].shape[:2])

    def _picture(self, i: int) -> np.ndarray:
        image = self._shown(i).images[0]
        if not self._detected[i]:
            return image
        erased = np.logical_or.reduce(self._detected[i])
        rest = image if erased.all() else image[~erased]
        image = image.copy()
        image[erased] = rest.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
        return image

    def _start_info(self, i: int, sample: Sample) -> dict[str, Any]:
        info = super()._start_info(i, sample)
        if self.dataset.split == "train":
            assert sample.ranks is not None  # `_begin` saw to it
            info["ranks"] = tuple(ranks.copy() for ranks in sample.ranks)
        return info

    def _step_info(self, i: int, transition: Transition, soft: np.ndarray) -> dict[str, Any]:
        return super()._step_info(i, transition, soft) | {
            "iou": float(self._quality[i]),
            "found": int(self._found[i].sum()),
            "detected": len(self._detected[i]),
        }

    def _panels(self, i: int, last: Transition | None) -> Mapping[str, Sequence[np.ndarray]]:
        return {} if last is None else {"detected": [self._masks(i)]}


class RankingEnv(ScalarEnv):
    """One episode at a time: `RankingVectorEnv` of one, whose arguments, spaces and infos it has.

    Example:
        >>> env = gym.make("maskgym/Ranking-v0")  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
        >>> first = info["target"][0][info["ranks"][0].argmax()]  # doctest: +SKIP
        >>> env.step(first.astype("float32"))[1]  # doctest: +SKIP
        1.0
    """

    vector_class = RankingVectorEnv
