"""Costs per update: timing runs, each alone as a process of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskgym.errors import UserError
from maskgym.experiments.grids import matrix
from maskgym.experiments.grids.matrix import WARM_UP, Results, cost_arguments, cost_key
from maskgym.experiments.grids.processes import Finished, Runner, run_cold, threads_of
from maskgym.experiments.grids.runner import call, digest
from maskgym.experiments.wiring import run_folder


def run_alone(words: Sequence[str], cold: bool = True) -> Finished:
    """Run a command as a process of its own, with one thread."""
    return run_cold(words, threads=1)


def measure(results: Results, runs: Path, run: Runner) -> None:
    """Make the timing runs of the matrix, one at a time and in rounds; existing results are kept.

    Each is a cold process, whose memory is that of the run alone.

    Raises:
        UserError: If a run fails, or earlier timing runs had another number of threads.
    """
    wanted = {  # keyed by cost, so that a row of two tables is timed once
        (number, cost_key(arguments)): arguments
        for cost in results.matrix["costs"]
        for number in range(cost["rounds"])
        for arguments in (cost_arguments(cost, row) for row in cost["rows"])
    }
    plan = [arguments for (number, key), arguments in wanted.items() if len(results.costs.get(key, [])) <= number]
    threads = threads_of(1)
    if plan and threads != results.threads:
        raise UserError(
            f"OMP_NUM_THREADS={threads}: the timing runs in {results.table} had {results.threads} threads: "
            f"expected OMP_NUM_THREADS={results.threads}"
        )
    for arguments in tqdm(plan, desc="cost", unit="run", disable=None):
        rounds = results.costs.setdefault(cost_key(arguments), [])
        rounds.append(measure_once(arguments, runs / f"cost-{digest(cost_key(arguments))}-{len(rounds)}", run))
        results.write()


def measure_once(arguments: Sequence[str], folder: Path, run: Runner) -> dict[str, float]:
    """Make one timing run in a new folder; return its mean cost per update.

    Raises:
        UserError: If the run fails.
    """
    shutil.rmtree(folder, ignore_errors=True)  # a resumed run would include the time of two starts
    call(run, ("run", *arguments, "evaluation.samples=1", "evaluation.pictures=0", f"out={folder}"), cold=True)
    return _cost_of(folder)


def _cost_of(folder: Path) -> dict[str, float]:
    """Compute the mean cost per update of a run, without the warm-up updates."""
    updates = matrix.updates_of(run_folder.read_metrics(folder / run_folder.METRICS))
    timed = updates[WARM_UP:]
    if not timed:
        raise UserError(f"{folder}: expected more than {WARM_UP} updates")
    return {
        "step_s": (updates[-1]["wall_s"] - updates[WARM_UP - 1]["wall_s"]) / len(timed),
        "peak_memory_mib": updates[-1]["peak_memory_mib"],
        **{n: float(np.mean([row[n] for row in timed])) for n in matrix.SPENT if all(n in row for row in timed)},
    }
