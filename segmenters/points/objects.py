"""Masks of objects that are given by boxes and points, from any promptable segmenter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskgym.segmenters.points.promptable import PADDING, PromptableSegmenter

ROWS = 64  # prompts per call, whose masks of the padded square are in memory at a time

Box = tuple[float, float, float, float]
Points = Sequence[tuple[float, float]]


def segment_objects(
    segmenter: PromptableSegmenter,
    images: Sequence[np.ndarray],
    boxes: Sequence[Sequence[Box | None]],
    points: Sequence[Sequence[Points]],
    labels: Sequence[Sequence[Sequence[int]]],
) -> list[np.ndarray]:
    """Segment each object by its box, its points, or both; an image is encoded once.

    A box is clipped to its image, and points outside are left out. An object of which no area and no foreground point
    remains has an empty mask, without a call of the segmenter.

    Args:
        segmenter: Promptable segmenter.
        images: B arrays, uint8 (H_i, W_i, 3) RGB, of any sizes.
        boxes: For each image, the box of each object, (left, top, right, bottom) in its pixels, or None.
        points: For each image, the points of each object, (x, y) in its pixels; none where a box is enough.
        labels: For each image, the labels of these points, 1 foreground, 0 background.

    Returns:
        For each image bool (n_i, H_i, W_i), where the logits are above 0.
    """
    masks = [np.zeros((len(own), *image.shape[:2]), bool) for own, image in zip(boxes, images, strict=True)]
    prompts = []
    for k, image in enumerate(images):
        for row, (box, places, kinds) in enumerate(zip(boxes[k], points[k], labels[k], strict=True)):
            prompt = _inside(image.shape, box, places, kinds)
            if prompt is not None:
                prompts.append((k, row, *prompt))
    for start in range(0, len(prompts), ROWS):
        chunk = prompts[start : start + ROWS]
        for (k, row, *_), mask in zip(chunk, _decode(segmenter, images, chunk), strict=True):
            masks[k][row] = mask
    return masks


_Prompt = tuple[int, int, Box | None, Points, Sequence[int]]  # image, object, box, points, labels


def _inside(
    shape: tuple[int, ...], box: Box | None, points: Points, labels: Sequence[int]
) -> tuple[Box | None, Points, Sequence[int]] | None:
    """Clip a prompt to an image; None if nothing remains that could have a mask."""
    height, width = shape[:2]
    kept = [n for n, (x, y) in enumerate(points) if 0 <= x < width and 0 <= y < height]
    places, kinds = [points[n] for n in kept], [labels[n] for n in kept]
    if box is None:
        return (None, places, kinds) if 1 in kinds else None
    left, right = (min(max(value, 0.0), float(width)) for value in (box[0], box[2]))
    top, bottom = (min(max(value, 0.0), float(height)) for value in (box[1], box[3]))
    return ((left, top, right, bottom), places, kinds) if left < right and top < bottom else None


def _decode(
    segmenter: PromptableSegmenter, images: Sequence[np.ndarray], prompts: Sequence[_Prompt]
) -> list[np.ndarray]:
    """Compute the mask of each prompt, bool (H, W); prompts with and without a box are decoded apart."""
    used = sorted({k for k, *_ in prompts})
    squares = [_square(images[k]) for k in used]
    embeddings = segmenter.embeddings(squares)
    place = {k: number for number, k in enumerate(used)}
    found: dict[int, np.ndarray] = {}
    for boxed in (True, False):
        rows = [n for n, prompt in enumerate(prompts) if (prompt[2] is not None) == boxed]
        if not rows:
            continue
        sides = np.array([squares[place[prompts[n][0]]].shape[0] for n in rows], np.float32)
        most = max(len(prompts[n][3]) for n in rows)
        points, labels = np.zeros((len(rows), most, 2), np.float32), np.full((len(rows), most), PADDING)
        for row, n in enumerate(rows):
            points[row, : len(prompts[n][3])] = np.reshape(prompts[n][3], (-1, 2)) / sides[row]
            labels[row, : len(prompts[n][4])] = prompts[n][4]
        boxes = np.array([prompts[n][2] for n in rows], np.float32) / sides[:, None] if boxed else None
        shown = embeddings[[place[prompts[n][0]] for n in rows]]
        logits = segmenter.decode(shown, points, labels, side=1, boxes=boxes)  # shares of the square's side
        resized = segmenter.resize(logits, [(int(side), int(side)) for side in sides])
        for n, values in zip(rows, resized, strict=True):
            height, width = images[prompts[n][0]].shape[:2]
            found[n] = values[:height, :width] > 0
    return [found[n] for n in range(len(prompts))]


def _square(image: np.ndarray) -> np.ndarray:
    """Pad an image to a square with zeros right and below, as SAM's own preparation does."""
    height, width = image.shape[:2]
    if height == width:
        return image
    square = np.zeros((max(height, width),) * 2 + (3,), np.uint8)
    square[:height, :width] = image
    return square
