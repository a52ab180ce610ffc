"""Make the embedded models again: ``python experiments/pretrain.py evf_sam|policy|sam|clip``.

All are the real architectures at a small size, trained on scenes of the training split. Training resumes: every
minute it writes ``state.pt`` beside the weights and goes on from there when started again.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from maskgym.data import Sample
from maskgym.data.scenes import COLOURS, SHAPES, STYLES, TEXTURES, SceneObject, Scenes, random_reference, vocabulary
from maskgym.envs.instructions import INSTRUCTIONS
from maskgym.segmenters.beit3 import Beit3Config
from maskgym.segmenters.clip_surgery import project, surgered_tokens
from maskgym.segmenters.evf_sam import EvfSam, EvfSamConfig, evf_sam_tiny, save_checkpoint
from maskgym.segmenters.sam import PIXEL_DEVIATION, PIXEL_MEAN, SamConfig, decode_points, save_sam
from maskgym.segmenters.text import tokenize, word_tokenizer

CHECKPOINT_EVERY_S = 60.0
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
        prompt_embed_dim=128,  # masks are inner products of an eighth as many channels: 8 cannot hold what phrases name
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


def learning_rate_factor(step: int, steps: int, warmup: int = 200) -> float:
    """Return the factor of a linear warm-up followed by a cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


# --- EVF-SAM ----------------------------------------------------------------------------------------------------------


