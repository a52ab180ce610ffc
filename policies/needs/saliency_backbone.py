"""What a salient-object network offers to be told of needs: features at several scales, places for prompt tokens.

A backbone is an encoder and a decoder. UserSal keeps it frozen and hands it prompt tokens,
made from the words of a need; UserSal+ changes the features between the two. Without prompts a backbone is a plain
salient-object detector, and is trained as one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn


class SaliencyBackbone(nn.Module, ABC):
    """A salient-object network whose attention takes extra tokens.

    Attributes:
        feature_dims: Channels of the features of each scale, finest first.
        encoder_prompt_dims: Width of the prompt tokens of each place of the encoder that takes some, in the order in
            which they are used.
        decoder_prompt_dims: The same for the decoder; may be empty.
        size_divisor: Sides of images are multiples of it, in pixels.
    """

    feature_dims: tuple[int, ...]
    encoder_prompt_dims: tuple[int, ...]
    decoder_prompt_dims: tuple[int, ...]
    size_divisor: int

    @abstractmethod
    def encode(self, pixels: torch.Tensor, prompts: Sequence[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """Return the features of each scale, finest first: float32 (B, C_n, H_n, W_n).

        Args:
            pixels: float32 (B, 3, S, S), RGB in [0, 1]; the backbone normalises them.
            prompts: For each place of the encoder, tokens (B, T, D) that are appended to those of the image there and
                dropped again after it; None for none.
        """

    @abstractmethod
    def decode(self, features: Sequence[torch.Tensor], prompts: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Return logits of the saliency map, float32 (B, 1, S, S).

        Args:
            features: As `encode` returns them, changed or not.
            prompts: For each place of the decoder, tokens (B, T, D); None for none.
        """

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, 1, S, S) of plain salient-object detection."""
        return self.decode(self.encode(pixels))
