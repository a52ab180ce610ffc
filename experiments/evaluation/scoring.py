"""Scoring of predictions in several processes, which resumes after an interruption."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from maskgym.aliases import JsonObject
from maskgym.data.layout.images import DataFault
from maskgym.data.layout.listing import preview
from maskgym.errors import one_line
from maskgym.experiments.evaluation.provenance import Provenance
from maskgym.experiments.wiring import run_folder

CHUNK = 50  # images that are scored and stored together
PARTS = ".parts"  # folder of the chunks scored so far

Row = JsonObject  # stored measures of an image
Note = tuple[str, str]  # what is unusual, after a number of predictions or masks; and the name of one
Summary = tuple[dict[str, float], list[Row]]  # scores over all images, and the measures of each image


@dataclass(frozen=True)
class Scored:
    """Scores of a folder of predictions.

    Attributes:
        scores: Measures over the set; ``images`` is the number of images.
        per_image: ``key`` and measures of each image; F and E come from the image's own curve.
        convention: Description of the protocol.
        notes: Notes on irregular files and their treatment, one line each.
        of: What the scores are of.
    """

    scores: dict[str, float]
    per_image: list[Row]
    convention: str
    notes: tuple[str, ...]
    of: Provenance | None = None


class Work(Protocol):
    """Predictions and their ground truth, in a form that can be pickled to other processes."""

    @property
    def convention(self) -> str:
        """Description of the protocol, for the text below a table."""

    def __len__(self) -> int: ...

    def files(self) -> Iterator[Path]:
        """Yield every file whose change invalidates earlier results."""

    def measure(self, index: int) -> Row:
        """Compute the stored row of one image: its ``key``, ``notes``, and numbers.

        Raises:
            DataFault: If a file cannot be read.
        """

    def summarise(self, rows: Sequence[Row]) -> Summary:
        """Compute the scores over all images, and the measures of each image."""


def score(work: Work, jobs: int = 1, folder: Path | None = None) -> Scored:
    """Score predictions.

    Args:
        work: Predictions and their ground truth.
        jobs: Number of processes.
        folder: Folder for intermediate results, from which a second call resumes; None stores nothing.

    Raises:
        DataFault: If files cannot be read. It names all of them, after the others are scored.
    """
    kept = _Kept(folder / PARTS, work) if folder else None
    parts = [range(len(work))[start : start + CHUNK] for start in range(0, len(work), CHUNK)]
    done: dict[int, list[Row]] = kept.read(len(parts)) if kept else {}
    faults: list[str] = []
    with tqdm(total=len(work), desc="score", unit="image", disable=None, leave=False) as bar:
        bar.update(sum(len(rows) for rows in done.values()))
        left = {number: part for number, part in enumerate(parts) if number not in done}
        for number, (rows, wrong) in _measure_chunks(work, left, jobs):
            done[number] = rows
            faults += wrong
            if kept and not wrong:
                kept.write(number, rows)
            bar.update(len(parts[number]))
    if faults:
        raise DataFault(*faults)
    ordered = [row for number in range(len(parts)) for row in done[number]]
    scores, per_image = work.summarise(ordered)
    if kept:
        kept.discard()
    kinds: dict[str, list[str]] = {}
    for row in ordered:
        for kind, name in row["notes"]:
            kinds.setdefault(kind, []).append(name)
    notes = tuple(shorten(f"{len(names)} {kind}", names) for kind, names in kinds.items())
    return Scored({"images": float(len(ordered)), **scores}, per_image, work.convention, notes)


def shorten(statement: str, names: Sequence[str]) -> str:
    """Append the first of the names to a statement."""
    return one_line(f"{statement}: {preview(names)}")


def _measure_chunks(
    work: Work, parts: Mapping[int, Sequence[int]], jobs: int
) -> Iterator[tuple[int, tuple[list[Row], list[str]]]]:
    """Measure chunks; yield the number of each, and its rows and faults."""
    if jobs == 1 or len(parts) < 2:
        for number, part in parts.items():
            yield number, _measure_chunk(part, work)
        return
    # A forked process can hang on a lock that another thread held, so processes are spawned.
    context, count = get_context("spawn"), min(jobs, len(parts))
    with ProcessPoolExecutor(count, context, initializer=_take, initargs=(work,)) as pool:
        waiting: dict[Future, int] = {}
        queue = iter(parts.items())
        try:
            while True:
                for number, part in islice(queue, 2 * jobs - len(waiting)):
                    waiting[pool.submit(_measure_chunk, part)] = number
                if not waiting:
                    return
                future = next(iter(waiting))
                yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


_taken: list[Work] = []  # the work of this pool process


def _take(work: Work) -> None:
    _taken[:] = [work]


def _measure_chunk(part: Sequence[int], work: Work | None = None) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    faults: list[str] = []
    for index in part:
        try:
            rows.append((work or _taken[0]).measure(index))
        except DataFault as error:
            faults += error.faults
    return rows, faults


class _Kept:
    """Store of scored chunks, one file per chunk, for a later call with the same files and settings.

    Args:
        folder: Folder of the chunk files; it is emptied if it belongs to other files or settings.
        work: Predictions and their ground truth.
    """

    def __init__(self, folder: Path, work: Work) -> None:
        self.folder = folder
        there = (path for path in work.files() if path.exists())  # a link to nothing is a fault when it is read
        stats = [(str(path), stat.st_size, stat.st_mtime_ns) for path in there for stat in [path.stat()]]
        how = [
            "notes",
            type(work).__name__,
            str(getattr(work, "preset", "")),
            str(getattr(work, "weighted", "")),
            len(work),
        ]
        self.fingerprint = hashlib.sha256(json.dumps([how, stats]).encode()).hexdigest()
        stored = folder / "fingerprint.txt"
        if not stored.exists() or stored.read_text() != self.fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            run_folder.write(stored, self.fingerprint)

    def read(self, count: int) -> dict[int, list[Row]]:
        """Read the rows of each stored chunk."""
        there = (number for number in range(count) if self._file(number).exists())
        return {number: run_folder.read_json(self._file(number)) for number in there}

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """Store the rows of a chunk."""
        run_folder.write(self._file(number), run_folder.to_json(rows))

    def discard(self) -> None:
        """Delete the stored chunks."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"
