"""Episode statistics that are right for environments that begin the next episode in the same step."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import FrameType

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorWrapper
from gymnasium.wrappers import vector as wrappers

from maskgym.aliases import Infos, Observations
from maskgym.errors import UserError

FIXED = (1, 4)  # Gymnasium's own wrapper is right with SAME_STEP since this version.
CALLERS = 16  # that are looked at: wrappers and vector environments call each other directly


class RecordEpisodeStatistics(wrappers.RecordEpisodeStatistics):
    """Gymnasium's wrapper of the same name, right with ``AutoresetMode.SAME_STEP`` too, in every version.

    Before version 1.4, Gymnasium's ignores the step after an episode's end, which in this mode is the first of the next
    episode: of episodes of one step, every return after the first is 0. The arguments are Gymnasium's.
    """

    # Gymnasium's signature returns type variables that nothing binds, so no types can override them.
    def step(  # type: ignore[override]
        self, actions: Sequence[str] | np.ndarray
    ) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Take a step; infos of ended episodes have ``episode`` with ``r``, ``l`` and ``t``."""
        if self.env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            self.episode_returns[self.prev_dones] = 0
            self.episode_lengths[self.prev_dones] = 0
            self.episode_start_times[self.prev_dones] = time.perf_counter()
            self.prev_dones = np.zeros_like(self.prev_dones)
        return super().step(actions)


def refuse_wrong_statistics() -> None:
    """Refuse Gymnasium's own `RecordEpisodeStatistics` around the caller where its version and mode are wrong.

    An environment does not know its wrappers, but they are among the callers of its ``reset``, perhaps behind a
    `gymnasium.vector.SyncVectorEnv` and the wrappers of a scalar environment. Other processes are out of sight.

    Raises:
        UserError: If the wrapper is among them.
    """
    if tuple(int(part) for part in gymnasium.__version__.split(".")[:2]) >= FIXED:
        return
    frame: FrameType | None = sys._getframe(2)
    for _ in range(CALLERS):
        if frame is None:
            return
        caller = frame.f_locals.get("self")
        if (
            isinstance(caller, VectorWrapper)
            and type(caller).step is wrappers.RecordEpisodeStatistics.step
            and caller.env.metadata.get("autoreset_mode") is AutoresetMode.SAME_STEP
        ):
            raise UserError(
                f"RecordEpisodeStatistics of gymnasium {gymnasium.__version__} reports wrong returns with "
                "autoreset_mode=SameStep: expected maskgym.envs.statistics.RecordEpisodeStatistics, or gymnasium 1.4"
            )
        frame = frame.f_back
