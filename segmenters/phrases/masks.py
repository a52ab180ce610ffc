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
        found = segmenter.segment(shown, asked)
        name = f"segmenter {type(segmenter).__name__}"
        if not isinstance(found, Sized) or len(found) != len(call):
            raise UserError(f"{name}: {brief(found)}: expected a list of {len(call)} arrays, one per image")
        for (k, row), masks in zip(call, found, strict=True):
            shape = (len(row), *images[k].shape[:2])
            check_probabilities(masks, shape, f"{name}: sample '{keys[k]}', {len(row)} phrases")
            parts[k].append(masks > 0.5)
    return [_in_order(part, own, row) for part, own, row in zip(parts, unique, expressions, strict=True)]


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
