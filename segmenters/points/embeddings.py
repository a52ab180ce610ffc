"""Cache the embeddings of a promptable segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from maskgym.segmenters.encodings import CACHE_FOLDER_BYTES, GIB, CacheLimits, EncodingCache
from maskgym.segmenters.frozen import pixels_key

if TYPE_CHECKING:
    from maskgym.segmenters.points.promptable import PromptableSegmenter


class EmbeddingCache(EncodingCache):
    """Cache of a promptable segmenter's embeddings, in memory and on disk; see `EncodingCache`.

    New images are encoded `encode_batch_size` of the segmenter at a time. Rounding depends on the batch: with one image
    at a time a resumed run with an empty cache is deterministic.

    Args:
        segmenter: Segmenter that computes the embeddings.
        max_bytes: Bound in main memory, bytes.
        folder: Folder of the cache on disk, or None.
        folder_bytes: Bound on disk, bytes.

    Raises:
        UserError: If a bound is negative.
    """

    def __init__(
        self,
        segmenter: PromptableSegmenter,
        max_bytes: int = GIB,
        folder: str | Path | None = None,
        folder_bytes: int = CACHE_FOLDER_BYTES,
    ) -> None:
        super().__init__(segmenter, CacheLimits(max_bytes, folder, folder_bytes), segmenter.encode_batch_size)
        self.segmenter = segmenter

    def encode(self, images: list[np.ndarray]) -> tuple[Tensor, ...]:
        """Compute the embeddings of square images."""
        return (self.segmenter.encode(images),)

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """Look up embeddings (B, C, h, w) on the segmenter's device; new images are encoded.

        Args:
            images: B square arrays, uint8 (S, S, 3).
        """
        return self.look_up(images, [pixels_key(image) for image in images])[0]

    def store(self, images: Sequence[np.ndarray]) -> bool:
        """Encode those images that the folder lacks; return whether it takes more.

        Args:
            images: B square arrays, uint8 (S, S, 3).
        """
        keys = {pixels_key(image): image for image in images}
        new = {key: image for key, image in keys.items() if not self.is_stored(key)}
        if new and self.stores:
            self.look_up(list(new.values()), list(new))
        return self.stores
