"""Time to make the rows of a study: cold processes against forks of one server that has imported the libraries.

    python benchmarks/start.py

Makes eight runs of random answers without training, once each way per round, one at a time on all cores. Prints the
seconds of each round and the ratio of the medians, and exits with status 1 if the ratio is below the limit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from maskgym.experiments.grids.processes import Finished, run_cold
from maskgym.experiments.grids.runner import RunSpec, compute

ROW = ("env=sis", "algo=random", "evaluation.samples=1", "evaluation.pictures=0")
LIMIT = 3.0  # least ratio of the medians


def cold(words: Sequence[str], cold: bool = True) -> Finished:
    """Run a command in a new process on all cores."""
    return run_cold(words, len(os.sched_getaffinity(0)))


def main() -> int:
    """Measure both ways; return 1 if forks are not fast enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="runs per round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (%(default)s)")
    given = parser.parse_args()
    specs = [RunSpec((*ROW, f"seed={seed}")) for seed in range(given.rows)]
    ways = {"cold": partial(compute, specs, run=cold), "forked": partial(compute, specs)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(given.rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as place:
                start = time.perf_counter()
                way(Path(place))
                seconds[name].append(time.perf_counter() - start)
            print(f"round {number + 1}, {name}: {seconds[name][-1]:.1f} s for {given.rows} runs")
    ratio = statistics.median(seconds["cold"]) / statistics.median(seconds["forked"])
    print(f"forks are {ratio:.1f} times as fast (at least {LIMIT:g} expected)")
    return 0 if ratio >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
