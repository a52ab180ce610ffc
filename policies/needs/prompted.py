"""What the saliency backbones share: normalised images, attention that takes prompt tokens, and loading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym.segmenters.weights import load_strictly, read_state

# Of ImageNet, RGB in [0, 1]: what T2T-ViT, Swin and DINOv3 were trained with.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Attention(nn.Module):
    """Self-attention in which the first tokens ask and all answer; queries, keys and values have no bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, context: Tensor, asking: int) -> Tensor:
        """Return (B, asking, D) for context (B, N, D)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d)
            for part in self.qkv(context).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query[:, :, :asking], key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class PromptedBlock(nn.Module):
    """A block of a vision transformer (normalisation first), to whose tokens others can be appended.

    What is appended is dropped after the block, so that nothing is computed for it but keys and values: image tokens
    come out as if it had gone all the way through.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Return (B, N, D) for tokens (B, N, D) and a prompt (B, T, D)."""
        context = tokens if prompt is None else torch.cat([tokens, prompt], dim=1)  # (B, N + T, D)
        tokens = tokens + self.attn(self.norm1(context), tokens.shape[1])
        return tokens + self.mlp(self.norm2(tokens))


def per_place(prompts: Sequence[Tensor] | None, dims: Sequence[int]) -> list[Tensor | None]:
    """Return one prompt a place, None for each where there are none.

    Raises:
        ValueError: If there are more or fewer, or one is not (B, T, D) of its place's width D.
    """
    if prompts is None:
        return [None] * len(dims)
    if len(prompts) != len(dims):
        raise ValueError(f"{len(prompts)} prompts: expected {len(dims)}, one a place that takes some")
    for place, (prompt, dim) in enumerate(zip(prompts, dims, strict=True)):
        if prompt.ndim != 3 or prompt.shape[2] != dim:
            raise ValueError(f"prompt {place} is {tuple(prompt.shape)}: expected (B, T, {dim})")
    return list(prompts)


def normalise(pixels: Tensor, divisor: int) -> Tensor:
    """Return pixels (B, 3, S, S), RGB in [0, 1], less ImageNet's mean, over its deviation.

    Raises:
        ValueError: If they are not square, or S is no multiple of ``divisor``.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3] or pixels.shape[3] % divisor:
        raise ValueError(f"pixels are {tuple(pixels.shape)}: expected (B, 3, S, S), S a multiple of {divisor}")
    mean, deviation = (pixels.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return (pixels - mean) / deviation


def to_tokens(maps: Tensor) -> Tensor:
    """Return (B, H·W, C) for maps (B, C, H, W)."""
    return maps.flatten(2).transpose(1, 2)


def to_maps(tokens: Tensor, side: int) -> Tensor:
    """Return (B, C, side, side) for tokens (B, side², C)."""
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def load_weights(module: nn.Module, path: str | Path, ignore: Sequence[str] = ()) -> None:
    """Load weights in float32, strictly: every name and shape has to fit.

    Args:
        module: The network.
        path: ``.safetensors`` or a file of ``torch.save``; ``module.`` in front of names, which parallel training
            leaves there, is taken off.
        ignore: Names that may be there without a use.

    Raises:
        UserError: If the file is missing or cannot be read, or names or shapes do not fit.
    """
    file = Path(path).expanduser()
    state = {name.removeprefix("module."): value.float() for name, value in read_state(file).items()}
    load_strictly(module, state, file, ignore)
