"""The example package, installed beside maskgym as a user would: found with no change here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """Return a function that runs Python with the example installed, and gives what it printed."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path_factory.mktemp("source") / "maskgym_circles"
    subprocess.run(["cp", "-r", str(ROOT / "examples" / "maskgym_circles"), str(source)], check=True)
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)

    def run(*arguments, cwd):
        path = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_gymnasium_makes_its_environment(beside, tmp_path):
    script = (
        "import gymnasium as gym, maskgym\n"
        "from maskgym import data, rewards, segmenters\n"
        "parts = dict(dataset=data.make('circles'), segmenter=segmenters.make('threshold'))\n"
        "env = gym.make('circles/Circles-v0', image_size=64, reward=rewards.make('iou'), **parts)\n"
        "observation, _ = env.reset(seed=0)\n"
        "print(observation['instruction'][:18])\n"
        "print(env.step('<think>x</think><answer><rg>the bright part</rg></answer>')[1])\n"
    )
    words, reward = beside("-c", script, cwd=tmp_path).splitlines()
    assert words == "There is a circle." and float(reward) == 1


def test_the_command_line_finds_every_part(beside, tmp_path):
    given = ("env=circles", "algo=first_words", "data=circles", "segmenter=threshold", "reward=tidy")
    beside("-m", "maskgym.experiments.cli", "run", *given, "out=run", cwd=tmp_path)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["env"], results["algo"], results["steps"]) == ("circles", "first_words", 3)
    assert results["before"]["iou"] < 0.3 and results["after"]["iou"] == 1 and results["after"]["tidiness"] == 1
    assert "radius: 6" in (tmp_path / "run" / "config.yaml").read_text()
    helped = beside("-m", "maskgym.experiments.cli", "run", "--help", cwd=tmp_path)
    assert "circles" in helped and "first_words" in helped
