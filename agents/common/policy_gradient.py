"""Training by clipped policy gradients with one advantage per rollout, without a critic: GRPO and CGPO."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from maskgym.agents.base import OnLog
from maskgym.agents.common.checkpoints import CheckpointedAgent, check_at_least
from maskgym.errors import UserError

MAX_GRADIENT_NORM = 0.5


class Rollout(Protocol):
    """Actions of one update, with what their loss needs."""

    def scalars(self) -> dict[str, float]:
        """Compute named scalars for the log."""
        ...


_Rollout = TypeVar("_Rollout", bound=Rollout)


class PolicyGradientAgent(CheckpointedAgent, Generic[_Rollout]):
    """Play a rollout per update, and take gradient steps on the clipped loss of its actions.

    Attributes:
        optimizer: Optimizer of the policy.
        group_size: Actions or episodes per sample, a divisor of the number of sub-environments.
        clip_range: Clip range ε of the ratio of new to old probability.
        epochs: Passes over the rollout; with one pass the ratio is 1.
        minibatch_size: Size of the minibatches that `minibatches` draws.
    """

    optimizer: torch.optim.Optimizer

    def set_up(self, env: VectorEnv, group_size: int, clip_range: float, epochs: int, minibatch_size: int) -> None:
        """Store the settings that click and mask agents have in common.

        Raises:
            UserError: If a number is out of range.
        """
        check_at_least(1, group_size=group_size, epochs=epochs, minibatch_size=minibatch_size)
        if env.num_envs % group_size:
            raise UserError(f"algo.group_size={group_size}: expected a divisor of env.num_envs={env.num_envs}")
        self.group_size, self.clip_range = group_size, clip_range
        self.epochs, self.minibatch_size = epochs, minibatch_size

    @abstractmethod
    def play(self, env: VectorEnv, seed: int) -> _Rollout:
        """Play a rollout; the sub-environments of a group start with the same sample."""

    @abstractmethod
    def advantages(self, rollout: _Rollout) -> Tensor:
        """Compute the advantages, float32 (B,), one per sub-environment."""

    @abstractmethod
    def minibatches(self, rollout: _Rollout) -> Iterator[Tensor]:
        """Yield the indices of one pass over the rollout, in random order."""

    @abstractmethod
    def minibatch_loss(self, rollout: _Rollout, rows: Tensor, advantages: Tensor) -> tuple[Tensor, float, float]:
        """Compute the clipped loss of a minibatch, the share of clipped ratios, and the policy's mean entropy."""

    @abstractmethod
    def learned_parameters(self) -> Sequence[nn.Parameter]:
        """List the parameters that the optimizer changes."""

    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: OnLog, resume: bool = False) -> None:
        """Train for a number of updates: a rollout of one episode per sub-environment, then epochs over it.

        Args:
            envs: Environments of the training split, with the agent's spaces; each update uses one.
            updates: Total number of updates, including those before a resumed checkpoint.
            on_log: Receiver of each update's number, from 1, and its named scalars.
            resume: Whether to continue from the checkpoint in ``output``, if any.
        """
        for update in range(self.restore() if resume else 0, updates):
            numbers = np.random.SeedSequence([self.seed, update]).generate_state(2)
            torch.manual_seed(int(numbers[0]))
            rollout = self.play(envs[update % len(envs)], int(numbers[1] % 2**31))
            self.finish_update(update + 1, rollout.scalars() | self.improve(rollout), on_log)

    def improve(self, rollout: _Rollout) -> dict[str, float]:
        """Take the gradient steps of one update; return named scalars."""
        advantages = self.advantages(rollout)
        rows_of_scalars = []
        for _ in range(self.epochs):
            for rows in self.minibatches(rollout):
                loss, clipped, entropy = self.minibatch_loss(rollout, rows, advantages)
                if loss.requires_grad:  # False if only frozen modules answer, because no sample has a need.
                    self.optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(self.learned_parameters(), MAX_GRADIENT_NORM)
                    self.optimizer.step()
                rows_of_scalars.append((loss.item(), clipped, entropy))
        columns = zip(*rows_of_scalars, strict=True)
        names = ("train/loss", "train/clip_fraction", "train/entropy")
        means = {name: float(np.mean(values)) for name, values in zip(names, columns, strict=True)}
        return means | {"train/advantage_deviation": float(advantages.std(unbiased=False))}
