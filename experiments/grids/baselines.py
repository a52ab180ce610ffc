"""Baselines of AlignSAM's Tables 2 and 3: ``maskgym baselines samed env.task=blur train_samples=50 --out FILE``.

PerSAM, SAMed or MSA (`maskgym.policies.few_shot`) is trained on the samples, and scored on the held-out samples, that a
click agent has with the same ``key=value`` arguments of ``run``: ``data``, ``env.task``, ``segmenter``,
``train_samples``, ``env.train_samples_per``, ``evaluation`` and ``seed`` name what they are of; the others do not
concern a baseline. With ``env.task=semantic`` there is one model per category, as in Table 3, because a baseline reads
no text: it is trained on those of the run's samples that show its category. The scores are then over the samples of all
categories, with ``class_iou``, the mean over categories, beside ``iou``, the mean over samples.

``segmenter.dtype`` and ``segmenter.embedding_dtype`` are the precision of decoder and encoder. ``--micro-batch`` and
``--checkpointing`` lower the memory of training, ``--predict-batch`` that of prediction. The same command goes on with
the category where it was stopped, and does not train again for results that the file holds.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from maskgym import data, files
from maskgym.aliases import Config, JsonObject, Settings
from maskgym.data import Dataset, Sample, Subset
from maskgym.errors import UserError
from maskgym.experiments.evaluation import provenance
from maskgym.experiments.evaluation.evaluation import held_out
from maskgym.experiments.evaluation.statistics import FEW, FEW_TOLD
from maskgym.experiments.wiring import build, command, composition, run_folder
from maskgym.metrics import ClassScores, SaliencyScores, iou, s_measure
from maskgym.metrics.referring import areas
from maskgym.rewards import Transition
from maskgym.rewards.terms import scored_masks
from maskgym.segmenters.frozen import chunks
from maskgym.segmenters.outputs import describe

if TYPE_CHECKING:
    from maskgym.policies.few_shot import AdaptedSam
    from maskgym.segmenters.points.sam import SamSegmenter

TASKS = ("sod", "blur", "shadow", "glass", "semantic")
SEGMENTERS = ("sam_tiny", "sam")  # segmenters that hold a Sam of segment_anything
MEMORY = ("predict_batch", "micro_batch", "checkpointing")  # settings that leave the numbers as they are
TRAINING = ("steps", "batch_size", "learning_rate", *MEMORY)
SETTINGS = {
    "persam": ("refinements", "guidance", "predict_batch"),
    "samed": ("rank", *TRAINING),
    "msa": ("bottleneck", *TRAINING),
}
LIBRARIES = ("torch", "numpy", "segment-anything")
SHOWN = ("iou", "class_iou", "s_measure", "mae")
HELD = 512  # most training samples that are held in memory
ASKED = "asked"  # field of results with everything that the numbers depend on
Fit = Callable[[argparse.Namespace], JsonObject]


def main(argv: Sequence[str] | None = None, run: Fit | None = None) -> int:
    """Fit and score one baseline; return the exit status: 2 for a usage error, which is printed in one line."""
    return command.status(partial(_main, run=run or fit_and_score), argv, "interrupted: the same command goes on")


def _main(arguments: Sequence[str], run: Fit) -> None:
    given = parse(arguments)
    results = run(given)
    try:
        run_folder.write_json(given.out, results)
    except OSError as error:
        raise UserError(f"--out {given.out}: cannot be written: {error.strerror}") from error
    parts_file(given.out).unlink(missing_ok=True)
    scores = "  ".join(f"{name} {results['scores'][name]:.3f}" for name in SHOWN if name in results["scores"])
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
            option, told = f"--{setting.replace('_', '-')}", "see policies/few_shot/"
            if setting == "checkpointing":
                baseline.add_argument(option, action="store_const", const=True, help=told)
            elif setting == "guidance":
                baseline.add_argument("--no-guidance", dest=setting, action="store_const", const=False, help=told)
            else:
                baseline.add_argument(option, type=float if setting == "learning_rate" else int, help=told)
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

    Results of the same command that the file holds are returned as they are.

    Raises:
        UserError: If the data or the weights cannot be used, the device has too little memory, or the file holds
            results of another command.
    """
    start, config = time.monotonic(), given.config
    ((task, _),) = config["env"]["gym_ids"].items()
    semantic = config["env"]["task"] == "semantic"
    segmenter, settings = _segmenter(config), _settings(given)
    train, test = build.make_dataset(config, task, "train"), build.make_held_out_dataset(config, task)
    indices = held_out(len(test), config["evaluation"]["samples"])
    if not indices:
        raise UserError("evaluation.samples=0: nothing to score: expected at least 1")
    asked = _asked(given, segmenter, settings, train, test, indices)
    if given.out.exists():
        return _finished(given.out, asked)
    groups = _by_category(given, train, test, indices) if semantic else {"": (train, indices)}
    parts = _read_parts(given.out, asked) if semantic else {}
    with tqdm(total=len(groups), desc="categories", unit="category", disable=None if semantic else True) as bar:
        bar.update(len(parts))
        for category, (samples, tested) in groups.items():
            if category in parts:
                continue
            bar.set_postfix_str(category)
            parts[category] = _of_category(given.baseline, segmenter, settings, samples, test, tested, category)
            if semantic:
                _keep(given.out, {"category": category, **parts[category]})
            bar.update()
    ordered = {category: parts[category] for category in groups}
    rows = sorted((row for part in ordered.values() for row in part["rows"]), key=lambda row: row["key"])
    results = {
        "baseline": given.baseline,
        "task": config["env"]["task"],
        "data": config["data"],
        "split": test.split,
        "segmenter": config["segmenter"],
        "weights": segmenter.fingerprint,
        "train_samples": sum(part["shots"] for part in ordered.values()),
        "train_samples_per": build.shots_per(config),
        "samples": len(rows),
        "of": len(test),
        "seed": config["seed"],
        "device": str(segmenter.device),
        "settings": settings,
        "scores": _scores([part["sums"] for part in ordered.values()]) | (_class_scores(rows) if semantic else {}),
        "per_sample": rows,
        "loss": {category or config["env"]["task"]: part["loss"] for category, part in ordered.items() if part["loss"]},
        "wall_s": round(time.monotonic() - start, 1),
        "versions": {name: version(name) for name in LIBRARIES},
        provenance.KEY: asked[provenance.KEY],
        ASKED: {name: value for name, value in asked.items() if name != provenance.KEY},
    }
    if not semantic:
        return results
    categories = {category: _scores([part["sums"]]) for category, part in ordered.items()}
    return results | {"categories": categories, "shots": {name: part["shots"] for name, part in ordered.items()}}


