"""VST, the Visual Saliency Transformer: salient-object detection by attention alone, from tokens to tokens.

A T2T-ViT encodes the image: two soft splits with attention make tokens of a fourth and an eighth of its side, a third
those of a sixteenth, which go through a vision transformer. A convertor of the same blocks follows, then a decoder that
carries one saliency token and one boundary token along: what they have in common with a place's token is the saliency,
or the boundary, there. Between scales the reverse of T2T upsamples: each token becomes an overlapping patch of smaller
ones (RT2T), joined with those of the encoder.

Written from the paper, to the state-dict names of the published checkpoints; the reference repository has no licence.

References:
    Liu et al., Visual Saliency Transformer, ICCV 2021. Reference code: nnizhang/VST.
    Yuan et al., Tokens-to-Token ViT, ICCV 2021. Reference code: yitu-opensource/T2T-ViT (Clear BSD).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .prompted import Mlp, PromptedBlock, load_weights, normalise, per_place, to_maps, to_tokens
from .saliency_backbone import SaliencyBackbone

EMBEDDED = Path(__file__).parent / "vst_tiny" / "model.safetensors"
# Sizes of the embedded one, for scenes of 128 pixels.
TINY = {
    "image_size": 128,
    "embed_dim": 96,
    "depth": 4,
    "heads": 4,
    "mlp_ratio": 2.0,
    "token_dim": 32,
    "convertor_depth": 1,
    "decoder_depth": 2,
    "token_depth": 1,
    "dropout": 0.0,
}
DIVISOR = 16
PATCH, SMALL_PATCH = (7, 4, 2), (3, 2, 1)  # kernel, stride and padding of a split: of pixels, of tokens
# The classifier of the ImageNet model, which published checkpoints carry along (385,000 weights) and nothing uses.
UNUSED = ("rgb_backbone.head.weight", "rgb_backbone.head.bias")


class Predictions(NamedTuple):
    """What VST is supervised on, coarse to fine: 1/16, 1/8, 1/4 and the whole of the image's side.

    Attributes:
        saliency: Four logits (B, 1, H, W).
        contours: As many of the objects' boundary.
        features: (B, D, S/8, S/8), the decoder's tokens of an eighth.
    """

    saliency: list[Tensor]
    contours: list[Tensor]
    features: Tensor


class VST(SaliencyBackbone):
    """The network. The defaults are those of the published RGB model, whose 44.5 M parameters count a classifier.

    UserSOD speaks of N scales, "generally, N=5"; VST has three: 1/4 and 1/8 of ``token_dim`` channels, 1/16 of
    ``embed_dim``, as the T2T-ViT gives them. The convertor belongs to what `decode` does, so that appearance can be
    added to the encoder's own features. Each block of the T2T-ViT takes prompts (``encoder_prompt_dims``), and each
    block of convertor and decoder (``decoder_prompt_dims``: first the convertor's, then those of 1/16, 1/8 and 1/4).

    Args:
        image_size: Side of the square that positions are made for, pixels; at another side their grid is interpolated
            bicubically, as T2T-ViT does. A multiple of 16.
        embed_dim: Width of the blocks.
        depth: Blocks of the T2T-ViT.
        heads: Heads of every block but those of 1/8 and 1/4, which have one. They divide ``embed_dim``.
        mlp_ratio: Hidden width of a block over its width.
        token_dim: Width of the tokens of 1/8 and 1/4. Even.
        convertor_depth: Blocks of the convertor.
        decoder_depth: Blocks of the decoder at 1/16.
        token_depth: Blocks of the decoder at 1/8, and at 1/4.
        dropout: Share dropped while training, in the two layers that join scales.

    Raises:
        UserError: If a size does not fit.

    Example:
        >>> backbone = VST(**TINY)
        >>> [tuple(maps.shape[1:]) for maps in backbone.encode(torch.zeros(1, 3, 128, 128))]
        [(32, 32, 32), (32, 16, 16), (96, 8, 8)]
        >>> backbone(torch.zeros(1, 3, 128, 128)).shape
        torch.Size([1, 1, 128, 128])
    """

    size_divisor = DIVISOR

    def __init__(
        self,
        image_size: int = 224,
        embed_dim: int = 384,
        depth: int = 14,
        heads: int = 6,
        mlp_ratio: float = 3.0,
        token_dim: int = 64,
        convertor_depth: int = 4,
        decoder_depth: int = 4,
        token_depth: int = 2,
        dropout: float = 0.1,
    ) -> None:
        if image_size < DIVISOR or image_size % DIVISOR:
            raise UserError(f"vst: image_size={image_size}: expected a multiple of {DIVISOR}")
        if min(embed_dim, heads, token_dim) < 1 or embed_dim % heads or token_dim % 2:
            raise UserError(
                f"vst: embed_dim={embed_dim}, heads={heads}, token_dim={token_dim}: expected heads that divide "
                "embed_dim, and an even token_dim"
            )
        if min(depth, convertor_depth, decoder_depth, token_depth) < 0 or int(embed_dim * mlp_ratio) < 1:
            raise UserError(
                f"vst: depth={depth}, convertor_depth={convertor_depth}, decoder_depth={decoder_depth}, "
                f"token_depth={token_depth}, mlp_ratio={mlp_ratio}: expected none below 0"
            )
        super().__init__()
        self.feature_dims = (token_dim, token_dim, embed_dim)
        self.encoder_prompt_dims = (embed_dim,) * depth
        self._decoder_depths = [convertor_depth, decoder_depth, token_depth, token_depth]
        self.decoder_prompt_dims = (embed_dim,) * sum(self._decoder_depths)
        self.rgb_backbone = T2TViT(image_size // DIVISOR, embed_dim, depth, heads, mlp_ratio, token_dim)
        self.transformer = nn.ModuleDict(
            {"encoderlayer": Blocks(embed_dim, convertor_depth, heads, mlp_ratio, norm="rgb_norm")}
        )
        self.token_trans = TaskTokens(embed_dim, decoder_depth, heads, mlp_ratio)
        self.apply(_small_weights)
        self.decoder = Decoder(embed_dim, token_dim, token_depth, mlp_ratio, dropout)

    def encode(self, pixels: Tensor, prompts: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return features of 1/4, 1/8 and 1/16; see `SaliencyBackbone`."""
        places = per_place(prompts, self.encoder_prompt_dims)
        return self.rgb_backbone(normalise(pixels, DIVISOR), places)

    def decode(self, features: Sequence[Tensor], prompts: Sequence[Tensor] | None = None) -> Tensor:
        """Return saliency logits (B, 1, S, S); see `SaliencyBackbone`."""
        return self.predict(features, prompts).saliency[-1]

    def predict(self, features: Sequence[Tensor], prompts: Sequence[Tensor] | None = None) -> Predictions:
        """Return the logits of every scale, of saliency and of boundaries: what training supervises."""
        places = iter(per_place(prompts, self.decoder_prompt_dims))
        converting, coarse, middle, fine = ([next(places) for _ in range(depth)] for depth in self._decoder_depths)
        tokens = self.transformer["encoderlayer"](to_tokens(features[2]), converting)
        return self.decoder(self.token_trans(tokens, coarse), features[1], features[0], middle, fine)

    def load(self, path: str | Path) -> VST:
        """Load weights, strictly, and return the network.

        Args:
            path: ``.safetensors`` or a file of ``torch.save``: a published checkpoint as it is (its ``module.`` in
                front of names and its unused classifier are taken off), or a state dict of this class.

        Raises:
            UserError: If the file is missing or cannot be read, or names or shapes do not fit.
        """
        load_weights(self, path, ignore=UNUSED)
        return self


def vst(checkpoint: str | Path | None = None, **sizes: Any) -> VST:
    """Return a VST of the published sizes, or others.

    Args:
        checkpoint: Its weights, as `VST.load` reads them; None draws them at random, to be trained.
        sizes: Arguments of `VST`.

    Raises:
        UserError: See `VST` and `VST.load`.
    """
    backbone = VST(**sizes)
    return backbone if checkpoint is None else backbone.load(checkpoint)


def vst_tiny(pretrained: bool = True) -> VST:
    """Return the small VST for scenes, trained on them as a salient-object detector.

    Args:
        pretrained: Load the embedded weights; False draws them at random.

    Raises:
        UserError: If the package was installed without its weights.
    """
    if not pretrained:
        return VST(**TINY)
    if not EMBEDDED.is_file():
        raise UserError(
            f"{EMBEDDED}: the embedded weights are missing: make them with experiments/pretrain.py saliency, or "
            "ask for random ones with pretrained=False"
        )
    return VST(**TINY).load(EMBEDDED)


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
        """Return maps of 1/4, 1/8 and 1/16 for normalised pixels (B, 3, S, S)."""
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
    """The attention of a soft split: patches (B, N, dim) to tokens (B, N, token_dim).

    Widths differ, so that the values stand in for the tokens in the skip connection.
    """

    def __init__(self, dim: int, token_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(dim, 3 * token_dim, bias=False), "proj": nn.Linear(token_dim, token_dim)}
        )
        self.norm2, self.mlp = nn.LayerNorm(token_dim), Mlp(token_dim, token_dim)
        self.scale = dim**-0.5  # the reference's: of the patches' width, not the keys'

    def forward(self, patches: Tensor) -> Tensor:
        """Return tokens."""
        query, key, value = self.attn["qkv"](self.norm1(patches)).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        tokens = value + self.attn["proj"](mixed)
        return tokens + self.mlp(self.norm2(tokens))


