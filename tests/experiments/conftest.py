"""Fixtures for the tests of experiments: the command line in this process, finished runs, and a tiny data set."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from maskgym.experiments import run

SMALL = ("evaluation.samples=4", "evaluation.pictures=2", "env.num_envs=4")
RUNS = {  # those that train keep a checkpoint of every update, so that a killed one can be compared
    "text": ("env=sis", "algo=random"),
    "cgpo": (
        *("env=sis", "algo=cgpo", "env.default_batch_size=4", "algo.updates=4", "algo.save_every=1"),
        *("algo.isr_period=3", "algo.isr_sft_steps=1"),
    ),
    "ppo": (
        *("env=point_prompt", "algo=ppo", "env.label_source=policy", "env.horizon=5"),
        *("algo.updates=3", "algo.epochs=2", "algo.save_every=1"),
    ),
    "usersal": ("env=user_need", "algo=usersal", "algo.batch_size=2", "algo.updates=2"),
    "ranking": ("env=ranking", "algo=random"),
}


@pytest.fixture
def maskgym_run(capfd):
    """Return a function that calls the run's command line and gives its status, standard output and error lines."""

    def call(*arguments: str) -> tuple[int, str, list[str]]:
        capfd.readouterr()
        status = run.main(list(arguments))
        out, error = capfd.readouterr()
        return status, out, error.splitlines()

    return call


class FinishedRuns:
    """The runs that tests share: each is made once, by the process of pytest-xdist that first asks for it."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared
        self.shared.mkdir(exist_ok=True)

    def arguments(self, name: str) -> list[str]:
        return [*RUNS[name], *SMALL]

    def __call__(self, name: str) -> Path:
        """Return the folder of a run of `RUNS`; copy it to change it."""
        folder = self.shared / name
        with FileLock(self.shared / f"{name}.lock"):
            if not (folder / "report.html").exists():
                assert run.main([*self.arguments(name), f"out={folder}"]) == 0
        return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> FinishedRuns:
    base = tmp_path_factory.getbasetemp()
    return FinishedRuns((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished")


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
        listed = subprocess.run(
            ["ps", "-e", "-ww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
        family = {pid}
        while more := {int(row[0]) for row in rows if int(row[1]) in family} - family:
            family |= more
        return next(
            int(row[0]) for row in rows if int(row[0]) in family and Path(row[-1].split()[0]).name.startswith(name)
        )

    return find
