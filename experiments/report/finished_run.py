"""A finished run as reports read it: the files of its folder, and what they say of its measures and its cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskgym.errors import UserError
from maskgym.experiments.grids.summary import QUALITY
from maskgym.experiments.wiring import composition, run_folder

LESS = ("noc85", "noc90", "repeated", "mae", "ber_mean", "ber_pooled")  # measures of which less is better
NEUTRAL = ("expressions", "characters", "steps")  # of which neither more nor less is
SECONDS = "seconds_an_update"  # a curve that the times of the log give
Points = list[tuple[float, float]]  # step and value, in order


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        folder: Where it lies.
        config: As `composition.load` returns it.
        results: What ``results.json`` holds.
        rows: Of ``metrics.csv``.
        samples: Of ``samples/answers.jsonl``: see `evaluation.compare`.
    """

    folder: Path
    config: dict[str, Any]
    results: dict[str, Any]
    rows: list[dict[str, float]]
    samples: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """Return environment, algorithm and seed in a few words."""
        return f"{self.results['env']} {self.results['algo']}, seed {self.results['seed']}"

    @property
    def main(self) -> list[str]:
        """Return the names of the measures that matter most: of each task its reward and its quality."""
        wanted = [(name, *name.rpartition("/")[::2]) for name in self.results["after"]]
        return [
            name
            for name, task, measure in wanted
            if measure in ("reward", QUALITY.get(task or self.results["env"], "reward"))
        ]

    def samples_of(self, name: str) -> list[dict[str, Any]]:
        """Return the samples that a measure is of: all, or those of the task in front of its name."""
        task = name.rpartition("/")[0]
        several = len({row["task"] for row in self.samples}) > 1
        return [row for row in self.samples if not several or row["task"] == task]

    def values(self, name: str, when: str) -> list[float] | None:
        """Return a measure of each sample ``before`` or ``after``; None where it is one of the whole set."""
        found = [row[when].get(name.rpartition("/")[2]) for row in self.samples_of(name)]
        return None if None in found or not found else found

    def gain(self, name: str) -> float | None:
        """Return how much a measure changed, or None where it is not known on both sides."""
        old, new = self.results["before"].get(name), self.results["after"].get(name)
        return None if old is None or new is None else new - old

    def curves(self) -> dict[str, Points]:
        """Return what was logged as curves of finite numbers, and the seconds that an update took."""
        names = dict.fromkeys(name for row in self.rows for name in row if name not in ("step", "wall_s"))
        found = {
            name: [(row["step"], row[name]) for row in self.rows if math.isfinite(row.get(name, math.nan))]
            for name in names
        }
        found[SECONDS] = [
            (new["step"], (new["wall_s"] - old["wall_s"]) / (new["step"] - old["step"]))
            for old, new in zip(self.rows, self.rows[1:], strict=False)
            if new["step"] > old["step"]  # not an evaluation, which is a row of the same step
        ]
        return {name: points for name, points in found.items() if points}

    def total(self, name: str) -> float | None:
        """Return the sum of a column over all updates, or None where it was not logged."""
        found = [row[name] for row in self.rows if name in row]
        return sum(found) if found else None

    @property
    def peak_memory_mib(self) -> float | None:
        """Return the most memory that was in use, or None where it was not logged."""
        return max((row["peak_memory_mib"] for row in self.rows if "peak_memory_mib" in row), default=None)

    def picture(self, row: Mapping[str, Any]) -> Path | None:
        """Return the picture of a sample, if there is one in this folder."""
        name = row.get("picture")
        file = self.folder / run_folder.SAMPLES / Path(str(name)).name  # never one of another folder
        return file if name and file.is_file() else None


def read(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: If it holds no run, its run is not finished, or a file cannot be read.
    """
    config = composition.load(folder / run_folder.CONFIG)
    if not (folder / run_folder.RESULTS).exists():
        raise UserError(f"{folder}: its run is not finished: continue it with resume={folder}")
    results = run_folder.read_json(folder / run_folder.RESULTS)
    rows = run_folder.read_metrics(folder / run_folder.METRICS)
    return Run(folder, config, results, rows, _read_samples(folder / run_folder.ANSWERS))


def better(name: str) -> int:
    """Return 1 for a measure of which more is better, -1 where less is, 0 where neither is."""
    measure = name.rpartition("/")[2]
    return 0 if measure in NEUTRAL else -1 if measure in LESS else 1


def reward_gain(row: Mapping[str, Any]) -> float:
    """Return how much the reward of a sample changed."""
    return row["after"]["reward"] - row["before"]["reward"]


def duration(seconds: float) -> str:
    """Return a time in words, as ``3 min 20 s``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def differences(old: Sequence[float] | None, new: Sequence[float] | None) -> list[float] | None:
    """Return what each sample gained, where both sides are known."""
    return None if old is None or new is None else [b - a for a, b in zip(old, new, strict=True)]


def _read_samples(file: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
