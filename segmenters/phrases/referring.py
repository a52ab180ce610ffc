"""Encode each image once and decode phrases in batches: the base class of referring segmenters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskgym.segmenters.frozen import FrozenNetwork, check_images, chunks, pixels_key
from maskgym.segmenters.text import uniform_phrase

_Encoded = TypeVar("_Encoded")  # what a subclass computes per batch of images


class ReferringNetwork(FrozenNetwork, Generic[_Encoded]):
    """Frozen network that is a `maskgym.segmenters.ReferringSegmenter`.

    A subclass implements the methods of `FrozenNetwork`, `_encode` and `_decode`. It overrides `_resize` if its input
    is not the image stretched to a square.

    Args:
        device: See `FrozenNetwork`.
        dtype: See `FrozenNetwork`.
        batch_size: Maximum number of images encoded, and of phrases decoded, per forward pass.
    """

    @abstractmethod
    def _encode(self, images: list[np.ndarray]) -> _Encoded:
        """Encode B images for `_decode`."""

    @abstractmethod
    def _decode(self, encoded: _Encoded, phrases: list[str], image_index: Tensor) -> Tensor:
        """Compute mask logits (P, h, w) of P phrases, phrase p on encoded image ``image_index[p]``."""

    def _resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize logits (P, h, w) of one image to its (height, width)."""
        return F.interpolate(logits[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]

    @torch.inference_mode()
    def segment(self, images: Sequence[np.ndarray], expressions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Segment what each expression refers to in its image; see `maskgym.segmenters.ReferringSegmenter`.

        Each call encodes images with equal pixels once, and decodes equal phrases on them once.

        Raises:
            ValueError: If the lengths differ or an image is not uint8 (H, W, 3).
            TypeError: If the expressions of an image are one string.
        """
        _check(images, expressions)
        phrases = [[uniform_phrase(phrase) for phrase in row] for row in expressions]
        keys = [pixels_key(image) for image in images]
        wanted: dict[bytes, tuple[np.ndarray, dict[str, None]]] = {}
        for key, image, row in zip(keys, images, phrases, strict=True):
            if row:
                wanted.setdefault(key, (image, {}))[1].update(dict.fromkeys(row))
        masks: dict[tuple[bytes, str], np.ndarray] = {}
        for chunk in chunks(wanted.items(), self.batch_size):
            rows = [(key, phrase) for key, (_, unique) in chunk for phrase in unique]
            masks.update(zip(rows, self._segment_chunk([entry for _, entry in chunk]), strict=True))
        return [
            np.stack([masks[key, phrase] for phrase in row]) if row else np.zeros((0, *image.shape[:2]), np.float32)
            for key, image, row in zip(keys, images, phrases, strict=True)
        ]

    def _segment_chunk(self, entries: list[tuple[np.ndarray, dict[str, None]]]) -> Iterator[np.ndarray]:
        """Yield float32 (H, W) probabilities for each phrase of each image, in order."""
        encoded = self._encode([image for image, _ in entries])
        flat = [(index, phrase) for index, (_, unique) in enumerate(entries) for phrase in unique]
        low = []
        for chunk in chunks(flat, self.batch_size):
            index = torch.tensor([index for index, _ in chunk], device=self.device)
            low.append(self._decode(encoded, [phrase for _, phrase in chunk], index))
        per_image = torch.cat(low).split([len(unique) for _, unique in entries])
        for logits, (image, _) in zip(per_image, entries, strict=True):
            yield from self._resize(logits, image.shape[:2]).sigmoid().float().cpu().numpy()


def _check(images: Sequence[np.ndarray], expressions: Sequence[Sequence[str]]) -> None:
    if len(images) != len(expressions):
        raise ValueError(f"{len(images)} images but {len(expressions)} lists of expressions: expected one per image")
    check_images(images)
    for index, row in enumerate(expressions):
        if isinstance(row, str):
            raise TypeError(f"expressions of image {index} are one string: expected a list of strings")