def _of_category(
    name: str,
    segmenter: SamSegmenter,
    settings: Settings,
    samples: Dataset,
    test: Dataset,
    tested: Sequence[int],
    category: str,
) -> JsonObject:
    """Fit a model and score it; return its number of ``shots``, ``loss``, ``rows`` and ``sums``, as JSON types.

    Few samples are read once and held in memory; all of a training split are read again for each use.

    Raises:
        UserError: As `fit_and_score`.
    """
    import torch

    from maskgym.policies.few_shot import BASELINES

    try:
        model = BASELINES[name](segmenter, **settings)
        shots = len(samples)
        losses = model.fit(samples if shots > HELD else _read(samples, range(shots), f"read train {category}"))
        rows, pixels = score(model, test, tested)
    except torch.OutOfMemoryError as error:
        less = "to train, --micro-batch N and --checkpointing; to predict, --predict-batch N"
        raise UserError(f"{segmenter.device}: out of memory: expected less at a time: {less}") from error
    return {"shots": shots, "loss": _thinned(losses), "rows": rows, "sums": pixels.to_json()}


def score(model: AdaptedSam, dataset: Dataset, indices: Sequence[int]) -> tuple[list[JsonObject], SaliencyScores]:
    """Compute ``key``, ``category``, ``iou``, ``s_measure`` and ``areas`` of each sample, and the scores of all.

    Args:
        model: Fitted model.
        dataset: Data set, of which the samples of one prediction at a time are in memory.
        indices: Indices of the samples to score.

    Raises:
        UserError: If a sample cannot be scored.
    """
    rows: list[JsonObject] = []
    scores = SaliencyScores()
    with tqdm(total=len(indices), desc="evaluate", unit="sample", disable=None, leave=False) as bar:
        for chunk in chunks(indices, model.predict_batch):
            samples = [dataset[index] for index in chunk]
            for sample, mask in zip(samples, model.predict([sample.images[0] for sample in samples]), strict=True):
                ((predictions, targets),) = scored_masks(Transition("sod", sample, "", (mask[None],)))
                pair = predictions.any(axis=0), targets.any(axis=0)
                scores.add(*pair)
                row = {"key": sample.key, "category": sample.category, "areas": areas(*pair).tolist()}
                rows.append({**row, "iou": float(iou(*pair)), "s_measure": float(s_measure(*pair))})
            bar.update(len(samples))
    return rows, scores


def parts_file(out: Path) -> Path:
    """Name the journal of finished categories: what was asked for, then one line per category."""
    return out.with_name(f"{out.name}.parts.jsonl")


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


