"""Folders of predictions, and their measures against the samples of a data set.

The content of a folder depends on the task. A file is named after the key of its sample, or its last part:

maps        one grey image per photo, of any size: salient objects, blur, shadow, …, or the target of a need or an
            expression; of the latter ``malformed.txt`` has the keys of answers that could not be read, one per line,
            whose empty map does not say that nothing is meant
classes     one grey image per photo and class in it
instances   one label map per photo (0 background, one value per instance), or ``instances.jsonl``, one line per photo:
            ``{"key": …, "masks": [run-length codes], "scores": [numbers, optional]}``
ranks       one grey image per photo, one level per object; lighter objects are more salient
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from maskgym import files
from maskgym.aliases import JsonObject
from maskgym.data import Dataset
from maskgym.data.layout.images import (
    FOREGROUND,
    SOFT,
    DataFault,
    inspect_mask,
    is_picture,
    read_labels,
    read_levels,
)
from maskgym.data.run_lengths import decode_counts
from maskgym.errors import UserError
from maskgym.experiments.evaluation.presets import Preset
from maskgym.experiments.evaluation.scoring import Note, Row, Summary, shorten
from maskgym.metrics import (
    ClassScores,
    InstanceScores,
    PreparedMask,
    RankingScores,
    ReferringScores,
    SaliencyScores,
    measure_levels,
)
from maskgym.metrics.referring import areas

INSTANCES = "instances.jsonl"
MALFORMED = "malformed.txt"


@dataclass(frozen=True)
class Pair:
    """Key of an image in the data set, its predicted map and its ground-truth mask."""

    key: str
    prediction: Path
    mask: Path


@dataclass(frozen=True)
class Maps:
    """Maps with one mask file each, scored by the measures of saliency; photos are not read.

    Attributes:
        pairs: Maps and masks, at least one pair.
        preset: Evaluation protocol.
        weighted: Whether to measure the weighted F, which takes longer than all other measures together.
    """

    pairs: Sequence[Pair]
    preset: Preset
    weighted: bool = True

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def convention(self) -> str:
        """The preset's description of its protocol."""
        return self.preset.note

    def files(self) -> Iterator[Path]:
        """Yield the prediction and mask files."""
        for pair in self.pairs:
            yield from (pair.prediction, pair.mask)

    def measure(self, index: int) -> Row:
        """Compute the measures of `measure_levels` for one map."""
        pair = self.pairs[index]
        levels, kind = inspect_mask(pair.mask)
        row = measure_map(pair.prediction, levels > FOREGROUND, self.preset, self.weighted)
        return {"key": pair.key, **row, "notes": [*row["notes"], *_note("masks", kind, pair.mask)]}

    def summarise(self, rows: Sequence[Row]) -> Summary:
        """Compute the `SaliencyScores` of all images and of each image."""
        return _saliency(rows)


@dataclass(frozen=True)
class Samples(ABC):
    """Base class of predictions that are scored against whole samples of a data set.

    Attributes:
        dataset: Data set, with one prediction per sample.
        predictions: One file per sample, in the order of the data set.
        preset: Evaluation protocol.
    """

    dataset: Dataset
    predictions: Sequence[Path]
    preset: Preset

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def convention(self) -> str:
        """The preset's description of its protocol."""
        return self.preset.note

    def files(self) -> Iterator[Path]:
        """Yield the prediction files; the files of the data set are assumed not to change."""
        yield from self.predictions

    @abstractmethod
    def measure(self, index: int) -> Row:
        """Compute the stored row of one sample; see `maskgym.experiments.evaluation.scoring.Work`."""

    @abstractmethod
    def summarise(self, rows: Sequence[Row]) -> Summary:
        """Compute the scores over all samples, and the measures of each."""


