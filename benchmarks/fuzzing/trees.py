"""Data sets in memory: trees of files, and the pictures in them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SHAPE = (12, 16)
BOXES = ((1, 1, 5, 4), (9, 2, 4, 7))  # x, y, width, height of the two objects of each picture


@dataclass(frozen=True)
class Link:
    """Symbolic link; a target that begins with ``OUTSIDE/`` is in a folder beside the data set."""

    target: str


@dataclass(frozen=True)
class Pipe:
    """Named pipe, which blocks who reads it."""


@dataclass(frozen=True)
class Folder:
    """Empty folder."""


Node = bytes | Link | Pipe | Folder
Tree = dict[str, Node]
OUTSIDE = "OUTSIDE/"


def write(tree: Tree, root: Path, outside: Path) -> None:
    """Write a tree into a folder; ``outside`` is the folder that links out of it mean."""
    root.mkdir(parents=True, exist_ok=True)
    for name, node in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(node, bytes):
            path.write_bytes(node)
        elif isinstance(node, Link):
            target = node.target
            path.symlink_to(outside / target.removeprefix(OUTSIDE) if target.startswith(OUTSIDE) else target)
        elif isinstance(node, Pipe):
            os.mkfifo(path)
        else:
            path.mkdir()


def read(root: Path) -> Tree:
    """Read a folder as a tree."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def encode(picture: Image.Image | np.ndarray, kind: str = "PNG", **settings: object) -> bytes:
    """Encode a picture."""
    made = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    stream = io.BytesIO()
    made.save(stream, kind, **settings)
    return stream.getvalue()


def decode(content: Node) -> Image.Image:
    """Decode a picture."""
    assert isinstance(content, bytes)
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


def noise(seed: int, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Draw a photo, uint8 (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def photo(seed: int, kind: str = "JPEG", shape: Sequence[int] = SHAPE) -> bytes:
    """Encode a photo of noise."""
    return encode(noise(seed, shape), kind)


def boxes(levels: Sequence[int], shape: Sequence[int] = SHAPE, dtype: str = "u1") -> np.ndarray:
    """Draw one box per level on 0, (H, W)."""
    pixels = np.zeros(shape, dtype)
    for level, (x, y, width, height) in zip(levels, BOXES, strict=False):
        pixels[y : y + height, x : x + width] = level
    return pixels


def mask(shape: Sequence[int] = SHAPE) -> bytes:
    """Encode a mask of two boxes in white on black."""
    return encode(boxes((255, 255), shape))


def indexed(pixels: np.ndarray, tint: int = 0) -> Image.Image:
    """Make a picture with a palette whose indices are the pixels."""
    picture = Image.frombytes("P", pixels.shape[::-1], pixels.astype(np.uint8).tobytes())
    picture.putpalette([(37 * place + tint) % 256 for place in range(768)])
    return picture


def polygon(number: int) -> list[list[int]]:
    """List the corners of a box as a polygon of COCO."""
    x, y, width, height = BOXES[number]
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]
