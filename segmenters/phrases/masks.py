"""Masks of phrases from any referring segmenter: equal phrases once, checked, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized

import numpy as np

from maskgym.errors import UserError, brief
from maskgym.segmenters.contracts import ReferringSegmenter
from maskgym.segmenters.outputs import check_probabilities

CALL_BYTES = 2**30  # probabilities that one call of a segmenter may return


def find_masks(
    segmenter: ReferringSegmenter,
    images: Sequence[np.ndarray],
    expressions: Sequence[Sequence[str]],
    keys: Sequence[str],
) -> list[np.ndarray]:
    """Segment what each expression refers to in its image, and threshold at 0.5.

    One call serves all images unless its probabilities would take more than `CALL_BYTES`.

    Args:
        segmenter: Any referring segmenter.
        images: uint8 (H_i, W_i, 3) RGB arrays.
        expressions: For each image, n_i phrases; equal ones are asked once.
        keys: For each image, the key of its sample, for messages.

    Returns:
        For each image bool (n_i, H_i, W_i).

    Raises:
        UserError: If the segmenter does not return float (n_i, H_i, W_i) in [0, 1] for each image.
    """
    unique = [list(dict.fromkeys(row)) for row in expressions]
    parts: list[list[np.ndarray]] = [[] for _ in images]
    for call in _calls(images, unique):
        shown, asked = [images[k] for k, _ in call], [row for _, row in call]
        found = segment_checked(segmenter, shown, asked, [f"sample '{keys[k]}'" for k, _ in call])
        for (k, _), masks in zip(call, found, strict=True):
            parts[k].append(masks > 0.5)
    return [_in_order(part, own, row) for part, own, row in zip(parts, unique, expressions, strict=True)]


def segment_checked(
    segmenter: ReferringSegmenter,
    images: Sequence[np.ndarray],
    expressions: Sequence[Sequence[str]],
    names: Sequence[str],
) -> Sequence[np.ndarray]:
    """Call a segmenter, and check what it returns.

    Args:
        segmenter: Any referring segmenter.
        images: uint8 (H_i, W_i, 3) RGB arrays.
        expressions: For each image, n_i phrases.
        names: For each image, its name in messages.

    Returns:
        For each image probabilities, float (n_i, H_i, W_i).

    Raises:
        UserError: If the segmenter does not return float (n_i, H_i, W_i) in [0, 1] for each image.
    """
    found, name = segmenter.segment(images, expressions), f"segmenter {type(segmenter).__name__}"
    if not isinstance(found, Sized) or len(found) != len(images):
        raise UserError(f"{name}: {brief(found)}: expected a list of {len(images)} arrays, one per image")
    for image, row, own, masks in zip(images, expressions, names, found, strict=True):
        check_probabilities(masks, (len(row), *image.shape[:2]), f"{name}: {own}, {len(row)} phrases")
    return found


def _calls(images: Sequence[np.ndarray], phrases: Sequence[list[str]]) -> Iterator[list[tuple[int, list[str]]]]:
    """Yield the calls: for each, numbers of images and some or all of their phrases."""
    call: list[tuple[int, list[str]]] = []
    used = 0
    for number, (image, row) in enumerate(zip(images, phrases, strict=True)):
        each = 4 * image.shape[0] * image.shape[1]
        most = max(1, CALL_BYTES // each)
        for start in range(0, max(1, len(row)), most):
            piece = row[start : start + most]
            if call and used + len(piece) * each > CALL_BYTES:
                yield call
                call, used = [], 0
            call.append((number, piece))
            used += len(piece) * each
    if call:
        yield call


def _in_order(parts: list[np.ndarray], unique: list[str], phrases: Sequence[str]) -> np.ndarray:
    """Join the masks of the unique phrases, and repeat those of phrases that are repeated."""
    masks = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if len(unique) == 1:  # A policy that repeats itself must not fill the memory: all rows are one.
        return np.broadcast_to(masks, (len(phrases), *masks.shape[1:]))
    return masks if len(unique) == len(phrases) else masks[[unique.index(phrase) for phrase in phrases]]
