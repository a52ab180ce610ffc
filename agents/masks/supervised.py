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
from maskgym.agents.masks.acting import MaskAgent
from maskgym.agents.masks.batches import Batch, Batches, loading
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.envs.mask_action import MaskVectorEnv
from maskgym.errors import UserError
from maskgym.policies.needs.usersal import UserSal
from maskgym.segmenters.frozen import AUTO, precision

PRECISIONS = (AUTO, "float32", "bfloat16")
LOOKED_AT = 32  # samples whose needs are looked at before training


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
        epochs: Passes over the training data; a run computes its number of updates from them. None leaves that to
            ``updates``.
        autocast: Precision of the networks in training: ``float32``, ``bfloat16``, or ``auto``: bfloat16 on a GPU that
            computes in it, else float32. Weights, losses, gradients and answers are float32.
        workers: Processes that load the next batches while the step of one runs; 0 loads in between.

    Raises:
        UserError: If a number is out of range, a precision is unknown, or the policy is of another kind.
    """

    kinds: ClassVar[tuple[str, ...]] = ("usersal",)
    scales: ClassVar[tuple[str, ...]] = ("local", "ray")
    takes: ClassVar[frozenset[str]] = frozenset({"workers"})
    counts_epochs: ClassVar[bool] = True

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
        epochs: int | None = None,
        autocast: str = AUTO,
        workers: int = 0,
    ) -> None:
        check_at_least(1, batch_size=batch_size, epochs=1 if epochs is None else epochs)
        if batch_size % parallel.size():
            raise UserError(f"algo.batch_size={batch_size}: expected a multiple of the {parallel.size()} workers")
        check_at_least(0, decay_epoch=decay_epoch)
        super().__init__(policy, env, seed, output, learning_rate, save_every)
        self.batch_size, self.decay_epoch, self.decay_factor = batch_size, decay_epoch, decay_factor
        if autocast not in PRECISIONS:
            raise UserError(f"algo.autocast={autocast}: expected one of {', '.join(PRECISIONS)}")
        self.precision, self.workers = precision(autocast, self.policy.device), workers

    def check_data(self, envs: Sequence[VectorEnv], updates: int) -> list[str]:
        """Check that samples have needs where the answer to none is the detector's; list what to tell beforehand.

        Raises:
            UserError: If no need is shown although the environment shows needs, so that nothing could be learned.
        """
        told = [] if self.precision is torch.float32 else ["algo.autocast: bfloat16"]
        samples = min(unwrap(env, SampleVectorEnv).num_samples for env in envs)
        passes = updates / len(envs) * self.batch_size / samples
        if self.decay_factor != 1 and passes <= self.decay_epoch:
            long = f"{updates} updates of {self.batch_size} samples are {passes:.3g} epochs of {samples}"
            told.append(f"algo.decay_epoch={self.decay_epoch}: never comes, the learning rate stays: {long}")
        for env in envs if self.policy.skip_empty_need else ():
            shown = unwrap(env, MaskVectorEnv)
            seen = np.unique(np.linspace(0, shown.num_samples - 1, LOOKED_AT).astype(int))
            if any((shown.dataset[int(index)].need or "").strip() for index in seen) and shown.need:
                continue
            why = "the policy answers as the plain detector and learns nothing"
            if shown.need:
                raise UserError(
                    f"policy.skip_empty_need=true: none of {len(seen)} training samples has a need, so {why}: expected "
                    "data with needs, or policy.skip_empty_need=false"
                )
            told.append(f"env.need=false: no need is shown, so {why}: policy.skip_empty_need=false learns")
        return told

    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: OnLog, resume: bool = False) -> None:
        """Train for a number of updates, one batch each.

        Args:
            envs: Environments of the training split, with the agent's spaces; each batch uses one.
            updates: Total number of updates, including those before a resumed checkpoint.
            on_log: Receiver of each update's number, from 1, and its named scalars.
            resume: Whether to continue from the checkpoint in ``output``, if any.
        """
        self.policy.train()
        batches = Batches(envs, self.batch_size, self.seed)
        left = range(self.restore() if resume else 0, updates)
        with loading(batches, left, self.workers) as loaded:
            for update, batch in zip(left, loaded, strict=True):
                torch.manual_seed(int(np.random.SeedSequence([self.seed, update]).generate_state(1)[0]))
                epoch = batches.epoch(update)
                values = self.learn(batch, epoch)
                self.finish_update(update + 1, {**values, "epoch": epoch}, on_log)
        self.policy.eval()

    def learn(self, batch: Batch, epoch: int) -> dict[str, float]:
        """Take one gradient step; return named scalars."""
        rate = self.learning_rate * (self.decay_factor if epoch >= self.decay_epoch else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        device = self.policy.device
        with torch.autocast(device.type, self.precision, enabled=self.precision is not torch.float32):
            loss, terms = self.policy.loss(batch.pixels(device), batch.needs, batch.wanted(device))
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
