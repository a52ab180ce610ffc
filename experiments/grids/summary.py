"""Summary of runs: ``maskgym summary FOLDER …`` prints the gains of each group of seeds.

Each folder is a group of runs that differ in their seed only. Gains compare greedy answers to the same held-out samples
before and after training. Intervals are 95 % percentile bootstraps over the seeds, as in rliable.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskgym.errors import UserError
from maskgym.experiments.evaluation.evaluation import bootstrap_interval
from maskgym.experiments.wiring import command

QUALITY = {  # main measure of an environment, besides the reward
    **{"sis": "iasm", "sod": "s_measure", "cosod": "s_measure", "point_prompt": "iou"},
    **{"user_need": "s_measure", "user_need_point": "iou", "ranking": "sa_sor"},
}


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """Read the results of every finished run below a folder, in order of seed.

    Raises:
        UserError: If there is no run, or the runs differ in environment or algorithm.
    """
    runs = sorted((json.loads(file.read_text()) for file in folder.rglob("results.json")), key=lambda run: run["seed"])
    if not runs:
        raise UserError(f"{folder}: no finished run below: expected results.json files")
    kinds = {(run["env"], run["algo"]) for run in runs}
    if len(kinds) > 1:
        raise UserError(f"{folder}: holds runs of {len(kinds)} kinds: expected one environment and algorithm")
    return runs


def rows(folder: Path) -> list[str]:
    """Build one row of the table for each measure of a group."""
    runs = read_runs(folder)
    names = [name for name in runs[0]["after"] if name.rpartition("/")[2] in ("reward", *QUALITY.values())]
    wanted = QUALITY.get(runs[0]["env"])
    names = [name for name in names if wanted is None or name in ("reward", wanted)]
    seconds = sum(run["wall_s"] for run in runs) / len(runs)
    return [_row(folder.name, name, runs, seconds) for name in names]


def _row(group: str, name: str, runs: Sequence[dict[str, Any]], seconds: float) -> str:
    before = [run["before"][name] for run in runs]
    after = [run["after"][name] for run in runs]
    gains = [new - old for new, old in zip(after, before, strict=True)]
    low, high = bootstrap_interval(gains)
    interval = f"[{low:+.3f}, {high:+.3f}]" if len(gains) > 1 else "(one seed)"
    each = " ".join(f"{gain:+.3f}" for gain in gains)
    mean = sum(gains) / len(gains)
    return (
        f"| {group} | {name} | {sum(before) / len(before):.3f} | {sum(after) / len(after):.3f} "
        f"| {mean:+.3f} {interval} | {each} | {seconds:.0f} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status: 2 for a mistake in what was given, told in one line."""
    return command.status(_main, argv)


def _main(arguments: Sequence[str]) -> None:
    parser = command.Parser(prog="maskgym summary", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    table = [row for folder in parser.parse_args(arguments).folders for row in rows(folder)]
    print("| runs | measure | before | after | gain, 95 % interval | gain per seed | s per run |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(table))
