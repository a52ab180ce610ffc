"""Adapt a copy of SAM to one task from a few samples: the base of the baselines of AlignSAM.

References:
    Huang et al., AlignSAM, CVPR 2024, Section 4.1 "Baselines", Tables 2 and 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from maskgym.data import Dataset, Sample
from maskgym.errors import UserError
from maskgym.segmenters.frozen import check_images, chunks
from maskgym.segmenters.points.sam import SamSegmenter, resized_size, sam_pixels

Samples = Sequence[Sample] | Dataset
PREDICTED = 8  # images per prediction; global attention of ViT-H takes 2 GB for each in bfloat16


class AdaptedSam(ABC):
    """SAM that learns one task from a few samples and needs no prompt afterwards.

    As in SAM's code, the longer side of an image is scaled to the input, with padding right and below. A subclass
    implements `fit` and `_decode`.

    Weights are float32. Where the segmenter encodes or decodes in bfloat16, PyTorch computes products in bfloat16
    (autocast); losses and masks are computed from float32 logits.

    Args:
        segmenter: Segmenter with the initial weights; it is not changed.
        predict_batch: Number of images per prediction.

    Attributes:
        sam: The adapted copy, float32.

    Raises:
        UserError: If the number is below 1, or the segmenter computes in float16, whose gradients would need scaling.
    """

    def __init__(self, segmenter: SamSegmenter, predict_batch: int = PREDICTED) -> None:
        check_at_least_1(predict_batch=predict_batch)
        self.precisions = {"encoder": segmenter.embedding_dtype, "decoder": segmenter.dtype}
        if torch.float16 in self.precisions.values():
            raise UserError("segmenter: float16: baselines compute in float32 or bfloat16")
        self.sam: Sam = segmenter.load(torch.float32).to(segmenter.device).eval().requires_grad_(False)
        self.device, self.side, self.predict_batch = segmenter.device, segmenter.input_size, predict_batch

    @abstractmethod
    def fit(self, samples: Samples) -> list[float]:
        """Learn from the first image of each sample and the union of its masks; return the loss per step.

        Args:
            samples: Samples, which are read again for each use if they are a data set.

        Raises:
            UserError: If there are no samples, or a sample has no foreground outside void.
        """

    @abstractmethod
    def _decode(self, embeddings: Tensor, inside: Tensor) -> Tensor:
        """Compute logits (B, 4h, 4w).

        Args:
            embeddings: Embeddings (B, C, h, w) of the images.
            inside: bool (B, h, w), False where the centre of a cell is padding.
        """

    @torch.inference_mode()
    def predict(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Predict one mask per image, bool (H_i, W_i).

        Args:
            images: uint8 (H_i, W_i, 3) RGB, of any size.

        Raises:
            UserError: If an image has another dtype or shape.
        """
        masks: list[np.ndarray] = []
        for chunk in chunks(images, self.predict_batch):
            logits = self._compute(chunk, self._inside(chunk))
            masks += [
                (to_image(row, image.shape[:2]) > 0).cpu().numpy() for row, image in zip(logits, chunk, strict=True)
            ]
        return masks

    def _compute(self, images: Sequence[np.ndarray], inside: Tensor) -> Tensor:
        """Encode and decode images; return float32 logits (B, 4h, 4w). Arguments are those of `_decode`."""
        embeddings = self._encode(images)
        with self._autocast("decoder"):
            return self._decode(embeddings, inside).float()

    def _encode(self, images: Sequence[np.ndarray]) -> Tensor:
        """Compute the embeddings float32 (B, C, h, w) of images."""
        check_images(images)
        pixels = torch.stack([sam_pixels(image, self.side) for image in images])
        with self._autocast("encoder"):
            return self.sam.image_encoder(pixels.to(self.device)).float()

    def _autocast(self, part: str) -> torch.autocast:
        dtype = self.precisions[part]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def _inside(self, images: Sequence[np.ndarray]) -> Tensor:
        """Find the cells of the embedding whose centre is in the image and not in the padding, bool (B, h, w)."""
        rows, columns = self.sam.prompt_encoder.image_embedding_size
        y, x = (torch.arange(rows) + 0.5) / rows * self.side, (torch.arange(columns) + 0.5) / columns * self.side
        sizes = [resized_size(image.shape[:2], self.side) for image in images]
        return torch.stack([(y < height)[:, None] & (x < width) for height, width in sizes]).to(self.device)


def to_image(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize logits (h, h) of a padded square to the (height, width) of its image, in one bilinear step."""
    square = (max(size), max(size))
    return F.interpolate(logits[None, None], square, mode="bilinear", align_corners=False)[0, 0, : size[0], : size[1]]


def to_grid(mask: np.ndarray, side: int) -> Tensor:
    """Compute the share of each cell of the padded square that a bool mask (H, W) covers, float32 (side, side)."""
    height, width = mask.shape
    square = F.pad(torch.from_numpy(mask).float(), (0, max(mask.shape) - width, 0, max(mask.shape) - height))
    return F.adaptive_avg_pool2d(square[None], side)[0]


def scored(sample: Sample) -> np.ndarray:
    """Find the pixels of a sample's first image that are not void, bool (H, W)."""
    return np.ones(sample.images[0].shape[:2], bool) if sample.void is None else ~sample.void[0]


def checked(samples: Samples) -> Samples:
    """Check that there are samples and that each has foreground outside void, and return them.

    Raises:
        UserError: If one of the conditions fails.
    """
    if not len(samples):
        raise UserError("no sample to learn from: expected at least one")
    for sample in map(samples.__getitem__, range(len(samples))):
        if not (sample.union() & scored(sample)).any():
            raise UserError(f"sample '{sample.key}' cannot be learned from: its mask is empty")
    return samples


def check_at_least_1(**values: int) -> None:
    """Raise UserError if a value is below 1."""
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name}={value}: expected at least 1")