class Blocks(nn.Module):
    """Blocks and a last normalisation, whose name checkpoints spell in two ways."""

    def __init__(self, dim: int, depth: int, heads: int, mlp_ratio: float, norm: str = "norm") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PromptedBlock(dim, heads, mlp_ratio) for _ in range(depth))
        self.last = norm
        self.add_module(norm, nn.LayerNorm(dim))

    def forward(self, tokens: Tensor, prompts: Sequence[Tensor | None]) -> Tensor:
        """Return tokens (B, N, D)."""
        for block, prompt in zip(self.blocks, prompts, strict=True):
            tokens = block(tokens, prompt)
        return self.get_submodule(self.last)(tokens)


class TokenInference(nn.Module):
    """Patch-task attention: each place asks one task token, and takes in as much of it as a sigmoid says."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, task: Tensor) -> Tensor:
        """Return (B, N, D) for places (B, N, D) and the task's token (B, 1, D)."""
        told = self.norm(task)
        weights = self.q(self.norm(tokens)) @ self.k(told).transpose(1, 2) * tokens.shape[-1] ** -0.5  # (B, N, 1)
        return tokens + self.proj(weights.sigmoid() * self.v(told))


class Carried(NamedTuple):
    """What goes from one scale of the decoder to the next: places (B, N, D) and both tasks' tokens (B, 1, D)."""

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

    def forward(self, tokens: Tensor, prompts: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Carried]:
        """Return what the places show of saliency and of boundaries, (B, N, D) each, and what is carried on."""
        places = self.mlp_s(self.norm(tokens))
        tasks = (token.expand(len(places), -1, -1) for token in (self.saliency_token, self.contour_token))
        saliency, contour = tasks
        carried = attend(self.encoderlayer, Carried(saliency, places, contour), prompts)
        return (
            self.saliency_token_pre(carried.places, carried.saliency),
            self.contour_token_pre(carried.places, carried.contour),
            carried,
        )


