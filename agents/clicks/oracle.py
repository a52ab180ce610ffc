"""Search for clicks with the ground-truth mask: an upper bound of what clicks achieve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NoReturn

import numpy as np
from gymnasium.vector import VectorEnv
from scipy import ndimage

from maskgym.agents.base import Chooser, FrozenAgent, Policy
from maskgym.agents.common.checkpoints import check_at_least
from maskgym.aliases import Observation
from maskgym.envs.base import unwrap
from maskgym.envs.point import PointPromptVectorEnv, PointState
from maskgym.errors import UserError

Click = int | tuple[int, int]  # patch, or patch and label


class OracleAgent(FrozenAgent):
    """Search for clicks with the ground-truth mask, greedily, or by beam search with ``width`` above 1.

    Each step tries, from every state, the clicks that lie deepest in the largest region where the mask is wrong. The
    states with the best IoU are kept. All trials of a step are decoded in one batch.

    Args:
        policy: Unused; present because all agents share one constructor.
        env: Unused; `search` takes the environment to search in.
        seed: Unused; the search is deterministic.
        output: Unused.
        width: States kept per step; 1 is greedy.
        candidates: Clicks tried per state.

    Raises:
        UserError: If a number is below 1.
    """

    tasks: ClassVar[tuple[str, ...]] = ("point_prompt", "user_need_point")

    def __init__(
        self,
        policy: Policy | None = None,
        env: VectorEnv | None = None,
        seed: int = 0,
        output: str | Path | None = None,
        width: int = 1,
        candidates: int = 8,
    ) -> None:
        check_at_least(1, width=width, candidates=candidates)
        self.width, self.candidates = width, candidates

    def act(self, observations: Sequence[Observation], greedy: bool = True) -> NoReturn:
        """Refuse: the search needs the environment and not its observations; see `begin`."""
        raise UserError("algo=oracle: searches in an environment: observations alone do not suffice")

    def begin(self, env: VectorEnv, count: int) -> Chooser:
        """Search from the initial states; build the policy that plays the clicks found."""
        base = unwrap(env, PointPromptVectorEnv)
        found = [
            base.actions(state.patches, state.labels[-base.horizon :].tolist()) for state in self.search(env)[:count]
        ]
        return lambda step, observations: [actions[step] for actions in found]

    def search(self, env: VectorEnv) -> list[PointState]:
        """Find the best final states that episodes reach from the current state of each sub-environment."""
        base = unwrap(env, PointPromptVectorEnv)
        beams = [[state] for state in base.get_state()]
        trials = base.branch(len(beams) * self.width * self.candidates)
        for _ in range(base.horizon - len(beams[0][0].patches)):
            rows = [(owner, state) for owner, beam in enumerate(beams) for state in beam]
            views = base.branch(len(rows))
            views.set_state([state for _, state in rows])
            tried = [
                (owner, state, action)
                for (owner, state), (mask, truth) in zip(rows, views.masks_and_targets(), strict=True)
                for action in self._clicks(base, state, mask, truth)
            ]
            beams = self._best(trials, tried, len(beams))
        return [beam[0] for beam in beams]

    def _clicks(
        self, base: PointPromptVectorEnv, state: PointState, mask: np.ndarray, truth: np.ndarray
    ) -> list[Click]:
        """List the actions to try from a state with this mask, bool (H, W), and this ground truth."""
        height, width = truth.shape
        centres = (base.centres() / base.image_size * (width, height)).astype(int)  # (g², 2)
        regions, count = ndimage.label(mask != truth)
        areas = np.bincount(regions.ravel(), minlength=2)[1:]
        depth = ndimage.distance_transform_edt(regions == 1 + areas.argmax()) if count else np.zeros(truth.shape)
        order = np.argsort(-depth[centres[:, 1], centres[:, 0]], kind="stable")
        if not base.allow_repeated_clicks:
            order = order[~np.isin(order, state.patches)]
        tried = order[: self.candidates]
        labels = truth[centres[tried, 1], centres[tried, 0]].astype(int)
        return [
            (int(patch), int(label)) if base.label_source == "policy" else int(patch)
            for patch, label in zip(tried, labels, strict=True)
        ]

    def _best(
        self, trials: PointPromptVectorEnv, tried: list[tuple[int, PointState, Click]], count: int
    ) -> list[list[PointState]]:
        """Find the best next states of each of ``count`` samples, best first.

        Args:
            trials: Branch of the environment, for any number of trials.
            tried: Index of the sample, state and click of each trial.
            count: Number of samples.
        """
        filled = [*tried, *tried[-1:] * (trials.num_envs - len(tried))]
        trials.set_state([state for _, state, _ in filled])
        infos = trials.step([action for _, _, action in filled])[-1]
        after, quality = trials.get_state(), infos["iou"][: len(tried)]
        found: list[list[PointState]] = [[] for _ in range(count)]
        for trial in np.argsort(-quality, kind="stable"):
            beam = found[tried[trial][0]]
            if len(beam) < self.width:
                beam.append(after[trial])
        return found
