"""GRPO and CGPO on point prompting, with one advantage per episode and without a critic.

All clicks of an episode share the signal of its return. GRPO compares the episodes of one sample, which begin with the
same prompts (Shao et al., DeepSeekMath, arXiv 2402.03300, without the KL divergence from a reference policy). CGPO
plays one episode per sample. Its advantage is the return, scaled to [0, 1] by the range of returns, minus the mean
probability of the clicks (Saliency-R1, Eq. 10 and 13, with clicks in place of tokens). There are no interleaved
supervised steps; a recalibration module is trained jointly, as in PPO.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from maskgym.agents.clicks.acting import ClickAgent
from maskgym.agents.clicks.sb3 import GridPolicy
from maskgym.agents.common.checkpoints import check_at_least
from maskgym.agents.common.objectives import clipped_loss, confidence_advantages, group_advantages
from maskgym.agents.common.policy_gradient import PolicyGradientAgent
from maskgym.envs.base import unwrap
from maskgym.envs.point import PointPromptVectorEnv
from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic


@dataclass
class Episodes:
    """Rollout of B episodes of T steps: one per sub-environment, or several in turn.

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

    @classmethod
    def join(cls, rounds: Sequence[Episodes]) -> Episodes:
        """Join the episodes of several rounds along B."""
        if len(rounds) == 1:
            return rounds[0]
        return cls(
            observations={
                name: torch.cat([one.observations[name] for one in rounds], dim=1) for name in rounds[0].observations
            },
            actions=torch.cat([one.actions for one in rounds], dim=1),
            log_probabilities=torch.cat([one.log_probabilities for one in rounds], dim=1),
            returns=np.concatenate([one.returns for one in rounds]),
            ious=np.concatenate([one.ious for one in rounds]),
            repeated=float(np.mean([one.repeated for one in rounds])),
            losses=[loss for one in rounds for loss in one.losses],
        )

    def scalars(self) -> dict[str, float]:
        """Compute the mean return, the mean IoU, the share of repeated clicks, and the loss of the module, if any."""
        found = {"reward": float(self.returns.mean()), "iou": float(self.ious.mean()), "repeated": self.repeated}
        return found | ({"recalibration/loss": float(np.mean(self.losses))} if self.losses else {})


class EpisodeAgent(PolicyGradientAgent[Episodes], ClickAgent):
    """Train by clipped policy gradients; every step has the advantage of its episode.

    Args:
        policy: Sizes of the networks; the critic is not used.
        env: Vector environment with the spaces of the policy and ``autoreset_mode=DISABLED``.
        seed: Seed of the weights, of sampling, and of the samples shown.
        output: Folder of the checkpoints.
        group_size: Episodes per sample, a divisor of the number of sub-environments.
        images: Samples of an update, a multiple of those that the sub-environments play at a time; None for these.
        learning_rate: Learning rate for Adam.
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
        *,
        output: str | Path,
        group_size: int = 1,
        images: int | None = None,
        learning_rate: float = 3e-4,
        clip_range: float = 0.2,
        epochs: int = 20,
        minibatch_size: int = 240,
        save_every: int = 10,
    ) -> None:
        self.set_up(env, group_size, clip_range, epochs, minibatch_size)
        at_a_time = env.num_envs // group_size
        if images is not None and (images < 1 or images % at_a_time):
            raise UserError(
                f"algo.images={images}: expected a multiple of env.num_envs / algo.group_size = {at_a_time}"
            )
        self.rounds = 1 if images is None else images // at_a_time
        base = unwrap(env, PointPromptVectorEnv)
        self.return_range = base.reward.return_range(base.horizon)
        torch.manual_seed(seed)
        spaces = env.single_observation_space, env.single_action_space
        made = GridPolicy(*spaces, lambda _: learning_rate, networks=policy)
        made = made.to("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(made, env, seed, output, save_every)
        self.optimizer = self.policy.optimizer

    def play(self, env: VectorEnv, seed: int) -> Episodes:
        """Play episodes, one per sub-environment and round; a group begins at the same sample with the same prompts."""
        seeds = [seed, *np.random.SeedSequence(seed).generate_state(self.rounds - 1).tolist()]
        return Episodes.join([self._play_round(env, number % 2**31) for number in seeds])

    def _play_round(self, env: VectorEnv, seed: int) -> Episodes:
        base = unwrap(env, PointPromptVectorEnv)
        groups = env.num_envs // self.group_size
        drawn = np.random.default_rng(seed).integers(base.num_samples, size=groups)
        _, infos = env.reset(seed=seed, options={"index": drawn.repeat(self.group_size)})
        first = base.get_state()[:: self.group_size]
        observation = base.set_state([state for state in first for _ in range(self.group_size)])
        losses = self.recalibration_trainer.begin(infos["target"])
        seen, actions, chances, rewards, repeated = [], [], [], [], []
        for _ in range(base.horizon):
            tensors, _ = self.policy.obs_to_tensor(observation)
            assert isinstance(tensors, dict)
            with torch.no_grad():
                distribution = self.policy.get_distribution(tensors)
                chosen = distribution.get_actions()
                chances.append(distribution.log_prob(chosen))
            losses += self.recalibration_trainer.learn(observation)
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

    def minibatches(self, rollout: Episodes) -> Iterator[Tensor]:
        """Yield indices of the flattened steps, int64 (minibatch_size,) on their device."""
        old = rollout.log_probabilities
        yield from torch.randperm(old.numel(), device=old.device).split(self.minibatch_size)

    def minibatch_loss(self, rollout: Episodes, rows: Tensor, advantages: Tensor) -> tuple[Tensor, float, float]:
        """Compute the clipped loss of some steps, the share of clipped ratios, and the policy's mean entropy."""
        observations = {name: value.flatten(0, 1)[rows] for name, value in rollout.observations.items()}
        old = rollout.log_probabilities.flatten()[rows]
        of_steps = advantages.to(old.device).repeat(len(rollout.actions))  # (T·B,), in the order of the flattened steps
        distribution = self.policy.get_distribution(observations)
        new = distribution.log_prob(rollout.actions.flatten(0, 1)[rows])
        entropy = distribution.entropy()
        assert entropy is not None  # Both distributions of patches have one.
        return *clipped_loss(new, old, of_steps[rows], self.clip_range), entropy.mean().item()

    def learned_parameters(self) -> Sequence[nn.Parameter]:
        """List the parameters of the policy."""
        return list(self.policy.parameters())


class GRPOAgent(EpisodeAgent):
    """Train by GRPO: the advantage is the return standardised by its group's mean and standard deviation.

    Args:
        group_size: Episodes per sample, at least 2; see `EpisodeAgent` for the others.
    """

    def __init__(self, policy: PointActorCritic, env: VectorEnv, group_size: int = 8, **settings: Any) -> None:
        check_at_least(2, group_size=group_size)
        super().__init__(policy, env, group_size=group_size, **settings)

    def advantages(self, rollout: Episodes) -> Tensor:
        """Compute the advantages, float32 (B,); a zero-variance group has 0."""
        return group_advantages(rollout.returns, self.group_size)


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

    def advantages(self, rollout: Episodes) -> Tensor:
        """Compute the advantages, float32 (B,) in [-1, 1]."""
        confidence = rollout.log_probabilities.exp().mean(dim=0).cpu()
        return confidence_advantages(rollout.returns, self.return_range, confidence, self.center_advantage)
