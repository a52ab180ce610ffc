"""COCO's run-length codes of masks: lengths of runs down the columns that alternate, beginning with background."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TypedDict

import numpy as np
from pycocotools import mask as coco_mask

from maskgym.aliases import Json, JsonObject
from maskgym.errors import brief

Counts = str | bytes | Sequence[int]  # runs, compressed as text or listed
Polygon = Sequence[float]  # x, y, x, y, …


Segmentation = JsonObject | Sequence[Polygon]  # a run-length code as read from JSON, or polygons


class RunLengths(TypedDict):
    """Code of one mask, as JSON; ``size`` is [H, W]."""

    size: list[int]
    counts: str | list[int]


def encode(mask: np.ndarray) -> RunLengths:
    """Compress bool (H, W).

    Example:
        >>> encode(np.eye(2, dtype=bool))
        {'size': [2, 2], 'counts': '0120'}
    """
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def runs(mask: np.ndarray) -> list[int]:
    """List the lengths of the runs of bool (H, W), uncompressed."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def decode(code: RunLengths) -> np.ndarray:
    """Decode a code to bool (H, W).

    Raises:
        ValueError, KeyError, TypeError: If the code is malformed.
    """
    height, width = code["size"]
    return decode_counts(code["counts"], (height, width))


def decode_counts(counts: Counts, shape: tuple[int, int]) -> np.ndarray:
    """Decode runs to a mask of a known size, bool (H, W).

    The compressed form writes each run in base 32, low digits first, one character per digit (code - 48: bit 5 says
    that more follow, bit 4 of the last is the sign); from the fourth run on, a run is written as its difference to the
    run two places before.

    pycocotools does not check that the runs fill the mask: it returns uninitialised memory where they do not.

    Raises:
        ValueError: If the code is malformed, or does not fill ``shape`` exactly.
    """
    lengths = _lengths(counts, shape)
    height, width = shape
    return np.repeat(np.arange(lengths.size) % 2 == 1, lengths).reshape(width, height).T


def is_code(value: Json) -> bool:
    """Check that a value read from JSON is a code whose runs fill its mask, without making the mask."""
    if not isinstance(value, dict):
        return False
    match value.get("size"):
        case [int(height), int(width)] if height > 0 and width > 0:
            with suppress(ValueError):
                return bool(_lengths(value.get("counts", ""), (height, width)).size)
    return False


def _lengths(counts: Counts, shape: tuple[int, int]) -> np.ndarray:
    if not isinstance(counts, (str, bytes)) and np.size(counts) and np.asarray(counts).dtype.kind not in "iu":
        raise ValueError("malformed run lengths: expected whole numbers")
    try:
        lengths = _uncompress(counts) if isinstance(counts, (str, bytes)) else np.array(counts, dtype=np.int64)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"malformed run lengths: {error}") from error
    height, width = shape
    pixels = height * width
    if lengths.ndim != 1 or (lengths < 0).any() or (lengths > pixels).any() or lengths.sum() != pixels:
        raise ValueError(f"the run lengths do not fill {width}x{height} pixels")
    return lengths


def rasterise(segmentation: Segmentation, shape: tuple[int, int]) -> np.ndarray:
    """Decode polygons or a run-length code of COCO-style JSON to a mask, bool (H, W).

    Raises:
        ValueError, KeyError, TypeError, OverflowError: If the segmentation is malformed, or has another size.
    """
    height, width = shape
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", ())) != [height, width]:
            raise ValueError(f"its size is {repr(segmentation.get('size'))[:80]}, the photo's [{height}, {width}]")
        return decode_counts(segmentation["counts"], shape)
    try:
        polygons = [np.asarray(polygon, dtype=float) for polygon in segmentation]
    except (TypeError, ValueError) as error:
        raise ValueError(f"polygons hold no numbers: {brief(segmentation)}") from error
    for polygon in polygons:
        if polygon.ndim != 1 or polygon.size < 6 or polygon.size % 2:
            raise ValueError("a polygon needs three or more pairs of x and y")
        # The memory of COCO's rasteriser grows with the coordinates, because it walks along each edge.
        if not (np.abs(polygon.reshape(-1, 2) - (width / 2, height / 2)) <= (2 * width, 2 * height)).all():
            raise ValueError("a polygon lies far outside the photo")
    if not polygons:
        raise ValueError("no polygon")
    codes = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
    return decode_counts(coco_mask.merge(codes)["counts"], shape)


def _uncompress(counts: str | bytes) -> np.ndarray:
    code = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, dtype=np.uint8).astype(np.int64) - 48
    last = (code & 32) == 0
    if code.size == 0 or (code < 0).any() or (code > 63).any() or not last[-1]:
        raise ValueError("malformed run lengths")
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits exceed any image size
        raise ValueError("malformed run lengths")
    shifts = 5 * (np.arange(code.size) - np.repeat(starts, lengths))
    found = np.add.reduceat((code & 31) << shifts, starts)
    found -= np.where(code[ends] & 16, 1 << (5 * lengths), 0)
    found[1::2], found[2::2] = np.cumsum(found[1::2]), np.cumsum(found[2::2])
    return found