@dataclass
class ReferringPool:
    """Scenes rendered once, from which batches of image, phrase and mask are drawn.

    Attributes:
        sam: uint8 (N, 3, S, S), SAM's view.
        beit3: uint8 (N, 3, 128, 128), resized for BEiT-3 batch by batch.
        masks: one uint8 (n, S/2, S/2) a scene: the share of each cell that an object covers, times 255.
        objects: the objects of each scene.
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
            small[index] = np.array(Image.fromarray(scene.image).resize((side, side), Image.Resampling.BILINEAR))
            coarse = F.interpolate(torch.from_numpy(scene.masks[None]).float(), (side // 2, side // 2), mode="area")[0]
            masks.append((coarse * 255).round().byte().numpy())
            objects.append(scene.objects)
        return cls(small.transpose(0, 3, 1, 2), images.transpose(0, 3, 1, 2), masks, objects)

    def batch(self, rng: np.random.Generator, images: int, phrases: int) -> tuple[Tensor, Tensor, list[str], Tensor]:
        """Return SAM pixels (B, 3, S, S), BEiT-3 pixels (B, 3, 64, 64), B·phrases phrases and their masks in [0, 1].

        Half of the images hold rivals, and their phrases are about these: drawn evenly, phrases are told apart by
        shape and row so often that colour and column are not learned in thousands of steps.
        """
        chosen = rng.integers(len(self.objects), size=images)
        chosen[: images // 2] = rng.choice(self.contested, size=images // 2)
        pairs = []
        for place, i in enumerate(chosen):
            refer = contested_reference if place < images // 2 else random_reference
            pairs += [(i, *refer(self.objects[i], rng)) for _ in range(phrases)]
        # Visible masks are disjoint, so a union is a sum.
        masks = np.stack([self.masks[i][rows].sum(axis=0, dtype=np.uint16) for i, _, rows in pairs])
        sam = (torch.from_numpy(self.sam[chosen]).float() - MEAN) / DEVIATION
        beit3 = F.interpolate(torch.from_numpy(self.images[chosen]).float() / 255, (64, 64), mode="bicubic")
        return sam, (beit3 - 0.5) / 0.5, [phrase for _, phrase, _ in pairs], torch.from_numpy(masks / 255).float()


def rivals(objects: Sequence[SceneObject]) -> list[int]:
    """Return the objects that share their shape, and row or column, with another."""
    return [
        i
        for i, item in enumerate(objects)
        for other in objects
        if other is not item and other.shape == item.shape and (other.row == item.row or other.column == item.column)
    ]


def contested_reference(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[str, list[int]]:
    """Return a phrase that tells one of the rivals from the others by place or by colour, and what fits it."""
    candidates = rivals(objects)
    item = objects[candidates[rng.integers(len(candidates))]]
    attributes = STYLES[("full", "place", "colour")[rng.choice(3, p=[0.5, 0.3, 0.2])]][0]
    return item.describe(attributes), [i for i, other in enumerate(objects) if item.matches(other, attributes)]


MEAN = torch.tensor(PIXEL_MEAN)[:, None, None]
DEVIATION = torch.tensor(PIXEL_DEVIATION)[:, None, None]


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return binary cross-entropy plus Dice, both over (P, h, w) and masks that may be fractions."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks)
    probabilities = logits.sigmoid()
    overlap = (probabilities * masks).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (probabilities.sum((1, 2)) + masks.sum((1, 2)) + 1)
    return 5 * cross_entropy + dice.mean()


def train_evf_sam(out: Path, steps: int, scenes: int, images: int, phrases: int, rate: float) -> None:
    """Train the tiny EVF-SAM whole (no frozen part) on random phrases about scenes."""
    torch.manual_seed(0)
    model, tokenizer = EvfSam(TINY_EVF_SAM), word_tokenizer(vocabulary())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
    first = resume(out, model, optimizer)
    pool = ReferringPool.render(Scenes("sis", "train", size=scenes), TINY_EVF_SAM.sam.image_size)
    index = torch.arange(images).repeat_interleave(phrases)
    saved, bar = time.time(), trange(first, steps, initial=first, total=steps, desc="evf_sam", mininterval=10)
    for step in bar:
        optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, steps)
        sam, beit3, texts, masks = pool.batch(np.random.default_rng([1, step]), images, phrases)
        prompts = model.embed_prompts(beit3, *tokenize(tokenizer, texts, LONGEST_PHRASE), index)
        logits = model.decode(model.encode_images(sam), prompts, index)
        loss = mask_loss(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            hit, truth = logits > 0, masks > 0.5
            overlap = (hit & truth).sum((1, 2)) / (hit | truth).sum((1, 2)).clamp(min=1)
            bar.set_postfix(loss=f"{loss.item():.3f}", iou=f"{overlap[truth.any(2).any(1)].mean():.3f}")
        if time.time() - saved > CHECKPOINT_EVERY_S or step == steps - 1:
            saved = time.time()
            save(out, model, optimizer, step + 1)
    save_checkpoint(out / "evf_sam_tiny", model, tokenizer, dtype=torch.float16)


# --- SAM --------------------------------------------------------------------------------------------------------------


@dataclass
class RegionPool:
    """Scenes rendered once, from which images and regions to click at are drawn.

    Attributes:
        images: uint8 (N, 3, S, S).
        regions: one uint8 (n, S/2, S/2) a scene: the share of each cell that a region covers, times 255. The region of
            an effect, where there is one, is the last.
        objects: How many of the regions are objects: these are disjoint.
    """

    images: np.ndarray
    regions: list[np.ndarray]
    objects: list[int]

    @classmethod
    def render(cls, scenes: int, side: int) -> RegionPool:
        """Render ``scenes`` scenes, half of them with an effect: shadow, glass or blur."""
        images, regions, objects = np.empty((scenes, side, side, 3), np.uint8), [], []
        sources = [Scenes(task, "train", size=scenes) for task in ("sis", "shadow", "sis", "glass", "sis", "blur")]
        for index in trange(scenes, desc="scenes", disable=None):
            source = sources[index % len(sources)]
            masks, image = source.scene(index).masks, source[index].images[0]
            if source.scene_task != "sis":
                masks = np.concatenate([masks, source[index].masks[0]])
            images[index] = np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
            coarse = F.interpolate(torch.from_numpy(masks[None]).float(), (side // 2, side // 2), mode="area")[0]
            regions.append((coarse * 255).round().byte().numpy())
            objects.append(len(masks) - (source.scene_task != "sis"))
        return cls(images.transpose(0, 3, 1, 2), regions, objects)

    def batch(self, rng: np.random.Generator, images: int, targets: int) -> tuple[Tensor, Tensor]:
        """Return pixels (B, 3, S, S) and ``targets`` regions an image, (B·targets, S/2, S/2) in [0, 1]."""
        chosen = rng.integers(len(self.regions), size=images)
        masks = np.stack([self._region(int(i), rng) for i in chosen for _ in range(targets)])
        return (torch.from_numpy(self.images[chosen]).float() - MEAN) / DEVIATION, torch.from_numpy(masks).float() / 255

    def _region(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Return the effect, one object, or several objects together."""
        regions, objects = self.regions[index], self.objects[index]
        if len(regions) > objects and rng.random() < 0.5:
            return regions[-1]
        count = 1 if rng.random() < 0.5 else int(rng.integers(1, objects + 1))
        return regions[rng.permutation(objects)[:count]].sum(axis=0, dtype=np.uint16)


