"""The tiny VST, or a tiny Swin to compare with: saliency in scenes, and the appearance of every object in them.

The backbone stays frozen when needs are learned, so its features must encode the appearance of objects besides
saliency. Two auxiliary heads, dropped after training, predict the shape, colour and texture of the object in each cell,
pale objects included. One reads the encoder's features of 1/16, the other the decoder's tokens of 1/8 (for Swin, the
encoder's features).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange
from transformers import SwinConfig

from maskgym.aliases import Settings
from maskgym.data.scenes import COLOURS, SHAPES, TEXTURES, Scene, Scenes
from maskgym.experiments.pretraining.loop import descend, overlaps, training
from maskgym.policies.needs.hub_backbone import SwinBackbone
from maskgym.policies.needs.saliency_backbone import SaliencyBackbone
from maskgym.policies.needs.vst import TINY, VST
from maskgym.policies.needs.vst_layers import Predictions
from maskgym.segmenters.weights import write_state

SIDE: int = TINY["image_size"]
CELL = 8  # pixels per cell of the grid of 1/8, on which looks are predicted
LOOKS = {"shape": SHAPES, "colour": tuple(COLOURS), "texture": TEXTURES}
CLASSES = [1 + len(values) for values in LOOKS.values()]  # class 0 is background
UNCLEAR = -100  # partly covered cells, which the cross-entropy ignores
COVERED, EMPTY = 0.5, 0.25  # minimum share of a cell for one object; maximum share of all objects for background
SWIN: Settings = {  # windows of 4 x 4 cover the coarsest map, as those of 7 x 7 do at 224 pixels
    "image_size": SIDE,
    "patch_size": 4,
    "embed_dim": 32,
    "depths": [2, 2, 2, 2],
    "num_heads": [2, 4, 4, 8],
    "window_size": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.0,
}
SCALE_WEIGHTS = (0.5, 0.5, 0.8, 1.0)  # of 1/16, 1/8, 1/4 and full size, as in the reference


@dataclass
class SaliencyPool:
    """Scenes rendered once, from which batches are drawn.

    Attributes:
        images: uint8 (N, 3, S, S).
        salient: bool (N, S, S).
        looks: int8 (N, 3, S/8, S/8): class of shape, colour and texture, 0 for background, or `UNCLEAR`.
    """

    images: np.ndarray
    salient: np.ndarray
    looks: np.ndarray

    @classmethod
    def render(cls, scenes: int) -> SaliencyPool:
        """Render ``scenes`` scenes of the training split."""
        source = Scenes("sod", "train", size=scenes, image_size=SIDE)
        images, salient = np.empty((scenes, SIDE, SIDE, 3), np.uint8), np.empty((scenes, SIDE, SIDE), bool)
        looks = np.empty((scenes, len(LOOKS), SIDE // CELL, SIDE // CELL), np.int8)
        for index in trange(scenes, desc="scenes", disable=None):
            scene = source.scene(index)
            images[index], salient[index] = scene.image, scene.masks[scene.salient].any(axis=0)
            looks[index] = looks_of(scene)
        return cls(images.transpose(0, 3, 1, 2), salient, looks)

    def batch(self, rng: np.random.Generator, images: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw pixels (B, 3, S, S) in [0, 1], saliency masks (B, 1, S, S), and looks int64 (B, 3, S/8, S/8)."""
        chosen = rng.integers(len(self.images), size=images)
        return (
            torch.from_numpy(self.images[chosen]).float() / 255,
            torch.from_numpy(self.salient[chosen])[:, None].float(),
            torch.from_numpy(self.looks[chosen]).long(),
        )


def looks_of(scene: Scene) -> np.ndarray:
    """Compute the class of shape, colour and texture of the object in each cell, int8 (3, S/8, S/8)."""
    shares = F.avg_pool2d(torch.from_numpy(scene.masks[None]).float(), CELL)[0].numpy()  # (objects, S/8, S/8)
    looks = np.full((len(LOOKS), *shares.shape[1:]), UNCLEAR, np.int8)
    looks[:, shares.sum(axis=0) <= EMPTY] = 0  # visible masks are disjoint
    for item, share in zip(scene.objects, shares, strict=True):
        for row, (name, values) in enumerate(LOOKS.items()):
            looks[row, share >= COVERED] = 1 + values.index(getattr(item, name))
    return looks


