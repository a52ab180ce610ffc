"""VST, the Visual Saliency Transformer: salient-object detection by attention alone, from tokens to tokens.

A T2T-ViT encodes the image: two soft splits with attention make tokens of a fourth and an eighth of its side, a third
those of a sixteenth, which go through a vision transformer. A converter of the same blocks follows, then a decoder that
carries one saliency token and one boundary token along: what they have in common with a place's token is the saliency,
or the boundary, there. Between scales the reverse of T2T upsamples: each token becomes an overlapping patch of smaller
ones (RT2T), joined with those of the encoder.

Written anew, to the names and shapes of the published checkpoints: the reference repository has no licence. With equal
random weights all eight outputs agree with the reference's to 4e-6 (``tests/policies/parity/vst_keys.json``).

References:
    Liu et al., Visual Saliency Transformer, ICCV 2021. Reference code: nnizhang/VST.
    Yuan et al., Tokens-to-Token ViT, ICCV 2021. Reference code: yitu-opensource/T2T-ViT (Clear BSD).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from maskgym.errors import UserError
from maskgym.policies.needs.prompted import load_weights, normalise, per_place, to_tokens
from maskgym.policies.needs.saliency_backbone import SaliencyBackbone
from maskgym.policies.needs.vst_layers import DIVISOR, Blocks, Decoder, Predictions, T2TViT, TaskTokens, small_weights

EMBEDDED = Path(__file__).parent / "vst_tiny" / "model.safetensors"
# Sizes of the embedded one, for scenes of 128 pixels.
TINY: dict[str, Any] = {
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
# The classifier of the ImageNet model, which published checkpoints carry along (385,000 weights) and nothing uses.
UNUSED = ("rgb_backbone.head.weight", "rgb_backbone.head.bias")


class VST(SaliencyBackbone):
    """The network. The defaults are those of the published RGB model, whose 44.5 M parameters count a classifier.

    UserSOD speaks of N scales, "generally, N=5"; VST has three: 1/4 and 1/8 of ``token_dim`` channels, 1/16 of
    ``embed_dim``, as the T2T-ViT gives them. The converter belongs to what `decode` does, so that appearance can be
    added to the encoder's own features. Each block of the T2T-ViT takes prompts (``encoder_prompt_dims``), and each
    block of converter and decoder (``decoder_prompt_dims``: first the converter's, then those of 1/16, 1/8 and 1/4).

    Args:
        image_size: Side of the square that positions are made for, pixels; at another side their grid is interpolated
            bicubically, as T2T-ViT does. A multiple of 16.
        embed_dim: Width of the blocks.
        depth: Blocks of the T2T-ViT.
        heads: Heads of every block but those of 1/8 and 1/4, which have one. They divide ``embed_dim``.
        mlp_ratio: Hidden width of a block over its width.
        token_dim: Width of the tokens of 1/8 and 1/4. Even.
        converter_depth: Blocks of the converter.
        decoder_depth: Blocks of the decoder at 1/16.
        token_depth: Blocks of the decoder at 1/8, and at 1/4.
        dropout: Share dropped while training, in the two layers that join scales.

    Raises:
        UserError: If a size does not fit.

    Example:
        >>> import torch
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
        converter_depth: int = 4,
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
            f"{EMBEDDED}: the embedded weights are missing: make them with maskgym pretrain saliency, or "
            "ask for random ones with pretrained=False"
        )
    return VST(**TINY).load(EMBEDDED)
