"""The tiny SAM, initialised with the SAM of the bundled EVF-SAM and trained on simulated clicks and boxes on scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from maskgym.data.scenes import Scenes
from maskgym.experiments.pretraining.evf_sam import DEVIATION, MEAN, TINY_EVF_SAM
from maskgym.experiments.pretraining.loop import covered_shares, descend, mask_loss, overlaps, shrink, training
from maskgym.segmenters.phrases.evf_sam import evf_sam_tiny
from maskgym.segmenters.points.sam import decode_points, save_sam


@dataclass
class RegionPool:
    """Scenes rendered once, from which images and regions to click are drawn.

    Attributes:
        images: uint8 (N, 3, S, S).
        regions: One uint8 (n, S/2, S/2) per scene: the share of each cell that a region covers, times 255. The region
            of an effect, if there is one, comes last.
        objects: Number of regions that are objects; these are disjoint.
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
            images[index] = shrink(image, side)
            regions.append(covered_shares(masks, side // 2))
            objects.append(len(masks) - (source.scene_task != "sis"))
        return cls(images.transpose(0, 3, 1, 2), regions, objects)

    def batch(self, rng: np.random.Generator, images: int, targets: int) -> tuple[Tensor, Tensor]:
        """Draw pixels (B, 3, S, S) and ``targets`` regions per image, (B·targets, S/2, S/2) in [0, 1]."""
        chosen = rng.integers(len(self.regions), size=images)
        masks = np.stack([self._region(int(i), rng) for i in chosen for _ in range(targets)])
        return (torch.from_numpy(self.images[chosen]).float() - MEAN) / DEVIATION, torch.from_numpy(masks).float() / 255

    def _region(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the effect, one object, or the union of several objects."""
        regions, objects = self.regions[index], self.objects[index]
        if len(regions) > objects and rng.random() < 0.5:
            return regions[-1]
        count = 1 if rng.random() < 0.5 else int(rng.integers(1, objects + 1))
        return regions[rng.permutation(objects)[:count]].sum(axis=0, dtype=np.uint16)


def draw_clicks(where: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` cells of each map (P, h, w) by weight, as float (P, count, 2): x and y in pixels."""
    cells = torch.multinomial(where.flatten(1).float() + 1e-9, count, replacement=True, generator=generator)
    return torch.stack([cells % where.shape[2], cells // where.shape[2]], dim=-1) * 2.0 + 1


def draw_boxes(truth: Tensor, generator: torch.Generator) -> Tensor:
    """Draw boxes around regions: half of them exact, half with sides moved by up to a tenth of the box.

    Args:
        truth: bool (P, h, w) on the grid of half the input's side, each with a cell.
        generator: Random generator.

    Returns:
        float (P, 4), (left, top, right, bottom) in pixels of the input.
    """
    sides = []
    for cells in (truth.any(dim=1), truth.any(dim=2)):  # columns, rows
        low, high = cells.int().argmax(dim=1), cells.shape[1] - cells.flip(1).int().argmax(dim=1)
        sides.append(torch.stack([low, high], dim=1) * 2.0)
    boxes = torch.stack(sides, dim=2)  # (P, 2, 2): corner, then x and y
    noise = 0.2 * torch.rand(boxes.shape, generator=generator) - 0.1
    moved = torch.rand((len(boxes), 1, 1), generator=generator) < 0.5
    boxes = boxes + moved * noise * (boxes[:, 1:] - boxes[:, :1])
    return boxes.clamp(0, 2.0 * truth.shape[1]).flatten(1)


def simulate_clicks(
    sam: Sam,
    embeddings: Tensor,
    truth: Tensor,
    rounds: int,
    generator: torch.Generator,
    boxes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Simulate clicks: one per label, or none beside a box, then rounds of random clicks or of one into the error.

    Args:
        sam: The current model.
        embeddings: (P, C, h, w), without gradient.
        truth: bool (P, H, W) on the grid of half the input's side.
        rounds: Number of rounds; each adds one click into the error, or three anywhere.
        generator: Random generator.
        boxes: float (P, 4) in pixels of the input, or None.

    Returns:
        Points (P, k, 2) and labels (P, k).
    """
    points = torch.cat([draw_clicks(truth, 1, generator), draw_clicks(~truth, 1, generator)], dim=1)
    labels = torch.tensor([[1, 0]]).repeat(len(truth), 1)
    if boxes is not None:
        points, labels = points[:, :0], labels[:, :0]
    for _ in range(rounds):
        if torch.rand((), generator=generator) < 0.4:
            added = draw_clicks(torch.ones_like(truth), 3, generator)
        else:
            with torch.no_grad():
                logits = decode_points(sam, embeddings, points, labels, boxes)
            error = (F.interpolate(logits[:, None], truth.shape[1:])[:, 0] > 0) != truth
            added = draw_clicks(error, 1, generator)
        cells = (added / 2).long()
        points = torch.cat([points, added], dim=1)
        hit = truth.flatten(1).gather(1, cells[..., 1] * truth.shape[2] + cells[..., 0])
        labels = torch.cat([labels, hit.long()], dim=1)
    return points, labels


def train_sam(out: Path, steps: int, scenes: int, images: int, targets: int, rate: float) -> None:
    """Train the tiny SAM, starting from the SAM of the bundled EVF-SAM: half the regions by clicks, half by a box.

    Half of the boxes stand alone; clicks into the error follow the others.
    """
    torch.manual_seed(0)
    config = TINY_EVF_SAM.sam
    sam = config.build()
    sam.load_state_dict(evf_sam_tiny(device="cpu").network.visual_model.state_dict())
    sam.prompt_encoder.mask_downscaling.requires_grad_(False)  # no mask prompt is ever given
    optimizer = torch.optim.AdamW(sam.parameters(), lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
    pool = RegionPool.render(scenes, config.image_size)
    for step, bar in training(out, sam, optimizer, steps, rate):
        generator = torch.Generator().manual_seed(step)
        pixels, masks = pool.batch(np.random.default_rng([4, step]), images, targets)
        embeddings = sam.image_encoder(pixels).repeat_interleave(targets, dim=0)
        losses, ious = [], []
        for part, boxed in ((slice(0, None, 2), False), (slice(1, None, 2), True)):
            own, wanted = embeddings[part], masks[part]
            truth = wanted > wanted.amax(dim=(1, 2), keepdim=True).clamp(max=1) / 2
            boxes = draw_boxes(truth, generator) if boxed else None
            rounds = int(torch.randint(-4 if boxed else 0, 5 if boxed else 6, (), generator=generator))
            points, labels = simulate_clicks(sam, own.detach(), truth, rounds, generator, boxes)
            logits = decode_points(sam, own, points, labels, boxes)
            losses.append(mask_loss(logits, wanted))
            ious.append(overlaps(logits, wanted).mean().item())
        loss = torch.stack(losses).mean()
        descend(sam, optimizer, loss)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", clicks=f"{ious[0]:.3f}", boxes=f"{ious[1]:.3f}")
    save_sam(out / "sam_tiny", sam, config, dtype=torch.float16)
