"""Implement VST's soft splits, blocks, task tokens and RT2T under the names of published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym.policies.needs.prompted import Mlp, PromptedBlock, to_maps, to_tokens
from maskgym.policies.needs.saliency_backbone import Adapt

DIVISOR = 16  # side of the coarsest cell, in pixels
PATCH, SMALL_PATCH = (7, 4, 2), (3, 2, 1)  # kernel, stride and padding of a soft split of pixels, and of tokens


class Predictions(NamedTuple):
    """Outputs of VST at 1/16, 1/8, 1/4 and the whole of the image's side, which training supervises.

    Attributes:
        saliency: Four saliency logits (B, 1, H, W), coarse to fine.
        contours: Four logits of the objects' boundaries, likewise.
        features: (B, D, S/8, S/8), the decoder's tokens at 1/8.
    """

    saliency: list[Tensor]
    contours: list[Tensor]
    features: Tensor


class T2TViT(nn.Module):
    """T2T-ViT_t: tokens of 1/4, 1/8 and 1/16 by soft splits, the last through a vision transformer."""

    pos_embed: Tensor

    def __init__(self, grid: int, embed_dim: int, depth: int, heads: int, mlp_ratio: float, token_dim: int) -> None:
        super().__init__()
        self.tokens_to_token = nn.ModuleDict(
            {
                "attention1": SplitAttention(3 * PATCH[0] ** 2, token_dim),
                "attention2": SplitAttention(token_dim * SMALL_PATCH[0] ** 2, token_dim),
                "project": nn.Linear(token_dim * SMALL_PATCH[0] ** 2, embed_dim),
            }
        )
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, embed_dim), std=0.02))
        self.register_buffer("pos_embed", sinusoids(1 + grid**2, embed_dim))
        self.blocks = nn.ModuleList(PromptedBlock(embed_dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, pixels: Tensor, prompts: Sequence[Tensor | None]) -> list[Tensor]:
        """Compute maps at 1/4, 1/8 and 1/16 from normalised pixels (B, 3, S, S)."""
        side, split = pixels.shape[-1], self.tokens_to_token
        quarter = to_maps(split["attention1"](soft_split(pixels, PATCH)), side // 4)
        eighth = to_maps(split["attention2"](soft_split(quarter, SMALL_PATCH)), side // 8)
        tokens = split["project"](soft_split(eighth, SMALL_PATCH))  # (B, N, D)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + self._positions(side // DIVISOR)
        for block, prompt in zip(self.blocks, prompts, strict=True):
            tokens = block(tokens, prompt)
        return [quarter, eighth, to_maps(self.norm(tokens)[:, 1:], side // DIVISOR)]

    def _positions(self, side: int) -> Tensor:
        grid = math.isqrt(self.pos_embed.shape[1] - 1)
        if grid == side:
            return self.pos_embed
        table = to_maps(self.pos_embed[:, 1:], grid)
        resized = F.interpolate(table, (side, side), mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], to_tokens(resized)], dim=1)


class SplitAttention(nn.Module):
    """Attention of a soft split, from patches (B, N, dim) to tokens (B, N, token_dim).

    Because the widths differ, the skip connection adds the values instead of the tokens.
    """

    def __init__(self, dim: int, token_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(dim, 3 * token_dim, bias=False), "proj": nn.Linear(token_dim, token_dim)}
        )
        self.norm2, self.mlp = nn.LayerNorm(token_dim), Mlp(token_dim, token_dim)
        self.scale = dim**-0.5  # as in the reference: from the width of the patches, not of the keys

    def forward(self, patches: Tensor) -> Tensor:
        """Compute tokens (B, N, token_dim) from patches (B, N, dim)."""
        query, key, value = self.attn["qkv"](self.norm1(patches)).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        tokens = value + self.attn["proj"](mixed)
        return tokens + self.mlp(self.norm2(tokens))


class Blocks(nn.Module):
    """Blocks and a last normalisation, which has one of two names in checkpoints."""

    def __init__(self, dim: int, depth: int, heads: int, mlp_ratio: float, norm: str = "norm") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PromptedBlock(dim, heads, mlp_ratio) for _ in range(depth))
        self.last = norm
        self.add_module(norm, nn.LayerNorm(dim))

    def forward(self, tokens: Tensor, prompts: Sequence[Tensor | None]) -> Tensor:
        """Map tokens (B, N, D) to (B, N, D), with one prompt per block."""
        for block, prompt in zip(self.blocks, prompts, strict=True):
            tokens = block(tokens, prompt)
        return self.get_submodule(self.last)(tokens)


class TokenInference(nn.Module):
    """Patch-task attention: each place attends to one task token with a weight from a sigmoid."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, task: Tensor) -> Tensor:
        """Compute (B, N, D) from places (B, N, D) and the task's token (B, 1, D)."""
        normed = self.norm(task)
        weights = self.q(self.norm(tokens)) @ self.k(normed).transpose(1, 2) * tokens.shape[-1] ** -0.5  # (B, N, 1)
        return tokens + self.proj(weights.sigmoid() * self.v(normed))


