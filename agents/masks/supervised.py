"""Supervised training of UserSal and UserSal+ through the environment (UserSOD, Section 4.1).

Images and needs are what the environment shows, truths what it tells in training. Samples come in epochs, each in an
order of its own; the rate of Adam falls by ten at epoch 60, as in the paper. Nothing is flipped or coloured anew, as
trainings of detectors do: needs name places ("on the left"), and colours. Where objects are ranked, the target is the
most salient one that is left, after a number of detections drawn for each sample and made as they should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from maskgym.agents.common import parallel
from maskgym.agents.common.checkpoints import OnLog, check_at_least
from maskgym.agents.masks.acting import MaskAgent, to_pixels, to_targets
from maskgym.errors import UserError
from maskgym.policies.needs.usersal import UserSal


class UserSalAgent(MaskAgent):
    """Gradient steps on the policy's own loss: mean squared error, and in UserSal+ the appearance loss (Eq. 2, 5).

    Args:
        policy: A `maskgym.policies.needs.usersal.UserSal`.
        env: A vector environment that resets by index, with ``autoreset_mode=DISABLED``; see `MaskAgent`.
        seed: Of the order of the samples.
        output: Folder of the checkpoints.
        batch_size: Samples an update, of all workers together (see `maskgym.agents.common.parallel`).
        learning_rate: Of Adam (Section 4.1: 1e-4).
        decay_epoch: The epoch, counted from 0, from which the rate is lower (Section 4.1: 60).
        decay_factor: What it is multiplied with (Section 4.1: 0.1).
        save_every: Updates between checkpoints.

    Raises:
        UserError: If a number is out of range, or the policy is of another kind.
    """

    kinds: ClassVar[tuple[str, ...]] = ("usersal",)
    scales: ClassVar[tuple[str, ...]] = ("local", "ray")  # several workers can train it together

    def __init__(
        self,
        policy: UserSal,
        env: VectorEnv,
        seed: int = 0,
        output: str | Path = "checkpoints",
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
            envs: On the training split, with the spaces of the one that the agent was made with; a batch is of one.
            updates: In all, those before a resumed checkpoint included.
            on_log: Called after each with its number, from 1, and named scalars.
            resume: Go on from the checkpoint in ``output``, where there is one.
        """
        self.policy.train()
        for update in range(self.restore() if resume else 0, updates):
            torch.manual_seed(int(np.random.SeedSequence([self.seed, update]).generate_state(1)[0]))
            env, turn = envs[update % len(envs)], update // len(envs)
            base: Any = env.unwrapped
            indices = batch_of(turn, self.batch_size, base.num_samples, self.seed)
            chances = np.random.default_rng([self.seed, update]).random(self.batch_size)
            epoch = turn * self.batch_size // base.num_samples
            own = np.arange(parallel.rank(), self.batch_size, parallel.size())
            values = self.learn(*self.show(env, indices[own], chances[own]), epoch)
            on_log(update + 1, {**values, "epoch": epoch})
            if (update + 1) % self.save_every == 0:
                self.checkpoint(update + 1)
        self.policy.eval()

    def show(
        self, env: VectorEnv, indices: np.ndarray, chances: np.ndarray
    ) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """Return pixels (B, 3, S, S), needs and targets (B, 1, S, S) of the samples of these indices.

        Args:
            env: On the training split.
            indices: Of samples, (B,).
            chances: (B,), drawn from [0, 1): where objects are ranked, which share of them is detected before.
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
        """Detect some objects as they should be; return the images shown then, and for each the object to find next.

        Args:
            env: Of ranking, reset to the samples of these indices.
            indices: (num_envs,).
            images: Shown at the start, one a sub-environment.
            objects: bool (n, H, W) a sub-environment, most salient first.
            chances: Of as many as count, in [0, 1): which share of the objects is detected.
        """
        base: Any = env.unwrapped
        shares = np.resize(chances, env.num_envs)
        depths = (shares * [min(base.steps, len(masks)) for masks in objects]).astype(int)
        for step in range(depths.max()):
            # Those that have nothing left answer with nothing, which ends their episode.
            actions = to_targets([masks[step : step + 1] for masks in objects], self.side, torch.device("cpu"))
            observations, _, terminated, truncated, _ = env.step(actions[:, 0].numpy())
            for i in np.flatnonzero(depths == step + 1):
                images[i] = observations["image"][i].copy()
            over = terminated | truncated
            if over.any():  # begun again, so that the others can go on
                env.reset(options={"index": indices, "reset_mask": over})
        return images, [masks[depth : depth + 1] for masks, depth in zip(objects, depths, strict=True)]

    def learn(self, pixels: torch.Tensor, needs: Sequence[str], targets: torch.Tensor, epoch: int) -> dict[str, float]:
        """Take one gradient step; return named scalars."""
        rate = self.learning_rate * (self.decay_factor if epoch >= self.decay_epoch else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, terms = self.policy.loss(pixels, needs, targets)
        self.optimizer.zero_grad()
        if loss.requires_grad:  # not where no sample of the batch has a need: then the backbone alone answers
            loss.backward()
        norm, parameters = 0.0, self.policy.trainable_parameters()
        if parallel.average_gradients(parameters):
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, torch.inf))  # measured, not clipped
            self.optimizer.step()
        names = ("loss", *self.policy.terms)
        sums = parallel.total([terms.get(name, 0.0) for name in names])
        means = {f"train/{name}": value / parallel.size() for name, value in zip(names, sums, strict=True)}
        return {**means, "train/grad_norm": norm, "train/learning_rate": rate}


class UserSalPlusAgent(UserSalAgent):
    """The same for `maskgym.policies.needs.usersal.UserSalPlus`."""

    kinds: ClassVar[tuple[str, ...]] = ("usersal_plus",)


def batch_of(number: int, size: int, samples: int, seed: int) -> np.ndarray:
    """Return int64 (size,): a batch of indices out of epochs that follow each other, each a permutation of its own.

    Args:
        number: Of the batch, from 0.
        size: Indices in it.
        samples: Of the data set.
        seed: Of the permutations.
    """
    positions = range(number * size, (number + 1) * size)
    epochs = range(positions[0] // samples, positions[-1] // samples + 1)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(samples) for epoch in epochs}
    return np.array([orders[position // samples][position % samples] for position in positions])