def draw_clicks(where: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` cells of each map (P, h, w), drawn by weight, as float (P, count, 2): x and y in pixels."""
    cells = torch.multinomial(where.flatten(1).float() + 1e-9, count, replacement=True, generator=generator)
    return torch.stack([cells % where.shape[2], cells // where.shape[2]], dim=-1) * 2.0 + 1


def simulate_clicks(
    sam: torch.nn.Module, embeddings: Tensor, truth: Tensor, rounds: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return points (P, k, 2) and labels (P, k): one of each label, then rounds of clicks at random or into the error.

    Args:
        sam: The model as it is.
        embeddings: (P, C, h, w), without gradient.
        truth: bool (P, H, W) on the grid of half the input's side.
        rounds: How many times clicks are added: one into the error, or three anywhere.
        generator: Source of chance.
    """
    points = torch.cat([draw_clicks(truth, 1, generator), draw_clicks(~truth, 1, generator)], dim=1)
    labels = torch.tensor([[1, 0]]).repeat(len(truth), 1)
    for _ in range(rounds):
        if torch.rand((), generator=generator) < 0.4:
            added = draw_clicks(torch.ones_like(truth), 3, generator)
        else:
            with torch.no_grad():
                logits = decode_points(sam, embeddings, points, labels)
            error = (F.interpolate(logits[:, None], truth.shape[1:])[:, 0] > 0) != truth
            added = draw_clicks(error, 1, generator)
        cells = (added / 2).long()
        points = torch.cat([points, added], dim=1)
        hit = truth.flatten(1).gather(1, cells[..., 1] * truth.shape[2] + cells[..., 0])
        labels = torch.cat([labels, hit.long()], dim=1)
    return points, labels


def train_sam(out: Path, steps: int, scenes: int, images: int, targets: int, rate: float) -> None:
    """Train the tiny SAM on simulated clicks, from the SAM that is inside the embedded EVF-SAM."""
    torch.manual_seed(0)
    config = TINY_EVF_SAM.sam
    sam = config.build()
    sam.load_state_dict(evf_sam_tiny(device="cpu").network.visual_model.state_dict())
    sam.prompt_encoder.mask_downscaling.requires_grad_(False)  # no mask is ever given
    optimizer = torch.optim.AdamW(sam.parameters(), lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
    first = resume(out, sam, optimizer)
    pool = RegionPool.render(scenes, config.image_size)
    saved, bar = time.time(), trange(first, steps, initial=first, total=steps, desc="sam", mininterval=10)
    for step in bar:
        optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, steps)
        generator = torch.Generator().manual_seed(step)
        pixels, masks = pool.batch(np.random.default_rng([4, step]), images, targets)
        embeddings = sam.image_encoder(pixels).repeat_interleave(targets, dim=0)
        rounds = int(torch.randint(0, 6, (), generator=generator))
        points, labels = simulate_clicks(sam, embeddings.detach(), masks > 0.5, rounds, generator)
        logits = decode_points(sam, embeddings, points, labels)
        loss = mask_loss(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            hit, truth = logits > 0, masks > 0.5
            overlap = (hit & truth).sum((1, 2)) / (hit | truth).sum((1, 2)).clamp(min=1)
            bar.set_postfix(loss=f"{loss.item():.3f}", iou=f"{overlap.mean():.3f}", clicks=points.shape[1])
        if time.time() - saved > CHECKPOINT_EVERY_S or step == steps - 1:
            saved = time.time()
            save(out, sam, optimizer, step + 1)
    save_sam(out / "sam_tiny", sam, config, dtype=torch.float16)


# --- CLIP -------------------------------------------------------------------------------------------------------------

EFFECTS = ("shadow", "glass", "blur")
CAPTIONS = (("shape",), ("shape",), ("colour", "shape"), ("family",), ("texture", "shape"))
CLIP_SIDE, CLIP_PATCH, CLIP_WIDTH = 128, 16, 128
SURGERED_BLOCKS = 6  # of 8
PATCHES = 12  # of each image, asked for by themselves: most show nothing, and only the empty text fits
LONGEST_CAPTION = 16  # tokens, <s> and </s> included
CLIP_MEAN = torch.tensor(OPENAI_CLIP_MEAN)[:, None, None] * 255
CLIP_DEVIATION = torch.tensor(OPENAI_CLIP_STD)[:, None, None] * 255


class Caption(NamedTuple):
    """A text, and what it claims of a scene: an object, an effect, or, being empty, nothing."""

    text: str
    item: SceneObject | None = None
    attributes: tuple[str, ...] = ()
    effect: str = ""

    def fits(self, objects: Sequence[SceneObject], effect: str) -> bool:
        """Return whether the scene with these objects and this effect shows what the text claims."""
        if self.item is None:
            return self.effect in ("", effect)
        return any(self.item.matches(other, self.attributes) for other in objects)


def draw_caption(objects: Sequence[SceneObject], effect: str, rng: np.random.Generator) -> Caption:
    """Return a random caption that fits: ``red star``, ``a red star``, ``shadow``; one in twenty is empty."""
    if rng.random() < 0.05:
        return Caption("")
    if effect and rng.random() < 0.5:
        return Caption(effect, effect=effect)
    item, attributes = objects[int(rng.integers(len(objects)))], CAPTIONS[rng.integers(len(CAPTIONS))]
    text = item.describe(attributes)
    return Caption(text.removeprefix("a ") if rng.random() < 0.5 else text, item, attributes)


class CaptionBatch(NamedTuple):
    """Images, texts, and what fits what.

    Attributes:
        pixels: float (B, 3, S, S).
        texts: N of them.
        fits: bool (B, N), which text fits which image.
        shares: float (R, P): regions, each a part of one image, as the share of each patch that it covers: an object,
            an effect, or one patch.
        images: int64 (R,), whose regions.
        region_fits: bool (R, N), which text fits which region.
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
        objects: the objects of each scene.
        effects: the effect of each scene, empty where there is none.
        shares: one float16 (regions, patches) a scene: its objects and, where there is one, its effect.
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
        """Return ``images`` images with ``captions`` texts each."""
        chosen = rng.choice(len(self.objects), size=images, replace=False)
        scenes = [(self.objects[i], self.effects[i]) for i in chosen]
        drawn = [draw_caption(*scene, rng) for scene in scenes for _ in range(captions)]
        shares, owners = [], []  # of each region: its patches, its image
        parts: list[tuple[Sequence[SceneObject], str]] = []  # and what is in it
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
    """Return a randomly initialised CLIP of 1.6 M parameters, of as many patches as the point environment, 8 × 8."""
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
    """Return CLIP's loss over logits (B, texts) where several texts fit an image, and several images a text.

    In either direction the target is even among all that fit: with few words to say, most texts of a batch fit more
    than the image they were drawn for.
    """
    target = fits.float()
    by_image = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    by_text = F.cross_entropy(logits.T, (target / target.sum(0)).T)
    return (by_image + by_text) / 2


def train_clip(out: Path, steps: int, scenes: int, images: int, captions: int, rate: float) -> None:
    """Train the tiny CLIP on captions that name one object or effect of their scene.

    Beside CLIP's own loss on whole images stands the same loss on regions: the mean of the tokens that CLIP Surgery
    reads, over what an object covers or in one patch (after RegionCLIP, Zhong et al., CVPR 2022). Told of whole images
    alone, a model this small was still at chance after 800 steps; told of objects alone, it saw them in the background.
    """
    model, tokenizer = tiny_clip()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
    first = resume(out, model, optimizer)
    pool = CaptionPool.render(scenes)
    saved, bar = time.time(), trange(first, steps, initial=first, total=steps, desc="clip", mininterval=10)
    for step in bar:
        optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, steps)
        batch = pool.batch(np.random.default_rng([5, step]), images, captions)
        ids, _ = tokenize(tokenizer, batch.texts, LONGEST_CAPTION)
        told = F.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)  # (N, C)
        tokens = project(model, surgered_tokens(model.vision_model, batch.pixels, SURGERED_BLOCKS))  # (B, 1 + P, C)
        seen = torch.cat([tokens[:, 0], torch.einsum("rp,rpc->rc", batch.shares, tokens[batch.images, 1:])])
        logits = model.logit_scale.exp() * F.normalize(seen, dim=-1) @ told.T
        whole, regions = logits.split([images, len(batch.images)])  # (B, N), (R, N)
        loss = caption_loss(whole, batch.fits) + caption_loss(regions, batch.region_fits)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # as CLIP does
        if step % 20 == 0:
            pairs = ((whole, batch.fits), (regions, batch.region_fits))
            right = [fits.gather(0, part.argmax(0, keepdim=True)).float().mean() for part, fits in pairs]
            chance = [fits.float().mean() for _, fits in pairs]
            bar.set_postfix(
                loss=f"{loss:.3f}", chance="{:.2f} {:.2f}".format(*chance), right="{:.2f} {:.2f}".format(*right)
            )
        if time.time() - saved > CHECKPOINT_EVERY_S or step == steps - 1:
            saved = time.time()
            save(out, model, optimizer, step + 1)
    save_clip(out / "clip_tiny", model, tokenizer)


def save_clip(folder: Path, model: CLIPModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the folder of a CLIP as Hugging Face has it, weights in half precision; ``model`` becomes half."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sides = {"height": CLIP_SIDE, "width": CLIP_SIDE}
    CLIPImageProcessor(size=sides, crop_size=sides).save_pretrained(folder)


# --- policy -----------------------------------------------------------------------------------------------------------

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>", "<unk>"),
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<rg>", "</rg>", "<ins>", "</ins>", "[semantic]")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }} "
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
PATCH, MERGE, SIDE = 14, 3, 126  # 9 x 9 patches, merged 3 x 3: one token for each cell of a scene's grid


def policy_tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer for the instructions and for the annotators' answers."""
    text = " ".join(INSTRUCTIONS.values())
    for mark in TAGS:
        text = text.replace(mark, " ")
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")])
    words = {word for word, _ in splitter.pre_tokenize_str(text.lower())} | set(vocabulary()) - set(TAGS)
    words |= set("0123456789:,.;?") | {"user", "assistant", "system", "scene", "salient", "common", "nothing"}
    numbers = {word: number for number, word in enumerate((*SPECIAL_TOKENS, *TAGS, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        extra_special_tokens={
            "turn_token": "<|im_start|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
        },
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_policy() -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Return a randomly initialised Qwen2.5-VL of 2 M parameters and its processor."""
    tokenizer = policy_tokenizer()
    number = tokenizer.convert_tokens_to_ids
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "min_pixels": SIDE**2, "max_pixels": SIDE**2}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        video_processor=Qwen2VLVideoProcessor(**sizes),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 384,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": number("<|im_end|>"),
            "pad_token_id": number("<|endoftext|>"),
        },
        vision_config={
            "depth": 4,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": SIDE,
            "fullatt_block_indexes": [0, 1, 2, 3],
            "out_hidden_size": 128,
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config), processor


def answers_batch(processor: Qwen2_5_VLProcessor, samples: list[Sample], task: str) -> dict[str, Tensor]:
    """Return the model's inputs for prompts with their rationales; labels are the rationale and the end token."""
    pictures = [{"type": "image"}] * len(samples[0].images)
    question = [{"role": "user", "content": [*pictures, {"type": "text", "text": INSTRUCTIONS[task]}]}]
    prompt = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    texts = [f"{prompt}{sample.rationale}{processor.tokenizer.eos_token}" for sample in samples]
    images = [list(sample.images) for sample in samples]
    batch = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    ids = batch["input_ids"]
    start = processor.tokenizer.convert_tokens_to_ids("<think>")  # its last occurrence opens the answer
    answer = ((ids == start).flip(1).cumsum(1).flip(1) == 0) | ((ids == start).cumsum(1) == 2) & (ids == start)
    batch["labels"] = ids.masked_fill(~answer | (batch["attention_mask"] == 0), -100)
    return batch


CELL_LABELS = {"colour": tuple(COLOURS), "shape": SHAPES, "texture": TEXTURES, "pale": (False, True)}


def cell_targets(objects: Sequence[SceneObject]) -> Tensor:
    """Return int64 (9, 5): for each cell of the grid whether it is taken (0, 1), and its `CELL_LABELS` or -100."""
    targets = torch.full((9, 1 + len(CELL_LABELS)), -100)
    targets[:, 0] = 0
    for item in objects:
        values = [options.index(getattr(item, name)) for name, options in CELL_LABELS.items()]
        targets[3 * item.row + item.column] = torch.tensor([1, *values])
    return targets


def train_vision(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, steps: int) -> None:
    """Teach the vision encoder to name what each cell of the grid holds: one of its tokens sees one cell.

    Without this stage the language loss teaches counts and places in a thousand steps, colours and shapes in many more.
    """
    widths = [2, *map(len, CELL_LABELS.values())]
    # Fixed unit directions: every label must then make a difference that is large enough for attention to carry.
    directions = torch.linalg.qr(torch.randn(128, sum(widths), generator=torch.Generator().manual_seed(0)))[0]
    scenes, rate = Scenes("sis", "train", size=10**6), 1.5e-3
    optimizer = torch.optim.AdamW(model.model.visual.parameters(), lr=rate, weight_decay=0.01)
    bar = trange(steps, desc="vision", mininterval=10)
    for step in bar:
        optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, steps, warmup=60)
        drawn = [scenes.scene(int(i)) for i in np.random.default_rng([3, step]).integers(len(scenes), size=64)]
        pixels = processor.image_processor([scene.image for scene in drawn], return_tensors="pt")
        tokens = model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output  # (B·9, D)
        targets = torch.cat([cell_targets(scene.objects) for scene in drawn])  # (B·9, 5)
        # Normalised, as the language model's first layer sees them.
        logits = (F.rms_norm(tokens, (128,)) @ directions).split(widths, dim=1)
        loss = sum(F.cross_entropy(part, targets[:, k], ignore_index=-100) for k, part in enumerate(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = [(part.argmax(1) == targets[:, k])[targets[:, k] >= 0] for k, part in enumerate(logits)]
        bar.set_postfix(
            {name: f"{hit.float().mean():.2f}" for name, hit in zip(("taken", *CELL_LABELS), right, strict=True)}
        )


def train_policy(out: Path, steps: int, rate: float, vision_steps: int) -> None:
    """Teach the tiny Qwen2.5-VL to see, to describe clearly and, in the last quarter, to answer as annotators do."""
    model, processor = tiny_policy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.95))
    first = resume(out, model, optimizer)
    if first == 0:
        train_vision(model, processor, vision_steps)
    model.model.visual.requires_grad_(False)  # the language loss would blur what it can name
    data = {
        (task, annotator): Scenes(task, "train", size=10**6, annotator=annotator)
        for task in ("sis", "sod", "cosod")
        for annotator in ("full", "varied")
    }
    saved, bar = time.time(), trange(first, steps, initial=first, total=steps, desc="policy", mininterval=10)
    for step in bar:
        optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, steps, warmup=60)
        task = ("sis", "sod", "sis", "cosod")[step % 4]
        scenes = data[task, "full" if step < 0.75 * steps else "varied"]
        chosen = np.random.default_rng([2, step]).integers(len(scenes), size=12 if task == "cosod" else 32)
        loss = model(**answers_batch(processor, [scenes[int(index)] for index in chosen], task)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix({f"{task}_loss": f"{loss.item():.3f}"})
        if time.time() - saved > CHECKPOINT_EVERY_S or step == steps - 1:
            saved = time.time()
            save(out, model, optimizer, step + 1)
    model.half().save_pretrained(out / "qwen2_5_vl_tiny")
    processor.save_pretrained(out / "qwen2_5_vl_tiny")


# --- all --------------------------------------------------------------------------------------------------------------


def resume(out: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load ``out/state.pt`` into model and optimiser, if there; return the step to go on from."""
    path = out / "state.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def save(out: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write ``out/state.pt``, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, out / "state.tmp")
    os.replace(out / "state.tmp", out / "state.pt")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    evf_sam = commands.add_parser("evf_sam")
    evf_sam.set_defaults(train=train_evf_sam)
    evf_sam.add_argument("--scenes", type=int, default=8000, help="scenes rendered, all of the training split")
    evf_sam.add_argument("--images", type=int, default=16, help="images a step")
    evf_sam.add_argument("--phrases", type=int, default=5, help="phrases an image")
    policy = commands.add_parser("policy")
    policy.set_defaults(train=train_policy)
    policy.add_argument("--vision-steps", type=int, default=600, help="of the first stage, vision alone")
    sam = commands.add_parser("sam")
    sam.set_defaults(train=train_sam)
    sam.add_argument("--scenes", type=int, default=8000, help="scenes rendered, half of them with an effect")
    sam.add_argument("--images", type=int, default=16, help="images a step")
    sam.add_argument("--targets", type=int, default=3, help="regions an image")
    clip = commands.add_parser("clip")
    clip.set_defaults(train=train_clip)
    clip.add_argument("--scenes", type=int, default=12000, help="scenes rendered, three in seven with an effect")
    clip.add_argument("--images", type=int, default=32, help="images a step")
    clip.add_argument("--captions", type=int, default=8, help="captions an image")
    defaults = ((evf_sam, 6000, 1.2e-3), (policy, 1600, 1.5e-3), (sam, 2000, 6e-4), (clip, 2400, 1e-3))
    for command, steps, rate in defaults:
        command.add_argument("out", type=Path, help="folder for the weights and state.pt")
        command.add_argument("--steps", type=int, default=steps)
        command.add_argument("--rate", type=float, default=rate, help="peak learning rate")
    options = vars(parser.parse_args(arguments))
    options.pop("train")(**options)


if __name__ == "__main__":
    main()
