"""Implement VST, the Visual Saliency Transformer for salient-object detection.

A T2T-ViT encodes the image: three soft splits make tokens at 1/4, 1/8 and 1/16 of its side, and a vision transformer
processes the last. A converter of the same blocks follows, then a decoder with one saliency token and one boundary
token. The similarity of a task token and a place's token gives the saliency, or the boundary, at that place. Between
scales the reverse of T2T (RT2T) upsamples: each token becomes an overlapping patch of smaller tokens, which are joined
with the encoder's tokens.

The names and shapes are those of the published checkpoints. The code is independent because the reference repository
has no licence; ``tests/policies/parity/vst_keys.json`` holds reference outputs.

References:
    Liu et al., Visual Saliency Transformer, ICCV 2021. Reference code: nnizhang/VST.
    Yuan et al., Tokens-to-Token ViT, ICCV 2021. Reference code: yitu-opensource/T2T-ViT (Clear BSD).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from maskgym.aliases import Settings
from maskgym.errors import UserError
from maskgym.policies.needs.prompted import normalise, per_place, to_tokens
from maskgym.policies.needs.saliency_backbone import WHOLE, Adapt, SaliencyBackbone
from maskgym.policies.needs.vst_layers import (
    DIVISOR,
    Blocks,
    Carried,
    Decoder,
    Predictions,
    T2TViT,
    TaskTokens,
    adapted,
    small_weights,
)
from maskgym.segmenters.weights import bundled

EMBEDDED = Path(__file__).parent / "vst_tiny" / "model.safetensors"
# The bundled VST has these sizes, for scenes of 128 pixels.
TINY: Settings = {
    "image_size": 128,
    "embed_dim": 96,
    "depth": 4,
    "heads": 4,
    "mlp_ratio": 2.0,
    "token_dim": 32,
    "converter_depth": 1,
    "decoder_depth": 2,
    "token_depth": 1,
    "dropout": 0.0,
}
PUBLISHED = ("RGB_VST.pth", WHOLE)  # files of weights in a folder: the authors' and ours
# Published checkpoints contain the ImageNet classifier (385,000 weights), which VST does not use.
UNUSED = ("rgb_backbone.head.weight", "rgb_backbone.head.bias")


class VST(SaliencyBackbone):
    """VST with the sizes of the published RGB model by default, whose 44.5 M parameters include a classifier.

    UserSOD states "generally, N=5" scales; VST has three: 1/4 and 1/8 with ``token_dim`` channels, and 1/16 with
    ``embed_dim``. Each block of the T2T-ViT takes prompts (``encoder_prompt_dims``), and so does each block of
    converter and decoder (``decoder_prompt_dims``: first the converter's, then those of 1/16, 1/8 and 1/4).

    No prompt comes before the encoder's maps at 1/4 and 1/8, so appearance is not added to these, which know nothing of
    a need, but behind them: to the converter's tokens at 1/16, and to the tokens at 1/8 and 1/4 in which RT2T joins the
    encoder's maps with the prompted tokens of the coarser scale.

    Args:
        checkpoint: Published checkpoint or state dict of this class, or a folder that holds one, for `load`; needed if
            ``pretrained``.
        pretrained: Whether weights come from the checkpoint; False allows random ones, to be trained.
        image_size: Side of the square that position embeddings fit, in pixels, a multiple of 16; for another side
            their grid is interpolated bicubically, as in T2T-ViT.
        embed_dim: Width of the blocks.
        depth: Number of blocks of the T2T-ViT.
        heads: Number of heads, a divisor of ``embed_dim``; blocks of 1/8 and 1/4 have one head.
        mlp_ratio: Ratio of a block's hidden width to its width.
        token_dim: Width of the tokens of 1/8 and 1/4, even.
        converter_depth: Number of blocks of the converter.
        decoder_depth: Number of decoder blocks at 1/16.
        token_depth: Number of decoder blocks at 1/8, and at 1/4.
        dropout: Dropout rate of the two layers that join scales.

    Raises:
        UserError: If a size or the checkpoint does not fit, or there is no checkpoint to take the weights from.

    Example:
        >>> import torch
        >>> backbone = VST(pretrained=False, **TINY)
        >>> [tuple(maps.shape[1:]) for maps in backbone.encode(torch.zeros(1, 3, 128, 128))]
        [(32, 32, 32), (32, 16, 16), (96, 8, 8)]
        >>> backbone(torch.zeros(1, 3, 128, 128)).shape
        torch.Size([1, 1, 128, 128])
    """

    size_divisor, unused_weights, file_names = DIVISOR, UNUSED, PUBLISHED

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        pretrained: bool = True,
        image_size: int = 224,
        embed_dim: int = 384,
        depth: int = 14,
        heads: int = 6,
        mlp_ratio: float = 3.0,
        token_dim: int = 64,
        converter_depth: int = 4,
        decoder_depth: int = 4,
        token_depth: int = 2,
        dropout: float = 0.1,
    ) -> None:
        if pretrained and checkpoint is None:
            raise UserError("vst: has no weights: expected checkpoint=FILE or DIR, or pretrained=false for random ones")
        if image_size < DIVISOR or image_size % DIVISOR:
            raise UserError(f"vst: image_size={image_size}: expected a multiple of {DIVISOR}")
        if min(embed_dim, heads, token_dim) < 1 or embed_dim % heads or token_dim % 2:
            raise UserError(
                f"vst: embed_dim={embed_dim}, heads={heads}, token_dim={token_dim}: expected heads that divide "
                "embed_dim, and an even token_dim"
            )
        if min(depth, converter_depth, decoder_depth, token_depth) < 0 or int(embed_dim * mlp_ratio) < 1:
            raise UserError(
                f"vst: depth={depth}, converter_depth={converter_depth}, decoder_depth={decoder_depth}, "
                f"token_depth={token_depth}, mlp_ratio={mlp_ratio}: expected none below 0"
            )
        super().__init__()
        self.feature_dims = (token_dim, token_dim, embed_dim)
        self.encoder_prompt_dims = (embed_dim,) * depth
        self._decoder_depths = [converter_depth, decoder_depth, token_depth, token_depth]
        self.decoder_prompt_dims = (embed_dim,) * sum(self._decoder_depths)
        self.rgb_backbone = T2TViT(image_size // DIVISOR, embed_dim, depth, heads, mlp_ratio, token_dim)
        self.transformer = nn.ModuleDict(
            {"encoderlayer": Blocks(embed_dim, converter_depth, heads, mlp_ratio, norm="rgb_norm")}
        )
        self.token_trans = TaskTokens(embed_dim, decoder_depth, heads, mlp_ratio)
        self.apply(small_weights)
        self.decoder = Decoder(embed_dim, token_dim, token_depth, mlp_ratio, dropout)
        self.random_part = "the whole network"
        if checkpoint is not None:
            self.load(checkpoint)

    def encode(self, pixels: Tensor, prompts: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Compute features of 1/4, 1/8 and 1/16; see `SaliencyBackbone`."""
        places = per_place(prompts, self.encoder_prompt_dims)
        return self.rgb_backbone(normalise(pixels, DIVISOR), places)

    def decode(
        self, features: Sequence[Tensor], prompts: Sequence[Tensor] | None = None, adapt: Adapt | None = None
    ) -> Tensor:
        """Compute saliency logits (B, 1, S, S); see `SaliencyBackbone`. No other output of VST is computed."""
        return self.decoder.saliency(self._states(features, prompts, adapt)[-1])

    def predict(
        self, features: Sequence[Tensor], prompts: Sequence[Tensor] | None = None, adapt: Adapt | None = None
    ) -> Predictions:
        """Compute the saliency and boundary logits of every scale, which training supervises."""
        return self.decoder.predictions(self.token_trans, *self._states(features, prompts, adapt))

    def _states(
        self, features: Sequence[Tensor], prompts: Sequence[Tensor] | None, adapt: Adapt | None
    ) -> tuple[Carried, Carried, Carried]:
        """Compute the decoder's states at 1/16, 1/8 and 1/4."""
        converting, coarse, middle, fine = self._places(prompts)
        tokens = adapted(self.transformer["encoderlayer"](to_tokens(features[2]), converting), 2, adapt)
        coarsest = self.token_trans(tokens, coarse)
        return coarsest, *self.decoder(coarsest, features[1], features[0], middle, fine, adapt)

    @torch.no_grad()
    def scales(self, pixels: Tensor) -> list[Tensor]:
        """Compute the features of each scale; see `SaliencyBackbone`. The last blocks, the longest, are left out."""
        found: dict[int, Tensor] = {}
        quarter, eighth, sixteenth = self.encode(pixels)
        converting, coarse, middle, _ = self._places(None)
        tokens = adapted(self.transformer["encoderlayer"](to_tokens(sixteenth), converting), 2, found.setdefault)
        self.decoder.approach(self.token_trans(tokens, coarse), eighth, quarter, middle, found.setdefault)
        return [found[scale] for scale in range(len(self.feature_dims))]

    def _places(self, prompts: Sequence[Tensor] | None) -> list[list[Tensor | None]]:
        """Deal out the decoder's prompts: to the converter, and to the blocks at 1/16, 1/8 and 1/4."""
        places = iter(per_place(prompts, self.decoder_prompt_dims))
        return [[next(places) for _ in range(depth)] for depth in self._decoder_depths]


def vst_tiny(pretrained: bool = True) -> VST:
    """Build the small VST, trained on scenes as a salient-object detector.

    Args:
        pretrained: Whether to load the bundled weights; False initialises them at random.

    Raises:
        UserError: If the package was installed without its weights.
    """
    return VST(bundled(EMBEDDED) if pretrained else None, pretrained, **TINY)
