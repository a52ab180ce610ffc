"""Train a small part of SAM to segment without a prompt: the base of SAMed and MSA."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from tqdm import trange

from maskgym.data import Sample
from maskgym.errors import UserError
from maskgym.policies.few_shot.adapted_sam import AdaptedSam, Samples, check_at_least_1, checked, scored, to_grid
from maskgym.segmenters.points.sam import SamSegmenter, decode_prompts

WARM_UP = 0.05  # share of the steps
DECAY = 0.9  # exponent of the polynomial decay that follows (SAMed)
SMOOTHING = 1.0  # constant of Dice, in cells of the low resolution


class TrainedSam(AdaptedSam):
    """A SAM of which a small part is trained.

    SAMed and MSA share one mask (SAM's first), the default embedding in place of a prompt, AdamW, a linear warm-up over
    5 % of the steps followed by a polynomial decay, and random quarter turns and flips. The loss compares the
    low-resolution output with the ground truth averaged over each cell, and ignores void.

    Two settings lower the memory of a step and leave its numbers as they are, to rounding: gradients of a batch can be
    accumulated over micro-batches, and blocks of the image encoder can be computed again in the backward pass in place
    of keeping what is inside of them.

    A subclass implements `_add_weights` and sets the two weights of the loss.

    Args:
        segmenter: Segmenter with the initial weights; it is not changed.
        steps: Number of optimizer steps.
        batch_size: Number of images per step.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of AdamW.
        seed: Seed of the new weights, the order of the samples, the turns and the flips.
        micro_batch: Number of images at a time; None takes the whole batch.
        checkpointing: Whether blocks of the image encoder are computed again in the backward pass.
        predict_batch: See `AdaptedSam`.

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
        micro_batch: int | None,
        checkpointing: bool,
        predict_batch: int,
    ) -> None:
        check_at_least_1(steps=steps, batch_size=batch_size)
        if micro_batch is not None:
            check_at_least_1(micro_batch=micro_batch)
        if learning_rate <= 0 or weight_decay < 0:
            raise UserError(f"learning_rate={learning_rate}, weight_decay={weight_decay}: expected numbers above 0")
        super().__init__(segmenter, predict_batch)
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.micro_batch = batch_size if micro_batch is None else micro_batch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._add_weights()
        self.sam.mask_decoder.requires_grad_(True)
        if checkpointing:
            for block in self.sam.image_encoder.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)

    @abstractmethod
    def _add_weights(self) -> None:
        """Insert the new weights into `sam`; its other weights stay frozen, except the mask decoder's."""

    def fit(self, samples: Samples) -> list[float]:
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
            optimizer.zero_grad()
            losses.append(self._accumulate(*self._batch([samples[row] for row in rows], rng)))
            optimizer.step()
            bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
        return losses

    def _accumulate(self, images: Sequence[np.ndarray], targets: Tensor, shares: Tensor) -> float:
        """Accumulate the gradients of a batch, one micro-batch at a time; return its loss."""
        total = 0.0
        for start in range(0, len(images), self.micro_batch):
            part = slice(start, start + self.micro_batch)
            loss = self.loss(self._compute(images[part], shares[part]), targets[part], shares[part], shares)
            loss.backward()
            total += loss.item()
        return total

    def loss(self, logits: Tensor, targets: Tensor, shares: Tensor, batch: Tensor | None = None) -> Tensor:
        """Compute the weighted sum of binary cross-entropy, over all scored cells, and Dice, the mean over images.

        The losses of the parts of a batch add up to the loss of the batch.

        Args:
            logits: (B, h, w).
            targets: (B, h, w) in [0, 1], the foreground's share of the scored part of each cell.
            shares: (B, h, w) in [0, 1], the share of each cell that is scored: in the image and not void.
            batch: Shares of the batch that the images are part of; None if they are all of it.
        """
        batch = shares if batch is None else batch
        cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, weight=shares, reduction="sum")
        probabilities, targets = logits.sigmoid() * shares, targets * shares
        overlap, total = (probabilities * targets).sum((1, 2)), (probabilities + targets).sum((1, 2))
        dice = 1 - (2 * overlap + SMOOTHING) / (total + SMOOTHING)
        return self.cross_entropy_weight * cross_entropy / batch.sum() + self.dice_weight * dice.sum() / len(batch)

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
