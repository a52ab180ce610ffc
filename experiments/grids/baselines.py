"""Baselines of AlignSAM's Tables 2 and 3 with few training samples: ``maskgym baselines samed --task sod``.

PerSAM, SAMed or MSA (`maskgym.policies.few_shot`) is trained on ``--shots`` samples, and is scored on the
same held-out samples as click agents. With ``--task semantic`` there is one model per category, as in Table 3, because
a baseline reads no text. The scores are then over the samples of all categories.
"""

from __future__ import annotations

import argparse
import inspect
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from maskgym import data
from maskgym.aliases import JsonObject
from maskgym.data import Dataset, Sample, Subset
from maskgym.errors import UserError
from maskgym.experiments.evaluation.evaluation import held_out
from maskgym.experiments.wiring import command, run_folder
from maskgym.metrics import SaliencyScores, iou, s_measure
from maskgym.rewards import Transition
from maskgym.rewards.terms import scored_masks

if TYPE_CHECKING:
    from maskgym.policies.few_shot import AdaptedSam
    from maskgym.segmenters.points.sam import SamSegmenter

TASKS = ("sod", "blur", "shadow", "glass", "semantic")
SEGMENTERS = ("sam_tiny", "sam")  # segmenters that hold a Sam of segment_anything
TRAINING = ("steps", "batch_size", "learning_rate")
SETTINGS = {"persam": ("refinements",), "samed": ("rank", *TRAINING), "msa": ("bottleneck", *TRAINING)}
LIBRARIES = ("torch", "numpy", "segment-anything")
Fit = Callable[[argparse.Namespace], JsonObject]


def main(argv: Sequence[str] | None = None, run: Fit | None = None) -> int:
    """Fit and score one baseline; return the exit status: 2 for a usage error, which is printed in one line."""
    return command.status(partial(_main, run=run or fit_and_score), argv)


