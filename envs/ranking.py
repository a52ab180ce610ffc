"""Saliency ranking: detect the most salient object, erase it, detect again, with a need or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from gymnasium.vector import AutoresetMode

from maskgym.aliases import Infos
from maskgym.data import Dataset, Sample
from maskgym.envs.base import ScalarEnv, limited
from maskgym.envs.mask_action import MaskVectorEnv
from maskgym.errors import UserError
from maskgym.metrics.ranking import iou_table
from maskgym.rewards import AnyReward, Ranked, Transition, Unscored

FOUND = 0.5  # smallest IoU of an object that counts as found, as in SA-SOR


@dataclass
class _Episode:
    """State of an episode.

    Attributes:
        targets: bool (n, H, W), the objects without void, most salient first.
        ranks: float (n,), their ranks, larger is more salient.
        detected: bool (H, W) masks so far, in order.
        quality: IoU with the object that the last step was scored against.
        open: bool (n,), objects that no step was scored against.
        found: bool (n,), objects that a mask of sufficient IoU found.
    """

    targets: np.ndarray
    ranks: np.ndarray
    detected: list[np.ndarray] = field(default_factory=list)
    quality: float = 0.0

    def __post_init__(self) -> None:
        self.open, self.found = np.ones(len(self.targets), bool), np.zeros(len(self.targets), bool)


class RankingVectorEnv(MaskVectorEnv):
    """Vector environment in which the order of detection is the rank.

    Description:
        An episode shows one image and, where the data set has one and ``need`` is set, a need in words. Each action is
        a mask of the most salient object that is left. Its pixels are erased: they take the mean colour of all pixels
        that are not erased yet. The next step shows the rest.

    Observation Space:
        ``Dict(image, need)``.
        image: uint8 (S, S, 3), without what was detected, letterboxed with zeros right and below, S = image_size.
        need: The need as text, or the empty text.

    Action Space:
        ``Box(0, 1, (S, S), float32)``: as in `maskgym.envs.need.UserNeedVectorEnv`. A mask without a pixel above 0.5 at
        the size of the sample ends the episode.

    Reward:
        Value of ``reward``. A step is scored against the object with the largest IoU among those that no earlier step
        was scored against; ties go to the more salient object. The empty mask, and a mask when no object is left,
        earn 0. So every object pays once, and a longer episode earns nothing. The default, ``ranking``, is the
        S-measure of each step, plus SA-SOR of the whole episode at the last one.

    Starting State:
        A sample drawn uniformly, or the sample of ``options={"index": i}`` (an int, or one per sub-environment).

    Episode End:
        Termination: when every object is found (by a mask of IoU 0.5 or more), or the mask is empty. Truncation: after
        ``steps`` masks.

    Info:
        reset: ``sample_key``, ``index``; on the training split also ``target`` (the ground truth, a tuple of one bool
        (n, H, W)), ``ranks`` (a tuple of one float (n,), larger is more salient) and ``rationale`` (None).
        step: ``sample_key``, ``index``, ``reward_terms`` (dict), ``iou`` (with the object that the step is scored
        against), ``found`` (objects so far), ``detected`` (masks so far), ``masks`` (a tuple of one bool (1, H, W)) and
        ``soft`` (a tuple of one float32 (1, H, W)), both of this step.

    Arguments:
        num_envs: Number of sub-environments.
        dataset: Name in `maskgym.data`, or a data set whose samples have one image and ranks.
        split: ``train`` (default), ``validation`` or ``test``; a data set object has its own.
        task: Task of a data set that is given by name: ``ranking``, or ``ranking_need`` where needs change the order.
        reward: Name in `maskgym.rewards`, a reward, a term, or a function of one transition.
        image_size: Side of the observed square in pixels.
        steps: Maximum number of masks per episode (TOP-5: 5).
        need: Whether the need is shown.
        render_mode: ``rgb_array``, ``human`` or None.
        autoreset_mode: SAME_STEP, NEXT_STEP (RLlib) or DISABLED (agents that reset by index).
        max_episode_steps: Limit that Gymnasium passes: the smaller of it and ``steps`` holds.

    Raises:
        UserError: If an argument is invalid.

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
        reward: AnyReward = "ranking",
        image_size: int = 128,
        steps: int = 5,
        need: bool = True,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        if steps < 1:
            raise UserError(f"steps={steps}: expected at least 1")
        super().__init__(num_envs, dataset, split, task, reward, image_size, need, render_mode, autoreset_mode)
        self.steps = self.horizon = limited(steps, max_episode_steps)

    def _allocate(self, num_envs: int) -> None:
        super()._allocate(num_envs)
        self._episodes = [_Episode(np.zeros((0, 1, 1), bool), np.zeros(0))] * num_envs

    def _begin(self, i: int, sample: Sample) -> None:
        super()._begin(i, sample)
        if sample.ranks is None:
            raise UserError(
                f"sample '{sample.key}' has no ranks: expected ranked objects, such as task=ranking of scenes"
            )
        order = np.argsort(-sample.ranks[0], kind="stable")
        targets = sample.masks[0][order] if sample.void is None else sample.masks[0][order] & ~sample.void[0]
        left = targets.any(axis=(1, 2))
        self._episodes[i] = _Episode(targets[left], sample.ranks[0][order][left])

    def _take(self, i: int, soft: np.ndarray) -> tuple[Transition, bool, bool]:
        sample, episode, mask = self._shown(i), self._episodes[i], soft > 0.5
        empty = not mask.any()
        action: np.ndarray | Unscored = Unscored()
        scored, episode.quality = sample, 0
        if not empty:
            episode.detected.append(mask)
            shares = iou_table((mask if sample.void is None else mask & ~sample.void[0])[None], episode.targets)[0]
            episode.found |= shares >= FOUND
            if episode.open.any():
                best = int(np.where(episode.open, shares, -1).argmax())
                action, episode.open[best], episode.quality = soft, False, shares[best]
                scored = replace(sample, masks=(episode.targets[best][None],))
        over = empty or bool(len(episode.found) and episode.found.all())
        out = not over and len(episode.detected) >= self.steps
        ranked = Ranked(self._detected(i), episode.targets, episode.ranks) if over or out else None
        return Transition("ranking", scored, action, (soft[None],), ranked=ranked), over, out

    def _detected(self, i: int) -> np.ndarray:
        """Stack the masks detected so far, bool (k, H, W), in order."""
        return np.array(self._episodes[i].detected, bool).reshape(-1, *self._shown(i).images[0].shape[:2])

    def _picture(self, i: int) -> np.ndarray:
        image = self._shown(i).images[0]
        if not self._episodes[i].detected:
            return image
        erased = np.logical_or.reduce(self._episodes[i].detected)
        rest = image if erased.all() else image[~erased]
        image = image.copy()
        image[erased] = rest.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
        return image

    def _start_info(self, i: int, sample: Sample) -> Infos:
        info = super()._start_info(i, sample)
        if self.dataset.split == "train":
            assert sample.ranks is not None  # `_begin` checked it.
            info["ranks"] = tuple(ranks.copy() for ranks in sample.ranks)
        return info

    def _step_info(self, i: int, transition: Transition, soft: np.ndarray) -> Infos:
        episode = self._episodes[i]
        return super()._step_info(i, transition, soft) | {
            "iou": float(episode.quality),
            "found": int(episode.found.sum()),
            "detected": len(episode.detected),
        }

    def _panels(self, i: int, last: Transition | None) -> Mapping[str, Sequence[np.ndarray] | None]:
        return {"detected": None if last is None else [self._detected(i)]}


class RankingEnv(ScalarEnv):
    """Scalar form of `RankingVectorEnv`, with its arguments, spaces and infos.

    Example:
        >>> env = gym.make("maskgym/Ranking-v0")  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
        >>> first = info["target"][0][info["ranks"][0].argmax()]  # doctest: +SKIP
        >>> env.step(first.astype("float32"))[1]  # doctest: +SKIP
        1.0
    """

    vector_class = RankingVectorEnv