class LooksHead(nn.Module):
    """Predict the looks in each cell of 1/8 from features of that scale or of a coarser one.

    Args:
        dim: Channels of the features.
        cells: Number of cells along the side of one feature.
    """

    def __init__(self, dim: int, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.norm, self.classify = nn.GroupNorm(1, dim), nn.Conv2d(dim, sum(CLASSES) * cells**2, 1)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Compute logits (B, classes, S/8, S/8) of shape, colour and texture."""
        logits = F.pixel_shuffle(self.classify(self.norm(features)), self.cells)
        return list(logits.split(CLASSES, dim=1))


class Apprentice(nn.Module, ABC):
    """A backbone with the heads that are dropped after training.

    Args:
        backbone: The network; its third feature is that of 1/16.
        finer: Channels of the features of 1/8 from `detect`.
    """

    def __init__(self, backbone: SaliencyBackbone, finer: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder_looks, self.decoder_looks = LooksHead(backbone.feature_dims[2], 2), LooksHead(finer, 1)

    def forward(self, pixels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """Compute the saliency logits, their loss, and the logits of both heads.

        Args:
            pixels: (B, 3, S, S).
            masks: (B, 1, S, S), saliency ground truth.
        """
        features = self.backbone.encode(pixels)
        logits, loss, finer = self.detect(features, masks)
        return logits, loss, [self.encoder_looks(features[2]), self.decoder_looks(finer)]

    @abstractmethod
    def detect(self, features: list[Tensor], masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute saliency logits (B, 1, S, S), their loss, and features of 1/8."""

    @abstractmethod
    def save(self, out: Path) -> None:
        """Write the backbone's weights in half precision."""

    def half_state(self) -> dict[str, Tensor]:
        """Convert the backbone's weights to half precision."""
        return {name: value.half() for name, value in self.backbone.state_dict().items()}


class VSTApprentice(Apprentice):
    """The tiny VST, supervised at every scale."""

    backbone: VST

    def __init__(self) -> None:
        backbone = VST(pretrained=False, **TINY)
        super().__init__(backbone, backbone.feature_dims[2])

    def detect(self, features: list[Tensor], masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Apprentice`."""
        predictions = self.backbone.predict(features)
        return predictions.saliency[-1], saliency_loss(predictions, masks), predictions.features

    def save(self, out: Path) -> None:
        """Write ``vst_tiny/model.safetensors``."""
        (out / "vst_tiny").mkdir(parents=True, exist_ok=True)
        write_state(self.half_state(), out / "vst_tiny" / "model.safetensors")


class SwinApprentice(Apprentice):
    """A Swin of 1.9 M parameters with a light decoder (the tiny VST has 1.2 M), supervised at full size."""

    backbone: SwinBackbone

    def __init__(self, out: Path) -> None:
        SwinConfig(**SWIN).save_pretrained(out / "swin_tiny")
        backbone = SwinBackbone(out / "swin_tiny", pretrained=False, width=64)
        super().__init__(backbone, backbone.feature_dims[1])

    def detect(self, features: list[Tensor], masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Apprentice`."""
        logits = self.backbone.decode(features)
        return logits, F.binary_cross_entropy_with_logits(logits, masks), features[1]

    def save(self, out: Path) -> None:
        """Write ``swin_tiny/backbone.safetensors`` beside the config of its encoder."""
        write_state(self.half_state(), out / "swin_tiny" / "backbone.safetensors")


def boundary(masks: Tensor) -> Tensor:
    """Compute boundaries (B, 1, S, S): 1 at both pixels where a mask (B, 1, S, S) changes between neighbours."""
    widened = F.max_pool2d(masks, 3, stride=1, padding=1)
    return widened + F.max_pool2d(-masks, 3, stride=1, padding=1)


def saliency_loss(predictions: Predictions, masks: Tensor) -> Tensor:
    """Compute VST's loss: binary cross-entropy of saliency and boundary at every scale, weighted as published.

    Coarser ground truth is the share of saliency in a cell, and whether a boundary passes through it.

    Args:
        predictions: Predictions for a batch.
        masks: (B, 1, S, S), saliency ground truth.
    """
    loss, edges = masks.new_zeros(()), boundary(masks)
    for weight, saliency, contour in zip(SCALE_WEIGHTS, *predictions[:2], strict=True):
        size = masks.shape[-1] // saliency.shape[-1]
        loss = loss + weight * F.binary_cross_entropy_with_logits(saliency, F.avg_pool2d(masks, size))
        loss = loss + weight * F.binary_cross_entropy_with_logits(contour, F.max_pool2d(edges, size))
    return loss


def looks_loss(logits: list[Tensor], looks: Tensor) -> Tensor:
    """Compute the cross-entropy of shape, colour and texture; cells with and without an object have equal weight.

    Args:
        logits: Logits of each attribute, (B, classes, H, W).
        looks: int64 (B, 3, H, W).
    """
    loss = looks.new_zeros((), dtype=torch.float32)
    for part, truth in zip(logits, looks.unbind(1), strict=True):
        each = F.cross_entropy(part, truth, ignore_index=UNCLEAR, reduction="none")
        for cells in (truth > 0, truth == 0):
            loss = loss + each[cells].sum() / (2 * cells.sum().clamp(min=1))
    return loss / len(logits)


def train_saliency(out: Path, backbone: str, steps: int, scenes: int, images: int, rate: float) -> None:
    """Train a tiny backbone as a salient-object detector that also encodes the appearance of objects."""
    torch.manual_seed(0)
    model = VSTApprentice() if backbone == "vst" else SwinApprentice(out)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    pool = SaliencyPool.render(scenes)
    for step, bar in training(out, model, optimizer, steps, rate):
        pixels, masks, looks = pool.batch(np.random.default_rng([6, step]), images)
        found, loss, seen = model(pixels, masks)
        loss = loss + sum(looks_loss(logits, looks) for logits in seen)
        descend(model, optimizer, loss)
        if step % 20 == 0:
            iou, covered = overlaps(found, masks).mean(), looks > 0
            right = [
                " ".join(
                    f"{(part.argmax(1) == looks[:, row])[covered[:, row]].float().mean():.2f}"
                    for row, part in enumerate(logits)
                )
                for logits in seen
            ]
            bar.set_postfix(loss=f"{loss.item():.3f}", iou=f"{iou:.3f}", encoder=right[0], decoder=right[1])
    model.save(out)
