"""Finished runs for the tests of reports: written by hand, with names and texts that look like markup."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgym.experiments.wiring import composition, run_folder

HOSTILE = "<script>document.title='x'</script><img src=x onerror=\"document.title='y'\">&\""
ANSWER = f"<think>{HOSTILE}</think><answer><ins>one & only</ins><ins>two</ins></answer>"


def _make_run(folder, settings=("env=sis", "algo=cgpo"), seed=0, after=(0.7, 0.8), updates=2, **changes):
    """Write the files of a finished run of two samples."""
    config = composition.compose([*settings, f"seed={seed}"]) | {"out": HOSTILE}
    for group in changes.keys() & {"env", "algo"}:
        config[group] = config[group] | {"name": changes[group]}
    run_folder.write(folder / "config.yaml", composition.dump(config))
    measures = {"ap50": None, HOSTILE: 0.5}
    before = {"reward": 0.25, "iasm": 0.25, **measures}
    ends = {"reward": sum(after) / 2, "iasm": sum(after) / 2, **measures, "ap50": 0.5}
    facts = {"algo": config["algo"]["name"], "seed": seed, "device": HOSTILE, "wall_s": 90.0, "steps": updates}
    facts |= {"env": config["env"]["name"], "split": "test", "versions": {"x": HOSTILE}} | changes
    run_folder.write_json(folder / "results.json", {**facts, "before": before, "after": ends})
    rows = [{"step": 0, "wall_s": 1.0, "held_out/iasm": 0.5}]
    for step in range(1, updates + 1):
        cost = {"generated_tokens": 100.0, "reward_calls": 8.0, "peak_memory_mib": 500.0 + step}
        rows.append({"step": step, "wall_s": 1.0 + 3 * step, "reward": 0.25 + seed, f"reward/{HOSTILE}": 1.0} | cost)
        rows[-1] |= {"entropy": math.nan, "grad_norm": 3.0, "new/name": 1.0}
    rows[-1] |= {"response_types/hrhc": 0.5}
    with (folder / "metrics.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    samples = [
        {
            "task": "sis",
            "index": i,
            "key": f"{HOSTILE}{i}",
            "before": {"reward": 0.2 + 0.1 * i, "iasm": 0.2 + 0.1 * i, "answer": f"<think>{HOSTILE}</think>"},
            "after": {"reward": after[i % 2], "iasm": after[i % 2], "answer": ANSWER},
            "picture": f"sis-0{i}.png",
        }
        for i in range(sum(one["n"] for one in changes["samples"].values()) if "samples" in changes else 2)
    ]
    text = "".join(f"{run_folder.to_json(row)}\n" for row in samples)
    run_folder.write(folder / "samples" / "answers.jsonl", text)
    Image.fromarray(np.zeros((2, 8, 3), np.uint8)).save(folder / "samples" / "sis-00.png")
    return folder


@pytest.fixture
def make_run():
    """Return a function that writes the files of a finished run of two samples."""
    return _make_run


@pytest.fixture
def hostile() -> str:
    """Return the text in the runs' keys, answers, names and versions."""
    return HOSTILE


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """The folder of two groups: three seeds that end high, and one that ends low. Nothing changes it."""
    root = tmp_path_factory.mktemp("made")
    for seed in range(3):
        _make_run(root / f"seed{seed}", seed=seed, after=(0.7 + seed / 100, 0.8))
    _make_run(root / "other", ("env=sis", "algo=grpo"), after=(0.3, 0.4))
    return root


@pytest.fixture
def several(made, tmp_path):
    """Return the folders of a copy of two groups: three seeds that end high, and one that ends low."""
    return [shutil.copytree(made / name, tmp_path / name) for name in ("seed0", "seed1", "seed2", "other")]


@pytest.fixture
def folder(several):
    """Return the folder of one run."""
    return several[0]
