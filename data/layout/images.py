"""Read photos and masks, and report faults, for all folder readers."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from maskgym.errors import UserError, one_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Pillow would also try formats that other programs decode, such as EPS by Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
FOREGROUND = 128  # a mask's pixel is foreground above this grey level, as in PySODMetrics
_FEW_LEVELS = 8  # at most this many levels are intended, not smooth edges
_COLOUR_TOLERANCE = 16  # JPEG compression adds slight colour to grey images
_LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WebP"}  # names of formats that may change values
SOFT = "grey, with levels between black and white"
_DIMMEST = {"photo": 2**12, "mask": 2**15}  # levels of 16 bits below which all are near black, or no foreground
_DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError),
    *(LookupError, TypeError, OverflowError, MemoryError),
)

T = TypeVar("T")
Source = Path | BytesIO  # a file, or its content, whose text is a name for messages


class DataFault(UserError):
    """Raised for unusable files of a data set; the message is one line that names the first fault.

    Args:
        *faults: All faults, each one line that starts with the file's name.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__(*map(one_line, faults))

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


def read_image(path: Source) -> np.ndarray:
    """Read a photo as uint8 (H, W, 3) RGB, rotated by its EXIF orientation.

    Grey, palette, CMYK and 16-bit photos are converted; an alpha channel is dropped.

    Raises:
        DataFault: If the file is absent, truncated, cannot be decoded, or would be near black because its 16 bits
            hold levels of 12 bits or fewer.
    """
    loaded = _load(path)
    if dim := _dim(loaded, "photo"):
        raise DataFault(f"{path}: a photo {dim}")
    if loaded.mode == "F":
        raise DataFault(f"{path}: a photo of floats: expected 8 bits per channel")
    picture = _eight_bits(loaded)
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns if a palette with transparency skips this step
    return np.array(picture.convert("RGB"))


def read_size(path: Path) -> tuple[int, int]:
    """Read the size (H, W) of a photo as `read_image` rotates it, mostly without decoding it.

    Raises:
        DataFault: If the file is absent or no picture of a known format.
    """
    try:
        check_regular(path)
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except DataFault:
        raise
    except _DECODING_ERRORS as error:
        raise DataFault(f"{path}: cannot be decoded: {error}") from None
    return (width, height) if turned else (height, width)


def read_mask(path: Source) -> np.ndarray:
    """Read a mask as uint8 (H, W) grey levels; ``level > FOREGROUND`` is foreground.

    Every mode is first converted to 8-bit grey: a raw 1-bit PNG holds 0 and 1, neither above 128.
    Colours are refused, because they denote classes or instances (PASCAL VOC, S4Net), and a conversion to grey
    would silently lose some. A mask in the alpha channel is refused, because alpha is dropped.

    Raises:
        DataFault: If the file is absent, truncated, cannot be decoded, is coloured, holds floats, has one colour and
            several levels of alpha, or would have no foreground because its 16 bits hold levels of fewer.
    """
    return inspect_mask(path)[0]


def inspect_mask(path: Source, predicted: bool = False) -> tuple[np.ndarray, str | None]:
    """Read a mask or a predicted map, and describe what is unusual about it.

    The description fits behind "masks" or "predictions", and is None if nothing is unusual.

    Args:
        path: Path of the file.
        predicted: Whether it is a prediction: then 16 bits without a level above 255 are described, not refused,
            because they may be meant as black.

    Raises:
        DataFault: As `read_mask`.
    """
    picture = _load(path)
    if not predicted and (dim := _dim(picture, "mask")):
        raise DataFault(f"{path}: a mask {dim}")
    levels = _grey(path, picture)
    return levels, _describe(picture, levels)


def _describe(picture: Image.Image, levels: np.ndarray) -> str | None:
    if dim := _dim(picture, "photo"):  # of a prediction: a mask was refused
        return dim
    present = np.flatnonzero(np.bincount(levels.ravel(), minlength=256))
    if len(present) == 1:
        return f"of one level: {'all foreground' if present[0] > FOREGROUND else 'no foreground'}"
    if picture.mode.startswith("I"):
        return "of 16 bits, read as 8"
    if present[0] == 0 and present[-1] == 255 and len(present) == 2:
        return None
    if picture.format in _LOSSY:
        return f"in {_LOSSY[picture.format]}, with levels between black and white"
    if len(present) <= _FEW_LEVELS:
        return f"of {len(present)} levels ({', '.join(map(str, present))}), perhaps of several classes"
    return SOFT


def _grey(path: Source, loaded: Image.Image) -> np.ndarray:
    _check_alpha(path, loaded, tolerance=2)  # rounding of colours behind transparency
    picture = _eight_bits(loaded)
    if picture.mode == "F":
        raise DataFault(f"{path}: a mask of floats: expected grey levels of 8 bits, foreground > {FOREGROUND}")
    if picture.mode not in ("1", "L", "LA"):
        channels = np.asarray(picture.convert("RGB")).astype(np.int16)
        if np.ptp(channels, axis=2).max() > _COLOUR_TOLERANCE:
            raise DataFault(f"{path}: a coloured mask (mode {picture.mode}): expected grey levels, foreground > 128")
    return np.array(picture.convert("L"))


