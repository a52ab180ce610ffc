"""What every metric starts from: checked maps, and masks cut to the part that holds something.

The metrics of this folder count pixels, and outside its box there is nothing of a mask to count. So a mask is kept as a
crop: a small object costs little, and a truth that meets many answers is cut and counted once (`prepare`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

FOREGROUND = 0.5  # a value above it is foreground wherever a map is read as a mask


@dataclass(frozen=True, eq=False)
class Blocks:
    """An image (H, W) cut into four blocks, and how much of a mask lies in each.

    Blocks come in the order top left, top right, bottom left, bottom right; one may hold no pixel.

    Attributes:
        shape: (H, W) of the image.
        cut: First row and first column of the bottom right block, at most H and W.
        areas: Foreground pixels in each.
    """

    shape: tuple[int, int]
    cut: tuple[int, int]
    areas: tuple[int, int, int, int]

    @cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        """Pixels in each."""
        (height, width), (row, column) = self.shape, self.cut
        below, right = height - row, width - column
        return row * column, row * right, below * column, below * right

    @cached_property
    def slices(self) -> tuple[tuple[slice, slice], ...]:
        """Rows and columns of each, to index an (H, W) array with."""
        above, below = slice(self.cut[0]), slice(self.cut[0], None)
        left, right = slice(self.cut[1]), slice(self.cut[1], None)
        return (above, left), (above, right), (below, left), (below, right)

    @cached_property
    def indicators(self) -> tuple[np.ndarray, np.ndarray]:
        """Float64 (2, H) and (W, 2): ``rows @ map @ columns`` sums an (H, W) map over the four blocks."""
        rows, columns = np.zeros((2, self.shape[0])), np.zeros((self.shape[1], 2))
        rows[0, : self.cut[0]] = rows[1, self.cut[0] :] = 1
        columns[: self.cut[1], 0] = columns[self.cut[1] :, 1] = 1
        return rows, columns


@dataclass(frozen=True, eq=False)
class PreparedMask:
    """A binary mask as a crop that holds all its foreground, with the counts that metrics ask for, each made once.

    Attributes:
        shape: (H, W) of the whole mask.
        top: First row of the crop.
        left: First column of the crop.
        crop: Bool (h, w); an empty mask has none or no foreground in it.
    """

    shape: tuple[int, int]
    top: int
    left: int
    crop: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, tight: bool = True) -> PreparedMask:
        """Crop a bool (H, W) array to its rows and columns with foreground; the crop is a view of it.

        Without ``tight`` all columns stay: for a mask that is counted once, finding them costs more than it saves.
        """
        data = mask.tobytes()  # searching bytes is several times as fast as NumPy's reductions
        width = mask.shape[1]
        top = max(data.find(1), 0) // width
        rows = mask[top : data.rfind(1) // width + 1]
        if not tight or not len(rows):
            return cls(mask.shape, top, 0, rows)
        columns = np.logical_or.reduce(rows, axis=0).nonzero()[0]
        left, right = int(columns[0]), int(columns[-1]) + 1
        return cls(mask.shape, top, left, rows[:, left:right].copy())  # contiguous, which counts twice as fast

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> PreparedMask:
        """Return the mask of this shape without foreground."""
        return cls(shape, 0, 0, np.zeros((0, shape[1]), bool))

    @property
    def size(self) -> int:
        """Number of pixels of the whole mask, H · W."""
        return self.shape[0] * self.shape[1]

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the crop, to index an (H, W) array with."""
        height, width = self.crop.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @cached_property
    def area(self) -> int:
        """Number of foreground pixels."""
        return int(np.count_nonzero(self.crop))

    @cached_property
    def weights(self) -> np.ndarray:
        """Float64 (h, w): 1 on the foreground of the crop, else 0."""
        return self.crop.astype(np.float64)

    @cached_property
    def blocks(self) -> Blocks:
        """The S-measure's four blocks of a mask that is not empty.

        They meet one pixel beyond the centroid (rounded half to even), as in the authors' MATLAB code, whose ``1:X``
        contains ``X``.
        """
        height, width = self.crop.shape
        (area, right), (down, _) = (_ones_and_places(height).T @ (self.weights @ _ones_and_places(width))).tolist()
        cut = round(self.top + down / area) + 1, round(self.left + right / area) + 1
        return Blocks(self.shape, cut, self.count_blocks(cut))

    def count_blocks(self, cut: tuple[int, int]) -> tuple[int, int, int, int]:
        """Count the foreground top left, top right, bottom left and bottom right of ``cut``, a (row, column)."""
        row, column = max(cut[0] - self.top, 0), max(cut[1] - self.left, 0)
        above, below = self.crop[:row], self.crop[row:]
        top_left = int(np.count_nonzero(above[:, :column]))
        top_right = int(np.count_nonzero(above[:, column:]))
        bottom_left = int(np.count_nonzero(below[:, :column]))
        return top_left, top_right, bottom_left, self.area - top_left - top_right - bottom_left

    def select(self, values: np.ndarray) -> np.ndarray:
        """Return the values (n,) of an (H, W) array on the foreground."""
        return values[self.box][self.crop]

    def intersection(self, other: PreparedMask) -> PreparedMask | None:
        """Return the foreground common to two masks of one shape, or None where their crops do not overlap."""
        (height, width), (other_height, other_width) = self.crop.shape, other.crop.shape
        down, right = other.top - self.top, other.left - self.left
        if not (-other_height < down < height and -other_width < right < width):
            return None
        mine = self.crop[max(down, 0) : down + other_height, max(right, 0) : right + other_width]
        theirs = other.crop[max(-down, 0) : height - down, max(-right, 0) : width - right]
        return PreparedMask(self.shape, max(self.top, other.top), max(self.left, other.left), mine & theirs)


