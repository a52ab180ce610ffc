"""Finished runs for reports: the files of a run folder, with its measures and costs."""

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

LESS = ("noc85", "noc90", "repeated", "mae", "ber_mean", "ber_pooled")  # measures for which less is better
NEUTRAL = ("expressions", "characters", "steps")  # measures for which neither more nor less is better
SECONDS = "seconds_an_update"  # curve that is computed from the times in the log
Points = list[tuple[float, float]]  # step and value, in order


@dataclass(frozen=True)
class Run:
    """Files of a finished run.

    Attributes:
        folder: Folder of the run.
        config: Config from `composition.load`.
        results: Content of ``results.json``.
        rows: Rows of ``metrics.csv``.
        samples: Rows of ``samples/answers.jsonl``, as in `evaluation.compare`.
    """

    folder: Path
    config: dict[str, Any]
    results: dict[str, Any]
    rows: list[dict[str, float]]
    samples: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """Environment, algorithm and seed as text."""
        return f"{self.results['env']} {self.results['algo']}, seed {self.results['seed']}"

    @property
    def main(self) -> list[str]:
        """Names of the main measures: the reward and the quality of each task."""
        wanted = [(name, *name.rpartition("/")[::2]) for name in self.results["after"]]
        return [
            name
            for name, task, measure in wanted
            if measure in ("reward", QUALITY.get(task or self.results["env"], "reward"))
        ]

    def samples_of(self, name: str) -> list[dict[str, Any]]:
        """Select the samples of a measure: all, or those of the task in its prefix."""
        task = name.rpartition("/")[0]
        several = len({row["task"] for row in self.samples}) > 1
        return [row for row in self.samples if not several or row["task"] == task]

    def values(self, name: str, when: str) -> list[float] | None:
        """Return a measure of each sample ``before`` or ``after``; None if it is defined on the whole set only."""
        found = [row[when].get(name.rpartition("/")[2]) for row in self.samples_of(name)]
        return None if None in found or not found else found

    def gain(self, name: str) -> float | None:
        """Compute the change of a measure, or return None if it is missing before or after."""
        old, new = self.results["before"].get(name), self.results["after"].get(name)
        return None if old is None or new is None else new - old

    def curves(self) -> dict[str, Points]:
        """Build curves of the finite logged numbers, and of the seconds per update."""
        names = dict.fromkeys(name for row in self.rows for name in row if name not in ("step", "wall_s"))
        found = {
            name: [(row["step"], row[name]) for row in self.rows if math.isfinite(row.get(name, math.nan))]
            for name in names
        }
        found[SECONDS] = [
            (new["step"], (new["wall_s"] - old["wall_s"]) / (new["step"] - old["step"]))
            for old, new in zip(self.rows, self.rows[1:], strict=False)
            if new["step"] > old["step"]  # the row of an evaluation repeats the step
        ]
        return {name: points for name, points in found.items() if points}

    def total(self, name: str) -> float | None:
        """Compute the sum of a column over all updates, or return None if it was not logged."""
        found = [row[name] for row in self.rows if name in row]
        return sum(found) if found else None

    @property
    def peak_memory_mib(self) -> float | None:
        """Peak memory in MiB, or None if it was not logged."""
        return max((row["peak_memory_mib"] for row in self.rows if "peak_memory_mib" in row), default=None)

    def picture(self, row: Mapping[str, Any]) -> Path | None:
        """Return the path of a sample's picture, or None if this folder has none."""
        name = row.get("picture")
        file = self.folder / run_folder.SAMPLES / Path(str(name)).name  # a path cannot leave this folder
        return file if name and file.is_file() else None


def read(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: If the folder holds no run, the run is not finished, or a file cannot be read.
    """
    config = composition.load(folder / run_folder.CONFIG)
    if not (folder / run_folder.RESULTS).exists():
        raise UserError(f"{folder}: its run is not finished: continue it with resume={folder}")
    results = run_folder.read_json(folder / run_folder.RESULTS)
    rows = run_folder.read_metrics(folder / run_folder.METRICS)
    return Run(folder, config, results, rows, _read_samples(folder / run_folder.ANSWERS))


def better(name: str) -> int:
    """Return 1 for a measure for which more is better, -1 if less is better, 0 if neither is."""
    measure = name.rpartition("/")[2]
    return 0 if measure in NEUTRAL else -1 if measure in LESS else 1


def reward_gain(row: Mapping[str, Any]) -> float:
    """Compute the change of a sample's reward."""
    return row["after"]["reward"] - row["before"]["reward"]


def duration(seconds: float) -> str:
    """Format a duration, such as ``3 min 20 s``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def differences(old: Sequence[float] | None, new: Sequence[float] | None) -> list[float] | None:
    """Compute the gain of each sample, or return None if a side is missing."""
    return None if old is None or new is None else [b - a for a, b in zip(old, new, strict=True)]


def _read_samples(file: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
