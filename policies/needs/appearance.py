"""Implement the appearance similarity adder of UserSal+ and its loss (UserSOD, Eq. 3 and 4) for one scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym.errors import UserError

KL_AXES = ("channels", "positions", "all")


class AppearanceSimilarityAdder(nn.Module):
    """Add image features to prompted features, weighted by their similarity (Eq. 3).

    A tiny Siamese network, shared by both, embeds the features F and those of the same frozen encoder without prompts,
    IF. The cosine of the two embeddings at each position is S; S ⊙ IF is what the adder adds to F. Training starts at F
    itself: the last layer begins with zeros.

    The paper does not define the inputs of the cosine. The adder compares embeddings of one position, over
    their channels, so that S (B, 1, H, W) can be multiplied with IF element by element.

    Args:
        channels: Number of channels of the features.
        siamese: The network: one of `SIAMESE`, each of a single layer (Table 8).
        similarity: Without it S is 1 (Table 5 without SC).
        adder: Cross-attention from F to S ⊙ IF; without it S ⊙ IF is added as it is, times a learned number a channel.
        width: Width of embeddings and attention, a multiple of ``heads``.
        heads: Number of attention heads.
        window: Side of the windows of ``swin``, positions.
        most_keys: Attention over a whole map of more positions than this sees it pooled to a smaller one: ours, so that
            the finest scale of a large image fits into memory.

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
        most_keys: int = 1024,
    ) -> None:
        super().__init__()
        if siamese not in SIAMESE:
            raise UserError(f"siamese={siamese!r}: expected one of {', '.join(SIAMESE)}")
        for name, value in (("width", width), ("heads", heads), ("window", window), ("most_keys", most_keys)):
            if value < 1:
                raise UserError(f"{name}={value}: expected at least 1")
        if width % heads:
            raise UserError(f"width={width}: expected a multiple of heads={heads}")
        self.siamese = None
        if similarity:
            layer = SIAMESE[siamese](channels, width, heads, window, most_keys)
            self.siamese = nn.Sequential(nn.GroupNorm(1, channels), layer)  # features of networks differ in size
        self.adder = CrossAttentionAdder(channels, width, heads, most_keys) if adder else GatedAdder(channels)

    def similarity(self, features: Tensor, images: Tensor) -> Tensor:
        """Return S, float (B, 1, H, W) in [-1, 1]: SC[TSN(F, IF)]."""
        if self.siamese is None:
            return torch.ones_like(images[:, :1])
        return F.cosine_similarity(self.siamese(features), self.siamese(images), dim=1)[:, None]

    def forward(self, features: Tensor, images: Tensor) -> Tensor:
        """Return F', (B, C, H, W), for features F and image features IF of that shape."""
        return self.adder(features, self.similarity(features, images) * images)


class GatedAdder(nn.Module):
    """Add the input, scaled by one number per channel that starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, features: Tensor, appearance: Tensor) -> Tensor:
        """Return (B, C, H, W) for two of that shape."""
        return features + self.gate * appearance


class CrossAttentionAdder(nn.Module):
    """AIA of Eq. 3: each position of F asks, all positions of IF' answer, and the answer is added to F.

    IF' is not normalised by itself, which would take out S again; both are measured in the size of F, one number an
    image, so that the layer works alike in any backbone.
    """

    def __init__(self, channels: int, width: int, heads: int, most_keys: int) -> None:
        super().__init__()
        self.norm, self.most_keys = nn.LayerNorm(channels), most_keys
        self.attention = Attention(channels, width, heads, channels)
        nn.init.zeros_(self.attention.out.weight)
        nn.init.zeros_(self.attention.out.bias)

    def forward(self, features: Tensor, appearance: Tensor) -> Tensor:
        """Return (B, C, H, W) for two of that shape."""
        size = features.detach().square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-6
        context = to_tokens(pooled(appearance / size, self.most_keys))
        added = self.attention(self.norm(to_tokens(features)), context)
        return features + size * to_maps(added, features)


class Attention(nn.Module):
    """Multi-head attention of one map's tokens to another's."""

    def __init__(self, channels: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(channels, width), nn.Linear(channels, 2 * width)
        self.out = nn.Linear(width, out)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Return (B, N, out) for tokens (B, N, C) and context (B, M, C)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d)
            for part in (self.query(tokens), *self.key_value(context).chunk(2, dim=-1))
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class SelfAttentionLayer(nn.Module):
    """A projection and one layer of a ViT's self-attention: every position sees the whole map."""

    def __init__(self, channels: int, width: int, heads: int, most_keys: int) -> None:
        super().__init__()
        self.project, self.norm, self.most_keys = nn.Conv2d(channels, width, 1), nn.LayerNorm(width), most_keys
        self.attention = Attention(width, width, heads, width)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, width, H, W) for (B, C, H, W)."""
        maps = self.project(maps)
        context = self.norm(to_tokens(pooled(maps, self.most_keys)))
        return maps + to_maps(self.attention(self.norm(to_tokens(maps)), context), maps)


class ShiftedWindowLayer(nn.Module):
    """A projection and one layer of a Swin Transformer's self-attention, in windows shifted by half their side.

    Where Swin rolls the map and masks what came round, the map is padded and the padding masked: the same windows,
    those at the edges cut. A map that one window covers is not shifted, as in Swin.
    """

    def __init__(self, channels: int, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.project, self.norm = nn.Conv2d(channels, width, 1), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative = nn.Parameter(torch.zeros(heads, 2 * window - 1, 2 * window - 1))
        nn.init.trunc_normal_(self.relative, std=0.02)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, width, H, W) for (B, C, H, W)."""
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
        """Return (heads, side², side²), of each pair of positions in a window."""
        ys, xs = (
            part.flatten() for part in torch.meshgrid(*[torch.arange(self.window)] * 2, indexing="ij")
        )  # (side²,)
        return self.relative[:, ys[:, None] - ys + self.window - 1, xs[:, None] - xs + self.window - 1]