@dataclass(frozen=True)
class Needs(Samples):
    """Maps of the target of a need or an expression, with measures of saliency and referring segmentation.

    Void pixels are background in the map and in the mask, as in rewards.

    Attributes:
        malformed: Keys of the samples whose answer could not be read.
    """

    malformed: frozenset[str] = frozenset()

    def measure(self, index: int) -> Row:
        """Compute the measures of `measure_levels`, and the pixels of intersection, union and target."""
        sample = self.dataset[index]
        void = None if sample.void is None else sample.void[0]
        row = measure_map(self.predictions[index], sample.union(), self.preset, weighted=False, void=void)
        missed, foreground, false, _ = row["confusion"]
        return {"key": sample.key, **row, "areas": [foreground - missed, foreground + false, foreground]}

    def summarise(self, rows: Sequence[Row]) -> Summary:
        """Compute `SaliencyScores` and `ReferringScores`."""
        scores, per_image = _saliency([{name: v for name, v in row.items() if name != "areas"} for row in rows])
        referring = ReferringScores(self.preset.empty)
        for row in rows:
            if row["key"] in self.malformed:
                referring.add_malformed(row["areas"][2])
            else:
                referring.add_areas(*row["areas"])
        return scores | referring.result(), per_image


class Classes(Samples):
    """Maps of one class per sample, with the IoU of each class over the set; void pixels are left out."""

    convention = (
        "A pixel is of the class where the map is above level 127; void pixels are left out. The IoU of a class is the "
        "sum of intersections over the sum of unions, over the photos that show it; the mean is over classes."
    )

    def measure(self, index: int) -> Row:
        """Compute the pixels of intersection and union for the sample's class."""
        sample = self.dataset[index]
        target = sample.union()
        levels, notes = read_map(self.predictions[index], target.shape)
        kept = np.ones(target.shape, bool) if sample.void is None else ~sample.void[0]
        both, either = areas((levels > 127) & kept, target & kept)
        return {"key": sample.key, "notes": notes, "class": sample.category, "areas": [int(both), int(either)]}

    def summarise(self, rows: Sequence[Row]) -> Summary:
        """Compute `ClassScores`."""
        scores = ClassScores()
        for row in rows:
            both, either = row["areas"]
            scores.add_areas(both, either, row["class"])
        return scores.result(), [
            {"key": row["key"], "class": row["class"], "iou": row["areas"][0] / max(row["areas"][1], 1)} for row in rows
        ]


@dataclass(frozen=True)
class Instances:
    """Instances of each photo, with average precision, precision, recall and IASM.

    Attributes:
        dataset: Data set whose samples have one image.
        predictions: For each sample a label map, or its decoded line of ``instances.jsonl``.
        source: Path of ``instances.jsonl``, or None for label maps.
    """

    convention = (
        "AP is the COCO API's with one category: all photos together, 101 recalls, at most 100 instances a photo. "
        "Instances without scores count as equally sure, in the order given, which such an AP depends on; precision, "
        "recall and F1 (at IoU 0.5, in results.json) do not."
    )

    dataset: Dataset
    predictions: Sequence[Path | JsonObject]
    source: Path | None = None

    def __len__(self) -> int:
        return len(self.predictions)

    def files(self) -> Iterator[Path]:
        """Yield the label maps, or ``instances.jsonl``."""
        yield from [self.source] if self.source else self.predictions  # type: ignore[misc]

    def measure(self, index: int) -> Row:
        """Compute `InstanceScores.measure` for one photo."""
        sample, prediction = self.dataset[index], self.predictions[index]
        targets = sample.masks[0]
        if isinstance(prediction, Path):
            guesses, scores = _labelled(prediction, targets.shape[1:]), None
        else:
            guesses, scores = _decoded(self.source, prediction, targets.shape[1:]), prediction.get("scores")
        try:
            row = InstanceScores().measure(guesses, targets, scores)
        except (ValueError, OverflowError) as error:
            raise DataFault(f"{self.source}: '{sample.key}': {error}") from None
        notes = [] if len(guesses) else [("predictions without an instance", sample.key)]
        return {"key": sample.key, "notes": notes, **row}

    def summarise(self, rows: Sequence[Row]) -> Summary:
        """Compute the `InstanceScores` of all photos and of each photo."""
        total, per_image = InstanceScores(), []
        for row in rows:
            measures = {name: value for name, value in row.items() if name not in ("key", "notes")}
            total.add_measures(measures)
            alone = InstanceScores()
            alone.add_measures(measures)
            per_image.append({"key": row["key"], **alone.result()})
        return total.result(), per_image


