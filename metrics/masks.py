"""Inputs of the metrics: validated maps, and masks cropped to their bounding boxes.

The metrics of this folder count pixels, and a mask has no foreground outside its bounding box. So a mask is kept as a
crop: small objects are cheap, and a ground truth that meets many predictions is cropped and counted once (`prepare`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

FOREGROUND = 0.5  # a value above this is foreground wherever a map is read as a mask


@dataclass(frozen=True, eq=False)
class Blocks:
    """Four blocks of an image (H, W), with the mask's foreground area in each.

    The order is top left, top right, bottom left, bottom right; a block may hold no pixel.

    Attributes:
        shape: (H, W) of the image.
        cut: First row and first column of the bottom right block, at most H and W.
        areas: Number of foreground pixels in each block.
    """

    shape: tuple[int, int]
    cut: tuple[int, int]
    areas: tuple[int, int, int, int]

    @cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        """Number of pixels in each block."""
        (height, width), (row, column) = self.shape, self.cut
        below, right = height - row, width - column
        return row * column, row * right, below * column, below * right

    @cached_property
    def slices(self) -> tuple[tuple[slice, slice], ...]:
        """Row and column slices of each block, to index an (H, W) array."""
        above, below = slice(self.cut[0]), slice(self.cut[0], None)
        left, right = slice(self.cut[1]), slice(self.cut[1], None)
        return (above, left), (above, right), (below, left), (below, right)


@dataclass(frozen=True, eq=False)
class PreparedMask:
    """A binary mask stored as a crop of its foreground, with cached counts for the metrics.

    Attributes:
        shape: (H, W) of the whole mask.
        top: First row of the crop.
        left: First column of the crop.
        crop: Bool (h, w); without pixels or without foreground for an empty mask.
    """

    shape: tuple[int, int]
    top: int
    left: int
    crop: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, tight: bool = True) -> PreparedMask:
        """Crop a bool (H, W) array to its rows and columns with foreground.

        Without ``tight`` the crop is the mask itself: for a mask that is counted once, the search costs more than it
        saves.
        """
        if not tight:
            return cls(mask.shape, 0, 0, mask)
        data = mask.tobytes()  # a search in bytes is several times faster than a NumPy reduction
        width = mask.shape[1]
        top = max(data.find(1), 0) // width
        rows = mask[top : data.rfind(1) // width + 1]
        if not len(rows):
            return cls(mask.shape, top, 0, rows)
        counts = _count_columns(rows)
        columns = counts.nonzero()[0]
        left, right = int(columns[0]), int(columns[-1]) + 1
        # Counting is twice as fast on contiguous memory.
        prepared = cls(mask.shape, top, left, rows[:, left:right].copy())
        vars(prepared)["columns"] = counts[left:right]  # the cached property
        return prepared

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> PreparedMask:
        """Build an empty mask of this shape."""
        return cls(shape, 0, 0, np.zeros((0, shape[1]), bool))

    @property
    def size(self) -> int:
        """Number of pixels of the whole mask, H · W."""
        return self.shape[0] * self.shape[1]

    @property
    def box(self) -> tuple[slice, slice]:
        """Row and column slices of the crop, to index an (H, W) array."""
        height, width = self.crop.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @cached_property
    def area(self) -> int:
        """Number of foreground pixels."""
        return int(np.count_nonzero(self.crop))

    @cached_property
    def columns(self) -> np.ndarray:
        """Number of foreground pixels in each column of the crop, integers (w,)."""
        return _count_columns(self.crop)

    @cached_property
    def blocks(self) -> Blocks:
        """The S-measure's four blocks of a non-empty mask.

        They meet one pixel beyond the centroid (rounded half to even), as in the authors' MATLAB code, whose ``1:X``
        contains ``X``.
        """
        down = float(_count_columns(self.crop.T) @ _places(self.crop.shape[0]))
        right = float(self.columns @ _places(self.crop.shape[1]))
        cut = round(self.top + down / self.area) + 1, round(self.left + right / self.area) + 1
        return Blocks(self.shape, cut, self.count_blocks(cut))

    def count_blocks(self, cut: tuple[int, int]) -> tuple[int, int, int, int]:
        """Count the foreground in the four blocks around ``cut``, a (row, column)."""
        row, column = max(cut[0] - self.top, 0), max(cut[1] - self.left, 0)
        above, below = self.crop[:row], self.crop[row:]
        # Counting whole rows, which are contiguous, is faster than counting the columns on the right.
        top, top_left = int(np.count_nonzero(above)), int(np.count_nonzero(above[:, :column]))
        bottom, bottom_left = int(np.count_nonzero(below)), int(np.count_nonzero(below[:, :column]))
        return top_left, top - top_left, bottom_left, bottom - bottom_left

    def select(self, values: np.ndarray) -> np.ndarray:
        """Return the values (n,) of an (H, W) array on the foreground."""
        return values[self.box][self.crop]

    def intersection(self, other: PreparedMask) -> PreparedMask | None:
        """Compute the intersection of two masks of one shape; None if their crops do not overlap."""
        (height, width), (other_height, other_width) = self.crop.shape, other.crop.shape
        down, right = other.top - self.top, other.left - self.left
        if not (-other_height < down < height and -other_width < right < width):
            return None
        mine = self.crop[max(down, 0) : down + other_height, max(right, 0) : right + other_width]
        theirs = other.crop[max(-down, 0) : height - down, max(-right, 0) : width - right]
        return PreparedMask(self.shape, max(self.top, other.top), max(self.left, other.left), mine & theirs)


@lru_cache(maxsize=256)
def _places(length: int) -> np.ndarray:
    return np.arange(length, dtype=np.float64)


def _count_columns(mask: np.ndarray) -> np.ndarray:
    """Count the foreground in each column of a bool (h, w) array."""
    if len(mask) > 255:
        return np.add(_count_columns(mask[:255]), _count_columns(mask[255:]), dtype=np.int64)
    # The sum in bytes, which 255 pixels cannot overflow, is several times as fast as one in a wider type.
    return np.einsum("ij->j", mask.view(np.uint8))


Maps: TypeAlias = "np.ndarray | Tensor"  # (H, W) or (B, H, W), bool or values in [0, 1]
Masks: TypeAlias = "Maps | PreparedMask | Sequence[PreparedMask]"  # targets, or what `prepare` made of them
_Score = TypeVar("_Score", bound=float | np.ndarray)


def prepare(target: Maps) -> PreparedMask | tuple[PreparedMask, ...]:
    """Crop and copy a target once, to score many predictions against it.

    Every metric accepts the result in place of the target and gives the same values.

    Args:
        target: (H, W) or (B, H, W), NumPy array or torch tensor, bool or values in [0, 1] (above 0.5 is foreground).

    Returns:
        One PreparedMask for (H, W), or a tuple of B for (B, H, W).

    Raises:
        ValueError: If the number of axes is not 2 or 3, or a value is NaN or outside [0, 1].

    Example:
        >>> from maskgym.metrics import prepare, s_measure
        >>> truth = prepare(np.eye(4, dtype=bool))
        >>> [round(s_measure(answer, truth), 3) for answer in (np.eye(4), np.zeros((4, 4)))]
        [1.0, 0.594]
    """
    # Crops are views, so later changes by the caller must not affect them.
    masks = as_mask(as_maps(target, "target")).copy()
    return PreparedMask.of(masks) if masks.ndim == 2 else tuple(PreparedMask.of(mask) for mask in masks)


def as_maps(value: Maps, name: str) -> np.ndarray:
    """Validate one argument of a metric and convert it to an array, without a copy where possible.

    Args:
        value: (H, W) or (B, H, W), NumPy array or torch tensor on any device, bool or values in [0, 1].
        name: Name of the argument in error messages.

    Returns:
        Bool, float32 or float64 array of the same shape.

    Raises:
        ValueError: If the number of axes is not 2 or 3, an image has no pixel, or a value is NaN or outside [0, 1].
    """
    # A tensor exists only if torch was imported, which takes seconds.
    if "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor):
        if value.is_meta:
            raise ValueError(f"{name}: expected values, got a tensor on the device meta, which has none")
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() and value.element_size() == 2 else value).numpy()
    maps = np.asarray(value)
    if maps.ndim not in (2, 3) or 0 in maps.shape[-2:]:
        raise ValueError(f"{name}: expected shape (H, W) or (B, H, W), got {maps.shape}")
    if maps.dtype == bool:
        # A view of other bytes as bool may hold true values that are not 1, which counting by bytes would miss.
        return maps if not maps.size or maps.view(np.uint8).max() <= 1 else maps.view(np.uint8) != 0
    if maps.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected bool or real numbers, got {maps.dtype}")
    if maps.dtype not in (np.float32, np.float64):
        maps = maps.astype(np.float32 if maps.dtype == np.float16 else np.float64)
    # As unsigned integers, the bits of floats from 0 to 1 are in order, and those of NaN and of all that has a sign are
    # larger. So one pass is enough, except for -0.0.
    bits = maps.view(f"u{maps.itemsize}")
    one = np.ones(1, maps.dtype).view(bits.dtype)
    if maps.size and bits.max() > one and not (maps.min() >= 0 and maps.max() <= 1):
        place = tuple(int(axis) for axis in np.argwhere(~((maps >= 0) & (maps <= 1)))[0])
        raise ValueError(f"{name}: expected values in [0, 1], got {maps[place]} at {place}")
    return maps


def as_mask(maps: np.ndarray) -> np.ndarray:
    """Binarise validated maps at 0.5; bool maps are returned unchanged."""
    return maps if maps.dtype == bool else maps > FOREGROUND


def as_prepared(value: Masks, name: str) -> PreparedMask | Sequence[PreparedMask]:
    """Prepare (H, W) as one PreparedMask, or (B, H, W) as a sequence; prepared input is returned unchanged."""
    if isinstance(value, PreparedMask):
        return value
    if isinstance(value, Sequence) and all(isinstance(mask, PreparedMask) for mask in value):
        return value
    masks = as_mask(as_maps(value, name))
    return PreparedMask.of(masks) if masks.ndim == 2 else [PreparedMask.of(mask) for mask in masks]


def per_image(
    score: Callable[[np.ndarray, PreparedMask], _Score], prediction: Maps, target: Masks
) -> _Score | np.ndarray:
    """Apply ``score`` to each image of a validated pair.

    Args:
        score: Function of one map (H, W) and one PreparedMask of that shape, which returns a float or an array.
        prediction: (H, W) or (B, H, W).
        target: The same shape, or the output of `prepare`.

    Returns:
        The output of ``score`` for (H, W); outputs stacked along a first axis for (B, H, W).

    Raises:
        ValueError: If the shapes differ, or `as_maps` refuses an argument.
    """
    maps, masks = as_maps(prediction, "prediction"), as_prepared(target, "target")
    shape: tuple[int, ...]
    if isinstance(masks, PreparedMask):
        shape = masks.shape
    else:
        shape = (len(masks), *(masks[0].shape if masks else maps.shape[-2:]))
    if maps.shape != shape:
        raise ValueError(f"prediction and target differ in shape: {maps.shape} and {shape}")
    if isinstance(masks, PreparedMask):
        return score(maps, masks)
    return np.array([score(image, mask) for image, mask in zip(maps, masks, strict=True)])
