"""Settings of the whole test run: no network, one copy of the package, the same examples on every machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

import maskgym

# Read when the libraries are imported, so set before any test is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("maskgym", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("maskgym")

# pytest imports the root's __init__.py by the name of the clone's folder: without this, as a second package.
sys.modules.setdefault(Path(__file__).parents[1].name, maskgym)


class Halves:
    """Segments ``left`` and ``right``; anything else is empty. Counts its calls."""

    fingerprint, input_size = "halves", 1

    def __init__(self) -> None:
        self.calls = 0

    def segment(self, images: Sequence[np.ndarray], expressions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        self.calls += 1
        return [
            np.stack([self._mask(image, phrase) for phrase in row]) if row else np.zeros((0, *image.shape[:2]), "f4")
            for image, row in zip(images, expressions, strict=True)
        ]

    def _mask(self, image: np.ndarray, phrase: str) -> np.ndarray:
        mask = np.zeros(image.shape[:2], dtype=np.float32)
        half = image.shape[1] // 2
        if "left" in phrase:
            mask[:, :half] = 1
        if "right" in phrase:
            mask[:, half:] = 1
        return mask


class Photos:
    """Three samples of different sizes whose truth is the left half; groups hold as many images."""

    def __init__(self, task: str = "sis", split: str = "train", instances: int = 1) -> None:
        from maskgym.data import Sample

        self.task, self.split = task, split
        rng = np.random.default_rng(0)
        sizes = [(20, 30), (40, 24), (32, 32)]
        images = [rng.integers(0, 256, size=(*size, 3), dtype=np.uint8) for size in sizes]
        masks = [np.zeros((instances, *size), dtype=bool) for size in sizes]
        for mask, size in zip(masks, sizes, strict=True):
            mask[:, :, : size[1] // 2] = True
        if task == "cosod":
            self.samples = [Sample(f"group{n}", tuple(images[:n]), tuple(masks[:n])) for n in (1, 2, 3)]
        else:
            self.samples = [
                Sample(f"photo{n}", (image,), (mask,), rationale="why")
                for n, (image, mask) in enumerate(zip(images, masks, strict=True))
            ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        return self.samples[index]


@pytest.fixture
def halves() -> Halves:
    return Halves()


@pytest.fixture
def photos() -> type[Photos]:
    return Photos
