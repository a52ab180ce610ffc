"""Folders of predicted maps, scored against masks: in several processes, and going on where it was stopped."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskgym.data.images import FOREGROUND, DataFault, is_picture, read_mask
from maskgym.errors import UserError
from maskgym.experiments import run_folder
from maskgym.experiments.batches import chunks
from maskgym.experiments.presets import Preset
from maskgym.metrics import SaliencyScores, measure_levels, prepare

CHUNK = 50  # images that are scored, and kept, together
PARTS = ".parts"  # folder of what is scored so far
NAMED = 5  # files that a message names


@dataclass(frozen=True)
class Scored:
    """What a folder of predictions is worth.

    Attributes:
        scores: Over the set: every measure of `SaliencyScores.result`, and ``images``, their number.
        per_image: For each image its ``key`` and measures; F and E are of its own curve.
        notes: What was done to files that are not as they should be, one line each.
    """

    scores: dict[str, float]
    per_image: list[dict[str, Any]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """An image's name in the data set, its predicted map and its true mask."""

    key: str
    prediction: Path
    mask: Path


def masks_of(folder: Path) -> list[tuple[str, Path]]:
    """Return the masks in a folder and below, by their path without suffix.

    Raises:
        UserError: If there is no such folder, no picture in it, or two of one name.
    """
    return sorted(_pictures(folder, "masks").items())


def pair_up(
    predictions: Path, masks: Sequence[tuple[str, Path]], partial: bool = False
) -> tuple[list[Pair], list[str]]:
    """Return each mask with its prediction, which has its key as name, or else the last part of it.

    Args:
        predictions: Folder of maps.
        masks: The key of each, and the file.
        partial: Whether masks without a prediction may be left out.

    Returns:
        The pairs, and notes: what was left out, on either side.

    Raises:
        UserError: If there is no pair, or a prediction is missing.
    """
    found = _pictures(predictions, "predicted maps")
    last = [PurePosixPath(key).name for key, _ in masks]
    if len(set(last)) == len(last):  # what two keys end in stands for neither
        found = {**{PurePosixPath(name).name: path for name, path in found.items()}, **found}
    pairs, missing = [], []
    for (key, mask), name in zip(masks, last, strict=True):
        path = found.get(key) or (found.get(name) if last.count(name) == 1 else None)
        if path is None:
            missing.append(key)
        else:
            pairs.append(Pair(key, path, mask))
    notes = []
    if missing:
        notes.append(_shorten(f"{predictions}: no map for {len(missing)} of {len(masks)} masks", missing, found))
        if not partial or not pairs:
            raise UserError(notes[0] + " (--partial scores the others)" * bool(pairs))
    used = {pair.prediction for pair in pairs}
    if unused := sorted(name for name, path in found.items() if path not in used):
        notes.append(_shorten(f"{predictions}: {len(unused)} maps belong to no mask and are left out", unused))
    return pairs, notes


def score(
    pairs: Sequence[Pair], preset: Preset, weighted: bool = True, jobs: int = 1, folder: Path | None = None
) -> Scored:
    """Measure predictions.

    Args:
        pairs: At least one.
        preset: How.
        weighted: Whether to measure the weighted F, which takes longer than all the rest together.
        jobs: Processes.
        folder: Where to keep what is scored until all of it is, so that a second call goes on; None keeps nothing.

    Raises:
        DataFault: If files cannot be read: all of these, once the others are scored.
    """
    kept = _Kept(folder / PARTS, pairs, preset, weighted) if folder else None
    parts = chunks(pairs, CHUNK)
    done: dict[int, list[dict[str, Any]]] = kept.read(len(parts)) if kept else {}
    faults: list[str] = []
    with tqdm(total=len(pairs), desc="score", unit="image", disable=None, leave=False) as bar:
        bar.update(sum(len(rows) for rows in done.values()))
        left = [number for number in range(len(parts)) if number not in done]
        for number, (rows, wrong) in _score_chunks(left, [parts[number] for number in left], preset, weighted, jobs):
            done[number] = rows
            faults += wrong
            if kept and not wrong:
                kept.write(number, rows)
            bar.update(len(parts[number]))
    if faults:
        raise DataFault(*faults)
    scored = _summarise([row for number in range(len(parts)) for row in done[number]])
    if kept:
        kept.discard()
    return scored


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of the same columns as CSV; numbers with eight digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.8g}" if isinstance(value, float) else value for name, value in row.items()})
    return text.getvalue()


def read_levels(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, str]:
    """Return a predicted map, uint8 (H, W), resized bilinearly to ``shape`` where it is of another size, and a note.

    Raises:
        DataFault: If it cannot be decoded, or is coloured.
    """
    levels = read_mask(path)
    if levels.shape == shape:
        return levels, ""
    height, width = shape
    resized = np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR))
    return resized, f"{path}: {levels.shape[1]}x{levels.shape[0]}, resized to its mask's {width}x{height}"


