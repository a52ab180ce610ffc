"""Bundled SAM and four scenes, for all baselines."""

from __future__ import annotations

import pytest

from maskgym.data.scenes import Scenes
from maskgym.segmenters.points.sam import sam_tiny


@pytest.fixture(scope="package")
def segmenter():
    return sam_tiny(device="cpu")


@pytest.fixture(scope="package")
def samples():
    scenes = Scenes("sod", "train")
    return [scenes[index] for index in range(4)]


@pytest.fixture(scope="package")
def pictures(samples):
    return [sample.images[0] for sample in samples]
