"""Time the evaluation of folders of maps beside PySODMetrics: the same files, one process and one thread each.

    python benchmarks/evaluation.py [--root DIR] [--rounds 3] [--large 50] [--small 500]

Pairs of 352 x 352 and of 1024 x 1024 pixels are made of the masks of photographs (``DIR/masks``, as of
``../shared/data/real_sod``; else of ellipses): each prediction is its mask, smoothed, shifted and noisy. Both sides
read the same PNGs. The ratios exclude the decoding time, which has its own row. The sides run in turn, each in its own
process, and report their peak memory. Scores must agree to 1e-6.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

SHAPES = {"small": 352, "large": 1024}
PARTS = {  # what is measured together
    "S, E, F, MAE": ("s_measure", "e", "f", "mae"),
    "with weighted F": ("s_measure", "e", "f", "mae", "weighted_f"),
}


def make_pairs(folder: Path, masks: list[Path], size: int, count: int) -> None:
    """Write ``count`` predictions and masks."""
    for name in ("pred", "gt"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        if masks:
            picture = Image.open(masks[number % len(masks)]).convert("L").resize((size, size), Image.Resampling.NEAREST)
            mask = np.asarray(picture) > 128
        else:
            rows, columns = np.ogrid[:size, :size]
            (row, column), (height, width) = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(0.1, 0.3, 2) * size
            mask = ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 < 1
        moved = shift(gaussian_filter(mask.astype(np.float32), size / 60), rng.normal(0, size / 60, 2), order=1)
        noisy = moved + 0.05 * gaussian_filter(rng.normal(0, 10, mask.shape), size / 40)
        Image.fromarray((noisy.clip(0, 1) * 255).astype(np.uint8)).save(folder / "pred" / f"{number:04d}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "gt" / f"{number:04d}.png")


def read(folder: Path, name: str) -> np.ndarray:
    """Read a picture's grey levels."""
    return np.asarray(Image.open(folder / name).convert("L"))


def ours(folder: Path, names: list[str], wanted: tuple[str, ...]) -> dict[str, float]:
    """Compute the scores as the command does."""
    from maskgym.experiments.evaluation import predictions, presets, scoring

    pairs = [predictions.Pair(name, folder / "pred" / name, folder / "gt" / name) for name in names]
    return scoring.score(predictions.Maps(pairs, presets.find("pysodmetrics"), "weighted_f" in wanted)).scores


def theirs(folder: Path, names: list[str], wanted: tuple[str, ...]) -> dict[str, float]:
    """Compute the scores by PySODMetrics."""
    import py_sod_metrics as library

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measures = {
            "s_measure": library.Smeasure(),
            "e": library.Emeasure(),
            "f": library.Fmeasure(),
            "mae": library.MAE(),
            "weighted_f": library.WeightedFmeasure(),
        }
    for name in names:
        prediction, mask = read(folder / "pred", name), read(folder / "gt", name)
        for measure in wanted:
            measures[measure].step(prediction, mask)
    found = {name: measures[name].get_results() for name in wanted}
    scores = {"s_measure": found["s_measure"]["sm"], "mae": found["mae"]["mae"]}
    for name, key in (("f", "fm"), ("e", "em")):
        curve = found[name][key]["curve"]
        scores |= {
            f"{name}_mean": curve.mean(),
            f"{name}_max": curve.max(),
            f"{name}_adaptive": found[name][key]["adp"],
        }
    return scores | ({"weighted_f": found["weighted_f"]["wfm"]} if "weighted_f" in wanted else {})


def decoding(folder: Path, names: list[str], wanted: tuple[str, ...]) -> dict[str, float]:
    """Decode the files without scoring."""
    for name in names:
        read(folder / "pred", name), read(folder / "gt", name)
    return {}


SIDES = {"ours": ours, "theirs": theirs, "decoding": decoding}


def child(side: str, folder: Path, part: str) -> None:
    """Measure one side in this process, and print it as JSON."""
    names = sorted(path.name for path in (folder / "gt").iterdir())
    SIDES[side](folder, names[:1], PARTS[part])  # imports
    start, cpu = perf_counter(), process_time()
    scores = SIDES[side](folder, names, PARTS[part])
    spent = {
        "seconds": perf_counter() - start,
        "cpu": process_time() - cpu,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps({**spent, "scores": {name: float(value) for name, value in scores.items()}}))


def ask(side: str, folder: Path, part: str) -> dict:
    """Measure one side in another process."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", side, str(folder), part],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")},
    )
    return json.loads(done.stdout)


def main() -> None:
    """Print the table."""
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="with masks/ of photographs (ellipses)")
    parser.add_argument("--rounds", type=int, default=3, help="of both sides in turn (%(default)s)")
    parser.add_argument("--small", type=int, default=500, help="pairs of 352 pixels (%(default)s)")
    parser.add_argument("--large", type=int, default=50, help="pairs of 1024 pixels (%(default)s)")
    given = parser.parse_args()
    masks = sorted((given.root / "masks").rglob("*.png")) if given.root else []
    print("| pairs | measures | decoding, s | PySODMetrics, s | maskgym, s | ratio | least | MiB | ours | agree to |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, count in (("small", given.small), ("large", given.large)):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "pairs"
            make_pairs(folder, masks, SHAPES[name], count)
            for part in PARTS:
                rounds = [{side: ask(side, folder, part) for side in SIDES} for _ in range(given.rounds)]
                print(row(f"{count} of {SHAPES[name]}", part, rounds), flush=True)
    return None


def row(pairs: str, part: str, rounds: list[dict[str, dict]]) -> str:
    """Format a row of the table; CPU times exclude other programs."""
    decode, slow, fast = (statistics.median(r[side]["cpu"] for r in rounds) for side in ("decoding", "theirs", "ours"))
    ratios = sorted(
        (r["theirs"]["cpu"] - r["decoding"]["cpu"]) / (r["ours"]["cpu"] - r["decoding"]["cpu"]) for r in rounds
    )
    peaks = [max(r[side]["peak"] for r in rounds) for side in ("theirs", "ours")]
    ours, theirs = (rounds[0][side]["scores"] for side in ("ours", "theirs"))
    worst = max(abs(ours[name] - value) for name, value in theirs.items())
    return (
        f"| {pairs} | {part} | {decode:.1f} | {slow - decode:.1f} | {fast - decode:.1f} | "
        f"{statistics.median(ratios):.1f}x | {ratios[0]:.1f}x | {peaks[0]:.0f} | {peaks[1]:.0f} | {worst:.0e} |"
    )


if __name__ == "__main__":
    main()