# What the tiny Siamese network may be, by name: made of channels, width, heads, window and most keys.
SIAMESE = {
    "linear": lambda channels, width, heads, window, most_keys: nn.Conv2d(channels, width, 1),
    "convolution": lambda channels, width, heads, window, most_keys: nn.Conv2d(channels, width, 3, padding=1),
    "attention": lambda channels, width, heads, window, most_keys: SelfAttentionLayer(
        channels, width, heads, most_keys
    ),
    "swin": lambda channels, width, heads, window, most_keys: ShiftedWindowLayer(channels, width, heads, window),
}


def appearance_loss(target: Tensor, features: Tensor, axis: str = "channels", temperature: float = 1.0) -> Tensor:
    """Return KL[target, features] (Eq. 4) of each row, float (B,).

    Args:
        target: The frozen encoder's features of image ⊙ ground truth, (B, C, H, W).
        features: Features F' of the same shape.
        axis: What a softmax turns into distributions; the paper does not say. ``channels``: those of a position, and
            the mean over positions is taken; ``positions``: those of a channel, and the mean over channels; ``all``:
            one distribution a row.
        temperature: Divisor of both inputs before the softmax.

    Raises:
        UserError: If the axis is unknown or the temperature not above 0.
    """
    if axis not in KL_AXES:
        raise UserError(f"kl_axis={axis!r}: expected one of {', '.join(KL_AXES)}")
    if not temperature > 0:
        raise UserError(f"kl_temperature={temperature}: expected more than 0")
    target, features = (maps.flatten(2) / temperature for maps in (target, features))  # (B, C, H·W)
    if axis == "positions":
        target, features = target.transpose(1, 2), features.transpose(1, 2)
    elif axis == "all":
        target, features = target.flatten(1)[..., None], features.flatten(1)[..., None]
    wanted = target.log_softmax(dim=1)
    return (wanted.exp() * (wanted - features.log_softmax(dim=1))).sum(dim=1).mean(dim=1)


def pooled(maps: Tensor, most: int) -> Tensor:
    """Return maps (B, C, H, W) averaged down to at most so many positions; as they are where they have no more."""
    height, width = maps.shape[2:]
    if height * width <= most:
        return maps
    side = max(1, int(most**0.5))
    return F.adaptive_avg_pool2d(maps, (min(height, side), min(width, side)))


def to_tokens(maps: Tensor) -> Tensor:
    """Return (B, H·W, C) for maps (B, C, H, W)."""
    return maps.flatten(2).transpose(1, 2)


def to_maps(tokens: Tensor, like: Tensor) -> Tensor:
    """Return (B, D, H, W) for tokens (B, H·W, D) and maps (B, ·, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def windows(maps: Tensor, side: int) -> Tensor:
    """Return (B, windows, side², C) for maps (B, C, H, W), row by row; H and W are multiples of the side."""
    cut = maps.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, C, rows, side, columns, side)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def from_windows(tokens: Tensor, side: int, width: int) -> Tensor:
    """Return the maps (B, C, H, W) of this width that `windows` cut."""
    cut = tokens.unflatten(2, (side, side)).unflatten(1, (-1, width // side))  # (B, rows, columns, side, side, C)
    return cut.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