@lru_cache(maxsize=256)
def _ones_and_places(length: int) -> np.ndarray:
    """Return float64 (length, 2) with rows (1, i), whose product with counts gives their sum and first moment."""
    return np.stack((np.ones(length), np.arange(length)), axis=1)


def prepare(target: Any) -> PreparedMask | tuple[PreparedMask, ...]:
    """Cut and copy a target, once, to score many predictions against it.

    The result is accepted by every metric in place of the target, and gives the same values.

    Args:
        target: (H, W) or (B, H, W), NumPy array or torch tensor, bool or values in [0, 1] (above 0.5 is foreground).

    Returns:
        One PreparedMask for (H, W), a tuple of B for (B, H, W).

    Raises:
        ValueError: If the shape has another number of axes, or a value is NaN or outside [0, 1].

    Example:
        >>> from maskgym.metrics import prepare, s_measure
        >>> truth = prepare(np.eye(4, dtype=bool))
        >>> [round(s_measure(answer, truth), 3) for answer in (np.eye(4), np.zeros((4, 4)))]
        [1.0, 0.594]
    """
    masks = as_mask(
        as_maps(target, "target")
    ).copy()  # the crops are views: what the caller does later must not reach them
    return PreparedMask.of(masks) if masks.ndim == 2 else tuple(PreparedMask.of(mask) for mask in masks)


def as_maps(value: Any, name: str) -> np.ndarray:
    """Check one argument of a metric and return it as an array, without a copy where none is needed.

    Args:
        value: (H, W) or (B, H, W), NumPy array or torch tensor on any device, bool or values in [0, 1].
        name: What the message calls it.

    Returns:
        Bool, float32 or float64 array of the same shape.

    Raises:
        ValueError: If the number of axes is not 2 or 3, an image has no pixel, or a value is NaN or outside [0, 1].
    """
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() and value.element_size() == 2 else value).numpy()
    maps = np.asarray(value)
    if maps.ndim not in (2, 3) or 0 in maps.shape[-2:]:
        raise ValueError(f"{name}: expected shape (H, W) or (B, H, W), got {maps.shape}")
    if maps.dtype == bool:
        return maps
    if maps.dtype not in (np.float32, np.float64):
        maps = maps.astype(np.float32 if maps.dtype == np.float16 else np.float64)
    # One comparison catches NaN too, which every reduction passes on.
    if maps.size and not (maps.min() >= 0 and maps.max() <= 1):
        place = tuple(int(axis) for axis in np.argwhere(~((maps >= 0) & (maps <= 1)))[0])
        raise ValueError(f"{name}: expected values in [0, 1], got {maps[place]} at {place}")
    return maps


def as_mask(maps: np.ndarray) -> np.ndarray:
    """Return checked maps as bool: themselves, or where they exceed 0.5."""
    return maps if maps.dtype == bool else maps > FOREGROUND


def as_prepared(value: Any, name: str) -> PreparedMask | Sequence[PreparedMask]:
    """Return one PreparedMask for (H, W), a sequence of them for (B, H, W); what is prepared already is passed on."""
    if isinstance(value, PreparedMask):
        return value
    if isinstance(value, Sequence) and all(isinstance(mask, PreparedMask) for mask in value):
        return value
    masks = as_mask(as_maps(value, name))
    return PreparedMask.of(masks) if masks.ndim == 2 else [PreparedMask.of(mask) for mask in masks]


def per_image(score: Callable[[np.ndarray, PreparedMask], Any], prediction: Any, target: Any) -> Any:
    """Apply ``score`` to each image of a checked pair.

    Args:
        score: Function of one map (H, W) and one PreparedMask of that shape; returns a float or an array.
        prediction: (H, W) or (B, H, W).
        target: The same shape, or what `prepare` made of it.

    Returns:
        What ``score`` returns for (H, W); those values stacked along a first axis for (B, H, W).

    Raises:
        ValueError: If the shapes differ, or an argument is not what `as_maps` accepts.
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
