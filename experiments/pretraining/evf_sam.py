"""The tiny EVF-SAM: phrases about scenes, half of them about objects that have rivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from maskgym.data.scenes import STYLES, SceneObject, Scenes, random_reference, vocabulary
from maskgym.experiments.pretraining.loop import covered_shares, descend, mask_loss, overlaps, shrink, training
from maskgym.segmenters.phrases.beit3 import Beit3Config
from maskgym.segmenters.phrases.evf_sam import EvfSam, EvfSamConfig, save_checkpoint
from maskgym.segmenters.points.sam import PIXEL_DEVIATION, PIXEL_MEAN, SamConfig
from maskgym.segmenters.text import tokenize, word_tokenizer

LONGEST_PHRASE = 32  # tokens, <s> and </s> included
TINY_EVF_SAM = EvfSamConfig(
    sam=SamConfig(
        image_size=96,
        patch_size=8,
        embed_dim=96,
        depth=4,
        num_heads=4,
        mlp_ratio=2.0,
        window_size=0,
        global_attention_layers=(0, 1, 2, 3),
        use_rel_pos=False,
        prompt_embed_dim=128,  # masks are inner products of an eighth as many channels
        mask_channels=8,
        decoder_num_heads=8,
        decoder_mlp_dim=128,
        iou_head_dim=32,
    ),
    beit3=Beit3Config(
        image_size=64,
        patch_size=16,
        vocabulary_size=4 + len(vocabulary()),
        embed_dim=96,
        num_heads=4,
        feed_forward_dim=192,
        depth=3,
        max_text_positions=LONGEST_PHRASE + 2,
    ),
)


@dataclass
class ReferringPool:
    """Scenes rendered once, from which batches of image, phrase and mask are drawn.

    Attributes:
        sam: uint8 (N, 3, S, S), the images at SAM's size.
        images: uint8 (N, 3, 128, 128), resized for BEiT-3 in each batch.
        masks: One uint8 (n, S/2, S/2) per scene: the share of each cell that an object covers, times 255.
        objects: The objects of each scene.
    """

    sam: np.ndarray
    images: np.ndarray
    masks: list[np.ndarray]
    objects: list[tuple[SceneObject, ...]]

    def __post_init__(self) -> None:
        self.contested = np.array([i for i, objects in enumerate(self.objects) if rivals(objects)])

    @classmethod
    def render(cls, scenes: Scenes, side: int) -> ReferringPool:
        """Render every scene of a data set for a SAM of ``side`` pixels."""
        small = np.empty((len(scenes), side, side, 3), np.uint8)
        images = np.empty((len(scenes), scenes.image_size, scenes.image_size, 3), np.uint8)
        masks, objects = [], []
        for index in trange(len(scenes), desc="scenes", disable=None):
            scene = scenes.scene(index)
            images[index] = scene.image
            small[index] = shrink(scene.image, side)
            masks.append(covered_shares(scene.masks, side // 2))
            objects.append(scene.objects)
        return cls(small.transpose(0, 3, 1, 2), images.transpose(0, 3, 1, 2), masks, objects)

    def batch(self, rng: np.random.Generator, images: int, phrases: int) -> tuple[Tensor, Tensor, list[str], Tensor]:
        """Draw SAM pixels (B, 3, S, S), BEiT-3 pixels (B, 3, 64, 64), B·phrases phrases and their masks in [0, 1].

        Half of the images hold rivals, and their phrases refer to these. With uniformly drawn phrases, shape and row
        distinguish so many objects that colour and column are not learned in thousands of steps.
        """
        chosen = rng.integers(len(self.objects), size=images)
        chosen[: images // 2] = rng.choice(self.contested, size=images // 2)
        pairs = []
        for place, i in enumerate(chosen):
            refer = contested_reference if place < images // 2 else random_reference
            pairs += [(i, *refer(self.objects[i], rng)) for _ in range(phrases)]
        # Visible masks are disjoint, so that a union is a sum.
        masks = np.stack([self.masks[i][rows].sum(axis=0, dtype=np.uint16) for i, _, rows in pairs])
        sam = (torch.from_numpy(self.sam[chosen]).float() - MEAN) / DEVIATION
        beit3 = F.interpolate(torch.from_numpy(self.images[chosen]).float() / 255, (64, 64), mode="bicubic")
        return sam, (beit3 - 0.5) / 0.5, [phrase for _, phrase, _ in pairs], torch.from_numpy(masks / 255).float()


def rivals(objects: Sequence[SceneObject]) -> list[int]:
    """List the objects that share their shape, and row or column, with another."""
    return [
        i
        for i, item in enumerate(objects)
        for other in objects
        if other is not item and other.shape == item.shape and (other.row == item.row or other.column == item.column)
    ]


def contested_reference(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[str, list[int]]:
    """Draw a phrase that separates one rival from the others by place or colour, and list the objects that fit it."""
    candidates = rivals(objects)
    item = objects[candidates[rng.integers(len(candidates))]]
    attributes = STYLES[("full", "place", "colour")[rng.choice(3, p=[0.5, 0.3, 0.2])]]
    return item.describe(attributes), [i for i, other in enumerate(objects) if item.matches(other, attributes)]


MEAN = torch.tensor(PIXEL_MEAN)[:, None, None]
DEVIATION = torch.tensor(PIXEL_DEVIATION)[:, None, None]


def train_evf_sam(out: Path, steps: int, scenes: int, images: int, phrases: int, rate: float) -> None:
    """Train the tiny EVF-SAM, without frozen parts, on random phrases about scenes."""
    torch.manual_seed(0)
    model, tokenizer = EvfSam(TINY_EVF_SAM), word_tokenizer(vocabulary())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
    pool = ReferringPool.render(Scenes("sis", "train", size=scenes), TINY_EVF_SAM.sam.image_size)
    index = torch.arange(images).repeat_interleave(phrases)
    for step, bar in training(out, model, optimizer, steps, rate):
        sam, beit3, texts, masks = pool.batch(np.random.default_rng([1, step]), images, phrases)
        prompts = model.embed_prompts(beit3, *tokenize(tokenizer, texts, LONGEST_PHRASE), index)
        logits = model.decode(model.encode_images(sam), prompts, index)
        loss = mask_loss(logits, masks)
        descend(model, optimizer, loss)
        if step % 20 == 0:
            iou = overlaps(logits, masks)[(masks > 0.5).flatten(1).any(1)].mean()
            bar.set_postfix(loss=f"{loss.item():.3f}", iou=f"{iou:.3f}")
    save_checkpoint(out / "evf_sam_tiny", model, tokenizer, dtype=torch.float16)
