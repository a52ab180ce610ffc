"""Implement BEiT-3, one transformer over image patches and words with separate weights for each ("multiway").

The module names are those of torchscale 0.2.0, so that published state dicts load unchanged.

References:
    Wang et al., Image as a Foreign Language: BEiT Pretraining for All Vision and Vision-Language Tasks,
    CVPR 2023, arXiv 2208.10442. Reference code: microsoft/unilm and microsoft/torchscale (MIT).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POSITION_OFFSET = 2  # position tables start with two unused rows, as in fairseq


@dataclass(frozen=True)
class Beit3Config:
    """Sizes of a BEiT-3 encoder; the defaults are "large" at 224 pixels, as EVF-SAM uses it."""

    image_size: int = 224
    patch_size: int = 16
    vocabulary_size: int = 64010
    embed_dim: int = 1024
    num_heads: int = 16
    feed_forward_dim: int = 4096
    depth: int = 24
    max_text_positions: int = 1024

    @property
    def vision_tokens(self) -> int:
        """Number of vision tokens: the class token and the patches."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def max_text_tokens(self) -> int:
        """Maximum text length in tokens."""
        return self.max_text_positions - POSITION_OFFSET


class Multiway(nn.Module):
    """Two copies of a module: ``A`` for the vision tokens, ``B`` for the text tokens."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.A = build()
        self.B = build()

    def forward(self, tokens: Tensor, vision_tokens: int) -> Tensor:
        """Apply ``A`` to the first ``vision_tokens`` of (B, N, D) and ``B`` to the rest."""
        vision, text = tokens.split([vision_tokens, tokens.shape[1] - vision_tokens], dim=1)
        return torch.cat([self.A(vision), self.B(text)], dim=1)


class VisionEmbedding(nn.Module):
    """Cut an image into patches and put the class token in front."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        # Only pretraining masks patches; the token is part of every published state dict.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed pixels (B, 3, H, W) as tokens (B, 1 + patches, D)."""
        patches = self.proj(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)


class SelfAttention(nn.Module):
    """Multi-head attention over vision and text together, with a norm before the output map (sub-LN)."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.q_proj = Multiway(lambda: nn.Linear(dim, dim))
        self.k_proj = Multiway(lambda: nn.Linear(dim, dim))
        self.v_proj = Multiway(lambda: nn.Linear(dim, dim))
        self.inner_attn_ln = Multiway(lambda: nn.LayerNorm(dim))
        self.out_proj = Multiway(lambda: nn.Linear(dim, dim))

    def forward(self, tokens: Tensor, vision_tokens: int, keep: Tensor | None) -> Tensor:
        """Attend from every token of (B, N, D) to the tokens where ``keep``, bool (B, 1, 1, N), is True."""
        query, key, value = (
            projection(tokens, vision_tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, d)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Every kernel of this function computes the softmax in float32, for inputs of any precision.
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=keep)
        attended = attended.transpose(1, 2).flatten(2)  # (B, N, D)
        return self.out_proj(self.inner_attn_ln(attended, vision_tokens), vision_tokens)


class FeedForward(nn.Module):
    """Two linear maps with gelu and a norm between them (sub-LN)."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.feed_forward_dim)
        self.ffn_layernorm = nn.LayerNorm(config.feed_forward_dim)
        self.fc2 = nn.Linear(config.feed_forward_dim, config.embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        hidden = self.fc1(tokens)
        hidden = F.gelu(hidden.float()).to(hidden.dtype)  # float32 in every precision, as in the reference
        return self.fc2(self.ffn_layernorm(hidden))


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer, each part in a vision and a text copy."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.self_attn_layer_norm = Multiway(lambda: nn.LayerNorm(config.embed_dim))
        self.self_attn = SelfAttention(config)
        self.final_layer_norm = Multiway(lambda: nn.LayerNorm(config.embed_dim))
        self.ffn = Multiway(lambda: FeedForward(config))

    def forward(self, tokens: Tensor, vision_tokens: int, keep: Tensor | None) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        tokens = tokens + self.self_attn(self.self_attn_layer_norm(tokens, vision_tokens), vision_tokens, keep)
        return tokens + self.ffn(self.final_layer_norm(tokens, vision_tokens), vision_tokens)


class Encoder(nn.Module):
    """Positions, layers and the last norm."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.embed_positions = nn.ModuleDict(
            {
                "A": nn.Embedding(config.vision_tokens + POSITION_OFFSET, config.embed_dim),
                "B": nn.Embedding(config.max_text_positions, config.embed_dim),
            }
        )
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.depth))
        self.layer_norm = Multiway(lambda: nn.LayerNorm(config.embed_dim))

    def forward(self, vision: Tensor, text: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Encode vision (B, V, D) and text (B, T, D) together to (B, V + T, D); see `Beit3.forward`."""
        vision_tokens, text_tokens = vision.shape[1], text.shape[1]
        vision = vision + self.embed_positions["A"].weight[POSITION_OFFSET:][:vision_tokens]
        text = text + self.embed_positions["B"].weight[POSITION_OFFSET:][:text_tokens]
        keep = None
        if padding_mask is not None:
            text = text.masked_fill(padding_mask[..., None], 0.0)
            keep = F.pad(~padding_mask, (vision_tokens, 0), value=True)[:, None, None]  # (B, 1, 1, V + T)
        tokens = torch.cat([vision, text], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, vision_tokens, keep)
        return self.layer_norm(tokens, vision_tokens)


class Beit3(nn.Module):
    """Multimodal encoder that maps an image and a text to one feature per token."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.config = config
        self.text_embed = nn.Embedding(config.vocabulary_size, config.embed_dim)
        self.vision_embed = VisionEmbedding(config)
        self.encoder = Encoder(config)
        self.apply(_initialise)
        nn.init.normal_(self.vision_embed.cls_token, std=0.02)

    def forward(
        self,
        pixels: Tensor,
        input_ids: Tensor,
        padding_mask: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Encode each text together with its image.

        Args:
            pixels: float (B, 3, image_size, image_size), normalised to about [-1, 1].
            input_ids: int64 (P, T) token ids, padded on the right.
            padding_mask: bool (P, T), True at padding; None when nothing is padded.
            image_index: int64 (P,), the image of each text; None when text p belongs to image p. The patches of
                an image are embedded once for all its texts.

        Returns:
            float (P, V + T, D): the vision tokens, of which the first is the class token, then the text tokens.
        """
        vision = self.vision_embed(pixels)
        if image_index is not None:
            vision = vision[image_index]
        return self.encoder(vision, self.text_embed(input_ids), padding_mask)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
