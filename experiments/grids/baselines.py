"""Baselines of AlignSAM's Tables 2 and 3: ``maskgym baselines samed env.task=blur train_samples=50 --out FILE``.

PerSAM, SAMed or MSA (`maskgym.policies.few_shot`) is trained on the samples, and scored on the held-out samples, that a
click agent has with the same ``key=value`` arguments of ``run``: ``data``, ``env.task``, ``segmenter``,
``train_samples``, ``evaluation`` and ``seed`` name what they are of; the others do not concern a baseline. With
``env.task=semantic`` there is one model per category, as in Table 3, because a baseline reads no text;
``train_samples`` then counts per category. The scores are then over the samples of all categories.
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
from maskgym.aliases import Config, JsonObject
from maskgym.data import Dataset, Sample, Subset
from maskgym.errors import UserError
from maskgym.experiments.evaluation.evaluation import held_out
from maskgym.experiments.evaluation.statistics import FEW, FEW_TOLD
from maskgym.experiments.wiring import build, command, composition, run_folder
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
    scores = "  ".join(f"{name} {results['scores'][name]:.3f}" for name in ("iou", "s_measure", "mae"))
    print(f"{scores}  n = {results['samples']} of {results['of']}, {results['split']}  {given.out}")
    if results["samples"] < FEW:
        print(f"warning: {FEW_TOLD}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; settings of a baseline that are not given are None.

    Raises:
        UserError: If an argument is invalid.
    """
    parser = command.Parser(prog="maskgym baselines", description=__doc__)
    baselines = parser.add_subparsers(dest="baseline", required=True, metavar="{" + ",".join(SETTINGS) + "}")
    for name, settings in SETTINGS.items():
        baseline = baselines.add_parser(name, help=f"settings: {', '.join(settings)}")
        baseline.add_argument("arguments", nargs="*", metavar="key=value", help="as of run: data=… env.task=… seed=1")
        baseline.add_argument(
            "--category", help="category for env.task=semantic, such as star; without it, all in turn"
        )
        baseline.add_argument("--out", type=Path, required=True, metavar="FILE", help="file for the results, as JSON")
        for setting in settings:
            kind = float if setting == "learning_rate" else int
            baseline.add_argument(f"--{setting.replace('_', '-')}", type=kind, help="see policies/few_shot/")
    given, others = parser.parse_known_args(arguments)
    given.arguments += [word for word in others if not word.startswith("-")]  # that follow an option
    if unknown := [word for word in others if word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    given.config = config_of(given.arguments)
    _check(given)
    return given


def config_of(arguments: Sequence[str]) -> Config:
    """Compose the config of ``key=value`` arguments, of ``env=point_prompt`` unless another is named.

    Raises:
        UserError: If an argument is invalid, or the config names a task or a segmenter that baselines do not take.
    """
    named = {argument.partition("=")[0] for argument in arguments}
    config = composition.compose([*(() if "env" in named else ("env=point_prompt",)), *arguments])
    build.check_numbers(config)
    for key, value, expected in (
        ("env.task", config["env"].get("task"), TASKS),
        ("segmenter", config["segmenter"]["name"], SEGMENTERS),
    ):
        if value not in expected:
            raise UserError(f"{key}={value}: baselines take {', '.join(expected)}")
    return config


def fit_and_score(given: argparse.Namespace) -> JsonObject:
    """Fit and score the baseline, once per category for ``semantic``; return the content of the results file.

    Raises:
        UserError: If the data or the weights cannot be used.
    """
    from maskgym.policies.few_shot import BASELINES

    start, config = time.monotonic(), given.config
    ((task, _),) = config["env"]["gym_ids"].items()
    semantic = config["env"]["task"] == "semantic"
    train = build.make_dataset({**config, "train_samples": None} if semantic else config, task, "train")
    test = build.make_held_out_dataset(config, task)
    indices = held_out(len(test), config["evaluation"]["samples"])
    segmenter, settings = _segmenter(config), _settings(given)
    groups = _by_category(given, train, test, indices) if semantic else {"": (train, indices)}
    rows: list[JsonObject] = []
    every, categories, losses, shots = SaliencyScores(), {}, {}, 0
    for category, (samples, tested) in groups.items():
        model = BASELINES[given.baseline](segmenter, **settings)
        losses[category] = model.fit(_read(samples, range(len(samples)), f"read train {category}"))
        shots += len(samples)
        pixels = SaliencyScores()
        rows += score(model, _read(test, tested, f"read test {category}"), (every, pixels), segmenter.batch_size)
        categories[category] = pixels.result()
    results = {
        "baseline": given.baseline,
        "task": config["env"]["task"],
        "data": config["data"],
        "split": test.split,
        "segmenter": config["segmenter"],
        "weights": segmenter.fingerprint,
        "train_samples": shots,
        "samples": len(rows),
        "of": len(test),
        "seed": config["seed"],
        "device": str(segmenter.device),
        "settings": settings,
        "scores": every.result(),
        "per_sample": sorted(rows, key=lambda row: row["key"]),
        "loss": {category or config["env"]["task"]: _thinned(values) for category, values in losses.items() if values},
        "wall_s": round(time.monotonic() - start, 1),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    return results | ({"categories": categories} if semantic else {})


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


def _check(given: argparse.Namespace) -> None:
    """Raise UserError if ``--category`` does not belong here, or the results file cannot be written."""
    if given.category is not None and given.config["env"]["task"] != "semantic":
        raise UserError(f"--category {given.category}: belongs to env.task=semantic")
    if given.out.is_dir():
        raise UserError(f"--out {given.out}: is a folder: expected a file")
    folder = next(parent for parent in given.out.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"--out {given.out}: cannot be written in {folder}")


def _segmenter(config: Config) -> SamSegmenter:
    from maskgym.segmenters.points.sam import SamSegmenter

    segmenter = build.make_segmenter(config)
    assert isinstance(segmenter, SamSegmenter)  # as all `SEGMENTERS`
    return segmenter


def _settings(given: argparse.Namespace) -> dict[str, int | float]:
    """Build the arguments of the baseline: its defaults, overridden by the command line."""
    from maskgym.policies.few_shot import BASELINES

    arguments = inspect.signature(BASELINES[given.baseline]).parameters.values()
    settings = {argument.name: argument.default for argument in arguments if argument.name != "segmenter"}
    if given.config["segmenter"]["name"] == "sam_tiny" and given.baseline == "persam":
        settings["refinements"] = 0  # sam_tiny was not trained with the prompts of refinements
    if "seed" in settings:
        settings["seed"] = given.config["seed"]
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
    shots = given.config["train_samples"]
    for category in sorted(of_test) if given.category is None else (given.category,):
        rows = of_train.get(category, [])
        if len(rows) < (shots or 1):
            raise UserError(f"train_samples={shots}: the training split has {len(rows)} samples of '{category}'")
        samples = Subset(train, rows)
        groups[category] = data.few_shot(samples, shots, given.config["seed"]) if shots else samples, of_test[category]
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