class TaskScale(nn.Module):
    """The decoder at 1/8 and at 1/4: widen the places, attend, infer both tasks, and narrow again."""

    def __init__(self, token_dim: int, dim: int, depth: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(token_dim), projection(token_dim, dim, dim)
        self.encoderlayer = Blocks(dim, depth, 1, mlp_ratio)
        self.saliency_token_pre, self.contour_token_pre = TokenInference(dim), TokenInference(dim)
        self.norm2, self.mlp2 = nn.LayerNorm(dim), projection(dim, token_dim, token_dim)
        self.norm2_c, self.mlp2_c = nn.LayerNorm(dim), projection(dim, token_dim, token_dim)

    def forward(
        self, tokens: Tensor, before: Carried, prompts: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor, Carried]:
        """Return saliency and boundary features (B, N, token_dim), and what is carried on."""
        carried = before._replace(places=self.mlp(self.norm(tokens)))
        carried = attend(self.encoderlayer, carried, prompts)
        saliency = self.saliency_token_pre(carried.places, carried.saliency)
        contour = self.contour_token_pre(carried.places, carried.contour)
        return self.mlp2(self.norm2(saliency)), self.mlp2_c(self.norm2_c(contour)), carried


class Upsampling(nn.Module):
    """RT2T: each token becomes a patch of smaller tokens, and where patches overlap they add up.

    That is a transposed convolution whose bias has a kernel too, and is computed as one: patches of all channels, laid
    out side by side first, took most of the time of a small network.
    """

    def __init__(self, token_dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(token_dim, token_dim * patch[0] ** 2)

    def forward(self, tokens: Tensor, last: nn.Linear | None = None) -> Tensor:
        """Return maps (B, C, stride · H, stride · H) for tokens (B, H², D).

        Args:
            tokens: Of a square grid.
            last: A layer that follows at each place; joined with this one, its few channels are all that is made.
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
    """RT2T of the decoder's tokens, narrowed first, then joined with the encoder's of that scale."""

    def __init__(self, dim: int, token_dim: int, dropout: float) -> None:
        super().__init__(token_dim, SMALL_PATCH)
        self.concatFuse = projection(2 * token_dim, token_dim, token_dim)
        self.att = Performer(token_dim, dropout)
        self.norm, self.mlp = nn.LayerNorm(dim), projection(dim, token_dim, token_dim)

    def fuse(self, places: Tensor, encoded: Tensor) -> Tensor:
        """Return tokens (B, 4N, C) for places (B, N, D) and maps (B, C, H, W)."""
        finer = to_tokens(self(self.mlp(self.norm(places))))
        return self.att(self.concatFuse(torch.cat([finer, to_tokens(encoded)], dim=2)))


class Performer(nn.Module):
    """Attention of linear cost: positive random features stand in for the exponential (Choromanski et al., 2021)."""

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
        """Return (B, N, D)."""
        key, query, value = self.kqv(self.norm1(tokens)).chunk(3, dim=-1)  # in this order
        key, query = self._features(key), self._features(query)  # (B, N, m)
        total = query @ key.sum(dim=1)[:, :, None]  # (B, N, 1)
        mixed = query @ (key.transpose(1, 2) @ value) / (total + 1e-8)
        tokens = tokens + self.drop(self.proj(mixed))
        return tokens + self.drop(self.mlp(self.norm2(tokens)))

    def _features(self, tokens: Tensor) -> Tensor:
        return torch.exp(tokens @ self.w.T - tokens.square().sum(-1, keepdim=True) / 2) / math.sqrt(len(self.w))


class Decoder(nn.Module):
    """From 1/16 to the whole image: fuse, attend and predict at each scale."""

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
        coarsest: tuple[Tensor, Tensor, Carried],
        eighth: Tensor,
        quarter: Tensor,
        middle: Sequence[Tensor | None],
        fine: Sequence[Tensor | None],
    ) -> Predictions:
        """Return the logits of all scales.

        Args:
            coarsest: What `TaskTokens` returned.
            eighth: Features of the encoder, (B, C, S/8, S/8).
            quarter: The same, (B, C, S/4, S/4).
            middle: Prompts of the blocks of 1/8.
            fine: Prompts of the blocks of 1/4.
        """
        saliency, contour, carried = coarsest
        shown = [(self.mlp(self.norm(saliency)), self.mlp_c(self.norm_c(contour)))]
        saliency, contour, carried = self.token_pre_1_8(self.decoder1.fuse(carried.places, eighth), carried, middle)
        shown.append((saliency, contour))
        features = to_maps(carried.places, eighth.shape[-1])
        saliency, contour, _ = self.token_pre_1_4(self.decoder2.fuse(carried.places, quarter), carried, fine)
        shown.append((saliency, contour))
        maps: tuple[list[Tensor], list[Tensor]] = ([], [])
        for scale, pair in zip(("1_16", "1_8", "1_4"), shown, strict=True):
            for logits, tokens, suffix in zip(maps, pair, ("", "_c"), strict=True):
                layer = self.get_submodule(f"pre_{scale}{suffix}")
                logits.append(to_maps(layer(tokens), math.isqrt(tokens.shape[1])))
        maps[0].append(self.decoder3(saliency, self.pre_1_1))
        maps[1].append(self.decoder3_c(contour, self.pre_1_1_c))
        return Predictions(*maps, features)


def attend(blocks: Blocks, carried: Carried, prompts: Sequence[Tensor | None]) -> Carried:
    """Return what comes out of blocks that see both task tokens and the places together."""
    tokens = blocks(torch.cat(carried, dim=1), prompts)  # (B, 1 + N + 1, D)
    return Carried(tokens[:, :1], tokens[:, 1:-1], tokens[:, -1:])


def projection(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Return two linear layers with a GELU between them, under the names that checkpoints give such a pair."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def soft_split(maps: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Return overlapping patches (B, N, C · kernel²) of maps (B, C, H, W)."""
    kernel, stride, padding = patch
    return F.unfold(maps, kernel, padding=padding, stride=stride).transpose(1, 2)


def sinusoids(positions: int, dim: int) -> Tensor:
    """Return (1, positions, dim): sines in even channels, cosines in odd ones, of Vaswani et al., 2017."""
    channel = torch.arange(dim, dtype=torch.float64)
    angles = torch.arange(positions)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angles.sin(), angles.cos()).float()[None]


def _small_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
