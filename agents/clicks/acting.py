"""Base of the click agents: a policy over the patch grid, the jointly trained module, and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch.nn import functional as F

from maskgym.agents.base import Agent
from maskgym.agents.clicks.sb3 import GridPolicy
from maskgym.agents.common.checkpoints import check_agent, check_at_least, read_checkpoint, write_checkpoint

CHECKPOINT = "clicks.pt"


class ClickAgent(Agent):
    """Run, save and resume a `GridPolicy`; a subclass trains it.

    A recalibration module that labels the clicks is trained jointly, after every action (Eq. 13).

    Args:
        policy: Policy with its optimiser.
        env: Vector environment of the training.
        seed: Seed of all random draws in training.
        output: Folder of the checkpoints.
        save_every: Updates between checkpoints.

    Raises:
        UserError: If save_every is below 1.
    """

    tasks: ClassVar[tuple[str, ...]] = ("point_prompt", "user_need_point")

    def __init__(self, policy: GridPolicy, env: VectorEnv, seed: int, output: str | Path, save_every: int) -> None:
        check_at_least(1, save_every=save_every)
        base: Any = env.unwrapped
        self.policy, self.seed, self.output, self.save_every = policy, seed, Path(output), save_every
        self.recalibration, self.along = base.recalibration, TrainedAlong(base)

    def act(self, observations: Sequence[Mapping[str, Any]], greedy: bool = True) -> np.ndarray:
        """Return one action per observation, the most probable one or a sampled one."""
        batch = {name: np.stack([row[name] for row in observations]) for name in observations[0]}
        return self.policy.predict(batch, deterministic=greedy)[0]

    def save(self, path: str | Path) -> None:
        """Write the weights atomically to ``policy.pt`` in a folder."""
        Path(path).mkdir(parents=True, exist_ok=True)
        write_checkpoint(Path(path) / "policy.pt", self._weights())

    def load(self, path: str | Path) -> None:
        """Load the weights that `save` wrote.

        Raises:
            UserError: If the file is missing.
        """
        self._load(read_checkpoint(Path(path) / "policy.pt"))

    def checkpoint(self, update: int) -> None:
        """Write the state that later updates need; random draws are seeded by the update's number."""
        self.output.mkdir(parents=True, exist_ok=True)
        state = self._weights() | {"optimizer": self.policy.optimizer.state_dict(), "update": update}
        state["agent"] = type(self).__name__
        if self.recalibration is not None:
            state["recalibration_optimizer"] = self.recalibration.optimizer.state_dict()
        write_checkpoint(self.output / CHECKPOINT, state)

    def restore(self) -> int:
        """Load the checkpoint in ``output``, if any; return its number of finished updates.

        Raises:
            UserError: If another algorithm wrote it.
        """
        file = self.output / CHECKPOINT
        if not file.exists():
            return 0
        state = read_checkpoint(file)
        check_agent(self, state, file)
        self._load(state)
        self.policy.optimizer.load_state_dict(state["optimizer"])
        if self.recalibration is not None:
            self.recalibration.optimizer.load_state_dict(state["recalibration_optimizer"])
        return state["update"]

    def _weights(self) -> dict[str, Any]:
        state = {"policy": self.policy.state_dict()}
        return state if self.recalibration is None else state | {"recalibration": self.recalibration.state_dict()}

    def _load(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        if self.recalibration is not None:
            self.recalibration.load_state_dict(state["recalibration"])


class TrainedAlong:
    """Train the recalibration module of an environment, if it has one, on the episodes that are played.

    Args:
        env: Unwrapped environment of the episodes.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.truth = torch.empty(0)  # (num_envs, g, g)

    def begin(self, targets: Sequence[tuple[np.ndarray, ...]]) -> list[float]:
        """Keep the ground truth of episodes that begin and train the module on them; return its loss, if any.

        Args:
            targets: Ground-truth masks of each sub-environment's sample.
        """
        if self.env.recalibration is None:
            return []
        unions = [np.logical_or.reduce(target[0], axis=0) for target in targets]
        self.truth = torch.stack([patch_shares(union, self.env.grid) for union in unions])
        # The paper's module also chooses the first prompts, so it must learn the state before them.
        return self.learn(self.env.unprompted())

    def learn(self, observation: Mapping[str, np.ndarray]) -> list[float]:
        """Train the module q times on the observation of an action (Section 4.1); return its loss, if any."""
        if self.env.recalibration is None:
            return []
        tensors = {name: torch.as_tensor(value) for name, value in observation.items()}
        return [self.env.recalibration.learn(tensors, self.truth)]


def patch_shares(mask: np.ndarray, grid: int) -> torch.Tensor:
    """Compute the share of each patch that a mask bool (H, W) covers, float (g, g) (y' of Eq. 13)."""
    return F.adaptive_avg_pool2d(torch.from_numpy(mask)[None].float(), grid)[0]
