"""The point environment of the tests of click agents, on the bundled SAM."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import pytest

from maskgym import data
from maskgym.segmenters.points.sam import sam_tiny


@pytest.fixture(scope="session")
def sam():
    """Build the bundled SAM."""
    return sam_tiny(device="cpu")


@pytest.fixture
def make_env(sam):
    """Build a function from settings to the environment of eight scenes, whose episodes have four clicks."""
    return partial(_make_env, sam)


def _make_env(sam, count=4, split="train", **settings):
    settings = {"label_source": "positive", "horizon": 4, "segmenter": sam, "autoreset_mode": "Disabled"} | settings
    return gym.make_vec(
        "maskgym/PointPrompt-v0",
        num_envs=count,
        vectorization_mode="vector_entry_point",
        dataset=data.make("scenes", task="sod", split=split, size=8),
        **settings,
    )
