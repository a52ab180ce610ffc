"""State of the episodes of a click environment, one row per sub-environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from maskgym.aliases import Observations
from maskgym.data import Sample
from maskgym.envs.clicks.patches import pooling_weights


@dataclass(frozen=True)
class PointState:
    """State of one episode, from which any sub-environment can continue.

    Attributes:
        index: Index of the sample.
        points: float32 (k, 2), the prompts so far, (x, y) in pixels of the observed square.
        labels: int64 (k,), 1 foreground, 0 background.
        patches: Actions so far.
        logits: float32 (h, w), the last low-resolution logits; None before any prompt.
    """

    index: int
    points: np.ndarray
    labels: np.ndarray
    patches: tuple[int, ...]
    logits: torch.Tensor | None


class EpisodeBatch:
    """Prompts, masks and feature maps of B episodes.

    Args:
        count: B, number of episodes.
        most: Maximum number of prompts per episode.
        grid: Number of patches per side, g.

    Attributes:
        points: float32 (B, most, 2), the prompts, (x, y) in pixels of the observed square.
        labels: int64 (B, most), 1 foreground, 0 background, -1 padding.
        counts: int64 (B,), number of prompts.
        patches: Actions of each episode.
        targets: bool (H, W) each, the ground truth without void.
        void: bool (H, W) each, pixels that are not scored, or None.
        masks: bool (1, H, W) each, the last masks.
        logits: float32 (h, w) each, the last logits; None before any prompt.
        embeddings: (B, C', h, w), empty before the first `load`.
        loaded: int (B,), the index of the sample that each embedding is of; -1 for none.
        probabilities: float32 (B, h, w), the last masks on the grid of the embeddings; 1 before any prompt.
        attention: float32 (B, h, w), attention to the text; 1 without a text.
    """

    def __init__(self, count: int, most: int, grid: int) -> None:
        self.grid = grid
        self.points, self.labels = np.zeros((count, most, 2), np.float32), np.full((count, most), -1)
        self.counts = np.zeros(count, int)
        self.patches: list[tuple[int, ...]] = [()] * count
        self.targets: list[np.ndarray] = [np.zeros((0, 0), bool)] * count
        self.void: list[np.ndarray | None] = [None] * count
        self.masks: list[np.ndarray] = [np.zeros((1, 0, 0), bool)] * count
        self.logits: list[torch.Tensor | None] = [None] * count
        self.embeddings, self.loaded = torch.zeros(0), np.full(count, -1)
        self.probabilities = self.attention = torch.zeros(0)
        self._pooling = torch.zeros(0)

    def shown(self) -> dict[int, torch.Tensor]:
        """Return the embeddings (C', h, w) that are loaded, by the index of their sample, as views."""
        return {int(index): self.embeddings[i] for i, index in enumerate(self.loaded) if index >= 0}

    def load(
        self, rows: np.ndarray, samples: Sequence[Sample], embeddings: torch.Tensor, indices: Sequence[int]
    ) -> None:
        """Begin episodes without prompts.

        Args:
            rows: int (n,), the episodes.
            samples: Their n samples.
            embeddings: (n, C', h, w), the embeddings of their images.
            indices: Their n indices.
        """
        if not len(self.embeddings):
            count, size = len(self.counts), embeddings.shape[2:]
            self.embeddings = embeddings.new_zeros(count, *embeddings.shape[1:])
            self.probabilities = embeddings.new_ones(count, *size, dtype=torch.float32)
            self.attention = torch.ones_like(self.probabilities)
            self._pooling = pooling_weights(size, self.grid).to(embeddings.device)
        self.embeddings[torch.as_tensor(rows)], self.loaded[rows] = embeddings, indices
        self.probabilities[torch.as_tensor(rows)] = 1
        for i, sample in zip(rows, samples, strict=True):
            self.void[i] = None if sample.void is None else sample.void[0]
            self.targets[i] = sample.union() if sample.void is None else sample.union() & ~sample.void[0]
            self.masks[i], self.logits[i], self.patches[i] = np.zeros((1, *self.size(i)), bool), None, ()
            self.set_prompts(i, np.zeros((0, 2)), np.zeros(0, int))

    def set_prompts(self, i: int, points: np.ndarray, labels: np.ndarray) -> None:
        """Replace the prompts of an episode by points (k, 2) and labels (k,)."""
        self.counts[i], self.labels[i] = len(labels), -1
        self.points[i, : len(labels)], self.labels[i, : len(labels)] = points, labels

    def add_click(self, i: int, patch: int, point: np.ndarray, label: int) -> None:
        """Append an action and its prompt to an episode."""
        self.points[i, self.counts[i]], self.labels[i, self.counts[i]] = point, label
        self.counts[i] += 1
        self.patches[i] = (*self.patches[i], patch)

    def set_masks(self, rows: np.ndarray, logits: torch.Tensor, resized: Sequence[np.ndarray]) -> None:
        """Store the masks of episodes.

        Args:
            rows: int (n,), the episodes.
            logits: float32 (n, h', w'), decoded from their prompts.
            resized: The same at the size of each image, float32 (H, W) each.
        """
        for i, row, soft in zip(rows, logits, resized, strict=True):
            self.logits[i], self.masks[i] = row, (soft > 0)[None]
        size = self.probabilities.shape[1:]
        self.probabilities[torch.as_tensor(rows)] = F.adaptive_avg_pool2d(logits.sigmoid(), size)

    def state(self, i: int, index: int) -> PointState:
        """Copy the state of an episode that shows the sample of an index."""
        points, labels = self.prompts(i)
        return PointState(index, points.copy(), labels.copy(), self.patches[i], self.logits[i])

    def prompts(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the points (k, 2) and labels (k,) of an episode, as views."""
        return self.points[i, : self.counts[i]], self.labels[i, : self.counts[i]]

    def decoder_inputs(self, rows: np.ndarray) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """Return embeddings (n, C', h, w), padded points (n, k, 2) and labels (n, k) of episodes."""
        most = self.counts[rows].max()
        # Indexing copies megabytes, which a step of all episodes need not do.
        embeddings = self.embeddings if len(rows) == len(self.counts) else self.embeddings[torch.as_tensor(rows)]
        return embeddings, self.points[rows, :most], self.labels[rows, :most]

    def clicked(self) -> np.ndarray:
        """Mark the patches that were clicked, bool (B, g²)."""
        marks = np.zeros((len(self.counts), self.grid**2), bool)
        for row, patches in zip(marks, self.patches, strict=True):
            row[list(patches)] = True
        return marks

    def observe(self, spatial: torch.Tensor, attended: bool, clicked: bool) -> Observations:
        """Compute the observations of all episodes, averaged over each patch.

        Args:
            spatial: Features of the images, (B, C, h, w).
            attended: Whether the attention is observed.
            clicked: Whether the clicked patches are observed.
        """
        features = spatial.float()
        maps = {"state": self.pool(features * self.probabilities[:, None])}
        if attended:
            maps["semantic"] = self.pool(features * self.attention[:, None])
        maps["mask"] = self.pool(self.probabilities[:, None]).clip(0, 1)
        if clicked:
            maps["clicked"] = self.clicked().astype(np.float32).reshape(-1, 1, self.grid, self.grid)
        return maps

    def pool(self, maps: torch.Tensor) -> np.ndarray:
        """Compute the mean over each patch, (B, C, g, g), of maps (B, C, h, w)."""
        pooled = maps.flatten(2) @ self._pooling
        return pooled.unflatten(2, (self.grid, self.grid)).cpu().numpy()

    def size(self, i: int) -> tuple[int, int]:
        """Return (height, width) of the image of an episode."""
        height, width = self.targets[i].shape
        return height, width

    def scored_mask(self, i: int) -> np.ndarray:
        """Return the last mask of an episode without void, bool (H, W)."""
        void = self.void[i]
        return self.masks[i][0] if void is None else self.masks[i][0] & ~void

    def iou(self, i: int) -> float:
        """Compute the IoU of the last mask of an episode, as `maskgym.metrics.iou` without its checks."""
        mask, target = self.scored_mask(i), self.targets[i]
        both = np.count_nonzero(mask & target)
        either = np.count_nonzero(mask) + np.count_nonzero(target) - both
        return both / either if either else 0.0
