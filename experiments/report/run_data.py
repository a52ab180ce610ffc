"""Finished runs as reports read them: the files of a run folder, with scores, costs and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maskgym.aliases import Config, JsonObject
from maskgym.errors import UserError
from maskgym.experiments.evaluation import provenance
from maskgym.experiments.evaluation.measures import main_of
from maskgym.experiments.evaluation.provenance import Provenance
from maskgym.experiments.evaluation.statistics import FEW, FEW_TOLD
from maskgym.experiments.wiring import composition, run_folder

SECONDS = "seconds_per_update"  # curve that is computed from the times in the log
Points = list[tuple[float, float]]  # (step, value) in order
When = Literal["before", "after", "gain"]


@dataclass(frozen=True)
class Run:
    """Files of a finished run."""

    folder: Path
    config: Config  # as `composition.load` reads it
    results: JsonObject  # results.json
    rows: list[dict[str, float]]  # metrics.csv
    samples: list[JsonObject]  # samples/answers.jsonl: rows of `evaluation.compare`

    @property
    def main(self) -> list[str]:
        """Names of the main measures: the reward, and one quality measure per task."""
        return main_of(self.results["env"], self.results["after"])

    @property
    def provenance(self) -> Provenance | None:
        """Data, segmenter and weights of the run; older runs do not name them."""
        return provenance.read(self.results)

    @property
    def counted(self) -> list[str]:
        """Lines on the held-out samples: their number and split, per task if there are several, and what is unusual."""
        tasks = self.results.get("samples") or {}  # older runs lack it
        lines = []
        for task, found in tasks.items():
            lines.append(
                f"{task}: " * (len(tasks) > 1) + f"{found['n']:,} of the {found['of']:,} {found['split']} samples"
            )
            if found["n"] < FEW:
                lines.append(f"Warning: {FEW_TOLD}")
            lines += found.get("notes", [])
        for task, sets in self.results.get("sets", {}).get("after", {}).items():
            main = [name.rpartition("/")[2] for name in self.main if name.rpartition("/")[0] in ("", task)]
            for name, scores in sets.items():
                shown = ", ".join(f"{one} {value:.3f}" for one in main if (value := scores.get(one)) is not None)
                lines.append(f"{task}, {name} alone, after training: {shown}")
        return lines or [f"{len(self.samples):,} samples of the {self.results['split']} split"]

    def samples_of(self, name: str) -> list[JsonObject]:
        """Select the samples of a measure: those of the task in its prefix, or all if there is one task."""
        several = len({row["task"] for row in self.samples}) > 1
        return [row for row in self.samples if not several or row["task"] == name.rpartition("/")[0]]

    def keys(self, name: str) -> tuple[str, ...]:
        """List the keys of the samples of a measure."""
        return tuple(str(row["key"]) for row in self.samples_of(name))

    def score(self, name: str, when: When) -> float | None:
        """Look up a measure, or compute its gain; None if it is undefined before or after training."""
        if when != "gain":
            return self.results[when].get(name)
        old, new = self.score(name, "before"), self.score(name, "after")
        return None if old is None or new is None else new - old

    def values(self, name: str, when: When) -> list[float] | None:
        """Collect a measure, or its paired gain, of each sample; None if it is defined on the whole set only."""
        if when == "gain":
            old, new = self.values(name, "before"), self.values(name, "after")
            return None if old is None or new is None else [b - a for a, b in zip(old, new, strict=True)]
        found = [row[when].get(name.rpartition("/")[2]) for row in self.samples_of(name)]
        return None if None in found or not found else found

    def curves(self) -> dict[str, Points]:
        """Build a curve of the finite values per logged name, and the curve of the seconds per update."""
        found: dict[str, Points] = {}
        for row in self.rows:
            for name, value in row.items():
                if name not in ("step", "wall_s") and math.isfinite(value):
                    found.setdefault(name, []).append((row["step"], value))
        for old, new in zip(self.rows, self.rows[1:], strict=False):
            if (updates := new["step"] - old["step"]) > 0:  # The row of an evaluation repeats the step of its update.
                found.setdefault(SECONDS, []).append((new["step"], (new["wall_s"] - old["wall_s"]) / updates))
        return found

    def total(self, name: str) -> float | None:
        """Add up a column over all updates; None if it was not logged."""
        found = [row[name] for row in self.rows if name in row]
        return sum(found) if found else None

    @property
    def peak_memory_mib(self) -> float | None:
        """Peak memory in MiB, or None if it was not logged."""
        return max((row["peak_memory_mib"] for row in self.rows if "peak_memory_mib" in row), default=None)

    def picture(self, row: JsonObject) -> Path | None:
        """Locate the picture of a sample; None if there is none among the run's samples."""
        name = row.get("picture")
        file = (
            self.folder / run_folder.SAMPLES / Path(str(name)).name
        )  # The name alone, so that no path leads elsewhere.
        return file if name and file.is_file() else None


def below(folder: Path) -> list[Path]:
    """List the folders of finished runs below a folder that is no run, such as that of ``run -m``; itself otherwise."""
    if (folder / run_folder.CONFIG).exists():
        return [folder]
    results = sorted(folder.rglob(run_folder.RESULTS))
    return [file.parent for file in results if file.with_name(run_folder.CONFIG).exists()] or [folder]


def read(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: If the folder holds no run, the run is not finished, or a file cannot be read.
    """
    config, results = composition.load(folder / run_folder.CONFIG), run_folder.read_results(folder)
    rows, answers = run_folder.read_metrics(folder / run_folder.METRICS), run_folder.read_answers(folder)
    _check_whole(folder, config, results, rows, answers)
    return Run(folder, config, results, rows, answers)


def _check_whole(
    folder: Path,
    config: Config,
    results: JsonObject,
    rows: Sequence[Mapping[str, float]],
    answers: Sequence[JsonObject],
) -> None:
    """Raise a UserError if the files of a run are not all of one run, or one of them lacks its end."""
    own = {"env": config["env"]["name"], "algo": config["algo"]["name"], "seed": config["seed"]}
    for name, value in own.items():
        if results.get(name) != value:
            raise UserError(f"{folder / run_folder.RESULTS}: of {name}={results.get(name)}: expected {name}={value}")
    try:
        provenance.read(results)
    except UserError as error:
        raise UserError(f"{folder / run_folder.RESULTS}: {error}") from error
    last = max((row["step"] for row in rows), default=0)
    if last != results.get("steps"):
        told = f"ends after update {last:g} of {results.get('steps')}"
        raise UserError(f"{folder / run_folder.METRICS}: {told}: expected the file as it was written")
    counted = results.get("samples")
    count = sum(one["n"] for one in counted.values()) if isinstance(counted, dict) else len(answers)
    if len(answers) != count:
        told = f"has {len(answers)} answers of {count}"
        raise UserError(f"{folder / run_folder.ANSWERS}: {told}: expected the file as it was written")


def reward_gain(row: JsonObject) -> float | None:
    """Compute the change of a sample's reward; None if a reward is undefined, null in the file."""
    old, new = row["before"].get("reward"), row["after"].get("reward")
    return None if old is None or new is None else new - old
