"""Draw samples, masks and clicks as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from maskgym.data import Sample
from maskgym.rewards import Located

# These colours are distinct on photographs and for most colour-blind readers (Okabe and Ito).
PALETTE = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)]
)
PANEL = 224  # height of a panel, pixels
GAP, TITLE, LINE = 6, 18, 15
BLANK = "#ececec"  # what a panel of a frame does not cover


Prompts = Mapping[str, Sequence[Located]]  # by title, the objects of one image that prompted the masks


def picture(
    sample: Sample,
    predictions: Mapping[str, Sequence[np.ndarray]],
    text: str | None = None,
    prompts: Prompts | None = None,
) -> np.ndarray:
    """Draw image, ground truth and predictions side by side, one row per image, with a text below.

    Args:
        sample: Sample that was shown.
        predictions: By title one bool (m, H, W) per image; instances have distinct colours.
        text: Text below the panels, which is wrapped.
        prompts: Boxes and points to draw beside the masks of a title, for samples of one image.

    Returns:
        uint8 (height, width, 3).
    """
    columns = {"image": None, "ground truth": sample.masks, **predictions}
    rows = []
    for k, image in enumerate(sample.images):
        rows.append([_fit(_drawn(image, title, masks, k, prompts)) for title, masks in columns.items()])
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


def frame(
    sample: Sample,
    predictions: Mapping[str, Sequence[np.ndarray] | None],
    text: str | None = None,
    rows: int = 1,
    lines: int = 0,
    prompts: Prompts | None = None,
) -> np.ndarray:
    """Draw a picture whose size depends on the number of columns, rows and lines alone, so that frames make a video.

    Panels are square. A panel without an image or masks yet stays blank. Of a text that is too long, the middle lines
    are left out, because the answer is at its end.

    Args:
        sample: Sample that was shown.
        predictions: By title one bool (m, H, W) per image, or None before there are any.
        text: Text below the panels, which is wrapped.
        rows: Number of rows; further images are not drawn.
        lines: Number of lines of text.
        prompts: See `picture`.

    Returns:
        uint8 (height, width, 3).
    """
    columns: dict[str, Sequence[np.ndarray] | None] = {"ground truth": sample.masks, **predictions}
    titles = ("image", *columns)
    width = len(titles) * (PANEL + GAP) + GAP
    canvas = Image.new("RGB", (width, TITLE + rows * (PANEL + GAP) + lines * LINE + GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for column, title in enumerate(titles):
        left, masks = GAP + column * (PANEL + GAP), columns.get(title)
        draw.text((left, 2), title, "black", font)
        for row in range(rows):
            panel = Image.new("RGB", (PANEL, PANEL), BLANK)
            if row < len(sample.images) and (masks is not None or title == "image"):
                panel = _square(_drawn(sample.images[row], title, masks, row, prompts))
            canvas.paste(panel, (left, TITLE + row * (PANEL + GAP)))
    for number, line in enumerate(_cut(text or "", width // 7, lines)):
        draw.text((GAP, TITLE + rows * (PANEL + GAP) + number * LINE), line, "black", font)
    return np.asarray(canvas)


def _drawn(
    image: np.ndarray, title: str, masks: Sequence[np.ndarray] | None, row: int, prompts: Prompts | None
) -> np.ndarray:
    """Draw an image with its masks, and with the boxes and points of a title."""
    if masks is None:
        return image
    return prompts_overlay(image, masks[row], (prompts or {}).get(title, ()))


def prompts_overlay(image: np.ndarray, masks: np.ndarray, objects: Sequence[Located]) -> np.ndarray:
    """Draw the masks, boxes and points of objects into an image, one colour per object.

    Args:
        image: uint8 (H, W, 3).
        masks: bool (m, H, W), one per object.
        objects: Objects in pixels of the image; points of the background are crosses.

    Returns:
        uint8 (H, W, 3).
    """
    shown = overlay(image, masks)
    if not objects:
        return shown
    canvas = Image.fromarray(shown)
    draw, width = ImageDraw.Draw(canvas), max(1, min(image.shape[:2]) // 100)
    for number, found in enumerate(objects):
        colour = tuple(int(value) for value in PALETTE[number % len(PALETTE)])
        if found.box is not None and found.box[0] < found.box[2] and found.box[1] < found.box[3]:
            draw.rectangle(_clipped(found.box, image.shape), outline=colour, width=width)
        for (x, y), label in zip(found.points, found.labels, strict=True):
            reach = 2 * width
            if label:
                draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour, outline="white")
            else:
                draw.line((x - reach, y - reach, x + reach, y + reach), "white", width)
                draw.line((x - reach, y + reach, x + reach, y - reach), "white", width)
    return np.asarray(canvas)


def _clipped(box: tuple[float, float, float, float], shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Clip a box to just outside an image, since the drawing library fails at huge coordinates."""
    height, width = shape[:2]
    left, right = (min(max(value, -2.0), width + 1.0) for value in (box[0], box[2]))
    top, bottom = (min(max(value, -2.0), height + 1.0) for value in (box[1], box[3]))
    return left, top, right, bottom


