"""What the tests of experiments share: the command line called in this process, and a tiny data set drawn by hand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgym.experiments import run


@pytest.fixture
def maskgym_run(capfd):
    """Return a function that calls the run's command line and gives its status, standard output and error lines."""

    def call(*arguments: str) -> tuple[int, str, list[str]]:
        capfd.readouterr()
        status = run.main(list(arguments))
        out, error = capfd.readouterr()
        return status, out, error.splitlines()

    return call


@pytest.fixture
def photo_folder(tmp_path):
    """Return a folder of 40 photos, 24 x 32, with masks: the left half is salient."""
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    mask = np.zeros((24, 32), np.uint8)
    mask[:, :16] = 255
    for number in range(40):
        noise = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "images" / f"{number:03d}.jpg")
        Image.fromarray(mask).save(root / "masks" / f"{number:03d}.png")
    return root


@pytest.fixture
def worker_of():
    """Return a function that finds the id of a process below another one, by the beginning of its program's name."""

    def find(pid: int, name: str) -> int:
        listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
        family = {pid}
        while more := {int(row[0]) for row in rows if int(row[1]) in family} - family:
            family |= more
        return next(
            int(row[0]) for row in rows if int(row[0]) in family and Path(row[-1].split()[0]).name.startswith(name)
        )

    return find
