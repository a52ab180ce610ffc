"""Figures of a project's quality, and a picture of samples with their needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.nn import functional as F

from maskgym.aliases import JsonObject
from maskgym.chat.asker import count_tokens, to_png
from maskgym.data import run_lengths
from maskgym.envs.rendering import overlay
from maskgym.errors import one_line
from maskgym.experiments.annotation.needs import masks, review
from maskgym.experiments.annotation.needs.project import ANSWERS, DETECT, Outcome, Project, write_changed
from maskgym.experiments.annotation.needs.sources import Source
from maskgym.experiments.wiring import run_folder
from maskgym.segmenters.attention.clip_surgery import EMBEDDED, encode_text
from maskgym.segmenters.hub import HubNetwork
from maskgym.segmenters.text import tokenize

FIGURES, SHEET = "figures.json", "sheet.png"
TILE, TEXT, COLUMNS, TILES, GAP, LINE = 200, 74, 4, 16, 10, 14  # of the sheet, in pixels except columns and tiles
AROUND = 2.2  # side of a tile's crop as a multiple of the object's longer side
CHUNK = 64


class Clip(HubNetwork):
    """Similarity of pictures and texts by CLIP.

    Args:
        checkpoint: Folder as ``save_pretrained`` writes it, or hub name; None takes the bundled model, which knows only
            the words of scenes.
        device: See `FrozenNetwork`.

    Raises:
        UserError: See `HubNetwork`.
    """

    architecture = "CLIPModel"
    model_types = ("clip",)

    def __init__(self, checkpoint: str | Path | None = None, device: str | None = None) -> None:
        super().__init__(checkpoint or EMBEDDED, device)

    @torch.inference_mode()
    def pictures(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Encode images to unit vectors, float32 (n, C); images are stretched to the model's square."""
        side = self.network.config.vision_config.image_size
        squares = [np.array(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in images]
        found = [
            self.network.get_image_features(pixel_values=self._normal(squares[at : at + CHUNK])).pooler_output
            for at in range(0, len(squares), CHUNK)
        ]
        return F.normalize(torch.cat(found).float(), dim=-1)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode texts to unit vectors, float32 (n, C); too long texts are truncated."""
        longest = self.network.config.text_config.max_position_embeddings
        return torch.stack(
            [encode_text(self.network, tokenize(self.tokenizer, [text], longest)[0].to(self.device)) for text in texts]
        )

    def _normal(self, squares: Sequence[np.ndarray]) -> torch.Tensor:
        mean, deviation = (
            torch.tensor(values)[:, None, None]
            for values in (self.image_processor.image_mean, self.image_processor.image_std)
        )
        batch = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 255
        return ((batch - mean) / deviation).to(self.device, self.dtype)


def measure(project: Project, source: Source, clip: Clip) -> JsonObject:
    """Compute the figures, and write ``figures.json`` and ``sheet.png``.

    Raises:
        UserError: If nothing is detected yet.
    """
    objects = review.candidates(project, source)
    decisions = review.Decisions(project).made
    now = {one.id: review.outcome(one, decisions.get(one.id)) for one in objects}
    figures = {
        "counts": counts(project, source, objects, now),
        "corrections": corrections(objects, decisions),
        "similarity": similarity(source, objects, now, clip),
        "cost": count_tokens(project.folder / ANSWERS, project.settings.prices),
    }
    write_changed(project.folder / FIGURES, run_folder.to_json(figures, indent=2) + "\n")
    shown = [one for one in objects if now[one.id]["status"] != review.REJECTED and now[one.id]["needs"]]
    if shown:
        shown = [shown[round(place)] for place in np.linspace(0, len(shown) - 1, min(TILES, len(shown)))]
        write_changed(project.folder / SHEET, sheet(source, shown, now))
    return figures


def counts(
    project: Project, source: Source, objects: Sequence[review.Candidate], now: Mapping[str, Outcome]
) -> JsonObject:
    """Count the results of each stage."""
    records = [project.read(DETECT, item.name) for item in source.items]
    statuses = Counter(one["status"] for one in now.values())
    return {
        "images": len(source.items),
        "detected_images": sum(record is not None for record in records),
        "faulty_images": sum("fault" in (record or {}) for record in records),
        "objects": len(objects),
        "with_mask": sum(one.segmentation is not None for one in objects),
        "with_needs": sum(bool(one.needs) for one in objects),
        "needs": sum(len(one.needs) for one in objects),
        "given_up": dict(sorted(Counter(one.reason for one in objects if one.reason).items())),
        **{status: statuses[status] for status in review.STATUSES},
    }


def corrections(
    objects: Sequence[review.Candidate], decisions: Mapping[str, JsonObject]
) -> dict[str, float | int | None]:
    """Compute the shares of rejected objects among all, and of corrected texts and masks among accepted ones.

    Convention: a share of an empty set is None.
    """
    made = [(one, decisions[one.id]) for one in objects if one.id in decisions]
    made = [(one, decision) for one, decision in made if decision["status"] != review.UNDECIDED]
    kept = [(one, decision) for one, decision in made if decision["status"] == review.ACCEPTED]
    text = sum(list(one.needs) != decision["needs"] for one, decision in kept)
    mask = sum(bool(decision.get("segmentation")) for _, decision in kept)
    return {
        "decided": len(made),
        "share_rejected": _share(len(made) - len(kept), len(made)),
        "share_text_corrected": _share(text, len(kept)),
        "share_mask_corrected": _share(mask, len(kept)),
    }


def similarity(
    source: Source, objects: Sequence[review.Candidate], now: Mapping[str, Outcome], clip: Clip
) -> JsonObject:
    """Compute the CLIP similarity of each command to its own object and to the others.

    Rejected objects and those without a mask or command are left out. ``own_first`` is the share of commands that are
    nearer to their own object than to the mean of the others; chance level is one half.
    """
    chosen, codes = [], []
    for one in objects:
        state = now[one.id]
        if state["status"] != review.REJECTED and state["needs"] and (code := state["segmentation"]):
            chosen.append(one)
            codes.append(code)
    known: JsonObject = {"clip": clip.fingerprint, "objects": len(chosen)}
    if not chosen:
        return {**known, "own": None, "other": None, "own_first": None}
    shown = []
    image, item = np.zeros((1, 1, 3), np.uint8), None
    for one, code in zip(chosen, codes, strict=True):  # objects of one image are neighbours
        if one.item != item:
            image, item = source.image(one.item), one.item
        shown.append(masks.appearance(image, run_lengths.decode(code), one.found["box"]))
    texts = [(place, text) for place, one in enumerate(chosen) for text in now[one.id]["needs"]]
    near = clip.texts([text for _, text in texts]) @ clip.pictures(shown).T  # (commands, objects)
    owners = torch.tensor([place for place, _ in texts], device=near.device)
    own = near.gather(1, owners[:, None])[:, 0]
    known |= {"commands": len(texts), "own": round(own.mean().item(), 4)}
    if len(chosen) == 1:
        return {**known, "other": None, "own_first": None}
    other = (near.sum(dim=1) - own) / (len(chosen) - 1)
    first = (own > other).float().mean().item()
    return {**known, "other": round(other.mean().item(), 4), "own_first": round(first, 4)}


def sheet(source: Source, objects: Sequence[review.Candidate], now: Mapping[str, Outcome]) -> bytes:
    """Draw objects in their images with their needs, as PNG."""
    rows = -(-len(objects) // COLUMNS)
    columns = min(COLUMNS, len(objects))
    canvas = Image.new("RGB", (columns * (TILE + GAP) + GAP, rows * (TILE + TEXT + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(canvas), _font()
    for number, one in enumerate(objects):
        state = now[one.id]
        image = source.image(one.item)
        mask = (
            np.zeros(image.shape[:2], bool)
            if state["segmentation"] is None
            else run_lengths.decode(state["segmentation"])
        )
        part = _around(one.found["box"], image.shape[:2])
        tile = ImageOps.contain(Image.fromarray(overlay(image[part], mask[part][None])), (TILE, TILE))
        left, top = GAP + number % COLUMNS * (TILE + GAP), GAP + number // COLUMNS * (TILE + TEXT + GAP)
        canvas.paste(tile, (left + (TILE - tile.width) // 2, top))
        lines = [
            line for need in state["needs"] for line in wrap(need, 34, initial_indent="· ", subsequent_indent="  ")
        ]
        for place, line in enumerate(lines[: TEXT // LINE]):
            draw.text((left, top + TILE + 4 + place * LINE), line, "black", font)
    return to_png(np.asarray(canvas))


def _around(box: masks.Box, size: tuple[int, int]) -> tuple[slice, slice]:
    """Compute rows and columns of a square around a box, shifted into the image (H, W) and clipped to its size."""
    left, top, right, bottom = box
    side = max(AROUND * max(right - left, bottom - top), 32)

    def part(middle: float, length: int) -> slice:
        start = min(max(0.0, middle - side / 2), max(0.0, length - side))
        return slice(int(start), int(min(length, np.ceil(start + side))))

    return part((top + bottom) / 2, size[0]), part((left + right) / 2, size[1])


def to_text(figures: JsonObject) -> str:
    """Format the figures for a terminal."""
    lines = []
    for title, values in figures.items():
        lines.append(title)
        lines += [f"  {name:<22} {_shown(value)}" for name, value in values.items()]
    return "\n".join(lines)


def _shown(value: Mapping[str, int] | float | str | None) -> str:
    if isinstance(value, Mapping):
        return one_line("; ".join(f"{count} × {reason}" for reason, count in value.items())) or "none"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Load matplotlib's font, which covers more scripts than Pillow's."""
    from matplotlib import get_data_path

    file = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), 11) if file.exists() else ImageFont.load_default(11)
