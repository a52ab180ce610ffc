"""Summary of runs: ``maskgym summary FOLDER …`` prints the gains of each group of seeds.

Each folder is a group of runs that differ in their seed only. Gains compare greedy answers to the same held-out samples
before and after training. Intervals are 95 % percentile bootstraps over the seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskgym.aliases import JsonObject
from maskgym.errors import UserError
from maskgym.experiments.evaluation.measures import MAIN
from maskgym.experiments.evaluation.statistics import bootstrap_interval
from maskgym.experiments.grids import files
from maskgym.experiments.wiring import command, run_folder

HEAD = ("runs", "measure", "before", "after", "gain, 95 % interval", "gain per seed", "s per run")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status: 2 for a usage error, which is printed in one line."""
    return command.status(_main, argv)


def _main(arguments: Sequence[str]) -> None:
    parser = command.Parser(prog="maskgym summary", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    body = [row for folder in parser.parse_args(arguments).folders for row in rows(folder)]
    print("\n".join(files.table(HEAD, body)))


def read_runs(folder: Path) -> list[JsonObject]:
    """Read the results of every finished run below a folder, in order of seed.

    Raises:
        UserError: If there is no run, or the runs differ in environment or algorithm.
    """
    runs = [run_folder.read_json(file) for file in folder.rglob(run_folder.RESULTS)]
    if not runs:
        raise UserError(f"{folder}: no finished run below: expected {run_folder.RESULTS} files")
    kinds = {(run["env"], run["algo"]) for run in runs}
    if len(kinds) > 1:
        raise UserError(f"{folder}: holds runs of {len(kinds)} kinds: expected one environment and algorithm")
    return sorted(runs, key=lambda run: run["seed"])


def rows(folder: Path) -> list[list[str]]:
    """Build one row of the table for the reward and for each main measure of a group."""
    runs = read_runs(folder)
    after, quality = runs[0]["after"], MAIN.get(runs[0]["env"])
    if quality:
        measures = [name for name in after if name in ("reward", quality)]
    else:  # several tasks, whose names are prefixes
        measures = [name for name in after if name.rpartition("/")[2] in ("reward", *MAIN.values())]
    seconds = np.mean([run["wall_s"] for run in runs])
    return [[folder.name, name, *_cells(runs, name), f"{seconds:.0f}"] for name in measures]


def _cells(runs: Sequence[JsonObject], name: str) -> list[str]:
    """Format the means before and after training, the mean gain with its interval, and the gains."""
    before, after = (np.array([run[side][name] for run in runs]) for side in ("before", "after"))
    gains = (after - before).tolist()
    low, high = bootstrap_interval(gains)
    interval = f"[{low:+.3f}, {high:+.3f}]" if len(gains) > 1 else "(one seed)"
    each = " ".join(f"{gain:+.3f}" for gain in gains)
    return [f"{before.mean():.3f}", f"{after.mean():.3f}", f"{np.mean(gains):+.3f} {interval}", each]
