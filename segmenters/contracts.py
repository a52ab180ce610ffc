"""Contracts of the parts that environments and agents receive: structural types, so that plugins inherit nothing.

The contract of promptable segmenters is the base class `maskgym.segmenters.points.promptable.PromptableSegmenter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class ReferringSegmenter(Protocol):
    """Segments what phrases refer to."""

    def segment(self, images: Sequence[np.ndarray], expressions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Segment what each expression refers to in its image.

        Args:
            images: uint8 (H_i, W_i, 3) RGB arrays, of any sizes.
            expressions: For each image, n_i phrases; n_i may be 0. ``[semantic] `` in front asks for all regions
                of a class instead of one object.

        Returns:
            For each image float32 (n_i, H_i, W_i) probabilities in [0, 1]; the binary mask is ``> 0.5``.
        """
        ...


@runtime_checkable
class AttentionSegmenter(Protocol):
    """Maps how much each part of an image matches a text."""

    def attend(
        self, images: Sequence[np.ndarray], texts: Sequence[str], size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Compute the attention map of each image for its text.

        Args:
            images: B arrays, uint8 (H_i, W_i, 3) RGB, of any sizes.
            texts: One text per image.
            size: (height, width) of the maps; None selects the segmenter's own.

        Returns:
            float32 (B, height, width) in [0, 1].
        """
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Encodes needs as features, such as a `maskgym.policies.needs.need_encoder.NeedEncoder`."""

    @property
    def width(self) -> int:
        """Length of a feature."""
        ...

    def encode(self, needs: Sequence[str]) -> Tensor:
        """Encode needs as float32 (B, levels, width), shallow first; an empty need gives zeros."""
        ...
