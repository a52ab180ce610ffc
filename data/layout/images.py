"""Read photos and masks, and report faults, for all folder readers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from maskgym.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
FOREGROUND = 128  # a mask's pixel is foreground above this grey level, as in PySODMetrics
_FEW_LEVELS = 8  # at most this many levels are intended, not smooth edges
_COLOUR_TOLERANCE = 16  # JPEG compression adds slight colour to grey images
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

T = TypeVar("T")


class DataFault(UserError):
    """Raised for unusable files of a data set; the message is one line that names the first fault.

    Args:
        *faults: All faults, each one line that starts with the file's name.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__(*(" ".join(fault.split()) for fault in faults))

    @property
    def faults(self) -> tuple[str, ...]:
        """All faults, one line each."""
        return self.args

    def __str__(self) -> str:
        more = len(self.faults) - 1
        return self.faults[0] + (f" (and {more} more; `maskgym data check` lists them all)" if more else "")


def read_all(readings: Iterable[Callable[[], T]]) -> list[T]:
    """Call each reading function and return the results.

    Raises:
        DataFault: If any reading raised one; it collects the faults of all readings.
    """
    results: list[T] = []
    faults: list[str] = []
    for reading in readings:
        try:
            results.append(reading())
        except DataFault as error:
            faults.extend(error.faults)
    if faults:
        raise DataFault(*faults)
    return results


def is_picture(name: str) -> bool:
    """Check whether a file name is an image's; hidden files and macOS ``._`` files are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def read_image(path: Path) -> np.ndarray:
    """Read a photo as uint8 (H, W, 3) RGB, rotated by its EXIF orientation.

    Grey, palette, CMYK and 16-bit photos are converted; an alpha channel is dropped.

    Raises:
        DataFault: If the file is absent, truncated, or cannot be decoded.
    """
    picture = _eight_bits(_load(path))
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns if a palette with transparency skips this step
    return np.array(picture.convert("RGB"))


def read_mask(path: Path) -> np.ndarray:
    """Read a mask as uint8 (H, W) grey levels; ``level > FOREGROUND`` is foreground.

    Every mode is first converted to 8-bit grey: a raw 1-bit PNG holds 0 and 1, neither above 128.
    Colours are refused, because they denote classes or instances (PASCAL VOC, S4Net), and a conversion to grey
    would silently lose some.

    Raises:
        DataFault: If the file is absent, truncated, cannot be decoded, or is coloured.
    """
    return _grey(path, _load(path))


def _grey(path: Path, loaded: Image.Image) -> np.ndarray:
    picture = _eight_bits(loaded)
    if picture.mode not in ("1", "L", "LA"):
        channels = np.asarray(picture.convert("RGB")).astype(np.int16)
        if np.ptp(channels, axis=2).max() > _COLOUR_TOLERANCE:
            raise DataFault(f"{path}: a coloured mask (mode {picture.mode}): expected grey levels, foreground > 128")
    return np.array(picture.convert("L"))


def read_labels(path: Path, palette: bool = False) -> np.ndarray:
    """Read a label image as int32 (H, W), with the file's values unconverted.

    A palette gives the index, grey the level at full depth (one bit: 0 or 1), and colours R·65536 + G·256 + B.
    An alpha channel is dropped.

    Args:
        path: Path of the file.
        palette: Whether the file must have a palette.

    Raises:
        DataFault: If the file is absent, truncated, cannot be decoded, is a JPEG, or lacks a required palette.
    """
    picture = _load_exact(path)
    if palette and picture.mode != "P":
        raise DataFault(f"{path}: no palette (mode {picture.mode}): expected a palette PNG, its indices the labels")
    if picture.mode in ("LA", "PA"):
        picture = picture.getchannel(0)
    if picture.mode in ("1", "L", "P") or picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.int32)
    red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB")).astype(np.int32), 2, 0)
    return red << 16 | green << 8 | blue


def read_levels(path: Path) -> np.ndarray:
    """Read the grey levels of an image as int32 (H, W) at full depth; ranks, unlike masks, are not scaled.

    Grey may be stored as colours or with a palette.

    Raises:
        DataFault: If the file is absent, truncated, cannot be decoded, is a JPEG, or is coloured.
    """
    picture = _load_exact(path)
    if picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.int32)
    if picture.mode not in ("1", "L", "LA") and np.ptp(np.asarray(picture.convert("RGB")), axis=2).any():
        raise DataFault(f"{path}: a coloured picture (mode {picture.mode}): expected grey levels")
    return np.asarray(picture.convert("L")).astype(np.int32)


def describe_mask(path: Path) -> str | None:
    """Describe what is unusual about a readable mask, without the file's name; None if nothing is.

    Levels above 128 are foreground in every case.

    Raises:
        DataFault: As `read_mask`.
    """
    picture = _load(path)
    levels = np.unique(_grey(path, picture))
    between = levels[(levels > 0) & (levels < 255)]
    if picture.mode.startswith("I"):
        return "of 16 bits, read as 8"
    if not len(between):
        return None
    if picture.format in ("JPEG", "MPO"):
        return "JPEGs, with levels between black and white"
    if len(levels) <= _FEW_LEVELS:
        return f"of {len(levels)} levels ({', '.join(map(str, levels))}), perhaps of several classes"
    return "grey, with levels between black and white"


def check_same_size(path: Path, image: np.ndarray, other: str, shape: tuple[int, int]) -> None:
    """Raise a DataFault unless the photo has ``shape`` = (H, W), the size that ``other`` has or states."""
    height, width = image.shape[:2]
    if (height, width) != tuple(shape):
        turned = " (the photo is turned as its EXIF orientation says)" if (width, height) == tuple(shape) else ""
        raise DataFault(f"{path}: the photo is {width}x{height} but {other} is {shape[1]}x{shape[0]}{turned}")


def read_pair(image_path: Path, mask_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a photo, uint8 (H, W, 3), and its mask's grey levels, uint8 (H, W).

    Raises:
        DataFault: If either cannot be read, or their sizes differ.
    """
    image, levels = read_all([lambda: read_image(image_path), lambda: read_mask(mask_path)])
    check_same_size(image_path, image, f"its mask {mask_path}", levels.shape)
    return image, levels


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Convert an image to 8 bits per channel."""
    if picture.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling
        return Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    return picture


def _load_exact(path: Path) -> Image.Image:
    """Decode an image whose exact values matter."""
    picture = _load(path)
    if picture.format in ("JPEG", "MPO"):
        raise DataFault(f"{path}: a JPEG: expected values without loss, as in a PNG")
    return picture


def _load(path: Path) -> Image.Image:
    """Decode an image fully and upright; also return its file format."""
    try:
        with Image.open(path) as picture:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            upright.format = picture.format
    except FileNotFoundError:
        raise DataFault(f"{path}: no such file") from None
    except Image.UnidentifiedImageError:
        raise DataFault(f"{path}: cannot be decoded: not a picture of a known format") from None
    except _DECODING_ERRORS as error:
        raise DataFault(f"{path}: cannot be decoded: {error}") from None
    return upright
