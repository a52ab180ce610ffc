"""Provide shared parts of saliency backbones: normalisation and attention with prompt tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# T2T-ViT, Swin and DINOv3 were trained with the ImageNet statistics of RGB in [0, 1].
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D) to (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Attention(nn.Module):
    """Self-attention with queries from the first tokens and keys and values from all, without bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, context: Tensor, asking: int) -> Tensor:
        """Compute (B, asking, D) from context (B, N, D)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d)
            for part in self.qkv(context).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query[:, :, :asking], key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class PromptedBlock(nn.Module):
    """Pre-norm block of a vision transformer that accepts prompt tokens.

    The block drops the prompt tokens afterwards and computes only their keys and values. The image tokens are the same
    as if the prompt tokens went through the whole block.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Compute tokens (B, N, D) from tokens (B, N, D) and a prompt (B, T, D)."""
        context = tokens if prompt is None else torch.cat([tokens, prompt], dim=1)  # (B, N + T, D)
        tokens = tokens + self.attn(self.norm1(context), tokens.shape[1])
        return tokens + self.mlp(self.norm2(tokens))


def per_place(prompts: Sequence[Tensor] | None, dims: Sequence[int]) -> list[Tensor | None]:
    """List one prompt per place, or None per place without prompts.

    Raises:
        ValueError: If the number of prompts differs, or a prompt is not (B, T, D) with its place's width D.
    """
    if prompts is None:
        return [None] * len(dims)
    if len(prompts) != len(dims):
        raise ValueError(f"{len(prompts)} prompts: expected {len(dims)}, one per place")
    for place, (prompt, dim) in enumerate(zip(prompts, dims, strict=True)):
        if prompt.ndim != 3 or prompt.shape[2] != dim:
            raise ValueError(f"prompt {place} is {tuple(prompt.shape)}: expected (B, T, {dim})")
    return list(prompts)


def normalise(pixels: Tensor, divisor: int) -> Tensor:
    """Normalise pixels (B, 3, S, S), RGB in [0, 1], by ImageNet's mean and standard deviation.

    Raises:
        ValueError: If the images are not square, or S is not a multiple of ``divisor``.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3] or pixels.shape[3] % divisor:
        raise ValueError(f"pixels are {tuple(pixels.shape)}: expected (B, 3, S, S), S a multiple of {divisor}")
    mean, deviation = (pixels.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return (pixels - mean) / deviation


def to_tokens(maps: Tensor) -> Tensor:
    """Flatten maps (B, C, H, W) to tokens (B, H·W, C)."""
    return maps.flatten(2).transpose(1, 2)


def to_maps(tokens: Tensor, side: int) -> Tensor:
    """Reshape tokens (B, side², C) to maps (B, C, side, side)."""
    return tokens.transpose(1, 2).unflatten(2, (side, side))
