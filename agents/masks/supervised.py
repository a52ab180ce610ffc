"""Supervised training of UserSal and UserSal+ through the environment (UserSOD, Section 4.1).

The environment shows images and needs, and gives the ground truth in training. Each epoch has its own order of
samples. The learning rate of Adam falls by a factor of ten at epoch 60, as in the paper. There is no flipping or
colour augmentation, because needs name places ("on the left") and colours. With ranked objects, a random number of
ground-truth objects is erased per sample, and the target is the most salient remaining object.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from maskgym.agents.base import OnLog
from maskgym.agents.common import parallel
from maskgym.agents.common.checkpoints import check_at_least
from maskgym.agents.masks.acting import MaskAgent, to_pixels, to_targets
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.errors import UserError
from maskgym.policies.needs.usersal import UserSal


class UserSalAgent(MaskAgent):
    """Train on the policy's own loss: mean squared error, and in UserSal+ the appearance loss (Eq. 2, 5).

    Args:
        policy: Detector of needs.
        env: Vector environment that resets by index, with ``autoreset_mode=DISABLED``; see `MaskAgent`.
        seed: Seed of the order of samples.
        output: Folder of the checkpoints.
        batch_size: Global batch: samples per update over all workers (see `maskgym.agents.common.parallel`).
        learning_rate: Learning rate of Adam (Section 4.1: 1e-4).
        decay_epoch: First epoch, counted from 0, with the lower learning rate (Section 4.1: 60).
        decay_factor: Factor on the learning rate from then on (Section 4.1: 0.1).
        save_every: Updates between checkpoints.

    Raises:
        UserError: If a number is out of range, or the policy is of another kind.
    """

    kinds: ClassVar[tuple[str, ...]] = ("usersal",)
    scales: ClassVar[tuple[str, ...]] = ("local", "ray")

    def __init__(
        self,
        policy: UserSal,
        env: VectorEnv,
        seed: int = 0,
        *,
        output: str | Path,
        batch_size: int = 16,
        learning_rate: float = 1e-4,
        decay_epoch: int = 60,
        decay_factor: float = 0.1,
        save_every: int = 10,
    ) -> None:
        check_at_least(1, batch_size=batch_size)
        if batch_size % parallel.size():
            raise UserError(f"algo.batch_size={batch_size}: expected a multiple of the {parallel.size()} workers")
        check_at_least(0, decay_epoch=decay_epoch)
        super().__init__(policy, env, seed, output, learning_rate, save_every)
        self.batch_size, self.decay_epoch, self.decay_factor = batch_size, decay_epoch, decay_factor

    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: OnLog, resume: bool = False) -> None:
        """Train for a number of updates, one batch each.

        Args:
            envs: Environments of the training split, with the agent's spaces; each batch uses one.
            updates: Total number of updates, including those before a resumed checkpoint.
            on_log: Receiver of each update's number, from 1, and its named scalars.
            resume: Whether to continue from the checkpoint in ``output``, if any.
        """
        self.policy.train()
        for update in range(self.restore() if resume else 0, updates):
            torch.manual_seed(int(np.random.SeedSequence([self.seed, update]).generate_state(1)[0]))
            env, turn = envs[update % len(envs)], update // len(envs)
            samples = unwrap(env, SampleVectorEnv).num_samples
            indices = batch_of(turn, self.batch_size, samples, self.seed)
            chances = np.random.default_rng([self.seed, update]).random(self.batch_size)
            epoch = turn * self.batch_size // samples
            own = np.arange(parallel.rank(), self.batch_size, parallel.size())
            values = self.learn(*self.show(env, indices[own], chances[own]), epoch)
            self.finish_update(update + 1, {**values, "epoch": epoch}, on_log)
        self.policy.eval()

    def show(
        self, env: VectorEnv, indices: np.ndarray, chances: np.ndarray
    ) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """Load pixels (B, 3, S, S), needs and targets (B, 1, S, S) of samples by index.

        Args:
            env: Environment of the training split.
            indices: Indices of the samples, (B,).
            chances: Random numbers in [0, 1), (B,): with ranked objects, the share that is detected before.
        """
        images: list[np.ndarray] = []
        needs: list[str] = []
        masks: list[np.ndarray] = []
        for start in range(0, len(indices), env.num_envs):
            chunk = indices[start : start + env.num_envs]
            filled = np.concatenate([chunk, chunk[-1:].repeat(env.num_envs - len(chunk))])
            observations, infos = env.reset(options={"index": filled})
            shown, asked = list(observations["image"].copy()), [target[0] for target in infos["target"]]
            if "ranks" in infos:
                orders = [np.argsort(-ranks[0], kind="stable") for ranks in infos["ranks"]]
                objects = [masks[order] for masks, order in zip(asked, orders, strict=True)]
                shown, asked = self._detect(env, filled, shown, objects, chances[start : start + env.num_envs])
            images += shown[: len(chunk)]
            needs += [str(need) for need in observations["need"][: len(chunk)]]
            masks += asked[: len(chunk)]
        device = self.policy.device
        return to_pixels(images, device), needs, to_targets(masks, self.side, device)

    def _detect(
        self,
        env: VectorEnv,
        indices: np.ndarray,
        images: list[np.ndarray],
        objects: Sequence[np.ndarray],
        chances: np.ndarray,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Detect some objects by their ground truth; return the images shown then, and the next object of each.

        Args:
            env: Ranking environment, reset to the samples of these indices.
            indices: Indices of the samples, (num_envs,).
            images: Images shown at the start, one per sub-environment.
            objects: Masks bool (n, H, W) per sub-environment, most salient first.
            chances: Random numbers in [0, 1), one per sample in use: the share of its objects that is detected.
        """
        steps = unwrap(env, SampleVectorEnv).horizon
        shares = np.resize(chances, env.num_envs)
        depths = (shares * [min(steps, len(masks)) for masks in objects]).astype(int)
        for step in range(depths.max()):
            # A sub-environment without remaining detections gets an empty mask, which ends its episode.
            actions = to_targets([masks[step : step + 1] for masks in objects], self.side, torch.device("cpu"))
            observations, _, terminated, truncated, _ = env.step(actions[:, 0].numpy())
            for i in np.flatnonzero(depths == step + 1):
                images[i] = observations["image"][i].copy()
            over = terminated | truncated
            if over.any():  # The others can step only after these are reset.
                env.reset(options={"index": indices, "reset_mask": over})
        return images, [masks[depth : depth + 1] for masks, depth in zip(objects, depths, strict=True)]

    def learn(self, pixels: torch.Tensor, needs: Sequence[str], targets: torch.Tensor, epoch: int) -> dict[str, float]:
        """Take one gradient step; return named scalars."""
        rate = self.learning_rate * (self.decay_factor if epoch >= self.decay_epoch else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, terms = self.policy.loss(pixels, needs, targets)
        self.optimizer.zero_grad()
        if loss.requires_grad:  # False if no sample has a need, because then only the frozen backbone answers.
            loss.backward()
        norm, parameters = 0.0, self.policy.trainable_parameters()
        if parallel.average_gradients(parameters):
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, torch.inf))  # An infinite limit only measures.
            self.optimizer.step()
        names = ("loss", *self.policy.terms)
        sums = parallel.total([terms.get(name, 0.0) for name in names])
        means = {f"train/{name}": value / parallel.size() for name, value in zip(names, sums, strict=True)}
        return {**means, "train/grad_norm": norm, "train/learning_rate": rate}


class UserSalPlusAgent(UserSalAgent):
    """Train a `maskgym.policies.needs.usersal.UserSalPlus` likewise."""

    kinds: ClassVar[tuple[str, ...]] = ("usersal_plus",)


def batch_of(number: int, size: int, samples: int, seed: int) -> np.ndarray:
    """Compute the indices of a batch, int64 (size,), from consecutive epochs, each its own permutation.

    Args:
        number: Number of the batch, from 0.
        size: Indices per batch.
        samples: Number of samples in the data set.
        seed: Seed of the permutations.
    """
    positions = range(number * size, (number + 1) * size)
    epochs = range(positions[0] // samples, positions[-1] // samples + 1)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(samples) for epoch in epochs}
    return np.array([orders[position // samples][position % samples] for position in positions])
