"""Base of the click agents: a policy over the patch grid, the jointly trained module, and statistics of rollouts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.policies import BasePolicy
from torch.nn import functional as F

from maskgym.agents.common.checkpoints import (
    CheckpointedAgent,
    TrainingState,
    fitting,
    read_checkpoint,
    write_checkpoint,
)
from maskgym.aliases import Observation, Settings
from maskgym.envs.base import unwrap
from maskgym.envs.clicks.patches import patch_centres
from maskgym.envs.point import PointPromptVectorEnv


class ClickAgent(CheckpointedAgent):
    """Run, save and resume a policy over the patch grid; a subclass trains it.

    A recalibration module that labels the clicks is trained jointly, after every action (Eq. 13).

    Args:
        policy: Policy with its optimizer.
        env: Vector environment of the training.
        seed: Seed of all random draws in training.
        output: Folder of the checkpoints.
        save_every: Updates between checkpoints.

    Raises:
        UserError: If save_every is below 1.
    """

    tasks: ClassVar[tuple[str, ...]] = ("point_prompt", "user_need_point")
    checkpoint_name: ClassVar[str] = "clicks.pt"
    members: ClassVar[tuple[str, ...]] = ("trunk", "actor", "critic")

    def __init__(self, policy: BasePolicy, env: VectorEnv, seed: int, output: str | Path, save_every: int) -> None:
        super().__init__(seed, output, save_every)
        base = unwrap(env, PointPromptVectorEnv)
        self.policy, self.recalibration = policy, base.recalibration
        self.recalibration_trainer = RecalibrationTrainer(base)

    def act(self, observations: Sequence[Observation], greedy: bool = True) -> np.ndarray:
        """Compute one action per observation, the most probable one or a sampled one."""
        batch = {name: np.stack([row[name] for row in observations]) for name in observations[0]}
        return self.policy.predict(batch, deterministic=greedy)[0]

    def save(self, path: str | Path) -> None:
        """Write the weights atomically to ``policy.pt`` in a folder."""
        write_checkpoint(Path(path) / "policy.pt", self._weights())

    def load(self, path: str | Path) -> None:
        """Load the weights that `save` wrote.

        Raises:
            UserError: If the file is missing, damaged, or of another policy.
        """
        file = Path(path) / "policy.pt"
        state = read_checkpoint(file)
        with fitting(file):
            self._load_weights(state)

    def training_state(self) -> TrainingState:
        """Collect the weights and the states of the optimizers."""
        state = self._weights() | {"optimizer": self.policy.optimizer.state_dict()}
        if self.recalibration is not None:
            state["recalibration_optimizer"] = self.recalibration.optimizer.state_dict()
        return state

    def load_training_state(self, state: Settings, file: Path) -> None:
        """Load what `training_state` returned."""
        self._load_weights(state)
        self.policy.optimizer.load_state_dict(state["optimizer"])
        if self.recalibration is not None:
            self.recalibration.optimizer.load_state_dict(state["recalibration_optimizer"])

    def _weights(self) -> TrainingState:
        state = {"policy": self.policy.state_dict()}
        return state if self.recalibration is None else state | {"recalibration": self.recalibration.state_dict()}

    def _load_weights(self, state: Settings) -> None:
        self.policy.load_state_dict(state["policy"])
        if self.recalibration is not None:
            self.recalibration.load_state_dict(state["recalibration"])


class RecalibrationTrainer:
    """Train the recalibration module of an environment, if it has one, on the episodes that are played.

    Args:
        env: Environment of the episodes.
    """

    def __init__(self, env: PointPromptVectorEnv) -> None:
        self.env, self.module = env, env.recalibration
        self.truth = torch.empty(0)  # (num_envs, g, g)

    def begin(self, targets: Sequence[tuple[np.ndarray, ...]]) -> list[float]:
        """Store the ground truth of episodes that begin and train the module on them; return its loss, if any.

        Patches whose ground truth is void are left out.

        Args:
            targets: Ground-truth masks of each sub-environment's sample.
        """
        if self.module is None:
            return []
        of_patches = TRUTHS[self.module.truth]
        unions = [np.logical_or.reduce(target[0], axis=0) for target in targets]
        self.truth = torch.stack([of_patches(union, self.env.grid) for union in unions])
        for truth, void in zip(self.truth, self.env.void(), strict=True):
            if void is not None:
                truth[of_patches(void, self.env.grid) > 0.5] = math.nan  # neither foreground nor background
        # The paper's module also chooses the first prompts, so it must learn the state before them.
        return self.learn(self.env.unprompted())

    def learn(self, observation: Mapping[str, np.ndarray]) -> list[float]:
        """Train the module q times on the observation of an action (Section 4.1); return its loss, if any."""
        if self.module is None:
            return []
        tensors = {name: torch.as_tensor(value) for name, value in observation.items()}
        return [self.module.learn(tensors, self.truth)]


@dataclass
class RolloutStatistics:
    """Means over sub-environments, one per step, and the losses of the recalibration module."""

    rewards: list[float] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    repeats: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, rewards: np.ndarray, ious: Sequence[float], repeated: Sequence[bool]) -> None:
        """Add a step."""
        self.rewards.append(float(np.mean(rewards)))
        self.ious.append(float(np.mean(ious)))
        self.repeats.append(float(np.mean(repeated)))

    def scalars(self) -> dict[str, float]:
        """Compute the return, the final IoU, the share of repeated clicks, and the loss of the module, if any."""
        found = {"reward": sum(self.rewards), "iou": self.ious[-1], "repeated": float(np.mean(self.repeats))}
        return found | ({"recalibration/loss": float(np.mean(self.losses))} if self.losses else {})


def centre_truth(mask: np.ndarray, grid: int) -> torch.Tensor:
    """Look up a mask bool (H, W) at the click of each patch, float (g, g), 0 or 1."""
    columns, rows = ((patch_centres(grid, 1) / grid) * mask.shape[::-1]).astype(int).T
    return torch.from_numpy(mask[rows, columns].reshape(grid, grid)).float()


def patch_shares(mask: np.ndarray, grid: int) -> torch.Tensor:
    """Compute the share of each patch that a mask bool (H, W) covers, float (g, g)."""
    return F.adaptive_avg_pool2d(torch.from_numpy(mask)[None].float(), grid)[0]


TRUTHS = {"centre": centre_truth, "share": patch_shares}  # of Eq. 13's y', the mask "downsampled to the same size"
