"""Build saliency backbones from an image encoder of transformers, Swin or DINOv3, and a light decoder.

The encoder has published weights; the small decoder is trained as a salient-object detector. Both take prompts. In a
plain ViT, prompts are tokens in front of the others. In Swin, which attends within windows, every window attends to all
prompts, as keys and values without a position.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from maskgym.errors import UserError
from maskgym.policies.needs.prompted import PromptedBlock, normalise, per_place, to_maps, to_tokens
from maskgym.policies.needs.saliency_backbone import WHOLE, Adapt, SaliencyBackbone
from maskgym.segmenters.hub import HubNetwork

PROMPTED = "maskgym_prompted"  # name of the window attention in the registry of transformers
VIT_SCALES = (4.0, 2.0, 1.0, 1.0)  # cells of the decoder's grid per patch, for features of four depths of a ViT


class _Encoder(HubNetwork):
    def trainable(self, pretrained: bool) -> PreTrainedModel:
        """Load the encoder with trainable weights, or build it with random weights."""
        if pretrained:
            return self.network.requires_grad_(True)
        model = getattr(transformers, self.architecture)
        return model(self._read(model.config_class))


class _Swin(_Encoder):
    published = "microsoft/swin-tiny-patch4-window7-224"
    architecture = "SwinModel"
    model_types = ("swin",)


class _Dinov3(_Encoder):
    published = "facebook/dinov3-vits16-pretrain-lvd1689m"
    architecture = "DINOv3ViTModel"
    model_types = ("dinov3_vit",)


class HubBackbone(SaliencyBackbone):
    """An encoder of transformers and a `LightDecoder`; a subclass implements `encode` and `_measure`.

    Args:
        checkpoint: See `HubNetwork`. A folder of `maskgym pretrain saliency` holds the trained decoder too.
        pretrained: Whether to load its weights and those of the decoder; False reads only its config and initialises
            all weights at random, unless ``weights`` are given.
        width: Channels of the decoder, a multiple of 8.
        heads: Heads of the decoder's attention, a divisor of ``width``.
        weights: Weights of the whole backbone for `load`, because no published file has those of the decoder; None
            takes ``backbone.safetensors`` in the checkpoint's folder, if it is there and ``pretrained``.
        random_decoder: Whether a pretrained encoder may have a decoder of random weights, to be trained.

    Raises:
        UserError: If the checkpoint is missing, cannot be read, or holds another model, or a size or the weights do not
            fit, or the decoder has no weights.
    """

    name: ClassVar[str]
    reader: ClassVar[type[_Encoder]]

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        pretrained: bool = True,
        width: int = 96,
        heads: int = 4,
        weights: str | Path | None = None,
        random_decoder: bool = False,
    ) -> None:
        if pretrained and weights is None and not random_decoder:
            weights = _whole(checkpoint)
        if pretrained and weights is None and not random_decoder:
            raise UserError(
                f"{self.name}: its decoder has no weights: expected weights=FILE of the whole backbone, or "
                "random_decoder=true for random ones"
            )
        super().__init__()
        self.encoder = self.reader(checkpoint, device="cpu").trainable(pretrained and weights is None)
        size = self.encoder.config.patch_size
        self.patch: int = size if isinstance(size, int) else size[0]  # side, in pixels
        scales = self._measure()
        self.decoder = LightDecoder(self.feature_dims, scales, width, heads)
        self.decoder_prompt_dims = self.decoder.prompt_dims
        self.random_part = "the decoder" if pretrained else "the whole network"
        if weights is not None:
            self.load(weights)

    @abstractmethod
    def _measure(self) -> Sequence[float]:
        """Set `feature_dims`, `encoder_prompt_dims` and `size_divisor` from the encoder.

        Returns:
            Ratio of the side of the decoder's grid to the side of each feature.
        """

    def decode(
        self, features: Sequence[Tensor], prompts: Sequence[Tensor] | None = None, adapt: Adapt | None = None
    ) -> Tensor:
        """Compute saliency logits (B, 1, S, S); see `SaliencyBackbone`."""
        if adapt is not None:
            features = [adapt(scale, features[scale]) for scale in reversed(range(len(features)))][::-1]
        logits = self.decoder(features, per_place(prompts, self.decoder_prompt_dims))
        side = features[0].shape[-1] * self.patch
        return F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)

    @torch.no_grad()
    def scales(self, pixels: Tensor) -> list[Tensor]:
        """Compute the encoder's features: nothing changes them on their way into the decoder."""
        return self.encode(pixels)