def _main(arguments: Sequence[str], run: Fit) -> None:
    given = parse(arguments)
    results = run(given)
    try:
        run_folder.write_json(given.out, results)
    except OSError as error:
        raise UserError(f"--out {given.out}: cannot be written: {error.strerror}") from error
    print("  ".join(f"{name} {results['scores'][name]:.3f}" for name in ("iou", "s_measure", "mae")), given.out)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; settings of a baseline that are not given are None.

    Raises:
        UserError: If an argument is invalid.
    """
    parser = command.Parser(prog="maskgym baselines", description=__doc__)
    baselines = parser.add_subparsers(dest="baseline", required=True, metavar="{" + ",".join(SETTINGS) + "}")
    for name, settings in SETTINGS.items():
        baseline = baselines.add_parser(name, help=f"settings: {', '.join(settings)}")
        _add_common(baseline)
        for setting in settings:
            kind = float if setting == "learning_rate" else int
            baseline.add_argument(f"--{setting.replace('_', '-')}", type=kind, help="see policies/few_shot/")
    given = parser.parse_args(arguments)
    _check(given)
    return given


def fit_and_score(given: argparse.Namespace) -> JsonObject:
    """Fit and score the baseline, once per category for ``semantic``; return the content of the results file.

    Raises:
        UserError: If the data or the weights cannot be used.
    """
    from maskgym.policies.few_shot import BASELINES

    start, place = time.monotonic(), {"root": given.root} if given.data == "folder" else {}
    train, test = (data.make(given.data, task=given.task, split=split, **place) for split in ("train", "test"))
    indices = held_out(len(test), given.samples)
    segmenter, settings = _segmenter(given), _settings(given)
    groups = _by_category(given, train, test, indices) if given.task == "semantic" else {"": (train, indices)}
    rows: list[JsonObject] = []
    every, categories, losses = SaliencyScores(), {}, {}
    for category, (samples, tested) in groups.items():
        model = BASELINES[given.baseline](segmenter, **settings)
        shots = data.few_shot(samples, given.shots, given.seed)
        losses[category] = model.fit(_read(shots, range(len(shots)), f"read shots {category}"))
        pixels = SaliencyScores()
        rows += score(model, _read(test, tested, f"read test {category}"), (every, pixels), segmenter.batch_size)
        categories[category] = pixels.result()
    results = {
        "baseline": given.baseline,
        "task": given.task,
        "data": given.data,
        "split": test.split,
        "segmenter": given.segmenter,
        "checkpoint": None if given.checkpoint is None else str(given.checkpoint),
        "weights": segmenter.fingerprint,
        "shots": given.shots,
        "samples": len(rows),
        "seed": given.seed,
        "device": str(segmenter.device),
        "settings": settings,
        "scores": every.result(),
        "per_sample": sorted(rows, key=lambda row: row["key"]),
        "loss": {category or given.task: _thinned(values) for category, values in losses.items() if values},
        "wall_s": round(time.monotonic() - start, 1),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    return results | ({"categories": categories} if given.task == "semantic" else {})


def score(
    model: AdaptedSam, samples: Sequence[Sample], gathered: Sequence[SaliencyScores], chunk: int
) -> list[JsonObject]:
    """Compute ``key``, ``iou`` and ``s_measure`` of each sample; add its mask to the gathered scores.

    Args:
        model: Fitted model.
        samples: Samples to score.
        gathered: Scores of sets that contain the samples.
        chunk: Number of images per prediction.

    Raises:
        UserError: If a sample cannot be scored.
    """
    rows = []
    with tqdm(total=len(samples), desc="evaluate", unit="sample", disable=None, leave=False) as bar:
        for start in range(0, len(samples), chunk):
            part = samples[start : start + chunk]
            for sample, mask in zip(part, model.predict([sample.images[0] for sample in part]), strict=True):
                ((predictions, targets),) = scored_masks(Transition("sod", sample, "", (mask[None],)))
                pair = predictions.any(axis=0), targets.any(axis=0)
                rows.append({"key": sample.key, "iou": float(iou(*pair)), "s_measure": float(s_measure(*pair))})
                for scores in gathered:
                    scores.add(*pair)
            bar.update(len(part))
    return rows


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=TASKS, default="sod", help="content of the masks (default: %(default)s)")
    parser.add_argument("--category", help="category for --task semantic, such as star; without it, each in turn")
    parser.add_argument("--data", choices=("scenes", "folder"), default="scenes", help="(default: %(default)s)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of samples for --data folder")
    parser.add_argument("--shots", type=int, default=50, help="training samples (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed for the choice of shots and for training (default: %(default)s)"
    )
    parser.add_argument("--samples", type=int, default=256, help="held-out samples (default: %(default)s)")
    parser.add_argument("--segmenter", choices=SEGMENTERS, default="sam_tiny", help="(default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights for --segmenter sam")
    parser.add_argument("--device", help="PyTorch device (default: CUDA if available)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file for the results, as JSON")


def _check(given: argparse.Namespace) -> None:
    """Raise UserError if settings contradict each other, or the results file cannot be written."""
    for name, least in (("shots", 1), ("samples", 1), ("seed", 0)):
        if getattr(given, name) < least:
            raise UserError(f"--{name} {getattr(given, name)}: expected at least {least}")
    for name, belongs, asked in (
        ("category", "--task semantic", given.task == "semantic"),
        ("root", "--data folder", given.data == "folder"),
        ("checkpoint", "--segmenter sam", given.segmenter == "sam"),
    ):
        if getattr(given, name) is not None and not asked:
            raise UserError(f"--{name} {getattr(given, name)}: belongs to {belongs}")
    if given.out.is_dir():
        raise UserError(f"--out {given.out}: is a folder: expected a file")
    folder = next(parent for parent in given.out.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"--out {given.out}: cannot be written in {folder}")


def _segmenter(given: argparse.Namespace) -> SamSegmenter:
    from maskgym import segmenters
    from maskgym.segmenters.points.sam import SamSegmenter

    weights = {"checkpoint": given.checkpoint} if given.segmenter == "sam" else {}
    segmenter = segmenters.make(given.segmenter, device=given.device, **weights)
    assert isinstance(segmenter, SamSegmenter)  # as all `SEGMENTERS`
    return segmenter


def _settings(given: argparse.Namespace) -> dict[str, int | float]:
    """Build the arguments of the baseline: its defaults, overridden by the command line."""
    from maskgym.policies.few_shot import BASELINES

    arguments = inspect.signature(BASELINES[given.baseline]).parameters.values()
    settings = {argument.name: argument.default for argument in arguments if argument.name != "segmenter"}
    if given.segmenter == "sam_tiny" and given.baseline == "persam":
        settings["refinements"] = 0  # sam_tiny was not trained with the prompts of refinements
    if "seed" in settings:
        settings["seed"] = given.seed
    asked = {name: getattr(given, name) for name in SETTINGS[given.baseline]}
    return settings | {name: value for name, value in asked.items() if value is not None}


def _by_category(
    given: argparse.Namespace, train: Dataset, test: Dataset, indices: Sequence[int]
) -> dict[str, tuple[Dataset, list[int]]]:
    """Group the training samples and the held-out indices by requested category."""
    of_train, of_test = _categories(train, range(len(train))), _categories(test, indices)
    if given.category not in (None, *of_test):
        held = ", ".join(sorted(of_test))
        raise UserError(f"--category {given.category}: not among the {len(indices)} held-out samples: they have {held}")
    groups: dict[str, tuple[Dataset, list[int]]] = {}
    for category in sorted(of_test) if given.category is None else (given.category,):
        rows = of_train.get(category, [])
        if len(rows) < given.shots:
            raise UserError(f"--shots {given.shots}: the training split has {len(rows)} samples of '{category}'")
        groups[category] = (Subset(train, rows), of_test[category])
    return groups


def _categories(dataset: Dataset, indices: Sequence[int]) -> dict[str, list[int]]:
    """Group the indices of samples by category."""
    found: dict[str, list[int]] = {}
    for index in tqdm(indices, desc=f"categories, {dataset.split}", unit="sample", disable=None, leave=False):
        found.setdefault(str(dataset[index].category), []).append(index)
    return found


def _read(dataset: Dataset, indices: Sequence[int], label: str) -> list[Sample]:
    return [dataset[i] for i in tqdm(indices, desc=label, unit="sample", disable=None, leave=False)]


def _thinned(losses: Sequence[float], points: int = 10) -> list[float]:
    """Compute the means of at most ``points`` equal parts, in order."""
    return [float(np.mean(part)) for part in np.array_split(losses, min(points, len(losses)))]
