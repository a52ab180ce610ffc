"""GRPO and CGPO on point prompting, with one advantage per episode and without a critic.

All clicks of an episode share the signal of its return. GRPO compares the episodes of one sample, which begin with the
same prompts (Shao et al., DeepSeekMath, arXiv 2402.03300, without the KL divergence from a reference policy). CGPO
plays one episode per sample. Its advantage is the return, scaled to [0, 1] by the reward's range, minus the mean
probability of the clicks (Saliency-R1, Eq. 10 and 13, with clicks in place of tokens). There are no interleaved
supervised steps; a recalibration module is trained jointly, as in PPO.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.distributions import Distribution
from torch import Tensor

from maskgym.agents.clicks.acting import ClickAgent
from maskgym.agents.clicks.sb3 import GridPolicy
from maskgym.agents.common.checkpoints import OnLog, check_at_least
from maskgym.agents.common.objectives import clipped_loss, confidence_advantages, group_advantages
from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic


@dataclass
class Episodes:
    """Rollout of one episode per sub-environment, T steps long.

    Attributes:
        observations: Arrays by name, float32 (T, B, …).
        actions: int64 (T, B) or (T, B, 2).
        log_probabilities: float32 (T, B), under the policy that played.
        returns: float64 (B,), sums of the rewards.
        ious: float64 (B,), final IoU.
        repeated: Share of clicks on a patch that was clicked before.
        losses: Losses of the recalibration module.
    """

    observations: dict[str, Tensor]
    actions: Tensor
    log_probabilities: Tensor
    returns: np.ndarray
    ious: np.ndarray
    repeated: float
    losses: list[float]


class EpisodeAgent(ClickAgent):
    """Train by clipped policy gradients; every step has the advantage of its episode.

    Args:
        policy: A `maskgym.policies.clicks.point.PointActorCritic`; its critic is not used.
        env: A vector environment with the spaces of the policy and ``autoreset_mode=DISABLED``.
        seed: Seed of the weights, of sampling, and of the samples shown.
        output: Folder of the checkpoints.
        group_size: Episodes per sample, a divisor of the number of sub-environments.
        learning_rate: Of Adam.
        clip_range: Clip range ε of the ratio of new to old probability.
        epochs: Passes over the episodes; with one pass the ratio is 1.
        minibatch_size: Steps per gradient.
        save_every: Updates between checkpoints.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        policy: PointActorCritic,
        env: VectorEnv,
        seed: int = 0,
        output: str | Path = "checkpoints",
        group_size: int = 1,
        learning_rate: float = 3e-4,
        clip_range: float = 0.2,
        epochs: int = 20,
        minibatch_size: int = 240,
        save_every: int = 10,
    ) -> None:
        check_at_least(1, group_size=group_size, epochs=epochs, minibatch_size=minibatch_size)
        if env.num_envs % group_size:
            raise UserError(f"algo.group_size={group_size}: expected a divisor of env.num_envs={env.num_envs}")
        base: Any = env.unwrapped
        self.group_size, self.clip_range = group_size, clip_range
        self.epochs, self.minibatch_size = epochs, minibatch_size
        low, high = base.reward.range
        self.return_range = (low * base.horizon, high * base.horizon)
        torch.manual_seed(seed)
        spaces = env.single_observation_space, env.single_action_space
        made = GridPolicy(*spaces, lambda _: learning_rate, networks=policy)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(made.to(device), env, seed, output, save_every)

    @abstractmethod
    def advantages(self, episodes: Episodes) -> Tensor:
        """Compute the advantages, float32 (B,), one per episode."""

    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: OnLog, resume: bool = False) -> None:
        """Train for a number of updates: one episode per sub-environment, then epochs over their steps.

        Args:
            envs: List that holds only the environment of the agent.
            updates: Total number of updates, including those before a resumed checkpoint.
            on_log: Callback after each update, with its number, from 1, and named scalars.
            resume: Whether to continue from the checkpoint in ``output``, if any.
        """
        for update in range(self.restore() if resume else 0, updates):
            numbers = np.random.SeedSequence([self.seed, update]).generate_state(2)
            torch.manual_seed(int(numbers[0]))
            episodes = self.play(envs[0], int(numbers[1] % 2**31))
            losses = self.improve(episodes)
            values = {"reward": float(episodes.returns.mean()), "iou": float(episodes.ious.mean())}
            values |= {"repeated": episodes.repeated} | losses
            values |= {"recalibration/loss": float(np.mean(episodes.losses))} if episodes.losses else {}
            on_log(update + 1, values)
            if (update + 1) % self.save_every == 0:
                self.checkpoint(update + 1)

    def play(self, env: VectorEnv, seed: int) -> Episodes:
        """Play one episode per sub-environment; a group begins at the same sample with the same prompts."""
        base: Any = env.unwrapped
        groups = env.num_envs // self.group_size
        drawn = np.random.default_rng(seed).integers(base.num_samples, size=groups)
        _, infos = env.reset(seed=seed, options={"index": drawn.repeat(self.group_size)})
        first = base.get_state()[:: self.group_size]
        observation = base.set_state([state for state in first for _ in range(self.group_size)])
        losses = self.along.begin(infos["target"])
        seen, actions, chances, rewards, repeated = [], [], [], [], []
        for _ in range(base.horizon):
            tensors, _ = self.policy.obs_to_tensor(observation)
            with torch.no_grad():
                distribution = self.policy.get_distribution(tensors)
                chosen = distribution.get_actions()
                chances.append(distribution.log_prob(chosen))
            losses += self.along.learn(observation)
            seen.append(tensors)
            actions.append(chosen)
            observation, values, _, _, infos = env.step(chosen.cpu().numpy())
            rewards.append(values)
            repeated.append(infos["repeated"])
        return Episodes(
            observations={name: torch.stack([step[name] for step in seen]) for name in seen[0]},
            actions=torch.stack(actions),
            log_probabilities=torch.stack(chances),
            returns=np.sum(rewards, axis=0),
            ious=np.asarray(infos["iou"], dtype=float),
            repeated=float(np.mean(repeated)),
            losses=losses,
        )

    def improve(self, episodes: Episodes) -> dict[str, float]:
        """Run the gradient steps of one update; return named scalars."""
        advantages = self.advantages(episodes)
        steps = len(episodes.actions)
        observations = {name: value.flatten(0, 1) for name, value in episodes.observations.items()}
        actions, old = episodes.actions.flatten(0, 1), episodes.log_probabilities.flatten()
        each = advantages.to(old.device).repeat(steps)  # (T·B,), in the order of the flattened steps
        losses, clipped, entropies = [], [], []
        for _ in range(self.epochs):
            for rows in torch.randperm(len(old), device=old.device).split(self.minibatch_size):
                distribution = self.policy.get_distribution({name: value[rows] for name, value in observations.items()})
                loss, share = self.loss(distribution, actions[rows], old[rows], each[rows])
                self.policy.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 0.5)
                self.policy.optimizer.step()
                losses.append(loss.item())
                clipped.append(share)
                entropy = distribution.entropy()
                assert entropy is not None  # both distributions of patches have one
                entropies.append(entropy.mean().item())
        found = {"train/loss": losses, "train/clip_fraction": clipped, "train/entropy": entropies}
        spread = {"train/advantage_deviation": float(advantages.std(unbiased=False))}
        return {name: float(np.mean(values)) for name, values in found.items()} | spread

    def loss(
        self, distribution: Distribution, actions: Tensor, old: Tensor, advantages: Tensor
    ) -> tuple[Tensor, float]:
        """Compute the clipped loss (Eq. 9 of AlignSAM, with PPO's ratio) and the share of clipped ratios."""
        return clipped_loss(distribution.log_prob(actions), old, advantages, self.clip_range)