def score_pair(pair: Pair, preset: Preset, weighted: bool) -> dict[str, Any]:
    """Return the measures of one image, as `measure_levels` has them, its ``key`` and a ``note``.

    Raises:
        DataFault: If either file cannot be read.
    """
    mask = read_mask(pair.mask) > FOREGROUND
    levels, note = read_levels(pair.prediction, mask.shape)
    target = prepare(mask)
    measures = measure_levels(levels, target, preset.stretch, weighted)
    if preset.stretch_error != preset.stretch:
        measures["mae"] = measure_levels(levels, target, preset.stretch_error, weighted=False)["mae"]
    return {"key": pair.key, "note": note, **measures}


def _score_chunks(
    numbers: Sequence[int], parts: Sequence[Sequence[Pair]], preset: Preset, weighted: bool, jobs: int
) -> Iterator[tuple[int, tuple[list[dict[str, Any]], list[str]]]]:
    """Yield each chunk's number, and its rows and faults, as they come."""
    if jobs == 1 or len(parts) < 2:
        for number, part in zip(numbers, parts, strict=True):
            yield number, _score_chunk(part, preset, weighted)
        return
    # A process that Ctrl-C reaches while it forks, or that holds another library's threads, may hang: start afresh.
    with ProcessPoolExecutor(min(jobs, len(parts)), mp_context=get_context("spawn")) as pool:
        waiting: dict[Future, int] = {}
        work = iter(zip(numbers, parts, strict=True))
        try:
            while True:
                for number, part in islice(work, 2 * jobs - len(waiting)):
                    waiting[pool.submit(_score_chunk, part, preset, weighted)] = number
                if not waiting:
                    return
                future = next(iter(waiting))
                yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _score_chunk(part: Sequence[Pair], preset: Preset, weighted: bool) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    for pair in part:
        try:
            rows.append(score_pair(pair, preset, weighted))
        except DataFault as error:
            faults += error.faults
    return rows, faults


def _summarise(rows: Sequence[Mapping[str, Any]]) -> Scored:
    """Return the scores of a set from what its images measure."""
    total, per_image = SaliencyScores(), []
    for row in rows:
        measures = {name: value for name, value in row.items() if name not in ("key", "note")}
        total.add_measures(measures)
        alone = SaliencyScores()
        alone.add_measures(measures)
        per_image.append({"key": row["key"], **alone.result()})
    scores = {"images": float(len(rows)), **total.result()}
    resized = [row["note"] for row in rows if row["note"]]
    notes = [_shorten(f"{len(resized)} maps are of another size than their masks", resized)] if resized else []
    return Scored(scores, per_image, tuple(notes))


class _Kept:
    """What is scored so far, a file a chunk, for a later call with the same pairs and the same settings.

    Args:
        folder: Of these files; emptied where it is another call's.
        pairs: What is scored.
        preset: How.
        weighted: Likewise.
    """

    def __init__(self, folder: Path, pairs: Sequence[Pair], preset: Preset, weighted: bool) -> None:
        self.folder = folder
        files = [
            (pair.key, str(path), stat.st_size, stat.st_mtime_ns)
            for pair in pairs
            for path in (pair.prediction, pair.mask)
            for stat in [path.stat()]
        ]
        described = json.dumps([files, preset.stretch, preset.stretch_error, weighted])
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()
        stored = folder / "fingerprint.txt"
        if not stored.exists() or stored.read_text() != self.fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            run_folder.write(stored, self.fingerprint)

    def read(self, count: int) -> dict[int, list[dict[str, Any]]]:
        """Return the rows of each chunk that is there."""
        found = {}
        for number in range(count):
            if self._file(number).exists():
                with np.load(self._file(number), allow_pickle=False) as stored:
                    columns = {name: stored[name] for name in stored.files}
                found[number] = [
                    {name: value.item() if value.ndim == 0 else value for name, value in zip(columns, row, strict=True)}
                    for row in zip(*columns.values(), strict=True)
                ]
        return found

    def write(self, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the rows of a chunk."""
        stream = io.BytesIO()
        np.savez(stream, **{name: np.array([row[name] for row in rows]) for name in rows[0]})
        run_folder.write(self._file(number), stream.getvalue())

    def discard(self) -> None:
        """Take everything away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npz"


def _pictures(folder: Path, what: str) -> dict[str, Path]:
    """Return the pictures in a folder and below, by their path without suffix, in order of name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}: expected one of {what}")
    found: dict[str, Path] = {}
    for directory, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith((".", "__")))
        for path in (Path(directory, name) for name in sorted(files) if is_picture(name)):
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in found:
                raise UserError(f"{path}: {found[key].name} beside it has the same name")
            found[key] = path
    if not found:
        raise UserError(f"{folder}: no picture in it: expected {what}")
    return found


def _shorten(statement: str, names: Sequence[str], found: Mapping[str, Path] | None = None) -> str:
    """Return a statement with the first names that it is about; those found in other letters say so."""
    lowered = {name.lower(): name for name in found or {}}
    shown = [
        f"{name} ('{lowered[name.lower()]}' differs in case)" if name.lower() in lowered else name
        for name in names[:NAMED]
    ]
    return f"{statement}: {', '.join(shown)}{', …' if len(names) > NAMED else ''}"
