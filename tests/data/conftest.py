"""Miniature data sets, and the real photographs where they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_photo(path: Path, size=(12, 16), value=90) -> Path:
    """Write a photo of (height, width) pixels; its red channel is ``value``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[..., 0] = value
    Image.fromarray(pixels).save(path)
    return path


def write_mask(path: Path, size=(12, 16), level=255) -> Path:
    """Write a mask whose upper left quarter has grey ``level`` and whose rest is 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size, np.uint8)
    pixels[: size[0] // 2, : size[1] // 2] = level
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photo():
    return write_photo


@pytest.fixture
def mask():
    return write_mask


@pytest.fixture
def truncate():
    def cut(path: Path) -> Path:
        path.write_bytes(path.read_bytes()[:-40])
        return path

    return cut


@pytest.fixture
def real_data():
    """The folder of the real photographs: MASKGYM_DATA, else ``shared/data`` beside the repository."""
    folder = Path(os.environ.get("MASKGYM_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real photographs in {folder}: set MASKGYM_DATA")
    return folder