def _cut(text: str, width: int, lines: int) -> list[str]:
    """Wrap a text to at most so many lines, without its middle if it is longer."""
    wrapped = [line for part in text[: 50 * width * (lines + 1)].splitlines() for line in wrap(part, width)]
    if len(wrapped) <= lines:
        return wrapped
    kept = lines // 2
    left_out = f"… ({len(wrapped) - lines + 1} lines more)"
    return [*wrapped[:kept], left_out, *wrapped[len(wrapped) - (lines - kept - 1) :]] if lines > 1 else wrapped[:lines]


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


def _square(panel: np.ndarray) -> Image.Image:
    """Fit a picture into the middle of a square panel."""
    height, width = panel.shape[:2]
    scale = PANEL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    square = Image.new("RGB", (PANEL, PANEL), BLANK)
    fitted = Image.fromarray(panel).resize(size, Image.Resampling.BILINEAR)
    square.paste(fitted, ((PANEL - size[0]) // 2, (PANEL - size[1]) // 2))
    return square


def clicks_picture(
    sample: Sample, episodes: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], square: bool = False
) -> np.ndarray:
    """Draw the numbered clicks and the outline of the mask of each episode, and the ground truth, side by side.

    Args:
        sample: Sample of one image.
        episodes: By title the mask, bool (1, H, W); the points in order, float (k, 2), (x, y) in pixels of the image;
            and the labels (k,), 1 foreground (green), 0 background (red), -1 no prompt (grey).
        square: Whether panels are square, so that all pictures have one size.

    Returns:
        uint8 (height, width, 3).
    """
    fit = _square if square else _fit
    panels = {title: _clicks_panel(sample.images[0], *episode, fit) for title, episode in episodes.items()}
    panels["ground truth"] = fit(overlay(sample.images[0], sample.masks[0]))
    width = sum(panel.width + GAP for panel in panels.values()) + GAP
    canvas = Image.new("RGB", (width, PANEL + TITLE + GAP), "white")
    left = GAP
    for title, panel in panels.items():
        ImageDraw.Draw(canvas).text((left, 2), title, "black", ImageFont.load_default(12))
        canvas.paste(panel, (left, TITLE))
        left += panel.width + GAP
    return np.asarray(canvas)


COLOURS = {1: "#009e73", 0: "#d55e00", -1: "#777777"}  # of a click, by its label


def _clicks_panel(
    image: np.ndarray,
    mask: np.ndarray,
    points: np.ndarray,
    labels: np.ndarray,
    fit: Callable[[np.ndarray], Image.Image],
) -> Image.Image:
    edge = mask[0] & ~binary_erosion(mask[0], iterations=max(1, min(mask.shape[1:]) // 100))
    panel = fit(np.where(edge[..., None], PALETTE[0].astype(np.uint8), image))
    height, width = image.shape[:2]
    scale = PANEL / (max(height, width) if fit is _square else height)
    left, top = max(0.0, panel.width - width * scale) / 2, max(0.0, panel.height - height * scale) / 2
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(11)
    for number, ((x, y), label) in enumerate(zip(points * scale + (left, top), labels, strict=True), start=1):
        draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=COLOURS[int(label)], outline="white")
        draw.text((x, y), str(number), "white", font, anchor="mm")
    return panel
