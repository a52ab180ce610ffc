"""PPO on point prompting with Stable-Baselines3 (AlignSAM, Eq. 5-10 and Algorithm 1).

Eq. 8 of the paper divides the probabilities of different steps. The ratio here is that of plain PPO: the new over the
old policy at the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from maskgym.agents.base import OnLog
from maskgym.agents.clicks.acting import ClickAgent, RolloutStatistics
from maskgym.agents.clicks.sb3 import GridPolicy, SampleVecEnv
from maskgym.agents.common.checkpoints import check_at_least
from maskgym.envs.base import unwrap
from maskgym.envs.point import PointPromptVectorEnv
from maskgym.policies.clicks.point import PointActorCritic


class PPOAgent(ClickAgent):
    """Train by PPO with AlignSAM's settings: γ 0.99, ε 0.2, K 20 epochs, λ 1 (Eq. 6), raw advantages (Eq. 7).

    Args:
        policy: Sizes of the networks.
        env: Vector environment with the spaces of the policy.
        seed: Seed of the weights, of sampling, and of the samples shown.
        output: Folder of the checkpoints.
        learning_rate: Learning rate for Adam.
        gamma: Discount factor γ.
        gae_lambda: λ of generalised advantage estimation; 1 is Eq. 6.
        clip_range: Clip range ε of Eq. 9.
        epochs: Passes over a rollout, K.
        minibatch_size: Steps per gradient.
        value_weight: Weight of the critic's loss (Eq. 10) beside the actor's (Eq. 9); the paper states none.
        entropy_weight: Weight of the entropy bonus; the paper has none.
        normalize_advantage: Whether to scale a minibatch's advantages to mean 0 and standard deviation 1; the paper
            does not.
        save_every: Updates between checkpoints.

    Raises:
        UserError: If a number is out of range.
    """

    autoreset_mode: ClassVar[AutoresetMode] = AutoresetMode.SAME_STEP

    def __init__(
        self,
        policy: PointActorCritic,
        env: VectorEnv,
        seed: int = 0,
        *,
        output: str | Path,
        learning_rate: float = 3e-4,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        clip_range: float = 0.2,
        epochs: int = 20,
        minibatch_size: int = 240,
        value_weight: float = 0.5,
        entropy_weight: float = 0.0,
        normalize_advantage: bool = False,
        save_every: int = 10,
    ) -> None:
        check_at_least(1, epochs=epochs, minibatch_size=minibatch_size)
        self.vector = SampleVecEnv(env)
        self.model = PPO(
            GridPolicy,
            self.vector,
            n_steps=unwrap(env, PointPromptVectorEnv).horizon,
            batch_size=minibatch_size,
            learning_rate=learning_rate,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            n_epochs=epochs,
            vf_coef=value_weight,
            ent_coef=entropy_weight,
            normalize_advantage=normalize_advantage,
            policy_kwargs={"networks": policy},
            seed=seed,
            device="auto",
        )
        made = self.model.policy
        assert isinstance(made, GridPolicy)
        super().__init__(made, env, seed, output, save_every)

    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: OnLog, resume: bool = False) -> None:
        """Train for a number of updates: a rollout of one episode per sub-environment, then K epochs over it.

        Args:
            envs: List that holds only the environment of the agent.
            updates: Total number of updates, including those before a resumed checkpoint.
            on_log: Receiver of each update's number, from 1, and its named scalars.
            resume: Whether to continue from the checkpoint in ``output``, if any.
        """
        first = self.restore() if resume else 0
        if first < updates:
            self.model._n_updates = first * self.model.n_epochs  # which it logs
            steps = self.model.n_steps * self.model.n_envs * (updates - first)
            # An interval that training does not reach keeps Stable-Baselines3 from printing a table.
            self.model.learn(steps, callback=_Rollouts(self, first, on_log), log_interval=updates + 1)


class _Rollouts(BaseCallback):
    """Start every rollout with new episodes and its own seed, and log the last rollout."""

    def __init__(self, agent: PPOAgent, first: int, on_log: OnLog) -> None:
        super().__init__()
        self.agent, self.update, self.on_log = agent, first, on_log
        self.statistics = RolloutStatistics()

    def _on_rollout_start(self) -> None:
        self._finish()
        numbers = np.random.SeedSequence([self.agent.seed, self.update]).generate_state(3)
        torch.manual_seed(int(numbers[0]))
        np.random.seed(int(numbers[1]))  # Stable-Baselines3 shuffles minibatches with this generator.
        vector = self.agent.vector
        vector.seed(int(numbers[2] % 2**31))
        self.model._last_obs = vector.reset()
        self.model._last_episode_starts = np.ones(vector.num_envs, bool)
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