class GRPOAgent(EpisodeAgent):
    """Train by GRPO: the advantage is the return standardised by its group's mean and standard deviation.

    Args:
        group_size: Episodes per sample, at least 2; see `EpisodeAgent` for the others.
    """

    def __init__(self, policy: PointActorCritic, env: VectorEnv, group_size: int = 8, **settings: Any) -> None:
        check_at_least(2, group_size=group_size)
        super().__init__(policy, env, group_size=group_size, **settings)

    def advantages(self, episodes: Episodes) -> Tensor:
        """Compute the advantages, float32 (B,); a zero-variance group has 0."""
        return group_advantages(episodes.returns, self.group_size)


class CGPOAgent(EpisodeAgent):
    """Train by CGPO: the advantage is the return in [0, 1] minus the mean probability of the clicks.

    Args:
        center_advantage: Whether to subtract the batch's mean advantage; the paper does not.
        settings: Other settings of `EpisodeAgent`; a sample has one episode.
    """

    def __init__(
        self, policy: PointActorCritic, env: VectorEnv, center_advantage: bool = False, **settings: Any
    ) -> None:
        super().__init__(policy, env, **settings)
        self.center_advantage = center_advantage

    def advantages(self, episodes: Episodes) -> Tensor:
        """Compute the advantages, float32 (B,) in [-1, 1]."""
        confidence = episodes.log_probabilities.exp().mean(dim=0).cpu()
        return confidence_advantages(episodes.returns, self.return_range, confidence, self.center_advantage)
