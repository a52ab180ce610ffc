"""Attention maps of samples for their texts, each computed once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from maskgym.segmenters import AttentionSegmenter
from maskgym.segmenters.outputs import check_probabilities


class AttentionMaps:
    """Cache of attention maps by the index of a sample.

    Args:
        segmenter: Attention segmenter.
    """

    def __init__(self, segmenter: AttentionSegmenter) -> None:
        self.segmenter = segmenter
        self._maps: dict[int, torch.Tensor] = {}  # float32 (h, w)

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
        new = {row[0]: row for row in zip(indices, images, texts, strict=True) if row[0] not in self._maps}
        asked = [(index, image, text) for index, image, text in new.values() if text is not None]
        self._maps |= {index: torch.ones(height, width) for index in new}
        if asked:
            keys, pictures, words = zip(*asked, strict=True)
            maps = self.segmenter.attend(pictures, words, (height, width))
            check_probabilities(maps, (len(keys), height, width), f"attention {type(self.segmenter).__name__}")
            self._maps |= dict(zip(keys, torch.from_numpy(maps), strict=True))
        return torch.stack([self._maps[index] for index in indices])