def _whole(checkpoint: str | Path | None) -> Path | None:
    """Find the weights of the whole backbone in the folder of a checkpoint; None if there are none."""
    file = None if checkpoint is None else Path(checkpoint).expanduser() / WHOLE
    return file if file is not None and file.is_file() else None


class SwinBackbone(HubBackbone):
    """Swin with a light decoder: four scales, 1/4 to 1/32 of the image's side with patches of 4 pixels.

    Each block of the encoder takes prompts. They are normalised and projected like the tokens of a window and join the
    keys and values of every window, without relative position and mask. The attention interface of transformers
    supports this, so that no module is replaced or copied.

    `HubBackbone` describes the arguments.
    """

    name, reader = "swin", _Swin

    def _measure(self) -> Sequence[float]:
        self.encoder.set_attn_implementation(PROMPTED)
        depths, dim = self.encoder.config.depths, self.encoder.config.embed_dim
        self.feature_dims = tuple(dim * 2**stage for stage in range(len(depths)))
        self.encoder_prompt_dims = tuple(dim * 2**stage for stage, depth in enumerate(depths) for _ in range(depth))
        self.size_divisor = self.patch * 2 ** (len(depths) - 1)
        return (1.0,) * len(depths)

    def encode(self, pixels: Tensor, prompts: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Compute the features of each stage before merging, the last with Swin's final normalisation."""
        places = iter(per_place(prompts, self.encoder_prompt_dims))
        hidden, grid = self.encoder.embeddings(normalise(pixels, self.size_divisor), interpolate_pos_encoding=True)
        features = []
        for stage in self.encoder.encoder.layers:
            for layer in stage.blocks:
                prompt = next(places)
                given = {} if prompt is None else {"prompts": layer.layernorm_before(prompt)}
                # Without always_partition, a layer keeps the smaller windows of an earlier small image.
                hidden, _ = layer(hidden, grid, always_partition=True, **given)
            last = self.encoder.layernorm(hidden) if stage.downsample is None else hidden
            features.append(to_maps(last, grid[0]))
            if stage.downsample is not None:
                hidden, grid = stage.downsample(hidden, grid), (grid[0] // 2, grid[1] // 2)
        return features


class Dinov3Backbone(HubBackbone):
    """A DINOv3 ViT with a light decoder: one scale, the grid of patches, at four depths.

    Each block of the encoder takes prompts, in front of its other tokens, where they get no rotary position, like class
    and register tokens.

    `HubBackbone` describes the arguments. The hub asks for consent to the licence of the published weights.
    """

    name, reader = "dinov3", _Dinov3

    def _measure(self) -> Sequence[float]:
        depth, dim, levels = self.encoder.config.num_hidden_layers, self.encoder.config.hidden_size, len(VIT_SCALES)
        if depth < levels:
            raise UserError(f"dinov3: has {depth} blocks: expected at least {levels}, one per decoded feature")
        self._depths = [depth * level // levels - 1 for level in range(1, levels + 1)]
        self.feature_dims, self.encoder_prompt_dims = (dim,) * levels, (dim,) * depth
        self.size_divisor = self.patch
        return VIT_SCALES

    def encode(self, pixels: Tensor, prompts: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Compute features of four depths on the grid of patches, shallow first, the last normalised."""
        places = per_place(prompts, self.encoder_prompt_dims)
        pixels = normalise(pixels, self.size_divisor)
        hidden, positions = self.encoder.embeddings(pixels), self.encoder.rope_embeddings(pixels)
        side, features = pixels.shape[-1] // self.patch, []
        for depth, (layer, prompt) in enumerate(zip(self.encoder.model.layer, places, strict=True)):
            before = 0 if prompt is None else prompt.shape[1]
            tokens = hidden if prompt is None else torch.cat([prompt, hidden], dim=1)
            hidden = layer(tokens, position_embeddings=positions)[:, before:]
            if depth in self._depths:
                last = self.encoder.norm(hidden) if depth == self._depths[-1] else hidden
                features.append(to_maps(last[:, -(side**2) :], side))
        return features


class LightDecoder(nn.Module):
    """Decode features to logits at the finest grid, coarse to fine, as feature pyramids do.

    Every feature is projected to one width and added to the result of the coarser level. At all grids except the
    finest, a block of self-attention with prompts follows; unlike attention to prompts only, it is also trained in a
    plain detector. Each level ends with a convolution.

    Args:
        feature_dims: Channels of the features, finest first.
        scales: Ratio of the side of the decoder's grid to the side of each feature.
        width: Number of channels, a multiple of 8.
        heads: Heads of the attention, a divisor of ``width``.

    Raises:
        UserError: If width or heads do not fit.
    """

    def __init__(self, feature_dims: Sequence[int], scales: Sequence[float], width: int, heads: int) -> None:
        if width < 8 or width % 8 or heads < 1 or width % heads:
            raise UserError(f"width={width}, heads={heads}: expected a multiple of 8, and heads that divide it")
        super().__init__()
        self.scales = tuple(scales)
        self.prompt_dims = (width,) * (len(feature_dims) - 1)
        self.projections = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width)) for dim in feature_dims
        )
        self.blocks = nn.ModuleList(PromptedBlock(width, heads, 2.0) for _ in self.prompt_dims)
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.GELU())
            for _ in feature_dims
        )
        self.head = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, features: Sequence[Tensor], prompts: Sequence[Tensor | None]) -> Tensor:
        """Compute logits (B, 1, H, W) of the finest grid from features, finest first, with one prompt per block."""
        joined: Tensor | None = None
        for level in reversed(range(len(features))):
            side = int(features[level].shape[-1] * self.scales[level])
            maps = to_maps(self.projections[level](to_tokens(features[level])), features[level].shape[-1])
            maps = _resize(maps, side) if joined is None else _resize(maps, side) + _resize(joined, side)
            if level > 0:
                place = len(features) - 1 - level  # blocks are in order of use, coarsest first
                maps = to_maps(self.blocks[place](to_tokens(maps), prompts[place]), side)
            joined = self.convolutions[level](maps)
        return self.head(joined)


def attend_prompted(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    prompts: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attend within the windows of Swin and to prompts, with the signature of transformers' attention functions.

    Args:
        module: The attention layer.
        query: (windows of B images, heads, N, d), grouped by image.
        key: Keys of the same shape.
        value: Values of the same shape.
        attention_mask: Added to the logits, (windows or 1, heads or 1, N, N).
        scaling: Factor of the logits.
        dropout: Dropout rate of the attention weights.
        prompts: Normalised tokens (B, T, D), or None.
        **unused: Further arguments that transformers passes to every attention function.

    Returns:
        (windows of B images, N, heads, d), and None for the attention weights.
    """
    if prompts is not None:
        windows = len(key) // len(prompts)

        def everywhere(tokens: Tensor) -> Tensor:  # (windows of B images, heads, T, d)
            return tokens.unflatten(-1, (key.shape[1], -1)).transpose(1, 2).repeat_interleave(windows, dim=0)

        key = torch.cat([key, everywhere(module.k_proj(prompts))], dim=2)
        value = torch.cat([value, everywhere(module.v_proj(prompts))], dim=2)
        attention_mask = F.pad(attention_mask, (0, prompts.shape[1]))
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return mixed.transpose(1, 2), None


AttentionInterface.register(PROMPTED, attend_prompted)


def _resize(maps: Tensor, side: int) -> Tensor:
    if maps.shape[-1] == side:
        return maps
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
