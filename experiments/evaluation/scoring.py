"""Score predictions: in several processes, and going on where it was stopped."""

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
from typing import Any, Protocol

from tqdm import tqdm

from maskgym.data.layout.folders import first
from maskgym.data.layout.images import DataFault
from maskgym.experiments.evaluation.batches import chunks
from maskgym.experiments.wiring import run_folder

CHUNK = 50  # images that are scored, and kept, together
PARTS = ".parts"  # folder of what is scored so far

Row = dict[str, Any]  # what is kept of an image: as JSON holds it


@dataclass(frozen=True)
class Scored:
    """What a folder of predictions is worth.

    Attributes:
        scores: Over the set; ``images`` is how many there are.
        per_image: For each image its ``key`` and measures; F and E are of its own curve.
        convention: How it was measured, in words.
        notes: What was done to files that are not as they should be, one line each.
    """

    scores: dict[str, float]
    per_image: list[dict[str, Any]]
    convention: str
    notes: tuple[str, ...]


class Work(Protocol):
    """Predictions with what they are scored against; travels to other processes."""

    @property
    def convention(self) -> str:
        """How it measures, in words: for below a table."""

    def __len__(self) -> int: ...

    def files(self) -> Iterator[Path]:
        """Yield every file that is read, whose change makes earlier results void."""

    def measure(self, index: int) -> Row:
        """Return what is kept of one image: its ``key``, a ``note``, and numbers.

        Raises:
            DataFault: If a file cannot be read.
        """

    def summarise(self, rows: Sequence[Row]) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return the scores over all images, and the measures of each."""


def score(work: Work, jobs: int = 1, folder: Path | None = None) -> Scored:
    """Measure predictions.

    Args:
        work: What is measured.
        jobs: Processes.
        folder: Where to keep what is scored until all of it is, so that a second call goes on; None keeps nothing.

    Raises:
        DataFault: If files cannot be read: all of these, once the others are scored.
    """
    kept = _Kept(folder / PARTS, work) if folder else None
    parts = chunks(range(len(work)), CHUNK)
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
    noted = [row["note"] for row in ordered if row["note"]]
    notes = (shorten(f"{len(noted)} predictions are of another size than their masks", noted),) if noted else ()
    return Scored({"images": float(len(ordered)), **scores}, per_image, work.convention, notes)


def shorten(statement: str, names: Sequence[str]) -> str:
    """Return a statement with the first names that it is about."""
    return f"{statement}: {first(names)}"


def _measure_chunks(
    work: Work, parts: Mapping[int, Sequence[int]], jobs: int
) -> Iterator[tuple[int, tuple[list[Row], list[str]]]]:
    """Yield each chunk's number, and its rows and faults, as they come."""
    if jobs == 1 or len(parts) < 2:
        for number, part in parts.items():
            yield number, _measure_chunk(part, work)
        return
    # A process that is forked while other threads hold locks may hang: start afresh.
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


_taken: list[Work] = []  # what a process of the pool works on


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
    """What is scored so far, a file a chunk, for a later call on the same files in the same way.

    Args:
        folder: Of these files; emptied where it is another call's.
        work: What is scored.
    """

    def __init__(self, folder: Path, work: Work) -> None:
        self.folder = folder
        stats = [(str(path), stat.st_size, stat.st_mtime_ns) for path in work.files() for stat in [path.stat()]]
        how = [type(work).__name__, str(getattr(work, "preset", "")), str(getattr(work, "weighted", "")), len(work)]
        self.fingerprint = hashlib.sha256(json.dumps([how, stats]).encode()).hexdigest()
        stored = folder / "fingerprint.txt"
        if not stored.exists() or stored.read_text() != self.fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            run_folder.write(stored, self.fingerprint)

    def read(self, count: int) -> dict[int, list[Row]]:
        """Return the rows of each chunk that is there."""
        there = (number for number in range(count) if self._file(number).exists())
        return {number: run_folder.read_json(self._file(number)) for number in there}

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """Keep the rows of a chunk."""
        run_folder.write(self._file(number), run_folder.to_json(rows))

    def discard(self) -> None:
        """Take everything away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"
