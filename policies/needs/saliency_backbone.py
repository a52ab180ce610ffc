"""Define the interface of salient-object networks: features at several scales and places for prompt tokens.

A backbone is an encoder and a decoder. UserSal freezes it and passes prompt tokens made from the words of a need;
UserSal+ also changes the features of each scale on their way into the decoder. Without prompts a backbone is a plain
salient-object detector, and is trained as one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from maskgym.segmenters.weights import load_strictly, read_state, weights_file

WHOLE = "backbone.safetensors"  # file of `maskgym pretrain saliency` in the folder of a backbone

Adapt = Callable[[int, torch.Tensor], torch.Tensor]  # a scale and its features (B, C_n, H_n, W_n): changed features


class SaliencyBackbone(nn.Module, ABC):
    """Salient-object network whose attention takes prompt tokens.

    Attributes:
        feature_dims: Number of channels of the features of each scale, finest first.
        encoder_prompt_dims: Width of the prompt tokens of each place of the encoder, in order of use.
        decoder_prompt_dims: Width of the prompt tokens of each place of the decoder; may be empty.
        size_divisor: Divisor of the sides of images, in pixels.
        unused_weights: Names of unused tensors that files of weights may contain.
        file_names: Names of files of weights that a folder may hold.
        random_part: What has random weights because none were loaded; empty if nothing has.
    """

    feature_dims: tuple[int, ...]
    encoder_prompt_dims: tuple[int, ...]
    decoder_prompt_dims: tuple[int, ...]
    size_divisor: int
    unused_weights: ClassVar[tuple[str, ...]] = ()
    file_names: ClassVar[tuple[str, ...]] = (WHOLE,)
    random_part: str = ""

    @abstractmethod
    def encode(self, pixels: torch.Tensor, prompts: Sequence[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """Compute the features of each scale, finest first, float32 (B, C_n, H_n, W_n).

        Args:
            pixels: float32 (B, 3, S, S), RGB in [0, 1]; the backbone normalises them.
            prompts: Tokens (B, T, D) for each place of the encoder, appended to the image tokens there and dropped
                afterwards; None for no prompts.
        """

    @abstractmethod
    def decode(
        self,
        features: Sequence[torch.Tensor],
        prompts: Sequence[torch.Tensor] | None = None,
        adapt: Adapt | None = None,
    ) -> torch.Tensor:
        """Compute logits of the saliency map, float32 (B, 1, S, S).

        Args:
            features: Features from `encode`.
            prompts: Tokens (B, T, D) for each place of the decoder; None for no prompts.
            adapt: Called once for each scale, coarsest first, with the features that enter the decoder there. They must
                depend on the prompts of the encoder, or of the decoder at coarser scales.
        """

    @torch.no_grad()
    def scales(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Compute the features of each scale without prompts, as `decode` hands them to ``adapt``, finest first."""
        found: dict[int, torch.Tensor] = {}
        self.decode(self.encode(pixels), adapt=found.setdefault)
        return [found[scale] for scale in range(len(self.feature_dims))]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute the logits (B, 1, S, S) of plain salient-object detection."""
        return self.decode(self.encode(pixels))

    def load(self, path: str | Path) -> None:
        """Load weights in float32, strictly: every name and shape must fit.

        Args:
            path: A ``.safetensors`` file or a file of ``torch.save``, or a folder that holds one of `file_names`; the
                ``module.`` prefix of parallel training is removed.

        Raises:
            UserError: If the file is missing or cannot be read, or names or shapes do not fit.
        """
        file = weights_file(Path(path).expanduser(), self.file_names)
        state = {name.removeprefix("module."): value.float() for name, value in read_state(file).items()}
        load_strictly(self, state, file, ignore=self.unused_weights)
        self.random_part = ""
