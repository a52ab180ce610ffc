"""Train a small part of SAM to segment without a prompt: the base of SAMed and MSA."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from maskgym.data import Sample
from maskgym.errors import UserError
from maskgym.policies.few_shot.adapted_sam import AdaptedSam, checked, scored, to_grid
from maskgym.segmenters.points.sam import SamSegmenter, decode_prompts

WARM_UP = 0.05  # share of the steps
DECAY = 0.9  # exponent of the polynomial decay that follows (SAMed)
SMOOTHING = 1.0  # constant of Dice, in cells of the low resolution


class TrainedSam(AdaptedSam):
    """A SAM of which a small part is trained.

    SAMed and MSA share one mask (SAM's first), the default embedding in place of a prompt, AdamW, a linear warm-up over
    5 % of the steps followed by a polynomial decay, and random quarter turns and flips. The loss compares the
    low-resolution output with the ground truth averaged over each cell, and ignores void.

    A subclass implements `_add_weights` and sets the two weights of the loss.

    Args:
        segmenter: Segmenter with the initial weights; it is not changed.
        steps: Number of optimizer steps.
        batch_size: Number of images per step.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of AdamW.
        seed: Seed of the new weights, the order of the samples, the turns and the flips.

    Raises:
        UserError: If a number is too small.
    """

    cross_entropy_weight: ClassVar[float]
    dice_weight: ClassVar[float]

    def __init__(
        self,
        segmenter: SamSegmenter,
        steps: int,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        seed: int,
    ) -> None:
        check_at_least_1(steps=steps, batch_size=batch_size)
        if learning_rate <= 0 or weight_decay < 0:
            raise UserError(f"learning_rate={learning_rate}, weight_decay={weight_decay}: expected numbers above 0")
        super().__init__(segmenter)
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._add_weights()
        self.sam.mask_decoder.requires_grad_(True)

    @abstractmethod
    def _add_weights(self) -> None:
        """Insert the new weights into `sam`; its other weights stay frozen, except the mask decoder's."""

    def fit(self, samples: Sequence[Sample]) -> list[float]:
        """Train on the samples, all equally often; return the loss per step."""
        samples, rng, losses = checked(samples), np.random.default_rng(self.seed), []
        epochs = math.ceil(self.steps * self.batch_size / len(samples))
        order = np.concatenate([rng.permutation(len(samples)) for _ in range(epochs)])
        trained = [weight for weight in self.sam.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        bar = trange(self.steps, desc=f"fit {type(self).__name__}", unit="step", disable=None, leave=False)
        for step in bar:
            optimizer.param_groups[0]["lr"] = self.learning_rate * schedule(step, self.steps)
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            images, targets, shares = self._batch([samples[row] for row in rows], rng)
            loss = self.loss(self._decode(self._encode(images), shares), targets, shares)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
        return losses

    def loss(self, logits: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
        """Compute the weighted sum of binary cross-entropy and Dice.

        Args:
            logits: (B, h, w).
            targets: (B, h, w) in [0, 1], the foreground's share of the scored part of each cell.
            shares: (B, h, w) in [0, 1], the share of each cell that is scored: in the image and not void.
        """
        cross_entropy = (
            F.binary_cross_entropy_with_logits(logits, targets, weight=shares, reduction="sum") / shares.sum()
        )
        probabilities, targets = logits.sigmoid() * shares, targets * shares
        overlap, total = (probabilities * targets).sum((1, 2)), (probabilities + targets).sum((1, 2))
        dice = 1 - (2 * overlap + SMOOTHING) / (total + SMOOTHING)
        return self.cross_entropy_weight * cross_entropy + self.dice_weight * dice.mean()

    def _batch(self, samples: Sequence[Sample], rng: np.random.Generator) -> tuple[list[np.ndarray], Tensor, Tensor]:
        """Turn and flip samples at random; return images uint8 (H, W, 3), targets and shares (B, 4h, 4w)."""
        side = 4 * self.sam.prompt_encoder.image_embedding_size[0]
        images, masks, regions = zip(*(augmented(sample, rng) for sample in samples), strict=True)
        shares = torch.stack([to_grid(region, side) for region in regions])
        covered = torch.stack([to_grid(mask, side) for mask in masks])
        return list(images), (covered / shares.clamp(min=1e-6)).to(self.device), shares.to(self.device)

    def _decode(self, embeddings: Tensor, inside: Tensor) -> Tensor:
        no_prompt = embeddings.new_zeros(len(embeddings), 0, embeddings.shape[1])
        return decode_prompts(self.sam, embeddings, no_prompt)


def augmented(sample: Sample, rng: np.random.Generator) -> list[np.ndarray]:
    """Turn a sample by random quarters and flip it at random: image, scored foreground and scored pixels (H, W)."""
    turns, step = int(rng.integers(4)), -1 if rng.random() < 0.5 else 1
    region = scored(sample)
    arrays = (sample.images[0], sample.union() & region, region)
    return [np.ascontiguousarray(np.rot90(array, turns)[:, ::step]) for array in arrays]


def schedule(step: int, steps: int) -> float:
    """Compute the factor of the learning rate: a linear warm-up, then polynomial decay towards 0."""
    warm_up = math.ceil(WARM_UP * steps)
    return (step + 1) / warm_up if step < warm_up else (1 - (step - warm_up) / (steps - warm_up)) ** DECAY


def check_at_least_1(**values: int) -> None:
    """Raise UserError if a value is below 1."""
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name}={value}: expected at least 1")
