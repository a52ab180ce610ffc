"""Build saliency backbones from an image encoder of transformers, Swin or DINOv3, and a light decoder.

The encoder comes with its published weights; the decoder is small and is trained here, as a salient-object detector.
Both take prompts. In a plain ViT they are tokens before the others. In Swin, whose attention stays in windows, each
window sees all of them, as keys and values without a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from maskgym.errors import UserError
from maskgym.policies.needs.prompted import PromptedBlock, normalise, per_place, to_maps, to_tokens
from maskgym.policies.needs.saliency_backbone import SaliencyBackbone
from maskgym.segmenters.hub import HubNetwork

PROMPTED = "maskgym_prompted"  # the attention of Swin's windows, by the name that transformers calls it
VIT_SCALES = (4.0, 2.0, 1.0, 1.0)  # cells of the decoder's grids a patch, for features of four depths of a ViT


class HubBackbone(SaliencyBackbone):
    """An encoder of transformers and a `LightDecoder`. A subclass gives `encode` and calls this constructor.

    Args:
        encoder: The network.
        feature_dims: Channels of the features that `encode` returns, finest or shallowest first.
        scales: Side of the decoder's grid of each feature over the side of the feature.
        encoder_prompt_dims: Width of each place for prompts in the encoder.
        patch: Side of a patch, pixels.
        size_divisor: Sides of images are multiples of it.
        width: Channels of the decoder, a multiple of 8.
        heads: Heads of its attention; they divide ``width``.
        weights: Weights of the whole backbone for `load`; None leaves the decoder random.

    Raises:
        UserError: If a size does not fit, or the weights do not.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        feature_dims: Sequence[int],
        scales: Sequence[float],
        encoder_prompt_dims: Sequence[int],
        patch: int,
        size_divisor: int,
        width: int,
        heads: int,
        weights: str | Path | None,
    ) -> None:
        super().__init__()
        self.encoder, self.patch, self.size_divisor = encoder, patch, size_divisor
        self.feature_dims, self.encoder_prompt_dims = tuple(feature_dims), tuple(encoder_prompt_dims)
        self.decoder = LightDecoder(self.feature_dims, scales, width, heads)
        self.decoder_prompt_dims = self.decoder.prompt_dims
        if weights is not None:
            self.load(weights)

    def decode(self, features: Sequence[Tensor], prompts: Sequence[Tensor] | None = None) -> Tensor:
        """Compute saliency logits (B, 1, S, S); see `SaliencyBackbone`."""
        logits = self.decoder(features, per_place(prompts, self.decoder_prompt_dims))
        side = features[0].shape[-1] * self.patch
        return F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)


