"""Compute features of needs for policies with the text encoder of the attention segmenter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from maskgym.errors import UserError
from maskgym.segmenters.attention.clip_surgery import ClipSurgery, clip_tiny
from maskgym.segmenters.contracts import AttentionSegmenter
from maskgym.segmenters.text import split_semantic


class NeedFeatures:
    """Need encoder with the frozen CLIP of an attention segmenter.

    It is a `maskgym.segmenters.TextEncoder`; environments do not import the need encoders of policies.

    Args:
        clip: Attention segmenter with the text encoder; None selects the bundled one.

    Attributes:
        levels: Number of features per need, 1, the feature that CLIP compares with images.
        random_weights: False: the weights are a checkpoint's.

    Raises:
        UserError: If the attention segmenter has no text encoder.
    """

    levels, random_weights = 1, False

    def __init__(self, clip: AttentionSegmenter | None = None) -> None:
        clip = clip_tiny() if clip is None else clip
        if not isinstance(clip, ClipSurgery):
            raise UserError(f"attention={type(clip).__name__}: has no text encoder: expected ClipSurgery")
        self.clip = clip

    @property
    def width(self) -> int:
        """Length of a feature, read without loading the weights."""
        return self.clip.config.projection_dim

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the attention segmenter, which identifies the weights."""
        return self.clip.fingerprint

    def encode(self, needs: Sequence[str]) -> torch.Tensor:
        """Compute float32 (B, 1, width) on the CPU, of unit length; 0 for an empty need.

        The encoder truncates long texts and maps unknown words to its unknown token.
        """
        features = torch.zeros(len(needs), self.width)
        asked = [row for row, need in enumerate(needs) if split_semantic(need)[1]]
        if asked:
            features[asked] = self.clip.text_features([needs[row] for row in asked]).cpu()
        return features[:, None]
