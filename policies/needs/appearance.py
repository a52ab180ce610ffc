"""Implement the appearance similarity adder of UserSal+ and its loss (UserSOD, Eq. 3 and 4) for one scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym.errors import UserError
from maskgym.policies.needs.prompted import to_tokens

SIAMESE = ("linear", "convolution", "attention", "swin")
KL_AXES = ("channels", "positions", "all")


class AppearanceSimilarityAdder(nn.Module):
    """Add image features to prompted features, weighted by their similarity (Eq. 3).

    A tiny Siamese network, shared by both, embeds the features F and the features IF of the same frozen encoder without
    prompts. The cosine of the two embeddings at each position is S, and the adder adds S ⊙ IF to F. The last layer
    starts at zero, so that training starts at F itself.

    The paper does not define the inputs of the cosine. Here the cosine compares embeddings of one position, over
    their channels, so that S (B, 1, H, W) multiplies IF element by element.

    Args:
        channels: Number of channels of the features.
        siamese: Network, one of `SIAMESE`, each with a single layer (Table 8).
        similarity: Whether to compute S; otherwise S is 1 (Table 5 without SC).
        adder: Whether to use cross-attention from F to S ⊙ IF; otherwise S ⊙ IF is scaled by one learned number per
            channel and added.
        width: Width of embeddings and attention, a multiple of ``heads``.
        heads: Number of attention heads.
        window: Side of the windows of ``swin``, in positions.
        max_attention_keys: Maximum number of positions that attention over a whole map reads; larger maps are pooled
            first. The paper has no such bound; it lets the finest scale of a large image fit into memory.

    Raises:
        UserError: If the network is unknown or a size does not fit.
    """

    def __init__(
        self,
        channels: int,
        siamese: str = "swin",
        similarity: bool = True,
        adder: bool = True,
        width: int = 64,
        heads: int = 4,
        window: int = 7,
        max_attention_keys: int = 1024,
    ) -> None:
        super().__init__()
        if siamese not in SIAMESE:
            raise UserError(f"siamese={siamese!r}: expected one of {', '.join(SIAMESE)}")
        sizes = {"width": width, "heads": heads, "window": window, "max_attention_keys": max_attention_keys}
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"{name}={value}: expected at least 1")
        if width % heads:
            raise UserError(f"width={width}: expected a multiple of heads={heads}")
        self.siamese = None
        if similarity:
            layer = _siamese_layer(siamese, channels, width, heads, window, max_attention_keys)
            self.siamese = nn.Sequential(nn.GroupNorm(1, channels), layer)  # features of networks differ in size
        self.adder = CrossAttentionAdder(channels, width, heads, max_attention_keys) if adder else GatedAdder(channels)

    def similarity(self, features: Tensor, images: Tensor) -> Tensor:
        """Compute S, float (B, 1, H, W) in [-1, 1]: SC[TSN(F, IF)]."""
        if self.siamese is None:
            return torch.ones_like(images[:, :1])
        # Before torch 2.14, on CPU, GroupNorm's backward crashes on channels-last input that needs no gradient.
        features, images = features.contiguous(), images.contiguous()
        return F.cosine_similarity(self.siamese(features), self.siamese(images), dim=1)[:, None]

    def forward(self, features: Tensor, images: Tensor) -> Tensor:
        """Compute F' (B, C, H, W) from features F and image features IF of that shape."""
        return self.adder(features, self.similarity(features, images) * images)


