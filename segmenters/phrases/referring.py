"""Encode each image once and decode phrases in batches: the base class of referring segmenters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskgym.segmenters.encodings import CacheLimits, EncodingCache
from maskgym.segmenters.frozen import FrozenNetwork, check_images, chunks, pixels_key
from maskgym.segmenters.text import uniform_phrase

Encoded = tuple[Tensor, ...]  # what a network computes of B images: tensors (B, …)


class ReferringNetwork(FrozenNetwork):
    """Frozen network that is a `maskgym.segmenters.ReferringSegmenter`.

    A subclass implements the methods of `FrozenNetwork`, `encode` and `_decode`. It overrides `_resize` if its input
    is not the image stretched to a square.

    With `cache_limits`, encodings of images are kept from call to call. Rounding depends on the images that are encoded
    together, so a mask may change by about 1e-6 of a probability in float32 (1e-2 in bfloat16) with the images that the
    cache holds; with ``batch_size=1`` masks are the same to the last bit with and without it.

    Args:
        device: See `FrozenNetwork`.
        dtype: See `FrozenNetwork`.
        batch_size: Maximum number of images encoded, and of phrases decoded, per forward pass.
    """

    cache_limits = CacheLimits()  # a subclass sets its own

    @abstractmethod
    def encode(self, images: list[np.ndarray]) -> Encoded:
        """Encode B images for `_decode`."""

    @abstractmethod
    def _decode(self, encoded: Encoded, phrases: list[str], image_index: Tensor) -> Tensor:
        """Compute mask logits (P, h, w) of P phrases, phrase p on encoded image ``image_index[p]``."""

    def _resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize logits (P, h, w) of one image to its (height, width)."""
        return F.interpolate(logits[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]

    @cached_property
    def encodings(self) -> ReferringCache:
        """Cache of encodings."""
        return ReferringCache(self)

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
            masks.update(zip(rows, self._segment_chunk(dict(chunk)), strict=True))
        return [
            np.stack([masks[key, phrase] for phrase in row]) if row else np.zeros((0, *image.shape[:2]), np.float32)
            for key, image, row in zip(keys, images, phrases, strict=True)
        ]

    def _segment_chunk(self, wanted: Mapping[bytes, tuple[np.ndarray, dict[str, None]]]) -> Iterator[np.ndarray]:
        """Yield float32 (H, W) probabilities for each phrase of each image, in order."""
        entries = list(wanted.values())
        images = [image for image, _ in entries]
        encoded = self.encodings.look_up(images, list(wanted)) if self.cache_limits else self.encode(images)
        flat = [(index, phrase) for index, (_, unique) in enumerate(entries) for phrase in unique]
        low = []
        for chunk in chunks(flat, self.batch_size):
            index = torch.tensor([index for index, _ in chunk], device=self.device)
            low.append(self._decode(encoded, [phrase for _, phrase in chunk], index))
        per_image = torch.cat(low).split([len(unique) for _, unique in entries])
        for logits, (image, _) in zip(per_image, entries, strict=True):
            yield from self._resize(logits, image.shape[:2]).sigmoid().float().cpu().numpy()


class ReferringCache(EncodingCache):
    """Cache of the encodings of a referring segmenter."""

    def __init__(self, segmenter: ReferringNetwork) -> None:
        super().__init__(segmenter, segmenter.cache_limits, segmenter.batch_size)
        self.segmenter = segmenter

    def encode(self, images: list[np.ndarray]) -> Encoded:
        """Encode images."""
        return self.segmenter.encode(images)


def _check(images: Sequence[np.ndarray], expressions: Sequence[Sequence[str]]) -> None:
    if len(images) != len(expressions):
        raise ValueError(f"{len(images)} images but {len(expressions)} lists of expressions: expected one per image")
    check_images(images)
    for index, row in enumerate(expressions):
        if isinstance(row, str):
            raise TypeError(f"expressions of image {index} are one string: expected a list of strings")
