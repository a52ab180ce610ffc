"""GRPO and CGPO on point prompting: whole episodes are good or bad, and no critic says what a state is worth.

An episode's return is the signal of all its clicks. GRPO compares the episodes of one sample, which begin with the same
prompts, with each other (Shao et al., DeepSeekMath, arXiv 2402.03300, without the divergence from a reference policy).
CGPO plays one episode a sample and compares what came of it with how sure the policy was: the return, brought to [0, 1]
by the reward's range, minus the mean probability of the clicks (Saliency-R1, Eq. 10 and 13, on clicks for tokens).
There is no supervised step between: what is supervised here is the recalibration module, trained along as in PPO.
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
    """One episode a sub-environment, T steps long.

    Attributes:
        observations: By name, float32 (T, B, …).
        actions: int64 (T, B) or (T, B, 2).
        log_probabilities: float32 (T, B), of the policy that played.
        returns: float64 (B,), the sum of the rewards.
        ious: float64 (B,), at the end.
        repeated: Share of clicks on a patch that was clicked before.
        losses: Of the recalibration module.
    """

    observations: dict[str, Tensor]
    actions: Tensor
    log_probabilities: Tensor
    returns: np.ndarray
    ious: np.ndarray
    repeated: float
    losses: list[float]


class EpisodeAgent(ClickAgent):
    """Clipped policy gradients where every step of an episode has the episode's advantage.

    Args:
        policy: A `maskgym.policies.clicks.point.PointActorCritic`; its critic is not used.
        env: A vector environment with the spaces that it will act in, with ``autoreset_mode=DISABLED``.
        seed: Seed of the weights, of sampling, and of the samples shown.
        output: Folder of the checkpoints.
        group_size: Episodes of one sample, a divisor of the number of sub-environments.
        learning_rate: Of Adam.
        clip_range: ε, of the ratio of new to old probability.
        epochs: Passes over the episodes; with one the ratio is 1.
        minibatch_size: Steps a gradient.
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
        """Return float32 (B,), one an episode."""

    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: OnLog, resume: bool = False) -> None:
        """Train for a number of updates: one episode a sub-environment, then epochs over their steps.

        Args:
            envs: One, the one that the agent was made with.
            updates: In all, those before a resumed checkpoint included.
            on_log: Called after each with its number, from 1, and named scalars.
            resume: Go on from the checkpoint in ``output``, where there is one.
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
        """Play one episode a sub-environment; those of a group begin at the same sample with the same prompts."""
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
        """Take the gradient steps of one update; return named scalars."""
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
        """Return the clipped loss (Eq. 9 of AlignSAM, with PPO's ratio) and the share of ratios out of bounds."""
        return clipped_loss(distribution.log_prob(actions), old, advantages, self.clip_range)


class GRPOAgent(EpisodeAgent):
    """Group relative policy optimisation: the return less its group's mean, over its group's deviation.

    Args:
        group_size: At least 2; see `EpisodeAgent` for the others.
    """

    def __init__(self, policy: PointActorCritic, env: VectorEnv, group_size: int = 8, **settings: Any) -> None:
        check_at_least(2, group_size=group_size)
        super().__init__(policy, env, group_size=group_size, **settings)

    def advantages(self, episodes: Episodes) -> Tensor:
        """Return float32 (B,); a group of equal returns has 0."""
        return group_advantages(episodes.returns, self.group_size)


class CGPOAgent(EpisodeAgent):
    """Confidence-guided policy optimisation: the return in [0, 1] less the mean probability of the clicks.

    Args:
        center_advantage: Subtract the batch's mean advantage: ours, not the paper's.
        settings: See `EpisodeAgent`; a sample has one episode.
    """

    def __init__(
        self, policy: PointActorCritic, env: VectorEnv, center_advantage: bool = False, **settings: Any
    ) -> None:
        super().__init__(policy, env, **settings)
        self.center_advantage = center_advantage

    def advantages(self, episodes: Episodes) -> Tensor:
        """Return float32 (B,) in [-1, 1]."""
        confidence = episodes.log_probabilities.exp().mean(dim=0).cpu()
        return confidence_advantages(episodes.returns, self.return_range, confidence, self.center_advantage)