def _check_alpha(path: Source, picture: Image.Image, tolerance: int = 0) -> None:
    """Raise a DataFault if a mask has one colour, within a tolerance, and several levels of alpha, which is dropped."""
    if not picture.has_transparency_data or picture.mode.startswith("I"):
        return
    channels = np.asarray(picture.convert("RGBA"))
    colours, alpha = channels[..., :3], channels[..., 3]
    if np.ptp(alpha) and np.ptp(colours.reshape(-1, 3), axis=0).max() <= tolerance:
        raise DataFault(
            f"{path}: one colour and {len(np.unique(alpha))} levels of alpha: the mask is in the alpha channel, which "
            "is not read: expected grey levels without alpha"
        )


def read_labels(path: Source, palette: bool = False) -> np.ndarray:
    """Read a label image as int32 (H, W), with the file's values unconverted.

    A palette gives the index, grey the level at full depth (one bit: 0 or 1), and colours R·65536 + G·256 + B.
    An alpha channel is dropped.

    Args:
        path: Path of the file.
        palette: Whether the file must have a palette.

    Raises:
        DataFault: If the file is absent, truncated, cannot be decoded, is a JPEG or WebP, lacks a required palette, or
            has one colour and several levels of alpha.
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


def read_levels(path: Source) -> np.ndarray:
    """Read the grey levels of an image as int32 (H, W) at full depth; ranks, unlike masks, are not scaled.

    Grey may be stored as colours or with a palette.

    Raises:
        DataFault: If the file is absent, truncated, cannot be decoded, is a JPEG or WebP, is coloured, or has one
            colour and several levels of alpha.
    """
    picture = _load_exact(path)
    if picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.int32)
    if picture.mode not in ("1", "L", "LA") and np.ptp(np.asarray(picture.convert("RGB")), axis=2).any():
        raise DataFault(f"{path}: a coloured picture (mode {picture.mode}): expected grey levels")
    return np.asarray(picture.convert("L")).astype(np.int32)


def check_regular(path: Path) -> None:
    """Raise a DataFault if a path is there and is no regular file, such as a named pipe, which would block for ever."""
    if path.exists() and not path.is_file():
        raise DataFault(f"{path}: not a regular file")


def check_same_size(path: Source, image: np.ndarray, other: str, shape: tuple[int, int]) -> None:
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


def _dim(picture: Image.Image, kind: str) -> str | None:
    """Describe 16 bits that hold the levels of fewer, such as a camera's 12, and would be read as black."""
    highest = int(np.asarray(picture).max()) if picture.mode.startswith("I") else 0
    if not 0 < highest < _DIMMEST[kind]:
        return None
    return f"of 16 bits without a level above {highest}, read as black: expected 8 bits, or levels up to {2**16 - 1}"


def _load_exact(path: Source) -> Image.Image:
    """Decode an image whose exact values matter."""
    picture = _load(path)
    if lossy := _LOSSY.get(picture.format or ""):
        raise DataFault(f"{path}: a {lossy}: expected values without loss, as in a PNG")
    if picture.mode == "F":
        raise DataFault(f"{path}: a picture of floats: expected whole numbers")
    if picture.mode not in ("P", "PA"):  # the values are those of the palette's index
        _check_alpha(path, picture)
    return picture


def _check_sums(path: Source, picture: Image.Image) -> None:
    """Raise a DataFault if a part of a PNG differs from its checksum: Pillow does not compare those of the pixels."""
    if picture.format != "PNG":
        return
    content = path.read_bytes() if isinstance(path, Path) else path.getvalue()
    place = 8  # behind the signature
    while len(content) >= place + 12:
        (length,), end = struct.unpack_from(">I", content, place), place + 8
        stated = content[end + length : end + length + 4]
        if zlib.crc32(content[place + 4 : end + length]).to_bytes(4) != stated:
            raise DataFault(f"{path}: cannot be decoded: damaged, as the checksum of a part of this PNG says")
        if content[place + 4 : end] == b"IEND":
            return
        place = end + length + 4


def _load(path: Source) -> Image.Image:
    """Decode an image fully and upright; also return its file format."""
    try:
        if isinstance(path, Path):
            check_regular(path)
        with Image.open(path, formats=FORMATS) as picture:
            _check_sums(path, picture)
            frames = getattr(picture, "n_frames", 1)
            if frames > 1 and picture.format != "MPO":  # a camera's file of a photo and its preview
                raise DataFault(f"{path}: {frames} frames: expected one picture")
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            upright.format = picture.format
    except DataFault:
        raise
    except FileNotFoundError:
        raise DataFault(f"{path}: no such file") from None
    except Image.UnidentifiedImageError:
        raise DataFault(f"{path}: cannot be decoded: not a picture of a known format") from None
    except _DECODING_ERRORS as error:
        raise DataFault(f"{path}: cannot be decoded: {error}") from None
    return upright
