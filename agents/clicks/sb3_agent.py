"""Train a model of Stable-Baselines3 on clicks: a rollout of one episode per sub-environment, then gradient steps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from maskgym.agents.base import OnLog
from maskgym.agents.clicks.acting import ClickAgent, RolloutStatistics
from maskgym.agents.clicks.sb3 import SampleVecEnv


class SB3Agent(ClickAgent):
    """Run the training loop of a model of Stable-Baselines3; a subclass makes the model.

    Episodes begin with the seed of their rollout. None restarts at a rollout's end, because the image that it would
    encode is never shown.

    Args:
        model: Model on a `SampleVecEnv` without restarts, which learns after each rollout of the horizon's length.
        env: Vector environment of the training.
        seed: Seed of all random draws in training.
        output: Folder of the checkpoints.
        save_every: Updates between checkpoints.
        gradient_steps: Passes or steps of an update, which the model counts and logs.
    """

    def __init__(
        self, model: BaseAlgorithm, env: VectorEnv, seed: int, output: str | Path, save_every: int, gradient_steps: int
    ) -> None:
        vector = model.get_env()
        assert isinstance(vector, SampleVecEnv)
        self.model, self.vector, self.gradient_steps = model, vector, gradient_steps
        super().__init__(model.policy, env, seed, output, save_every)

    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: OnLog, resume: bool = False) -> None:
        """Train for a number of updates: a rollout of one episode per sub-environment, then gradient steps.

        Args:
            envs: List that holds only the environment of the agent.
            updates: Total number of updates, including those before a resumed checkpoint.
            on_log: Receiver of each update's number, from 1, and its named scalars.
            resume: Whether to continue from the checkpoint in ``output``, if any.
        """
        first = self.restore() if resume else 0
        if first < updates:
            self.model._n_updates = first * self.gradient_steps  # which it logs
            steps = self.recalibration_trainer.env.horizon * self.vector.num_envs * (updates - first)
            self.model.num_timesteps = 0
            self.model._last_obs = {}  # Without any, learning would begin with a reset of its own.
            rollouts = _Rollouts(self, first, updates, on_log)
            # An interval that training does not reach keeps Stable-Baselines3 from printing a table.
            self.model.learn(steps, callback=rollouts, log_interval=sys.maxsize, reset_num_timesteps=False)

    def begin_rollout(self, update: int, updates: int) -> None:
        """Prepare the model for the rollout of an update, from 0, of so many."""


class _Rollouts(BaseCallback):
    """Start every rollout with new episodes and its own seed, and log the last rollout."""

    def __init__(self, agent: SB3Agent, first: int, updates: int, on_log: OnLog) -> None:
        super().__init__()
        self.agent, self.update, self.updates, self.on_log = agent, first, updates, on_log
        self.statistics = RolloutStatistics()

    def _on_rollout_start(self) -> None:
        self._finish()
        numbers = np.random.SeedSequence([self.agent.seed, self.update]).generate_state(3)
        torch.manual_seed(int(numbers[0]))
        np.random.seed(int(numbers[1]))  # Stable-Baselines3 shuffles and samples minibatches with this generator.
        vector = self.agent.vector
        vector.seed(int(numbers[2] % 2**31))
        self.model._last_obs = vector.reset()
        self.model._last_episode_starts = np.ones(vector.num_envs, bool)
        self.agent.begin_rollout(self.update, self.updates)
        self.statistics = RolloutStatistics(losses=self.agent.recalibration_trainer.begin(vector.targets))

    def _on_step(self) -> bool:
        shown = self.model._last_obs  # the observation that the action was chosen for
        assert isinstance(shown, dict)
        self.statistics.losses += self.agent.recalibration_trainer.learn(shown)
        infos = self.locals["infos"]
        self.statistics.add(
            self.locals["rewards"], [info["iou"] for info in infos], [info["repeated"] for info in infos]
        )
        return True

    def _on_training_end(self) -> None:
        self._finish()

    def _finish(self) -> None:
        """Log the finished rollout and the update that followed it."""
        if self.statistics.rewards:
            self.update += 1
            losses = {name: float(v) for name, v in self.logger.name_to_value.items() if name.startswith("train/")}
            self.agent.finish_update(self.update, self.statistics.scalars() | losses, self.on_log)