class Ranks(Samples):
    """Grey maps of ranked objects, with SOR, SA-SOR and the MAE of rank maps."""

    convention = (
        "SOR takes the mode of the predicted map in each object (CVPR 2020), as (mean rho + 1) / 2 over photos that "
        "it is defined on; SA-SOR matches objects at IoU 0.5 and is not rescaled; MAE is of the grey maps."
    )

    def measure(self, index: int) -> Row:
        """Compute the ranking measures of one photo."""
        sample, path = self.dataset[index], self.predictions[index]
        levels = read_levels(path)
        assert sample.ranks is not None  # samples of a ranking data set have them
        targets, ranks = sample.masks[0], sample.ranks[0]
        if levels.shape != targets.shape[1:]:
            raise DataFault(
                f"{path}: {levels.shape[1]}x{levels.shape[0]}: expected the size of its photo, as levels are ranks"
            )
        greys = np.unique(levels[levels > 0])
        return {
            "key": sample.key,
            "notes": [] if len(greys) else [("predictions without an object", path.name)],
            **RankingScores().add(levels == greys[:, None, None], greys, targets, ranks),
        }

    def summarise(self, rows: Sequence[Row]) -> Summary:
        """Compute the `RankingScores` of all photos."""
        total, per_image = RankingScores(), []
        for row in rows:
            values = {name: float("nan") if v is None else v for name, v in row.items() if name not in ("key", "notes")}
            total.add_values(values)
            per_image.append({"key": row["key"], **values})
        return total.result(), per_image


def measure_map(path: Path, mask: np.ndarray, preset: Preset, weighted: bool, void: np.ndarray | None = None) -> Row:
    """Compute the measures of one map with `measure_levels`, as JSON types, and its ``notes``.

    Args:
        path: File of the map.
        mask: Ground truth, bool (H, W).
        preset: Evaluation protocol.
        weighted: Whether to measure the weighted F.
        void: Pixels that are background in both, bool (H, W), or None.

    Raises:
        DataFault: If the map cannot be read.
    """
    levels, notes = read_map(path, mask.shape)
    if void is not None:
        levels, mask = np.where(void, 0, levels).astype(np.uint8), mask & ~void
    target = PreparedMask.of(mask)
    measures = measure_levels(levels, target, preset.stretch, weighted)
    if preset.stretch_error != preset.stretch:
        measures["mae"] = measure_levels(levels, target, preset.stretch_error, weighted=False)["mae"]
    plain = {
        name: value.tolist() if isinstance(value, np.ndarray) else float(value) for name, value in measures.items()
    }
    return {"notes": notes, **plain}


def read_map(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, list[Note]]:
    """Read a predicted map, uint8 (H, W), resized bilinearly to ``shape`` if its size differs, and notes on it.

    Raises:
        DataFault: If the map cannot be decoded, is coloured, or has one colour and several levels of alpha.
    """
    levels, kind = inspect_mask(path, predicted=True)
    notes = _note("predictions", None if kind == SOFT else kind, path)
    if levels.shape == shape:
        return levels, notes
    height, width = shape
    resized = np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR))
    sizes = f"{path}: {levels.shape[1]}x{levels.shape[0]}, resized to its mask's {width}x{height}"
    return resized, [*notes, ("predictions are of another size than their masks", sizes)]


def _note(what: str, kind: str | None, path: Path) -> list[Note]:
    return [] if kind is None else [(f"{what} {kind}", path.name)]


def masks_of(folder: Path) -> list[tuple[str, Path]]:
    """List the masks in a folder and its subfolders, as pairs of relative path without suffix and file.

    Raises:
        UserError: If the folder does not exist, holds no picture, or holds two pictures of one name.
    """
    return sorted(_pictures(folder, "masks").items())


def pair_up(predictions: Path, keys: Sequence[str], partial: bool = False) -> tuple[list[Path | None], list[str]]:
    """Find the prediction of each key: the file of this name, else of the last part of the name.

    Args:
        predictions: Folder of predicted pictures.
        keys: Keys of the samples.
        partial: Whether predictions may be missing; None then stands for a missing one.

    Returns:
        The files, and notes on missing predictions and unused files.

    Raises:
        UserError: If there is no prediction at all, one is missing without ``partial``, or two are of one sample.
    """
    found = _pictures(predictions, "predictions")
    last = [PurePosixPath(key).name for key in keys]
    counts = {name: last.count(name) for name in set(last)} if len(set(last)) < len(last) else {}
    ends: dict[str, list[Path]] = {}
    for name, path in found.items():
        ends.setdefault(PurePosixPath(name).name, []).append(path)
    paths = [
        found.get(key) or (_only(key, ends.get(name, [])) if counts.get(name, 1) == 1 else None)
        for key, name in zip(keys, last, strict=True)
    ]
    notes, missing = [], [key for key, path in zip(keys, paths, strict=True) if path is None]
    if missing:
        lowered = {name.lower(): name for name in found}
        hints = [
            f"{key} ('{lowered[key.lower()]}' differs in case)" if key.lower() in lowered else key for key in missing
        ]
        notes.append(shorten(f"{predictions}: no prediction for {len(missing)} of {len(keys)}", hints))
        some = len(missing) < len(keys)
        if not partial or not some:
            raise UserError(notes[0] + " (--partial scores the others)" * some)
    used = set(paths)
    if unused := sorted(name for name, path in found.items() if path not in used):
        notes.append(shorten(f"{predictions}: {len(unused)} pictures belong to no sample and are left out", unused))
    return paths, notes


