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
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskgym.errors import UserError
from maskgym.segmenters.hub import HubNetwork
from maskgym.segmenters.points.promptable import PromptableSegmenter

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FINER = (1, 2, 4)  # how many times finer than the coarsest each of SAM 2's three levels is


class SamHfSegmenter(HubNetwork, PromptableSegmenter):
    """Promptable segmenter with a SAM from transformers.

    Masks are the model's single output (token 0), which is the one trained for several points.

    Args:
        checkpoint: A folder as ``save_pretrained`` writes it, or a name on the Hugging Face hub.
        device: See `PromptableSegmenter`.
        dtype: See `PromptableSegmenter`. transformers rounds the points to it too, in bfloat16 to about one
            pixel of 1024.
        batch_size: See `PromptableSegmenter`.

    Raises:
        UserError: See `HubNetwork`; also, at first use, if the image processor and the config differ in size.
    """

    architecture = "SamModel"
    model_types: ClassVar[tuple[str, ...]] = ("sam",)

    def __init__(
        self,
        checkpoint: str | Path = "facebook/sam-vit-base",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 16,
    ) -> None:
        super().__init__(checkpoint, device, dtype, batch_size)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Return the config of the checkpoint."""
        from transformers import AutoConfig

        return self._read(AutoConfig)

    @property
    def input_size(self) -> int:
        """Return the side of the model's square input, pixels."""
        return self.config.prompt_encoder_config.image_size

    @property
    def embedding_shape(self) -> tuple[int, int, int]:
        """Return the shape (C, h, w) of the `spatial` maps of one image."""
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

    def _unpack(self, embeddings: Tensor) -> Any:
        """Unpack embeddings (B, C', h, w) for the model's decoder."""
        return embeddings


class Sam2Segmenter(SamHfSegmenter):
    """Promptable segmenter with SAM 2 on single images.

    Its decoder reads maps of three sizes: (C, h, w), (C/4, 2h, 2w) and (C/8, 4h, 4w). `encode` packs them into one
    tensor (B, 4C, h, w), without loss: the cells of a finer map that lie under a coarse one become its channels.
    `spatial` gives the coarse map alone, the first C channels; like the model's own it holds the embedding that says
    that there is no memory of earlier frames.

    Masks are the model's single output. As published, the config asks for the best of three instead where that
    output is unstable, that is, changes much with the threshold (``dynamic_multimask_via_stability``).

    Args:
        checkpoint: A folder as ``save_pretrained`` writes it, or a name on the Hugging Face hub.
        device: See `SamHfSegmenter`.
        dtype: See `SamHfSegmenter`.
        batch_size: See `SamHfSegmenter`.

    Raises:
        UserError: See `SamHfSegmenter`.
    """

    architecture = "Sam2Model"
    model_types = ("sam2", "sam2_video")  # published folders are of the video model, which holds this one

    def __init__(
        self,
        checkpoint: str | Path = "facebook/sam2.1-hiera-tiny",
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 16,
    ) -> None:
        super().__init__(checkpoint, device, dtype, batch_size)

    def spatial(self, embeddings: Tensor) -> Tensor:
        """Return a view of the coarse maps (B, C, h, w) of packed embeddings (B, 4C, h, w)."""
        return embeddings[:, : self.embedding_shape[0]]

    def _encode(self, images: Sequence[np.ndarray]) -> Tensor:
        levels = reversed(super()._encode(images))  # coarse to fine
        return torch.cat([F.pixel_unshuffle(level, n) for level, n in zip(levels, FINER, strict=True)], dim=1)

    def _unpack(self, embeddings: Tensor) -> list[Tensor]:
        """Unpack embeddings (B, 4C, h, w) to maps, fine to coarse."""
        channels = self.embedding_shape[0]
        packed = embeddings.split([channels, channels, 2 * channels], dim=1)
        return [F.pixel_shuffle(level, n) for level, n in zip(packed, FINER, strict=True)][::-1]
