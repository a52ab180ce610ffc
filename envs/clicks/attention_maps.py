"""Attention maps of samples for their texts, kept within a bound of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from maskgym.segmenters import AttentionSegmenter
from maskgym.segmenters.byte_cache import ScanCache
from maskgym.segmenters.outputs import check_probabilities

MAP_BYTES = 2**28


class AttentionMaps:
    """Cache of attention maps by the index of a sample.

    Args:
        segmenter: Attention segmenter.
        max_bytes: Bound in main memory, bytes; 0 for none. A map of the published SAM takes 16 KiB.

    Raises:
        UserError: If the bound is negative.
    """

    def __init__(self, segmenter: AttentionSegmenter, max_bytes: int = MAP_BYTES) -> None:
        self.segmenter = segmenter
        self.kept: ScanCache[torch.Tensor] = ScanCache(max_bytes)  # float32 (h, w)

    def __call__(
        self, indices: Sequence[int], images: Sequence[np.ndarray], texts: Sequence[str | None], size: Sequence[int]
    ) -> torch.Tensor:
        """Compute the maps of samples, float32 (n, h, w).

        Args:
            indices: n indices of samples.
            images: Their images, uint8 (S, S, 3).
            texts: Their texts; None attends to everything alike.
            size: (h, w).

        Raises:
            UserError: If the segmenter does not return probabilities of this shape.
        """
        height, width = size
        found = {index: kept for index in dict.fromkeys(indices) if (kept := self.kept.get(index)) is not None}
        new = {row[0]: row for row in zip(indices, images, texts, strict=True) if row[0] not in found}
        asked = [(index, image, text) for index, image, text in new.values() if text is not None]
        found |= {index: torch.ones(height, width) for index in new}
        if asked:
            keys, pictures, words = zip(*asked, strict=True)
            maps = self.segmenter.attend(pictures, words, (height, width))
            check_probabilities(maps, (len(keys), height, width), f"attention {type(self.segmenter).__name__}")
            # A copy, because a view would keep the maps of the whole batch.
            found |= {key: one.clone() for key, one in zip(keys, torch.from_numpy(maps), strict=True)}
        for index in new:
            self.kept.keep(index, found[index])
        return torch.stack([found[index] for index in indices])