def _only(key: str, paths: Sequence[Path]) -> Path | None:
    """Return the only path, or None if there is none."""
    if len(paths) > 1:
        raise UserError(f"{paths[0]} and {paths[1]}: two predictions of '{key}': expected one")
    return paths[0] if paths else None


def malformed(folder: Path) -> frozenset[str]:
    """Read the keys of the answers in a folder that could not be read."""
    return frozenset(files.whole_lines(folder / MALFORMED, repair=False).decode().split("\n")) - {""}


def read_lines(file: Path) -> dict[str, JsonObject]:
    """Read the lines of ``instances.jsonl`` by key.

    Raises:
        UserError: If a line is malformed, or two lines have one key.
    """
    found: dict[str, JsonObject] = {}
    # Texts may hold other separators of lines, which `splitlines` would take for the ends of lines.
    for number, line in enumerate(file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: line {number}: not JSON: {error}") from None
        if not _is_row(row):
            raise UserError(
                f"{file}: line {number}: expected an object with a key, a list of masks and, if any, a list of scores"
            )
        if row["key"] in found:
            raise UserError(f"{file}: line {number}: '{row['key']}' was there before")
        found[row["key"]] = row
    return found


def _is_row(row: JsonObject) -> bool:
    """Check whether a line of ``instances.jsonl`` has the types of a row."""
    if not isinstance(row, dict) or not isinstance(row.get("key"), str) or not isinstance(row.get("masks"), list):
        return False
    scores = row.get("scores")
    return scores is None or (isinstance(scores, list) and all(isinstance(score, (int, float)) for score in scores))


def to_csv(rows: Sequence[Row]) -> str:
    """Format rows of the same columns as CSV; floats have eight significant digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.8g}" if isinstance(value, float) else value for name, value in row.items()})
    return text.getvalue()


def _saliency(rows: Sequence[Row]) -> Summary:
    total, per_image = SaliencyScores(), []
    for row in rows:
        measures = {name: np.asarray(value) for name, value in row.items() if name not in ("key", "notes")}
        total.add_measures(measures)
        alone = SaliencyScores()
        alone.add_measures(measures)
        per_image.append({"key": row["key"], **alone.result()})
    return total.result(), per_image


def _labelled(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read the instances of a label map, bool (m, H, W); nearest-neighbour resizing applies if its size differs."""
    labels = read_labels(path)
    if labels.shape != shape:
        height, width = shape
        labels = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
    return labels == np.unique(labels[labels != 0])[:, None, None]


def _decoded(source: Path | None, line: JsonObject, shape: tuple[int, ...]) -> np.ndarray:
    """Decode the instances of a line, bool (m, H, W)."""
    height, width = shape
    try:
        masks = [decode_counts(code["counts"], (height, width)) for code in line["masks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataFault(
            f"{source}: '{line['key']}': {error}: expected COCO's run-length codes of {width}x{height}"
        ) from None
    return np.stack(masks) if masks else np.zeros((0, height, width), bool)


def _pictures(folder: Path, what: str) -> dict[str, Path]:
    """List the pictures in a folder and its subfolders by relative path without suffix, sorted by name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}: expected one of {what}")
    found: dict[str, Path] = {}
    for directory, names, here in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith((".", "__")))
        for path in (Path(directory, name) for name in sorted(here) if is_picture(name)):
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in found:
                raise UserError(f"{path}: {found[key].name} beside it has the same name")
            found[key] = path
    if not found:
        raise UserError(f"{folder}: no picture in it: expected {what}")
    return found
