"""Segment points and boxes with SAM and SAM 2 from transformers.

`maskgym.segmenters.points.sam` loads the same SAM from the checkpoints of ``segment_anything``.

References:
    Kirillov et al., Segment Anything, ICCV 2023.
    Ravi et al., SAM 2: Segment Anything in Images and Videos, arXiv 2408.00714.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskgym.errors import UserError
from maskgym.segmenters.encodings import CACHE_BYTES, CACHE_FOLDER_BYTES, CacheLimits
from maskgym.segmenters.frozen import AUTO
from maskgym.segmenters.hub import HubNetwork
from maskgym.segmenters.points.promptable import PromptableSegmenter

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FINER = (1, 2, 4)  # how many times finer than the coarsest each of SAM 2's three levels is


class SamHfSegmenter(HubNetwork, PromptableSegmenter):
    """Promptable segmenter with a SAM from transformers.

    Masks are the model's single output (token 0), which is the one trained for several points.

    Args:
        checkpoint: See `HubNetwork`.
        device: See `HubNetwork`.
        dtype: See `HubNetwork`. transformers also rounds the points to this precision, which in bfloat16 is about one
            pixel of 1024.
        batch_size: Maximum number of sets of points per forward pass of the decoder.
        encode_batch_size: See `PromptableSegmenter.set_encoding`.
        embedding_dtype: See `PromptableSegmenter.set_encoding`.
        cache_bytes: See `maskgym.segmenters.encodings.CacheLimits`.
        cache_folder: See `CacheLimits`.
        cache_folder_bytes: See `CacheLimits`.

    Raises:
        UserError: See `HubNetwork`; also, at first use, if the image processor and the config differ in size.
    """

    published = "facebook/sam-vit-base"
    architecture = "SamModel"
    model_types: ClassVar[tuple[str, ...]] = ("sam",)

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 16,
        encode_batch_size: int | str = AUTO,
        embedding_dtype: str = AUTO,
        cache_bytes: int = CACHE_BYTES,
        cache_folder: str | Path | None = None,
        cache_folder_bytes: int = CACHE_FOLDER_BYTES,
    ) -> None:
        super().__init__(checkpoint, device, dtype, batch_size)
        limits = CacheLimits(cache_bytes, cache_folder, cache_folder_bytes)
        self.set_encoding(encode_batch_size, embedding_dtype, limits)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Config of the checkpoint."""
        from transformers import AutoConfig

        return self._read(AutoConfig)

    @property
    def input_size(self) -> int:
        """Side of the model's square input, in pixels."""
        return self.config.prompt_encoder_config.image_size

    @property
    def embedding_shape(self) -> tuple[int, int, int]:
        """Shape (C, h, w) of the `spatial` maps of one image."""
        prompt = self.config.prompt_encoder_config
        grid = prompt.image_size // prompt.patch_size
        return prompt.hidden_size, grid, grid

    def pixels(self, images: list[np.ndarray]) -> Tensor:
        """Preprocess square images to float (B, 3, input_size, input_size) on the device.

        Raises:
            UserError: If the image processor of the checkpoint gives another size.
        """
        pixels = super().pixels(images)
        if pixels.shape[2:] != (self.input_size, self.input_size):
            raise UserError(
                f"{self.folder}: its image processor gives {tuple(pixels.shape[2:])} pixels: "
                f"expected {self.input_size} a side, as its config says"
            )
        return pixels

    def _identity(self) -> tuple[str, list[Path]]:
        config, files = super()._identity()
        return f"{self.image_processor.to_json_string()} {config}", files

    def _encode(self, images: Sequence[np.ndarray]) -> Tensor:
        # PyTorch warns about the read-only arrays of PIL, so the images are copied.
        return self.network.get_image_embeddings(self.pixels([image.copy() for image in images]))

    def _decode(self, embeddings: Tensor, points: Tensor, labels: Tensor, boxes: Tensor | None) -> Tensor:
        # The model takes sets of prompts per image; one set each avoids repeated embeddings.
        clicked = points.shape[1] > 0
        output = self.network(
            image_embeddings=self._unpack(embeddings),
            input_points=points[:, None] if clicked else None,  # (B, 1, k, 2)
            input_labels=labels[:, None] if clicked else None,  # (B, 1, k)
            input_boxes=None if boxes is None else boxes[:, None],  # (B, 1, 4)
            multimask_output=False,
        )
        return output.pred_masks[:, 0, 0]  # (B, 1, 1, 4h, 4w) -> (B, 4h, 4w)

    def _unpack(self, embeddings: Tensor) -> Tensor | list[Tensor]:
        """Unpack embeddings (B, C', h, w) for the model's decoder."""
        return embeddings


class Sam2Segmenter(SamHfSegmenter):
    """Promptable segmenter with SAM 2 on single images.

    Its decoder reads maps of three sizes: (C, h, w), (C/4, 2h, 2w) and (C/8, 4h, 4w). `encode` packs them into one
    tensor (B, 4C, h, w), without loss: the finer cells inside a coarse cell become channels of the coarse cell.
    `spatial` selects the coarse map, the first C channels. As in the model, it includes the embedding that marks the
    absence of earlier frames.

    Masks are the model's single output. Where that output is unstable, that is, changes much with the threshold, the
    published config selects the best of three masks instead (``dynamic_multimask_via_stability``).

    `SamHfSegmenter` describes the arguments.
    """

    published = "facebook/sam2.1-hiera-tiny"
    architecture = "Sam2Model"
    model_types = ("sam2", "sam2_video")  # published folders hold the video model, which contains the image model

    @property
    def embedding_bytes(self) -> int:
        """Size of the packed embeddings of one image in bytes."""
        return 4 * super().embedding_bytes

    def spatial(self, embeddings: Tensor) -> Tensor:
        """Select the coarse maps (B, C, h, w) of packed embeddings (B, 4C, h, w), as a view."""
        return embeddings[:, : self.embedding_shape[0]]

    def _encode(self, images: Sequence[np.ndarray]) -> Tensor:
        levels = reversed(super()._encode(images))  # coarse to fine
        return torch.cat([F.pixel_unshuffle(level, n) for level, n in zip(levels, FINER, strict=True)], dim=1)

    def _unpack(self, embeddings: Tensor) -> list[Tensor]:
        """Unpack embeddings (B, 4C, h, w) to maps, fine to coarse."""
        channels = self.embedding_shape[0]
        packed = embeddings.split([channels, channels, 2 * channels], dim=1)
        return [F.pixel_shuffle(level, n) for level, n in zip(packed, FINER, strict=True)][::-1]