class SwinBackbone(HubBackbone):
    """Swin with a light decoder: four scales, 1/4 to 1/32 of the image's side where patches are of 4 pixels.

    Each block of the encoder takes prompts. Its windows, shifted or not, have them all: they are normalised and
    projected like the window's tokens and join its keys and values, with no relative position and no mask. That is what
    transformers' own interface for attention is for, so no module of it is replaced or copied.

    Args:
        checkpoint: A folder as ``save_pretrained`` writes it, or a name on the Hugging Face hub.
        pretrained: Load its weights; False reads its config alone and draws them at random.
        width: See `HubBackbone`.
        heads: See `HubBackbone`.
        weights: See `HubBackbone`.

    Raises:
        UserError: If the checkpoint is missing, cannot be read, or is of another model; else see `HubBackbone`.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        pretrained: bool = True,
        width: int = 96,
        heads: int = 4,
        weights: str | Path | None = None,
    ) -> None:
        encoder = read_encoder(_Swin, checkpoint, pretrained)
        if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 24):  # its attention has no k_proj
            raise UserError(f"swin: expected transformers 5.24 or newer: {transformers.__version__} is installed")
        encoder.set_attn_implementation(PROMPTED)
        dims = [encoder.config.embed_dim * 2**stage for stage in range(len(encoder.config.depths))]
        patch = _side(encoder.config.patch_size)
        super().__init__(
            encoder,
            feature_dims=dims,
            scales=(1.0,) * len(dims),
            encoder_prompt_dims=[
                dim for dim, depth in zip(dims, encoder.config.depths, strict=True) for _ in range(depth)
            ],
            patch=patch,
            size_divisor=patch * 2 ** (len(dims) - 1),
            width=width,
            heads=heads,
            weights=weights,
        )

    def encode(self, pixels: Tensor, prompts: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return features of each stage, before they are merged; the last normalised as Swin does."""
        places = iter(per_place(prompts, self.encoder_prompt_dims))
        hidden, grid = self.encoder.embeddings(normalise(pixels, self.size_divisor), interpolate_pos_encoding=True)
        features = []
        for stage in self.encoder.encoder.layers:
            for layer in stage.blocks:
                prompt = next(places)
                given = {} if prompt is None else {"prompts": layer.layernorm_before(prompt)}
                # Told to partition always: else a layer that once saw a small image keeps smaller windows.
                hidden, _ = layer(hidden, grid, always_partition=True, **given)
            last = self.encoder.layernorm(hidden) if stage.downsample is None else hidden
            features.append(to_maps(last, grid[0]))
            if stage.downsample is not None:
                hidden, grid = stage.downsample(hidden, grid), (grid[0] // 2, grid[1] // 2)
        return features


class Dinov3Backbone(HubBackbone):
    """A DINOv3 ViT with a light decoder: one scale, that of its patches, at four depths.

    Each block of the encoder takes prompts, before its other tokens, where rotary positions leave them alone as they do
    class and register tokens.

    Args:
        checkpoint: A folder as ``save_pretrained`` writes it, or a name on the Hugging Face hub, where the published
            weights ask for consent to their licence first.
        pretrained: Load its weights; False reads its config alone and draws them at random.
        width: See `HubBackbone`.
        heads: See `HubBackbone`.
        weights: See `HubBackbone`.

    Raises:
        UserError: If the checkpoint is missing, cannot be read, is of another model or of fewer than four blocks; else
            see `HubBackbone`.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        pretrained: bool = True,
        width: int = 96,
        heads: int = 4,
        weights: str | Path | None = None,
    ) -> None:
        encoder = read_encoder(_Dinov3, checkpoint, pretrained)
        depth, dim, levels = encoder.config.num_hidden_layers, encoder.config.hidden_size, len(VIT_SCALES)
        if depth < levels:
            raise UserError(f"{checkpoint}: has {depth} blocks: expected at least {levels}, whose features are decoded")
        self._depths = [depth * level // levels - 1 for level in range(1, levels + 1)]
        patch = _side(encoder.config.patch_size)
        super().__init__(
            encoder,
            feature_dims=(dim,) * levels,
            scales=VIT_SCALES,
            encoder_prompt_dims=(dim,) * depth,
            patch=patch,
            size_divisor=patch,
            width=width,
            heads=heads,
            weights=weights,
        )

    def encode(self, pixels: Tensor, prompts: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return features of four depths, shallow first, all of the grid of patches; the last normalised."""
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
    """From features to logits at the finest grid, coarse to fine, as feature pyramids do.

    Every feature is projected to one width and joined with what comes from the coarser one. At all but the finest grid
    a block of self-attention follows, which takes prompts: unlike attention to prompts alone, it is trained as part of
    a plain detector too. Then a convolution.

    Args:
        feature_dims: Channels of the features, finest first.
        scales: Side of the grid of each over the feature's.
        width: Channels, a multiple of 8.
        heads: Heads of the attention; they divide ``width``.

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
        """Return logits (B, 1, H, W) of the finest grid for features, finest first, and a prompt a block."""
        joined: Tensor | None = None
        for level in reversed(range(len(features))):
            side = int(features[level].shape[-1] * self.scales[level])
            maps = to_maps(self.projections[level](to_tokens(features[level])), features[level].shape[-1])
            maps = _resize(maps, side) if joined is None else _resize(maps, side) + _resize(joined, side)
            if level > 0:
                place = len(features) - 1 - level  # the coarsest is the first
                maps = to_maps(self.blocks[place](to_tokens(maps), prompts[place]), side)
            joined = self.convolutions[level](maps)
        return self.head(joined)


class _Encoder(HubNetwork):
    def draw(self) -> PreTrainedModel:
        """Return the model of the checkpoint's config, its weights drawn at random."""
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


def read_encoder(kind: type[_Encoder], checkpoint: str | Path | None, pretrained: bool) -> PreTrainedModel:
    """Return the encoder of a checkpoint, on the CPU, in float32, its weights free to train.

    Args:
        kind: Which model is expected.
        checkpoint: A folder, or a name on the hub.
        pretrained: False draws the weights at random, for the checkpoint's config.

    Raises:
        UserError: If the checkpoint is missing, cannot be read, or is of another model.
    """
    loader = kind(checkpoint, device="cpu")
    return loader.network.requires_grad_(True) if pretrained else loader.draw()


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
    """Attend in the windows of Swin, to prompts as well: an attention function as transformers calls it.

    Args:
        module: The attention layer.
        query: (windows of B images, heads, N, d), the windows of an image together.
        key: The same.
        value: The same.
        attention_mask: What is added to the logits, (windows or 1, heads or 1, N, N).
        scaling: Factor of the logits.
        dropout: Share of the weights dropped.
        prompts: Normalised tokens (B, T, D), or None.
        unused: What transformers hands to every attention.

    Returns:
        (windows of B images, N, heads, d), and no weights.
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


def _side(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[0]
