"""Encode each image once and decode points and boxes in batches: the base class of promptable segmenters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskgym.errors import UserError
from maskgym.segmenters.frozen import FrozenNetwork, check_images

PADDING = -1  # label of a padding point


class PromptableSegmenter(FrozenNetwork):
    """Segment by points and boxes: ``encode`` each image once, ``decode`` sets of prompts, ``resize`` the masks.

    A subclass implements `input_size`, `embedding_shape`, `_load`, `_identity`, `_encode` and `_decode`. It overrides
    `spatial` if its decoder reads more than the maps that a policy sees.
    """

    @property
    @abstractmethod
    def embedding_shape(self) -> tuple[int, int, int]:
        """Shape (C, h, w) of the `spatial` maps of one image."""

    @abstractmethod
    def _encode(self, images: Sequence[np.ndarray]) -> Tensor:
        """Compute embeddings (B, C', h, w) of square images."""

    @abstractmethod
    def _decode(self, embeddings: Tensor, points: Tensor, labels: Tensor, boxes: Tensor | None) -> Tensor:
        """Compute logits (B, h, w) from points (B, k, 2) and boxes (B, 4) in pixels of the input, without padding.

        Each row has at least one point, or a box.
        """

    def spatial(self, embeddings: Tensor) -> Tensor:
        """Select the maps (B, C, h, w) for a policy from embeddings (B, C', h, w), here the embeddings themselves.

        A segmenter whose decoder also reads finer maps packs them into further channels, which this method omits.
        """
        return embeddings

    @torch.inference_mode()
    def encode(self, images: Sequence[np.ndarray]) -> Tensor:
        """Compute the embeddings of square images.

        Args:
            images: B arrays, uint8 (S, S, 3) RGB; each is stretched to `input_size`.

        Returns:
            (B, C', h, w) on `device`, in `dtype`, for `decode`; `spatial` selects the maps for a policy.

        Raises:
            UserError: If an image is not uint8 (S, S, 3).
        """
        check_images(images)
        for number, image in enumerate(images):
            if image.shape[0] != image.shape[1]:
                raise UserError(f"image {number} is {image.shape}: expected a square one")
        starts = range(0, len(images), self.batch_size)
        return torch.cat([self._encode(images[start : start + self.batch_size]) for start in starts])

    @torch.inference_mode()
    def decode(
        self,
        embeddings: Tensor,
        points: np.ndarray | Tensor | None = None,
        labels: np.ndarray | Tensor | None = None,
        side: int | None = None,
        boxes: np.ndarray | Tensor | None = None,
    ) -> Tensor:
        """Compute low-resolution mask logits, one row per set of points, box, or both.

        Rows with the same number of points are decoded together. Padding does not change the logits of a row.

        Args:
            embeddings: Embeddings (B, C', h, w) from `encode`; rows may repeat.
            points: (B, k, 2), (x, y) in pixels of the square image; None if there are only boxes.
            labels: (B, k), 1 foreground, 0 background, -1 padding.
            side: Side of that image, in pixels; None selects `input_size`.
            boxes: (B, 4), (left, top, right, bottom) in pixels of the square image; None for no boxes.

        Returns:
            float32 (B, h', w') on `device`.

        Raises:
            ValueError: If the shapes do not fit, or a row has neither point nor box.
        """
        places, kinds, boxes = self._checked(len(embeddings), points, labels, side or self.input_size, boxes)
        # A stable sort moves padding to the end of its row and keeps the order of the points.
        order = (kinds == PADDING).int().argsort(dim=1, stable=True)
        places, kinds = places.take_along_dim(order[..., None], dim=1), kinds.take_along_dim(order, dim=1)
        counts = (kinds != PADDING).sum(dim=1)
        if boxes is None and not counts.all():
            raise ValueError(f"row {int((counts == 0).nonzero()[0])} has no point: expected at least one, or a box")
        rows, logits = [], []
        for used in counts.unique().tolist():
            for chunk in (counts == used).nonzero()[:, 0].split(self.batch_size):
                rows.append(chunk)
                own_boxes = None if boxes is None else boxes[chunk]
                logits.append(
                    self._decode(embeddings[chunk], places[chunk, :used], kinds[chunk, :used], own_boxes).float()
                )
        return torch.cat(logits)[torch.cat(rows).argsort()]

    def _checked(
        self,
        count: int,
        points: np.ndarray | Tensor | None,
        labels: np.ndarray | Tensor | None,
        side: int,
        boxes: np.ndarray | Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Convert points, labels and boxes to tensors on `device`, in pixels of the network's input."""
        scale = self.input_size / side
        points = torch.zeros(count, 0, 2) if points is None else points
        labels = torch.zeros(count, 0, dtype=torch.int64) if labels is None else labels
        places: Tensor = torch.as_tensor(points, device=self.device, dtype=torch.float32) * scale
        kinds: Tensor = torch.as_tensor(labels, device=self.device)
        if places.shape != (*kinds.shape, 2) or len(kinds) != count:
            raise ValueError(
                f"{count} embeddings, points {tuple(places.shape)}, labels {tuple(kinds.shape)}: "
                "expected (B, …), (B, k, 2), (B, k)"
            )
        if boxes is not None:
            boxes = torch.as_tensor(boxes, device=self.device, dtype=torch.float32) * scale
            if boxes.shape != (count, 4):
                raise ValueError(f"{count} embeddings, boxes {tuple(boxes.shape)}: expected (B, …), (B, 4)")
        return places, kinds, boxes

    @staticmethod
    def resize(logits: Tensor, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Resize logits (B, h, w) bilinearly to the (height, width) of each image, float32 (H_i, W_i) each.

        The method omits the intermediate resize to the input size in SAM's code, which costs memory and changes the
        mask by less than a pixel of the low resolution.
        """
        if len(set(sizes)) == 1:
            return list(F.interpolate(logits[None], sizes[0], mode="bilinear", align_corners=False)[0].cpu().numpy())
        return [
            F.interpolate(row[None, None], size, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
            for row, size in zip(logits, sizes, strict=True)
        ]
