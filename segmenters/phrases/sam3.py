"""Find and segment every instance of a noun phrase with SAM 3 from transformers.

References:
    Carion et al., SAM 3: Segment Anything with Concepts, arXiv 2511.16719.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskgym.errors import UserError
from maskgym.segmenters.encodings import CACHE_BYTES, CACHE_FOLDER_BYTES, CacheLimits
from maskgym.segmenters.frozen import AUTO
from maskgym.segmenters.hub import HubNetwork
from maskgym.segmenters.phrases.referring import Encoded, ReferringNetwork
from maskgym.segmenters.text import split_semantic, tokenize

MAX_TOKENS = 32  # positions of the text encoder; the published processor uses the same number
NOTHING_FOUND = -20.0  # a logit: its probability is 2e-9


class Sam3Segmenter(HubNetwork, ReferringNetwork):
    """Referring segmenter with SAM 3.

    The model gives each of its queries a mask and a score, the product of two probabilities: that the query is an
    instance, and that the concept is in the image at all. Masks whose score exceeds the threshold count. With
    ``[semantic]`` the answer is their union; without, it is the mask with the highest score. If no mask counts, the
    answer is empty.

    Args:
        checkpoint: See `HubNetwork`.
        score_threshold: Score threshold in [0, 1].
        device: See `HubNetwork`.
        dtype: See `HubNetwork`.
        batch_size: See `ReferringNetwork`.
        cache_bytes: See `maskgym.segmenters.encodings.CacheLimits`. The published model's encoding of an image takes
            56 MB in half precision, 23 times EVF-SAM's.
        cache_folder: See `CacheLimits`.
        cache_folder_bytes: See `CacheLimits`.

    Raises:
        UserError: If the threshold is outside [0, 1]; see also `HubNetwork` and `CacheLimits`.
    """

    published = "facebook/sam3"
    architecture = "Sam3Model"
    model_types = ("sam3", "sam3_video")  # the published folder holds the video model, which contains the image model

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        score_threshold: float = 0.5,
        device: str | None = None,
        dtype: str = AUTO,
        batch_size: int = 4,
        cache_bytes: int = CACHE_BYTES,
        cache_folder: str | Path | None = None,
        cache_folder_bytes: int = CACHE_FOLDER_BYTES,
    ) -> None:
        if not 0 <= score_threshold <= 1:
            raise UserError(f"score_threshold {score_threshold}: expected a number in [0, 1]")
        super().__init__(checkpoint, device, dtype, batch_size)
        self.score_threshold = score_threshold
        self.cache_limits = CacheLimits(cache_bytes, cache_folder, cache_folder_bytes)

    def _identity(self) -> tuple[str, list[Path]]:
        config, files = super()._identity()
        return f"{self.score_threshold} {self.image_processor.to_json_string()} {config}", files

    def encode(self, images: list[np.ndarray]) -> Encoded:
        """Compute feature maps (B, C, h, w) of several levels."""
        return self.network.get_vision_features(self.pixels(images)).fpn_hidden_states

    def _decode(self, encoded: Encoded, phrases: list[str], image_index: Tensor) -> Tensor:
        from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

        levels = tuple(level[image_index] for level in encoded)
        # Positions depend on shapes only, so they are computed here instead of cached with every image.
        positions = self.network.vision_encoder.neck.position_encoding
        semantic, texts = zip(*(split_semantic(phrase) for phrase in phrases), strict=True)
        ids, padding = tokenize(self.tokenizer, texts, MAX_TOKENS)
        output = self.network(
            vision_embeds=Sam3VisionEncoderOutput(
                fpn_hidden_states=levels,
                fpn_position_encoding=tuple(positions(level.shape, level.device, level.dtype) for level in levels),
            ),
            input_ids=ids.to(self.device),
            attention_mask=(~padding).to(self.device).long(),
        )
        scores = output.pred_logits.float().sigmoid() * output.presence_logits.float().sigmoid()  # (P, queries)
        return combine(output.pred_masks.float(), scores, torch.tensor(semantic), self.score_threshold)


def combine(masks: Tensor, scores: Tensor, semantic: Tensor, threshold: float) -> Tensor:
    """Merge the masks of the queries into one mask per phrase.

    Args:
        masks: float (P, Q, h, w) logits.
        scores: float (P, Q) in [0, 1].
        semantic: bool (P,): the union of all masks above the threshold, or only the best one.
        threshold: Scores must exceed it.

    Returns:
        float (P, h, w) logits; a union takes the largest logit at each pixel.
    """
    best = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.argmax(dim=1, keepdim=True), True)
    chosen = (scores > threshold) & (best | semantic.to(scores.device)[:, None])
    return masks.masked_fill(~chosen[:, :, None, None], NOTHING_FOUND).amax(dim=1)