class GatedAdder(nn.Module):
    """Add a map, scaled by one number per channel that starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, features: Tensor, appearance: Tensor) -> Tensor:
        """Compute (B, C, H, W) from two maps of that shape."""
        return features + self.gate * appearance


class CrossAttentionAdder(nn.Module):
    """AIA of Eq. 3: each position of F attends to all positions of S ⊙ IF, and the result is added to F.

    S ⊙ IF is not normalised by itself, because that would cancel S. Both inputs are divided by the root mean square of
    F, one number per image, so that the layer works alike in any backbone.
    """

    def __init__(self, channels: int, width: int, heads: int, max_keys: int) -> None:
        super().__init__()
        self.norm, self.max_keys = nn.LayerNorm(channels), max_keys
        self.attention = Attention(channels, width, heads, channels)
        nn.init.zeros_(self.attention.out.weight)
        nn.init.zeros_(self.attention.out.bias)

    def forward(self, features: Tensor, appearance: Tensor) -> Tensor:
        """Compute (B, C, H, W) from two maps of that shape."""
        size = features.detach().square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-6
        context = to_tokens(pooled(appearance / size, self.max_keys))
        added = self.attention(self.norm(to_tokens(features)), context)
        return features + size * to_maps(added, features)


class Attention(nn.Module):
    """Multi-head attention from one map's tokens to another's."""

    def __init__(self, channels: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(channels, width), nn.Linear(channels, 2 * width)
        self.out = nn.Linear(width, out)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Compute (B, N, out) from tokens (B, N, C) and context (B, M, C)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d)
            for part in (self.query(tokens), *self.key_value(context).chunk(2, dim=-1))
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class SelfAttentionLayer(nn.Module):
    """Projection and one self-attention layer of a ViT over the whole map."""

    def __init__(self, channels: int, width: int, heads: int, max_keys: int) -> None:
        super().__init__()
        self.project, self.norm, self.max_keys = nn.Conv2d(channels, width, 1), nn.LayerNorm(width), max_keys
        self.attention = Attention(width, width, heads, width)

    def forward(self, maps: Tensor) -> Tensor:
        """Compute (B, width, H, W) from (B, C, H, W)."""
        maps = self.project(maps)
        context = self.norm(to_tokens(pooled(maps, self.max_keys)))
        return maps + to_maps(self.attention(self.norm(to_tokens(maps)), context), maps)


class ShiftedWindowLayer(nn.Module):
    """Projection and one self-attention layer of a Swin Transformer, in windows shifted by half their side.

    Swin rolls the map and masks what wraps around. Here the map is padded and the padding masked, which gives the same
    windows, cut at the edges. A map that fits into one window is not shifted, as in Swin.
    """

    def __init__(self, channels: int, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.project, self.norm = nn.Conv2d(channels, width, 1), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative = nn.Parameter(torch.zeros(heads, 2 * window - 1, 2 * window - 1))
        nn.init.trunc_normal_(self.relative, std=0.02)

    def forward(self, maps: Tensor) -> Tensor:
        """Compute (B, width, H, W) from (B, C, H, W)."""
        maps = self.project(maps)
        height, width = maps.shape[2:]
        side = self.window
        shift = 0 if max(height, width) <= side else side // 2
        padding = (shift, -(width + shift) % side, shift, -(height + shift) % side)
        tokens = windows(F.pad(to_maps(self.norm(to_tokens(maps)), maps), padding), side)  # (B, windows, side², D)
        inside = windows(F.pad(maps.new_ones(1, 1, height, width), padding), side)[0, :, :, 0]  # (windows, side²)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(2, 3)  # (B, windows, heads, side², d)
            for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        outside = torch.zeros_like(inside).masked_fill(inside == 0, -torch.inf)
        mask = self._relative_bias() + outside[:, None, None]  # (windows, heads, side², side²)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[None])
        added = from_windows(self.out(mixed.transpose(2, 3).flatten(3)), side, width + padding[0] + padding[1])
        return maps + added[:, :, shift : shift + height, shift : shift + width]

    def _relative_bias(self) -> Tensor:
        """Look up the bias (heads, side², side²) of each pair of positions in a window."""
        grid = torch.meshgrid(*[torch.arange(self.window)] * 2, indexing="ij")
        ys, xs = (part.flatten() for part in grid)  # (side²,)
        return self.relative[:, ys[:, None] - ys + self.window - 1, xs[:, None] - xs + self.window - 1]


def _siamese_layer(name: str, channels: int, width: int, heads: int, window: int, max_keys: int) -> nn.Module:
    if name == "linear":
        return nn.Conv2d(channels, width, 1)
    if name == "convolution":
        return nn.Conv2d(channels, width, 3, padding=1)
    if name == "attention":
        return SelfAttentionLayer(channels, width, heads, max_keys)
    return ShiftedWindowLayer(channels, width, heads, window)


def appearance_loss(
    target: Tensor,
    features: Tensor,
    axis: str = "channels",
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Compute the KL divergence KL[target, features] (Eq. 4) per row, float (B,).

    Args:
        target: Features (B, C, H, W) of the frozen encoder for image ⊙ ground truth.
        features: Features F' of the same shape.
        axis: Axis that a softmax turns into distributions; the paper does not say. ``channels``: one distribution per
            position, averaged over positions; ``positions``: one per channel, averaged over channels; ``all``: one per
            row.
        temperature: Divisor of both inputs before the softmax.
        weights: Weight (B, 1, H, W) of each position in the average over positions, for the axis ``channels``; a row
            without any weight has loss 0. None weighs them alike.

    Raises:
        UserError: If the axis is unknown, cannot be weighed, or the temperature is not above 0.
    """
    if axis not in KL_AXES:
        raise UserError(f"kl_axis={axis!r}: expected one of {', '.join(KL_AXES)}")
    if not temperature > 0:
        raise UserError(f"kl_temperature={temperature}: expected more than 0")
    if weights is not None and axis != "channels":
        raise UserError(f"kl_axis={axis!r}: has no positions to weigh: expected channels")
    # (B, C, H·W), in float32 under autocast too
    target, features = (maps.flatten(2).float() / temperature for maps in (target, features))
    if axis == "positions":
        target, features = target.transpose(1, 2), features.transpose(1, 2)
    elif axis == "all":
        target, features = target.flatten(1)[..., None], features.flatten(1)[..., None]
    wanted = target.log_softmax(dim=1)
    each = (wanted.exp() * (wanted - features.log_softmax(dim=1))).sum(dim=1)  # (B, positions or channels)
    if weights is None:
        return each.mean(dim=1)
    shares = weights.flatten(1)
    return (shares * each).sum(dim=1) / shares.sum(dim=1).clamp(min=1e-6)


def pooled(maps: Tensor, most: int) -> Tensor:
    """Average maps (B, C, H, W) down to at most ``most`` positions; smaller maps are returned unchanged."""
    height, width = maps.shape[2:]
    if height * width <= most:
        return maps
    side = max(1, int(most**0.5))
    return F.adaptive_avg_pool2d(maps, (min(height, side), min(width, side)))


def to_maps(tokens: Tensor, like: Tensor) -> Tensor:
    """Reshape tokens (B, H·W, D) to maps (B, D, H, W) of the size of the maps ``like``."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def windows(maps: Tensor, side: int) -> Tensor:
    """Cut maps (B, C, H, W) into (B, windows, side², C), row by row; H and W are multiples of the side."""
    cut = maps.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, C, rows, side, columns, side)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def from_windows(tokens: Tensor, side: int, width: int) -> Tensor:
    """Join the windows that `windows` cut to maps (B, C, H, width)."""
    cut = tokens.unflatten(2, (side, side)).unflatten(1, (-1, width // side))  # (B, rows, columns, side, side, C)
    return cut.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
