"""EVF-SAM: segment what a phrase refers to, by SAM with one prompt that BEiT-3 makes of image and phrase.

The image and the words go together through BEiT-3 (early fusion); its class token, projected, is the single
sparse prompt of SAM's mask decoder. The state-dict names are those of the published checkpoints.

References:
    Zhang et al., EVF-SAM: Early Vision-Language Fusion for Text-Prompted Segment Anything Model,
    arXiv 2406.20076. Reference code: hustvl/EVF-SAM (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from .beit3 import Beit3, Beit3Config


@dataclass(frozen=True)
class SamConfig:
    """Sizes of a SAM; the defaults are ViT-H, as EVF-SAM uses it."""

    image_size: int = 1024
    patch_size: int = 16
    embed_dim: int = 1280
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: float = 4.0
    window_size: int = 14
    global_attention_layers: tuple[int, ...] = (7, 15, 23, 31)
    use_rel_pos: bool = True
    prompt_embed_dim: int = 256
    mask_channels: int = 16
    decoder_depth: int = 2
    decoder_num_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_head_dim: int = 256

    def build(self) -> Sam:
        """Return a randomly initialised ``segment_anything`` model of these sizes."""
        grid = self.image_size // self.patch_size
        return Sam(
            image_encoder=ImageEncoderViT(
                img_size=self.image_size,
                patch_size=self.patch_size,
                embed_dim=self.embed_dim,
                depth=self.depth,
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                out_chans=self.prompt_embed_dim,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                use_rel_pos=self.use_rel_pos,
                window_size=self.window_size,
                global_attn_indexes=self.global_attention_layers,
            ),
            prompt_encoder=PromptEncoder(
                embed_dim=self.prompt_embed_dim,
                image_embedding_size=(grid, grid),
                input_image_size=(self.image_size, self.image_size),
                mask_in_chans=self.mask_channels,
            ),
            mask_decoder=MaskDecoder(
                transformer_dim=self.prompt_embed_dim,
                transformer=TwoWayTransformer(
                    depth=self.decoder_depth,
                    embedding_dim=self.prompt_embed_dim,
                    num_heads=self.decoder_num_heads,
                    mlp_dim=self.decoder_mlp_dim,
                ),
                iou_head_hidden_dim=self.iou_head_dim,
            ),
        )


@dataclass(frozen=True)
class EvfSamConfig:
    """Sizes of both halves of an EVF-SAM; the defaults are those of the published checkpoints."""

    sam: SamConfig = field(default_factory=SamConfig)
    beit3: Beit3Config = field(default_factory=Beit3Config)

    @classmethod
    def official(cls) -> EvfSamConfig:
        """Return the sizes of ``evf-sam`` and ``evf-sam-multitask``: SAM ViT-H and BEiT-3 large."""
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EvfSamConfig:
        """Return the config that `to_dict` wrote.

        Raises:
            TypeError: If a key is not a setting.
        """
        sam = dict(values["sam"])
        sam["global_attention_layers"] = tuple(sam["global_attention_layers"])
        return cls(sam=SamConfig(**sam), beit3=Beit3Config(**values["beit3"]))


class EvfSam(nn.Module):
    """The network, in steps that let an image be encoded once and its phrases be batched with those of others.

    Throughout, B counts images, P phrases, and ``image_index`` (int64, (P,)) names the image of each phrase.

    Example:
        >>> sam = SamConfig(image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, window_size=0,
        ...                 global_attention_layers=(), prompt_embed_dim=16, decoder_num_heads=2)
        >>> beit3 = Beit3Config(image_size=16, patch_size=8, vocabulary_size=9, embed_dim=16, num_heads=2,
        ...                     feed_forward_dim=32, depth=1)
        >>> model = EvfSam(EvfSamConfig(sam, beit3))
        >>> index = torch.tensor([0, 0, 1])
        >>> prompts = model.embed_prompts(torch.zeros(2, 3, 16, 16), torch.tensor([[0, 5, 2]] * 3), None, index)
        >>> model.decode(model.encode_images(torch.zeros(2, 3, 32, 32)), prompts, index).shape
        torch.Size([3, 16, 16])
    """

    def __init__(self, config: EvfSamConfig) -> None:
        super().__init__()
        self.config = config
        width = config.beit3.embed_dim
        self.visual_model = config.sam.build()
        self.mm_extractor = nn.ModuleDict({"beit3": Beit3(config.beit3)})
        projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.sam.prompt_embed_dim))
        self.text_hidden_fcs = nn.ModuleList([projection])

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return SAM's embeddings (B, C, h, w) for pixels float (B, 3, S, S) from `sam_pixels`."""
        return self.visual_model.image_encoder(pixels)

    def embed_prompts(
        self, pixels: Tensor, input_ids: Tensor, padding_mask: Tensor | None, image_index: Tensor
    ) -> Tensor:
        """Return one prompt a phrase.

        Args:
            pixels: float (B, 3, s, s) from `beit3_pixels`.
            input_ids: int64 (P, T), padded on the right.
            padding_mask: bool (P, T), True at padding, or None where nothing is padded.
            image_index: int64 (P,), the image of each phrase.

        Returns:
            float (P, C).
        """
        features = self.mm_extractor["beit3"](pixels, input_ids, padding_mask, image_index)
        return self.text_hidden_fcs[0](features[:, 0])

    def decode(self, embeddings: Tensor, prompts: Tensor, image_index: Tensor) -> Tensor:
        """Return low-resolution mask logits (P, 4h, 4w) for embeddings (B, C, h, w) and prompts (P, C).

        SAM's decoder repeats one image for all prompts and adds a dense prompt of each. The two are only ever
        added, so handing the images in as dense prompts, and the dense prompt (the no-mask embedding) as the one
        image, decodes phrases of different images in one call of the unchanged decoder.
        """
        prompt_encoder = self.visual_model.prompt_encoder
        _, no_mask = prompt_encoder(points=None, boxes=None, masks=None)  # (1, C, h, w)
        logits, _ = self.visual_model.mask_decoder(
            image_embeddings=no_mask,
            image_pe=prompt_encoder.get_dense_pe().to(embeddings.dtype),
            sparse_prompt_embeddings=prompts[:, None],
            dense_prompt_embeddings=embeddings[image_index],
            multimask_output=False,
        )
        return logits[:, 0]

    def resize(self, logits: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Bring low-resolution logits (P, 4h, 4w) of one image to its own (height, width), in float32."""
        resized = resized_size(original_size, self.config.sam.image_size)
        return self.visual_model.postprocess_masks(logits[:, None].float(), resized, original_size)[:, 0]


def resized_size(size: tuple[int, int], longer: int) -> tuple[int, int]:
    """Return (height, width) scaled so that the longer side is ``longer``, rounded half up."""
    height, width = size
    scale = longer / max(size)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def sam_pixels(image: np.ndarray, size: int) -> Tensor:
    """Return float32 (3, size, size): SAM's view of an image, aspect ratio kept, padded right and below.

    Args:
        image: uint8 (H, W, 3) RGB.
        size: Side of the square, pixels.
    """
    height, width = resized_size(image.shape[:2], size)
    resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(resized).permute(2, 0, 1).float()
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    deviation = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    return F.pad((pixels - mean) / deviation, (0, size - width, 0, size - height))


def beit3_pixels(image: np.ndarray, size: int) -> Tensor:
    """Return float32 (3, size, size): BEiT-3's view of an image, stretched to the square, about [-1, 1].

    The resize is bicubic on floats without antialias and without clamping: the checkpoints were trained so.

    Args:
        image: uint8 (H, W, 3) RGB.
        size: Side of the square, pixels.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255.0
    pixels = F.interpolate(pixels[None], (size, size), mode="bicubic", align_corners=False)[0]
    return (pixels - 0.5) / 0.5
