"""The tiny CLIP, trained on captions that name one object or effect of a scene or of a region."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from maskgym.data.scenes import SceneObject, Scenes, vocabulary
from maskgym.experiments.pretraining.loop import descend, training
from maskgym.segmenters.attention.clip_surgery import project, surgered_tokens
from maskgym.segmenters.text import tokenize, word_tokenizer

EFFECTS = ("shadow", "glass", "blur")
CAPTIONS = (("shape",), ("shape",), ("colour", "shape"), ("family",), ("texture", "shape"))
CLIP_SIDE, CLIP_PATCH, CLIP_WIDTH = 128, 16, 128
SURGERED_BLOCKS = 6  # of 8
PATCHES = 12  # single patches per image; most show no object, so that only the empty text fits
LONGEST_CAPTION = 16  # tokens, <s> and </s> included
CLIP_MEAN = torch.tensor(OPENAI_CLIP_MEAN)[:, None, None] * 255
CLIP_DEVIATION = torch.tensor(OPENAI_CLIP_STD)[:, None, None] * 255


class Caption(NamedTuple):
    """A text and its claim about a scene: an object, an effect, or nothing for the empty text."""

    text: str
    item: SceneObject | None = None
    attributes: tuple[str, ...] = ()
    effect: str = ""

    def fits(self, objects: Sequence[SceneObject], effect: str) -> bool:
        """Check whether the scene with these objects and this effect shows what the text claims."""
        if self.item is None:
            return self.effect in ("", effect)
        return any(self.item.matches(other, self.attributes) for other in objects)


def draw_caption(objects: Sequence[SceneObject], effect: str, rng: np.random.Generator) -> Caption:
    """Draw a caption that fits, such as ``red star``, ``a red star`` or ``shadow``; one in twenty is empty."""
    if rng.random() < 0.05:
        return Caption("")
    if effect and rng.random() < 0.5:
        return Caption(effect, effect=effect)
    item, attributes = objects[int(rng.integers(len(objects)))], CAPTIONS[rng.integers(len(CAPTIONS))]
    text = item.describe(attributes)
    return Caption(text.removeprefix("a ") if rng.random() < 0.5 else text, item, attributes)


class CaptionBatch(NamedTuple):
    """Images, texts, and the matches between them.

    Attributes:
        pixels: float (B, 3, S, S).
        texts: N texts.
        fits: bool (B, N), whether a text fits an image.
        shares: float (R, P): the share of each patch that a region covers; a region is an object, an effect, or one
            patch.
        images: int64 (R,), image index of each region.
        region_fits: bool (R, N), whether a text fits a region.
    """

    pixels: Tensor
    texts: list[str]
    fits: Tensor
    shares: Tensor
    images: Tensor
    region_fits: Tensor


@dataclass
class CaptionPool:
    """Scenes rendered once, from which batches of images, their regions and captions are drawn.

    Attributes:
        images: uint8 (N, 3, S, S).
        objects: The objects of each scene.
        effects: The effect of each scene, or an empty text.
        shares: One float16 (regions, patches) per scene: its objects and, if there is one, its effect.
    """

    images: np.ndarray
    objects: list[tuple[SceneObject, ...]]
    effects: list[str]
    shares: list[np.ndarray]

    @classmethod
    def render(cls, scenes: int) -> CaptionPool:
        """Render ``scenes`` scenes, three in seven with an effect: shadow, glass or blur."""
        tasks = ("semantic", *EFFECTS, *("semantic",) * 3)
        sources = [Scenes(task, "train", size=scenes, image_size=CLIP_SIDE) for task in tasks]
        images, objects = np.empty((scenes, CLIP_SIDE, CLIP_SIDE, 3), np.uint8), []
        effects, shares = [], []
        for index in trange(scenes, desc="scenes", disable=None):
            source, effect = sources[index % len(sources)], tasks[index % len(tasks)]
            scene, sample = source.scene(index), source[index]
            masks = np.concatenate([scene.masks, sample.masks[0]]) if effect in EFFECTS else scene.masks
            images[index] = sample.images[0]
            objects.append(scene.objects)
            effects.append(effect if effect in EFFECTS else "")
            coarse = F.avg_pool2d(torch.from_numpy(masks[None]).float(), CLIP_PATCH)[0].flatten(1)
            shares.append(coarse.half().numpy())
        return cls(images.transpose(0, 3, 1, 2), objects, effects, shares)

    def batch(self, rng: np.random.Generator, images: int, captions: int) -> CaptionBatch:
        """Draw ``images`` images with ``captions`` texts each."""
        chosen = rng.choice(len(self.objects), size=images, replace=False)
        scenes = [(self.objects[i], self.effects[i]) for i in chosen]
        drawn = [draw_caption(*scene, rng) for scene in scenes for _ in range(captions)]
        shares, owners = [], []  # patches and image of each region
        parts: list[tuple[Sequence[SceneObject], str]] = []  # objects and effect of each region
        for place, (index, (objects, effect)) in enumerate(zip(chosen, scenes, strict=True)):
            whole = self.shares[index]
            patches = rng.permutation(whole.shape[1])[:PATCHES]
            shares += [whole, np.eye(whole.shape[1], dtype=np.float16)[patches]]
            parts += [((item,), "") for item in objects] + ([((), effect)] if effect else [])
            for covered in whole.T[patches] >= 0.5:
                inside = [item for item, there in zip(objects, covered, strict=False) if there]
                parts.append((inside, effect if effect and covered[-1] else ""))
            owners += [place] * (len(whole) + PATCHES)
        return CaptionBatch(
            pixels=(torch.from_numpy(self.images[chosen]).float() - CLIP_MEAN) / CLIP_DEVIATION,
            texts=[caption.text for caption in drawn],
            fits=torch.tensor([[caption.fits(*scene) for caption in drawn] for scene in scenes]),
            shares=torch.from_numpy(np.concatenate(shares)).float(),
            images=torch.tensor(owners),
            region_fits=torch.tensor([[caption.fits(*part) for caption in drawn] for part in parts]),
        )


def tiny_clip() -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    """Build a randomly initialised CLIP of 1.6 M parameters with the 8 × 8 patches of the point environment."""
    tokenizer = word_tokenizer([*vocabulary(), *EFFECTS], special_last=True)
    sizes = {"hidden_size": CLIP_WIDTH, "intermediate_size": 2 * CLIP_WIDTH, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **sizes,
            "num_hidden_layers": 3,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": LONGEST_CAPTION,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**sizes, "num_hidden_layers": 8, "image_size": CLIP_SIDE, "patch_size": CLIP_PATCH},
        projection_dim=CLIP_WIDTH,
    )
    torch.manual_seed(0)
    return CLIPModel(config), tokenizer


def caption_loss(logits: Tensor, fits: Tensor) -> Tensor:
    """Compute CLIP's loss over logits (B, texts) when several texts fit an image, and several images a text.

    The target is uniform over all that fit, in both directions, because the vocabulary is small: most texts fit more
    than the image for which they were drawn. An image or text that fits nothing adds 0.
    """
    target = fits.float()
    by_image = F.cross_entropy(logits, target / target.sum(1, keepdim=True).clamp(min=1))
    by_text = F.cross_entropy(logits.T, (target / target.sum(0).clamp(min=1)).T)
    return (by_image + by_text) / 2


def train_clip(out: Path, steps: int, scenes: int, images: int, captions: int, rate: float) -> None:
    """Train the tiny CLIP on captions that name one object or effect of their scene.

    CLIP's loss on whole images is added to the same loss on regions (after RegionCLIP, Zhong et al., CVPR 2022). The
    feature of a region is the mean of the tokens that CLIP Surgery reads, over the pixels of an object or one patch.
    """
    model, tokenizer = tiny_clip()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
    pool = CaptionPool.render(scenes)
    for step, bar in training(out, model, optimizer, steps, rate):
        batch = pool.batch(np.random.default_rng([5, step]), images, captions)
        ids, _ = tokenize(tokenizer, batch.texts, LONGEST_CAPTION)
        told = F.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)  # (N, C)
        tokens = project(model, surgered_tokens(model.vision_model, batch.pixels, SURGERED_BLOCKS))  # (B, 1 + P, C)
        seen = torch.cat([tokens[:, 0], torch.einsum("rp,rpc->rc", batch.shares, tokens[batch.images, 1:])])
        logits = model.logit_scale.exp() * F.normalize(seen, dim=-1) @ told.T
        whole, regions = logits.split([images, len(batch.images)])  # (B, N), (R, N)
        loss = caption_loss(whole, batch.fits) + caption_loss(regions, batch.region_fits)
        descend(model, optimizer, loss)
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # as CLIP does
        if step % 20 == 0:
            pairs = ((whole, batch.fits), (regions, batch.region_fits))
            right = [fits.gather(0, part.argmax(0, keepdim=True)).float().mean() for part, fits in pairs]
            chance = [fits.float().mean() for _, fits in pairs]
            bar.set_postfix(
                loss=f"{loss:.3f}", chance="{:.2f} {:.2f}".format(*chance), right="{:.2f} {:.2f}".format(*right)
            )
    save_clip(out / "clip_tiny", model, tokenizer)


def save_clip(folder: Path, model: CLIPModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the folder of a CLIP in Hugging Face's format; ``model`` is converted to half precision."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sides = {"height": CLIP_SIDE, "width": CLIP_SIDE}
    CLIPImageProcessor(size=sides, crop_size=sides).save_pretrained(folder)
