"""Encode each image once and decode points and boxes in batches: the base class of promptable segmenters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskgym.errors import UserError
from maskgym.segmenters.encodings import GIB, CacheLimits
from maskgym.segmenters.frozen import AUTO, DTYPES, FrozenNetwork, check_images, precision
from maskgym.segmenters.points.embeddings import EmbeddingCache

PADDING = -1  # label of a padding point
ENCODED_ON_GPU = 8  # images per forward pass there; global attention of ViT-H takes 2 GB each in bfloat16


class PromptableSegmenter(FrozenNetwork):
    """Segment by points and boxes: ``encode`` each image once, ``decode`` sets of prompts, ``resize`` the masks.

    A subclass implements `input_size`, `embedding_shape`, `_load`, `_identity`, `_encode` and `_decode`. It overrides
    `spatial` if its decoder reads more than the maps that a policy sees. It may call `set_encoding`.
    """

    cache_limits = CacheLimits(GIB)
    _encode_batch_size: int | str = AUTO
    _embedding_dtype: str | None = None  # that of the network

    def set_encoding(self, encode_batch_size: int | str, embedding_dtype: str, cache_limits: CacheLimits) -> None:
        """Set how images are encoded, and where embeddings are kept.

        Args:
            encode_batch_size: Maximum number of images per forward pass of the encoder; ``auto`` selects 8 on a GPU,
                and 1 on a CPU, where more gain little and rounding depends on the batch.
            embedding_dtype: Precision of embeddings, in which a network in float32 also computes them: ``float32``,
                ``bfloat16`` or ``float16``; ``auto`` selects bfloat16 on a GPU that computes in it, else that of the
                network. Points are never rounded to it.
            cache_limits: Where embeddings are kept, and how many.

        Raises:
            UserError: If the dtype is unknown, or the number below 1.
        """
        if encode_batch_size != AUTO and (type(encode_batch_size) is not int or encode_batch_size < 1):
            raise UserError(f"encode_batch_size={encode_batch_size}: expected at least 1, or {AUTO}")
        if embedding_dtype not in (AUTO, *DTYPES):
            raise UserError(f"embedding_dtype={embedding_dtype}: expected one of {', '.join((AUTO, *DTYPES))}")
        self._encode_batch_size, self._embedding_dtype = encode_batch_size, embedding_dtype
        self.cache_limits = cache_limits

    @property
    def encode_batch_size(self) -> int:
        """Maximum number of images per forward pass of the encoder, where embeddings are cached."""
        if isinstance(self._encode_batch_size, int):
            return self._encode_batch_size
        return 1 if self.device.type == "cpu" else ENCODED_ON_GPU

    @cached_property
    def embedding_dtype(self) -> torch.dtype:
        """Precision of embeddings."""
        if self._embedding_dtype is None or (self._embedding_dtype == AUTO and self.dtype != torch.float32):
            return self.dtype
        return precision(self._embedding_dtype, self.device)

    @property
    def _precision(self) -> str:
        same = self.embedding_dtype == self.dtype
        return super()._precision if same else f"{self.dtype}, embeddings {self.embedding_dtype}"

    @property
    def embedding_bytes(self) -> int:
        """Size of the embeddings of one image in bytes."""
        return prod(self.embedding_shape) * self.embedding_dtype.itemsize

    @cached_property
    def embeddings(self) -> EmbeddingCache:
        """Cache of embeddings, which all environments with this segmenter share."""
        limits = self.cache_limits
        return EmbeddingCache(self, limits.cache_bytes, limits.cache_folder, limits.cache_folder_bytes)

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
            (B, C', h, w) on `device`, in `embedding_dtype`, for `decode`; `spatial` selects the maps for a policy.

        Raises:
            UserError: If an image is not uint8 (S, S, 3).
        """
        check_images(images)
        for number, image in enumerate(images):
            if image.shape[0] != image.shape[1]:
                raise UserError(f"image {number} is {image.shape}: expected a square one")
        size = max(self.batch_size, self.encode_batch_size)  # the cache hands over the latter
        lower = self.embedding_dtype != self.dtype == torch.float32
        with torch.autocast(self.device.type, self.embedding_dtype) if lower else nullcontext():
            encoded = [self._encode(images[start : start + size]) for start in range(0, len(images), size)]
        return torch.cat(encoded).to(self.embedding_dtype)

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
        embeddings = embeddings.to(self.dtype)
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