def _settings(given: argparse.Namespace) -> dict[str, int | float | None]:
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


def _asked(
    given: argparse.Namespace,
    segmenter: SamSegmenter,
    settings: Settings,
    train: Dataset,
    test: Dataset,
    indices: Sequence[int],
) -> JsonObject:
    """Collect everything that the numbers depend on, as JSON types."""
    config = given.config
    ((task, _),) = config["env"]["gym_ids"].items()
    found: provenance.Provenance = {
        "held_out": {task: provenance.samples(config["data"], test, indices)},
        "train": {task: provenance.samples(config["data"], train)},
        "weights": {"segmenter": describe(segmenter, config["segmenter"]["name"])},
    }
    return {
        "baseline": given.baseline,
        "task": config["env"]["task"],
        "category": given.category,
        "settings": {name: value for name, value in settings.items() if name not in MEMORY},
        provenance.KEY: found,
    }


def _finished(out: Path, asked: JsonObject) -> JsonObject:
    """Read the results of the same command."""
    results = run_folder.read_json(out)
    if not isinstance(results, dict) or ASKED not in results:
        raise UserError(f"--out {out}: holds no results of this version: expected another file")
    _check_same(f"--out {out}", {provenance.KEY: results.get(provenance.KEY), **results[ASKED]}, asked)
    print("finished before: these are its results")
    return results


def _read_parts(out: Path, asked: JsonObject) -> dict[str, JsonObject]:
    """Read the finished categories of the same command; begin the journal if there is none."""
    file = parts_file(out)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        head, *rest = [json.loads(line) for line in files.whole_lines(file).splitlines()] or [None]
        found = {row.pop("category"): row for row in rest}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read as finished categories: {error}: delete it to start anew") from error
    if head is None:
        _keep(out, asked)
    else:
        _check_same(str(file), head, asked)
        print(f"goes on after {len(found)} finished categories: {', '.join(found)}" if found else "starts anew")
    return found


def _keep(out: Path, line: JsonObject) -> None:
    try:
        files.append(parts_file(out), json.dumps(line))
    except OSError as error:
        raise UserError(f"{parts_file(out)}: cannot be written: {error.strerror}") from error


def _check_same(where: str, then: JsonObject, now: JsonObject) -> None:
    """Raise UserError if results are of another command, data or segmenter."""
    if other := [name for name in now if then.get(name) != now[name]]:
        parts = provenance.changes(then[provenance.KEY], now[provenance.KEY]) if provenance.KEY in then else []
        told = "; ".join([*parts, *(name for name in other if name != provenance.KEY)]) or provenance.KEY
        raise UserError(f"{where}: holds results that differ in: {told}: expected another --out")


def _by_category(
    given: argparse.Namespace, train: Dataset, test: Dataset, indices: Sequence[int]
) -> dict[str, tuple[Dataset, list[int]]]:
    """Group the training samples and the held-out indices by requested category."""
    of_train = data.by_category(train)
    of_test = {name: [indices[i] for i in rows] for name, rows in data.by_category(Subset(test, indices)).items()}
    if given.category not in (None, *of_test):
        held = ", ".join(of_test)
        raise UserError(f"--category {given.category}: not among the {len(indices)} held-out samples: they have {held}")
    wanted = list(of_test) if given.category is None else [given.category]
    if missing := [category for category in wanted if category not in of_train]:
        told = f"train_samples={given.config['train_samples']}: none of the {len(train)} shows '{missing[0]}'"
        raise UserError(f"{told}: expected more, or env.train_samples_per=category")
    return {category: (Subset(train, of_train[category]), of_test[category]) for category in wanted}


def _read(dataset: Dataset, indices: Sequence[int], label: str) -> list[Sample]:
    return [dataset[i] for i in tqdm(indices, desc=label, unit="sample", disable=None, leave=False)]


def _scores(sums: Sequence[JsonObject]) -> dict[str, float]:
    """Compute the scores over the samples of all categories."""
    every = SaliencyScores()
    for one in sums:
        every.add_scores(one)
    return every.result()


def _class_scores(rows: Sequence[JsonObject]) -> dict[str, float]:
    """Compute the IoU of each category and their mean, as for a click agent."""
    scores = ClassScores()
    for row in rows:
        both, either = row["areas"]
        scores.add_areas(both, either, row["category"])
    return scores.result()


def _thinned(losses: Sequence[float], points: int = 10) -> list[float]:
    """Compute the means of at most ``points`` equal parts, in order."""
    return [float(np.mean(part)) for part in np.array_split(losses, min(points, len(losses)))] if losses else []
