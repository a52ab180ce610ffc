"""Segment phrases with CLIPSeg, a light decoder on a frozen CLIP from transformers.

References:
    Lüddecke and Ecker, Image Segmentation Using Text and Image Prompts, CVPR 2022, arXiv 2112.10003.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from maskgym.segmenters.encodings import CACHE_BYTES, CACHE_FOLDER_BYTES, CacheLimits
from maskgym.segmenters.frozen import AUTO
from maskgym.segmenters.hub import HubNetwork
from maskgym.segmenters.phrases.referring import Encoded, ReferringNetwork
from maskgym.segmenters.text import split_semantic, tokenize


class ClipSegSegmenter(HubNetwork, ReferringNetwork):
    """Referring segmenter with CLIPSeg.

    CLIPSeg was trained on plain phrases, so the prefix ``[semantic]`` is removed: a mask always holds all regions that
    the phrase describes.

    Args:
        checkpoint: See `HubNetwork`.
        device: See `HubNetwork`.
        dtype: See `HubNetwork`.
        batch_size: See `ReferringNetwork`.
        cache_bytes: See `maskgym.segmenters.encodings.CacheLimits`.
        cache_folder: See `CacheLimits`.
        cache_folder_bytes: See `CacheLimits`.

    Raises:
        UserError: See `HubNetwork` and `CacheLimits`.
    """

    published = "CIDAS/clipseg-rd64-refined"
    architecture = "CLIPSegForImageSegmentation"
    model_types = ("clipseg",)

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        device: str | None = None,
        dtype: str = AUTO,
        batch_size: int = 4,
        cache_bytes: int = CACHE_BYTES,
        cache_folder: str | Path | None = None,
        cache_folder_bytes: int = CACHE_FOLDER_BYTES,
    ) -> None:
        super().__init__(checkpoint, device, dtype, batch_size)
        self.cache_limits = CacheLimits(cache_bytes, cache_folder, cache_folder_bytes)

    def _identity(self) -> tuple[str, list[Path]]:
        config, files = super()._identity()
        return f"{self.image_processor.to_json_string()} {config}", files

    def encode(self, images: list[np.ndarray]) -> Encoded:
        """Compute the activations (B, tokens, D) of the vision layers that the decoder reads."""
        vision = self.network.clip.vision_model(
            self.pixels(images), output_hidden_states=True, interpolate_pos_encoding=True
        )
        # The first hidden state is the embedding, so layer i has index i + 1.
        return tuple(vision.hidden_states[layer + 1] for layer in self.network.config.extract_layers)

    def _decode(self, encoded: Encoded, phrases: list[str], image_index: Tensor) -> Tensor:
        texts = [split_semantic(phrase)[1] for phrase in phrases]
        longest = self.network.config.text_config.max_position_embeddings
        ids, padding = tokenize(self.tokenizer, texts, longest)
        condition = self.network.get_conditional_embeddings(
            batch_size=len(texts), input_ids=ids.to(self.device), attention_mask=(~padding).to(self.device)
        )
        logits = self.network.decoder([layer[image_index] for layer in encoded], condition).logits
        return logits.reshape(len(texts), *logits.shape[-2:])