class Carried(NamedTuple):
    """State between scales of the decoder: places (B, N, D) and the token (B, 1, D) of each task."""

    saliency: Tensor
    places: Tensor
    contour: Tensor


class TaskTokens(nn.Module):
    """The decoder at 1/16: the task tokens join the places."""

    def __init__(self, dim: int, depth: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm, self.mlp_s = nn.LayerNorm(dim), projection(dim, dim, dim)
        self.saliency_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.contour_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.encoderlayer = Blocks(dim, depth, heads, mlp_ratio)
        self.saliency_token_pre, self.contour_token_pre = TokenInference(dim), TokenInference(dim)

    def forward(self, tokens: Tensor, prompts: Sequence[Tensor | None]) -> Carried:
        """Compute the state at 1/16 from the encoder's tokens (B, N, D)."""
        places = self.mlp_s(self.norm(tokens))
        saliency, contour = (token.expand(len(places), -1, -1) for token in (self.saliency_token, self.contour_token))
        return attend(self.encoderlayer, Carried(saliency, places, contour), prompts)

    def saliency(self, at: Carried) -> Tensor:
        """Compute the saliency's features (B, N, D) of each place."""
        return self.saliency_token_pre(at.places, at.saliency)

    def contour(self, at: Carried) -> Tensor:
        """Compute the boundary's features (B, N, D) of each place."""
        return self.contour_token_pre(at.places, at.contour)


class TaskScale(nn.Module):
    """The decoder at 1/8 and at 1/4: widen the places, attend, infer both tasks, and narrow again."""

    def __init__(self, token_dim: int, dim: int, depth: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(token_dim), projection(token_dim, dim, dim)
        self.encoderlayer = Blocks(dim, depth, 1, mlp_ratio)
        self.saliency_token_pre, self.contour_token_pre = TokenInference(dim), TokenInference(dim)
        self.norm2, self.mlp2 = nn.LayerNorm(dim), projection(dim, token_dim, token_dim)
        self.norm2_c, self.mlp2_c = nn.LayerNorm(dim), projection(dim, token_dim, token_dim)

    def forward(self, tokens: Tensor, before: Carried, prompts: Sequence[Tensor | None]) -> Carried:
        """Compute the state at this scale from its tokens (B, N, token_dim) and the state at the coarser one."""
        return attend(self.encoderlayer, before._replace(places=self.mlp(self.norm(tokens))), prompts)

    def saliency(self, at: Carried) -> Tensor:
        """Compute the saliency's features (B, N, token_dim) of each place."""
        return self.mlp2(self.norm2(self.saliency_token_pre(at.places, at.saliency)))

    def contour(self, at: Carried) -> Tensor:
        """Compute the boundary's features (B, N, token_dim) of each place."""
        return self.mlp2_c(self.norm2_c(self.contour_token_pre(at.places, at.contour)))


class Upsampling(nn.Module):
    """RT2T: each token becomes a patch of smaller tokens, and overlapping patches are summed.

    The layer computes this as a transposed convolution whose bias has a kernel too, because it is faster than a linear
    layer and a fold.
    """

    def __init__(self, token_dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(token_dim, token_dim * patch[0] ** 2)

    def forward(self, tokens: Tensor, last: nn.Linear | None = None) -> Tensor:
        """Compute maps (B, C, stride · H, stride · H) from tokens (B, H², D) of a square grid.

        Args:
            tokens: Tokens of the grid.
            last: Linear layer that follows at each place. It is merged into this layer, so that only its few output
                channels are computed.
        """
        kernel, stride, padding = self.patch
        maps = to_maps(tokens, math.isqrt(tokens.shape[1]))
        weight = self.project.weight.unflatten(0, (-1, kernel, kernel))  # (C, kernel, kernel, D)
        bias = self.project.bias.unflatten(0, (-1, kernel, kernel))
        if last is not None:
            weight = torch.einsum("oc,chwd->ohwd", last.weight, weight)
            bias = torch.einsum("oc,chw->ohw", last.weight, bias)
        shape = {"stride": stride, "padding": padding, "output_padding": stride + 2 * padding - kernel}
        upsampled = F.conv_transpose2d(maps, weight.permute(3, 0, 1, 2), **shape)
        upsampled = upsampled + F.conv_transpose2d(torch.ones_like(maps[:1, :1]), bias[None], **shape)
        return upsampled if last is None else upsampled + last.bias[:, None, None]


class Fusion(Upsampling):
    """RT2T of the decoder's tokens, narrowed first, then joined with the encoder's tokens of that scale."""

    def __init__(self, dim: int, token_dim: int, dropout: float) -> None:
        super().__init__(token_dim, SMALL_PATCH)
        self.concatFuse = projection(2 * token_dim, token_dim, token_dim)
        self.att = Performer(token_dim, dropout)
        self.norm, self.mlp = nn.LayerNorm(dim), projection(dim, token_dim, token_dim)

    def fuse(self, places: Tensor, encoded: Tensor) -> Tensor:
        """Compute tokens (B, 4N, C) from places (B, N, D) and the encoder's maps (B, C, H, W)."""
        finer = to_tokens(self(self.mlp(self.norm(places))))
        return self.att(self.concatFuse(torch.cat([finer, to_tokens(encoded)], dim=2)))


class Performer(nn.Module):
    """Attention of linear cost, with positive random features for the exponential (Choromanski et al., 2021)."""

    w: Tensor

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.kqv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = projection(dim, dim, dim)
        self.drop = nn.Dropout(dropout)
        features = dim // 2
        self.register_buffer("w", nn.init.orthogonal_(torch.empty(features, dim)) * math.sqrt(features))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D) to (B, N, D)."""
        key, query, value = self.kqv(self.norm1(tokens)).chunk(3, dim=-1)  # checkpoints have this order
        key, query = self._features(key), self._features(query)  # (B, N, m)
        total = query @ key.sum(dim=1)[:, :, None]  # (B, N, 1)
        mixed = query @ (key.transpose(1, 2) @ value) / (total + 1e-8)
        tokens = tokens + self.drop(self.proj(mixed))
        return tokens + self.drop(self.mlp(self.norm2(tokens)))

    def _features(self, tokens: Tensor) -> Tensor:
        return torch.exp(tokens @ self.w.T - tokens.square().sum(-1, keepdim=True) / 2) / math.sqrt(len(self.w))


class Decoder(nn.Module):
    """Decoder from 1/16 to the whole image that fuses, attends and predicts at each scale."""

    def __init__(self, dim: int, token_dim: int, depth: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(dim), projection(dim, dim, token_dim)
        self.norm_c, self.mlp_c = nn.LayerNorm(dim), projection(dim, dim, token_dim)
        self.decoder1, self.decoder2 = Fusion(dim, token_dim, dropout), Fusion(dim, token_dim, dropout)
        self.decoder3, self.decoder3_c = Upsampling(token_dim, PATCH), Upsampling(token_dim, PATCH)
        self.token_pre_1_8 = TaskScale(token_dim, dim, depth, mlp_ratio)
        self.token_pre_1_4 = TaskScale(token_dim, dim, depth, mlp_ratio)
        for scale in ("1_16", "1_8", "1_4", "1_1"):
            self.add_module(f"pre_{scale}", nn.Linear(token_dim, 1))
            self.add_module(f"pre_{scale}_c", nn.Linear(token_dim, 1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        coarsest: Carried,
        eighth: Tensor,
        quarter: Tensor,
        middle: Sequence[Tensor | None],
        fine: Sequence[Tensor | None],
        adapt: Adapt | None = None,
    ) -> tuple[Carried, Carried]:
        """Compute the states at 1/8 and 1/4.

        Args:
            coarsest: State at 1/16, from `TaskTokens`.
            eighth: The encoder's features at 1/8, (B, C, S/8, S/8).
            quarter: The encoder's features at 1/4, (B, C, S/4, S/4).
            middle: Prompts of the blocks at 1/8.
            fine: Prompts of the blocks at 1/4.
            adapt: See `SaliencyBackbone.decode`; called with scales 1 and 0.
        """
        carried, tokens = self.approach(coarsest, eighth, quarter, middle, adapt)
        return carried, self.token_pre_1_4(tokens, carried, fine)

    def approach(
        self,
        coarsest: Carried,
        eighth: Tensor,
        quarter: Tensor,
        middle: Sequence[Tensor | None],
        adapt: Adapt | None = None,
    ) -> tuple[Carried, Tensor]:
        """Compute the state at 1/8 and the tokens that enter the blocks at 1/4; arguments as of `forward`."""
        tokens = adapted(self.decoder1.fuse(coarsest.places, eighth), 1, adapt)
        carried = self.token_pre_1_8(tokens, coarsest, middle)
        return carried, adapted(self.decoder2.fuse(carried.places, quarter), 0, adapt)

    def saliency(self, finest: Carried) -> Tensor:
        """Compute the saliency logits (B, 1, S, S) of the whole image from the state at 1/4."""
        return self.decoder3(self.token_pre_1_4.saliency(finest), self.pre_1_1)

    def predictions(self, task_tokens: TaskTokens, coarsest: Carried, middle: Carried, finest: Carried) -> Predictions:
        """Compute the logits of all scales from the states at 1/16, 1/8 and 1/4; the first is of ``task_tokens``."""
        saliency, contour = self.token_pre_1_4.saliency(finest), self.token_pre_1_4.contour(finest)
        saliencies = {
            "pre_1_16": self.mlp(self.norm(task_tokens.saliency(coarsest))),
            "pre_1_8": self.token_pre_1_8.saliency(middle),
            "pre_1_4": saliency,
        }
        contours = {
            "pre_1_16_c": self.mlp_c(self.norm_c(task_tokens.contour(coarsest))),
            "pre_1_8_c": self.token_pre_1_8.contour(middle),
            "pre_1_4_c": contour,
        }
        return Predictions(
            [*(self._logits(*each) for each in saliencies.items()), self.decoder3(saliency, self.pre_1_1)],
            [*(self._logits(*each) for each in contours.items()), self.decoder3_c(contour, self.pre_1_1_c)],
            to_maps(middle.places, math.isqrt(middle.places.shape[1])),
        )

    def _logits(self, layer: str, tokens: Tensor) -> Tensor:
        return to_maps(self.get_submodule(layer)(tokens), math.isqrt(tokens.shape[1]))


def adapted(tokens: Tensor, scale: int, adapt: Adapt | None) -> Tensor:
    """Change the tokens (B, N, D) of a scale with ``adapt``, which takes maps."""
    return tokens if adapt is None else to_tokens(adapt(scale, to_maps(tokens, math.isqrt(tokens.shape[1]))))


def attend(blocks: Blocks, carried: Carried, prompts: Sequence[Tensor | None]) -> Carried:
    """Apply blocks to the concatenation of both task tokens and the places."""
    tokens = blocks(torch.cat(carried, dim=1), prompts)  # (B, 1 + N + 1, D)
    return Carried(tokens[:, :1], tokens[:, 1:-1], tokens[:, -1:])


def projection(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Build two linear layers with a GELU between them, under the names of checkpoints."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def soft_split(maps: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Cut maps (B, C, H, W) into overlapping patches (B, N, C · kernel²)."""
    kernel, stride, padding = patch
    return F.unfold(maps, kernel, padding=padding, stride=stride).transpose(1, 2)


def sinusoids(positions: int, dim: int) -> Tensor:
    """Compute the position table (1, positions, dim) of Vaswani et al., 2017, with interleaved sines and cosines."""
    channel = torch.arange(dim, dtype=torch.float64)
    angles = torch.arange(positions)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angles.sin(), angles.cos()).float()[None]


def small_weights(module: nn.Module) -> None:
    """Initialise a linear layer as vision transformers do: a narrow normal distribution, and bias zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
