"""Regression gate: ``maskgym benchmark gate`` repeats the beginning of one run a family, beside the baselines.

The protocol names a row of each section under ``gate``. Its run on the section's first level is trained anew with its
first seed, up to the first evaluation within training, whose score must fall into the prediction interval of the stored
seeds at that evaluation: mean ± t s √(1 + 1/n), at 99 %. The settings of a run must not depend on its length.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskgym.errors import UserError
from maskgym.experiments.grids import protocol
from maskgym.experiments.grids.matrix import Results, Section, run_of, score
from maskgym.experiments.grids.processes import Runner
from maskgym.experiments.grids.runner import RunSpec, compute
from maskgym.experiments.wiring import run_folder

NAME = "gate"
LEVEL = 0.99


def run(name: str, table: Path | None, root: Path, jobs: int, runner: Runner | None = None) -> int:
    """Run the gate and print one line a family; return 1 if a score is outside its interval, otherwise 0.

    Args:
        name: Name or path of a protocol.
        table: Table of baselines; None for that of the protocol.
        root: Folder for the runs; earlier ones of the gate are removed.
        jobs: Number of parallel runs.
        runner: Runner of commands, see `compute`.

    Raises:
        UserError: If the protocol has no gate, the table lacks its runs, or a run fails.
    """
    results = protocol.results(name, table)
    cells = [(section, cell(results, section)) for section in results.matrix["sections"] if NAME in section]
    if not cells:
        raise UserError(f"protocol={name}: names no row under '{NAME}'")
    specs = [spec for _, (spec, _, _) in cells]
    for spec in specs:
        shutil.rmtree(spec.folder(root), ignore_errors=True)  # what is tested is the code as it is now
    compute(specs, root, jobs, None, runner)
    return max(told(section, root, *found) for section, found in cells)


def cell(results: Results, section: Section) -> tuple[RunSpec, float, float]:
    """Build the run of a section's gate, and the interval of its score.

    Raises:
        UserError: If the table lacks runs.
    """
    column, row = next(iter(section["columns"])), section["gate"]
    stored = results.read(section, row, column)
    if len(stored) < 3:
        raise UserError(f"{results.table}: {column}, {row}: {len(stored)} runs: expected at least 3")
    step = int(stored[0]["held_out"]["step"][1])
    settings = [*section["rows"][row].get("with", ()), f"algo.updates={step}"]
    spec = run_of({**section, "rows": {row: {"with": settings}}}, row, column, section["seeds"][0])
    scores = [score(one["held_out"], column, spec.measure)[1] for one in stored]
    return spec, *prediction_interval(scores)


def prediction_interval(scores: Sequence[float]) -> tuple[float, float]:
    """Compute the interval that a further score falls into with probability `LEVEL`, of at least two scores."""
    from scipy.stats import t

    width = t.ppf((1 + LEVEL) / 2, len(scores) - 1) * np.std(scores, ddof=1) * np.sqrt(1 + 1 / len(scores))
    return float(np.mean(scores) - width), float(np.mean(scores) + width)


def told(section: Section, root: Path, spec: RunSpec, low: float, high: float) -> int:
    """Print the line of a family; return 1 if its score is outside the interval."""
    column = next(iter(section["columns"]))
    found = score(run_folder.read_json(spec.file(root))["after"], column, spec.measure)
    inside = low <= found <= high
    words = "in" if inside else "OUTSIDE"
    where = f"{column}, {section['gate']}, {spec.arguments[-1]}"
    print(f"{where}: {spec.measure} {found:.3f}, {words} [{low:.3f}, {high:.3f}]")
    return int(not inside)
