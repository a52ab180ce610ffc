"""Time the metrics beside PySODMetrics: the same 352 x 352 arrays, one process, one thread, one table.

    python benchmarks/metrics.py [--rounds 15]

Both sides are timed in turn, many rounds, and each round gives one ratio, so that a busy machine slows both.
The inputs of PySODMetrics (a float map and a bool ground truth, `normalize=False`) are converted beforehand and not
timed. In IASM both sides receive bool instances, so the conversion is timed.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy reads it

import argparse
import statistics
from collections.abc import Callable
from time import process_time

import numpy as np
from py_sod_metrics import Smeasure
from scipy.optimize import linear_sum_assignment

from maskgym.metrics import iasm, prepare, s_measure

SIZE = 352


def ellipse(row: float, column: float, height: float, width: float) -> np.ndarray:
    """Return bool (352, 352): a filled ellipse with these centre and half axes, in pixels."""
    rows, columns = np.ogrid[:SIZE, :SIZE]
    return ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 < 1


def reference_s_measure(prediction: np.ndarray, target: np.ndarray) -> float:
    """Score float and bool (H, W) by PySODMetrics."""
    measure = Smeasure()
    measure.step(prediction, target, normalize=False)
    return float(measure.get_results()["sm"])


def reference_iasm(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Score bool (m, H, W) against bool (n, H, W) by a straightforward loop."""
    table = np.array(
        [[np.logical_and(p, t).sum() / max(np.logical_or(p, t).sum(), 1) for t in targets] for p in predictions]
    )
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(table, maximize=True), strict=True) if table[i, j] >= 0.1]
    scores = [reference_s_measure(predictions[i].astype(np.float64), targets[j]) for i, j in pairs]
    return sum(scores) / (len(predictions) + len(targets) - len(pairs))


def time_once(function: Callable[[], float], calls: int) -> float:
    """Measure the CPU seconds per call over ``calls`` calls; CPU time excludes other programs."""
    start = process_time()
    for _ in range(calls):
        function()
    return (process_time() - start) / calls


def compare(name: str, goal: float, ours: Callable[[], float], reference: Callable[[], float], rounds: int) -> str:
    """Time both in turn and return one row of the table."""
    difference = abs(ours() - reference())
    times = [(time_once(ours, 40), time_once(reference, 4)) for _ in range(rounds)]
    ratios = sorted(slow / fast for fast, slow in times)
    fast, slow = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
    return (
        f"| {name} | {slow:,.0f} | {fast:,.1f} | {statistics.median(ratios):.1f}x | {ratios[0]:.1f}x | {goal:.0f}x "
        f"| {difference:.0e} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="ratios a row (default 15)")
    rounds = parser.parse_args().rounds

    random = np.random.default_rng(0)
    target, mask = ellipse(150, 200, 80, 60), ellipse(160, 190, 70, 70)
    as_float = mask.astype(np.float64)
    soft = 0.8 * as_float + 0.2 * random.random(mask.shape)
    places = [(70, 80, 40, 50), (90, 260, 55, 40), (190, 170, 30, 60), (280, 90, 45, 45), (270, 280, 50, 35)]
    targets = np.stack([ellipse(*place) for place in places])
    predictions = np.stack([ellipse(row + 6, column - 5, a * 1.1, b) for row, column, a, b in reversed(places)])
    prepared, prepared_targets = prepare(target), prepare(targets)

    print("| case | PySODMetrics, µs | maskgym, µs | ratio, median | ratio, least | goal | difference |")
    print("|---|---|---|---|---|---|---|")

    def theirs(prediction: np.ndarray) -> Callable[[], float]:
        return lambda: reference_s_measure(prediction, target)

    def reference() -> float:
        return reference_iasm(predictions, targets)

    for name, goal, ours, other in (
        ("S-measure, two fresh masks", 25, lambda: s_measure(mask, target), theirs(as_float)),
        ("S-measure, prepared truth", 50, lambda: s_measure(mask, prepared), theirs(as_float)),
        ("S-measure, soft map", 8, lambda: s_measure(soft, target), theirs(soft)),
        ("S-measure, soft map, prepared truth", 8, lambda: s_measure(soft, prepared), theirs(soft)),
        ("IASM, 5 x 5 fresh masks", 50, lambda: iasm(predictions, targets), reference),
        ("IASM, 5 x 5, prepared truth", 50, lambda: iasm(predictions, prepared_targets), reference),
    ):
        print(compare(name, goal, ours, other, rounds), flush=True)


if __name__ == "__main__":
    main()
