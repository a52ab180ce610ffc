"""Time the metrics beside PySODMetrics: many varied pairs, one process, one thread, one table.

    python benchmarks/metrics.py [--rounds 9] [--pairs 200]

Each call scores another pair, and the pairs of a row are together larger than the CPU's caches: on one pair again and
again, caches and branch prediction would flatter the faster side. Masks are unions of ellipses with ragged borders, of
varied place and area. A prediction is its ground truth moved and redrawn, or one time in five that of other objects.

Both sides see the same pairs in the same order, in turn, and each round gives one ratio of CPU times, so that a busy
machine slows both. The inputs of PySODMetrics (a float map and a bool ground truth, `normalize=False`) are converted
beforehand and not timed. In IASM both sides receive bool instances, so the conversion is timed. The difference is the
largest of all pairs.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy reads it

import argparse
import gc
import statistics
from collections.abc import Callable, Sequence
from time import process_time
from typing import NamedTuple

import numpy as np
from py_sod_metrics import Smeasure
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment

from maskgym.metrics import iasm, prepare, s_measure

SIZE = 352  # pixels per side; "varied sizes" are from half of it to one and a half times as many
INSTANCES = 5
KEPT = 30 * 2**20  # bytes


class Pair(NamedTuple):
    """A prediction as bool mask and as soft map, float64 in [0, 1], and its ground truth, bool; each (H, W)."""

    mask: np.ndarray
    soft: np.ndarray
    target: np.ndarray


class Ellipse(NamedTuple):
    """Centre and half axes (row, column) as shares of the image's sides."""

    centre: np.ndarray
    axes: np.ndarray

    def heights(self, shape: tuple[int, int]) -> np.ndarray:
        """Compute float64 (H, W): 1 at the centre, 0 on the border, negative outside."""
        rows, columns = (
            ((np.arange(side) / side - middle) / axis) ** 2
            for side, middle, axis in zip(shape, self.centre, self.axes, strict=True)
        )
        return 1 - np.sqrt(rows[:, None] + columns)


def draw_ellipses(most: int, random: np.random.Generator) -> list[Ellipse]:
    """Draw the places of 1 to ``most`` ellipses."""
    count = random.integers(1, most + 1)
    return [Ellipse(random.uniform(0.2, 0.8, 2), random.uniform(0.06, 0.3, 2)) for _ in range(count)]


def draw_heights(ellipses: list[Ellipse], shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Draw float64 (H, W): positive on the union of the ellipses, whose borders noise makes ragged."""
    heights = np.maximum.reduce([ellipse.heights(shape) for ellipse in ellipses])
    for sigma, weight in ((12, 0.15), (2, 0.05)):
        noise = gaussian_filter(random.normal(size=shape), sigma)
        heights += weight / noise.std() * noise
    return heights


def make_pair(shape: tuple[int, int], most: int, random: np.random.Generator) -> Pair:
    """Draw one ground truth of 1 to ``most`` ellipses, and a mask and a soft map as predictions of it."""
    ellipses = draw_ellipses(most, random)
    target = draw_heights(ellipses, shape, random) > 0
    if random.random() < 0.2:
        ellipses = draw_ellipses(most, random)
    moved = [
        Ellipse(centre + random.normal(0, 0.01, 2), axes * random.uniform(0.9, 1.1, 2)) for centre, axes in ellipses
    ]
    heights = draw_heights(moved, shape, random)
    soft = 1 / (1 + np.exp(-heights / 0.2)) + random.normal(0, 0.02, shape)
    return Pair(heights > 0, soft.clip(0, 1), target)


def make_pairs(count: int, seed: int, varied: bool) -> list[Pair]:
    """Draw ``count`` pairs of 352 x 352, or of varied sizes."""
    random = np.random.default_rng(seed)
    shapes = random.integers(SIZE // 2, SIZE * 3 // 2, (count, 2)) if varied else np.full((count, 2), SIZE)
    return [make_pair((height, width), 3, random) for height, width in shapes.tolist()]


def make_instances(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw the predicted and true instances of ``count`` images, each bool (5, H, W), in opposite orders."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        masks, _, targets = zip(*(make_pair((SIZE, SIZE), 1, random) for _ in range(INSTANCES)), strict=True)
        images.append((np.stack(masks[::-1]), np.stack(targets)))
    return images


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


class Side(NamedTuple):
    """One side of a comparison: a function, and the arguments of each of its calls."""

    score: Callable[..., float]
    calls: Sequence[tuple]

    def time(self) -> float:
        """Measure the CPU seconds per call; CPU time excludes other programs."""
        start = process_time()
        for arguments in self.calls:
            self.score(*arguments)
        return (process_time() - start) / len(self.calls)


def compare(name: str, goal: float, ours: Side, reference: Side, rounds: int) -> str:
    """Time both in turn and return one row of the table."""
    difference = max(
        abs(ours.score(*own) - reference.score(*other)) for own, other in zip(ours.calls, reference.calls, strict=True)
    )
    gc.collect()
    gc.freeze()  # else a collection, which visits all modules, hits one side
    times = [(ours.time(), reference.time()) for _ in range(rounds)]
    ratios = sorted(slow / fast for fast, slow in times)
    fast, slow = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
    return (
        f"| {name} | {slow:,.0f} | {fast:,.1f} | {statistics.median(ratios):.1f}x | {ratios[0]:.1f}x | {goal:.0f}x "
        f"| {difference:.0e} |"
    )


def compare_s_measure(name: str, goals: tuple[float, float], pairs: list[tuple], rounds: int) -> None:
    """Print the rows of predictions against a fresh and against a prepared ground truth."""
    reference = Side(reference_s_measure, [(guess.astype(np.float64), target) for guess, target in pairs])
    prepared = [(guess, prepare(target)) for guess, target in pairs]
    print(compare(name, goals[0], Side(s_measure, pairs), reference, rounds), flush=True)
    print(compare(f"{name}, prepared ground truth", goals[1], Side(s_measure, prepared), reference, rounds), flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="ratios per row (default 9)")
    parser.add_argument("--pairs", type=int, default=200, help="pairs per row, of masks or instances (default 200)")
    given = parser.parse_args()
    # Once an array of this size was freed, glibc keeps freed memory for the next arrays. Before, each large array costs
    # page faults, which make PySODMetrics 1.5 times as slow and hardly slow us.
    np.empty(KEPT, np.uint8)

    print("| case | PySODMetrics, µs | maskgym, µs | ratio, median | ratio, least | goal | difference |")
    print("|---|---|---|---|---|---|---|")
    for size, varied in (("", False), (" of varied sizes", True)):
        pairs = make_pairs(given.pairs, int(varied), varied)
        masks = [(pair.mask, pair.target) for pair in pairs]
        compare_s_measure(f"S-measure, masks{size}", (25, 50), masks, given.rounds)
        maps = [(pair.soft, pair.target) for pair in pairs]
        compare_s_measure(f"S-measure, soft maps{size}", (8, 8), maps, given.rounds)
    images = make_instances(given.pairs // INSTANCES, 2)
    prepared = [(masks, prepare(targets)) for masks, targets in images]
    reference = Side(reference_iasm, images)
    print(compare("IASM, 5 x 5 masks", 50, Side(iasm, images), reference, given.rounds), flush=True)
    print(compare("IASM, 5 x 5 masks, prepared ground truth", 50, Side(iasm, prepared), reference, given.rounds))


if __name__ == "__main__":
    main()
