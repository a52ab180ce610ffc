"""Draw samples, masks and clicks as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from maskgym.data import Sample

# These colours are distinct on photographs and for most colour-blind readers (Okabe and Ito).
PALETTE = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)]
)
PANEL = 224  # height of a panel, pixels
GAP, TITLE, LINE = 6, 18, 15


def picture(sample: Sample, predictions: Mapping[str, Sequence[np.ndarray]], text: str | None = None) -> np.ndarray:
    """Draw image, ground truth and predictions side by side, one row per image, with a text below.

    Args:
        sample: Sample that was shown.
        predictions: By title one bool (m, H, W) per image; instances have distinct colours.
        text: Text below the panels, which is wrapped.

    Returns:
        uint8 (height, width, 3).
    """
    columns = {"image": None, "ground truth": sample.masks, **predictions}
    rows = []
    for k, image in enumerate(sample.images):
        rows.append([_fit(image if masks is None else overlay(image, masks[k])) for masks in columns.values()])
    width = max(sum(panel.width + GAP for panel in row) for row in rows) + GAP
    lines = [] if text is None else [line for part in text.splitlines() for line in wrap(part, max(20, width // 7))]
    height = TITLE + len(rows) * (PANEL + GAP) + len(lines) * LINE + GAP
    canvas = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for row, panels in enumerate(rows):
        left = GAP
        for title, panel in zip(columns, panels, strict=True):
            if row == 0:
                draw.text((left, 2), title, "black", font)
            canvas.paste(panel, (left, TITLE + row * (PANEL + GAP)))
            left += panel.width + GAP
    for number, line in enumerate(lines):
        draw.text((GAP, height - GAP - (len(lines) - number) * LINE), line, "black", font)
    return np.asarray(canvas)


def contact_sheet(samples: Sequence[Sample], width: int = 1600) -> np.ndarray:
    """Draw samples side by side: the first image with its masks, above the key and the need, category or count.

    Args:
        samples: At least one sample.
        width: Maximum width of a row, pixels.

    Returns:
        uint8 (height, width, 3).
    """
    panels = [_fit(overlay(sample.images[0], sample.masks[0])) for sample in samples]
    places, left, top, tall = [], GAP, GAP, PANEL + 2 * LINE + GAP
    for panel in panels:
        if left > GAP and left + panel.width > width:
            left, top = GAP, top + tall
        places.append((left, top))
        left += max(panel.width, PANEL // 2) + GAP
    right = max(left + panel.width for (left, _), panel in zip(places, panels, strict=True))
    sheet = Image.new("RGB", (max(width, right + GAP), top + tall), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for (left, top), sample, panel in zip(places, samples, panels, strict=True):
        sheet.paste(panel, (left, top))
        more = f" ({len(sample.images)} images)" if len(sample.images) > 1 else ""
        asked = sample.need or sample.category or f"{len(sample.masks[0])} masks"
        fits = max(panel.width, PANEL // 2) // 7  # characters
        for line, text in enumerate((sample.key, asked + more)):
            shown = text if len(text) <= fits else f"…{text[1 - fits :]}" if line == 0 else f"{text[: fits - 1]}…"
            draw.text((left, top + PANEL + line * LINE), shown, "black", font)
    return np.asarray(sheet)


def overlay(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Tint and outline each mask of bool (n, H, W) in an image, and dim the other pixels."""
    canvas = image.astype(np.float32)
    canvas[~masks.any(axis=0)] *= 0.45
    for number, mask in enumerate(masks):
        colour = PALETTE[number % len(PALETTE)]
        canvas[mask] = 0.6 * canvas[mask] + 0.4 * colour
        canvas[mask & ~binary_erosion(mask, iterations=max(1, min(mask.shape) // 100))] = colour
    return canvas.astype(np.uint8)


def _fit(panel: np.ndarray) -> Image.Image:
    height, width = panel.shape[:2]
    return Image.fromarray(panel).resize((max(1, round(width * PANEL / height)), PANEL), Image.Resampling.BILINEAR)


def clicks_picture(sample: Sample, episodes: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Draw the numbered clicks and the outline of the mask of each episode, and the ground truth, side by side.

    Args:
        sample: Sample of one image.
        episodes: By title the mask, bool (1, H, W); the points in order, float (k, 2), (x, y) in pixels of the image;
            and the labels (k,), 1 foreground (green), 0 background (red).

    Returns:
        uint8 (height, width, 3).
    """
    panels = {title: _clicks_panel(sample.images[0], *episode) for title, episode in episodes.items()}
    panels["ground truth"] = _fit(overlay(sample.images[0], sample.masks[0]))
    width = sum(panel.width + GAP for panel in panels.values()) + GAP
    canvas = Image.new("RGB", (width, PANEL + TITLE + GAP), "white")
    left = GAP
    for title, panel in panels.items():
        ImageDraw.Draw(canvas).text((left, 2), title, "black", ImageFont.load_default(12))
        canvas.paste(panel, (left, TITLE))
        left += panel.width + GAP
    return np.asarray(canvas)


def _clicks_panel(image: np.ndarray, mask: np.ndarray, points: np.ndarray, labels: np.ndarray) -> Image.Image:
    edge = mask[0] & ~binary_erosion(mask[0], iterations=max(1, min(mask.shape[1:]) // 100))
    panel = _fit(np.where(edge[..., None], PALETTE[0].astype(np.uint8), image))
    draw, font, scale = ImageDraw.Draw(panel), ImageFont.load_default(11), PANEL / image.shape[0]
    for number, ((x, y), label) in enumerate(zip(points * scale, labels, strict=True), start=1):
        draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill="#009e73" if label else "#d55e00", outline="white")
        draw.text((x, y), str(number), "white", font, anchor="mm")
    return panel
