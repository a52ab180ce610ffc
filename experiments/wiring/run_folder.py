"""The run folder and atomic writes of its files."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskgym import files
from maskgym.aliases import Config, JsonObject
from maskgym.errors import UserError
from maskgym.files import write

CONFIG, METRICS, RESULTS, REPORT = "config.yaml", "metrics.csv", "results.json", "report.html"
CHECKPOINTS, SAMPLES = "checkpoints", "samples"
POLICY = f"{CHECKPOINTS}/policy"  # the trained one, as a folder that policy.path takes
WORK = "run"  # what a run's lock is called, see `maskgym.files.alone`
BEFORE = f"{CHECKPOINTS}/before.json"  # the evaluation before training, kept for a run that is killed
ANSWERS = f"{SAMPLES}/answers.jsonl"
PARTS = "parts.json"  # keys of the training samples, of a run with a data set for each task


def create(config: Config) -> Path:
    """Make the folder that a config asks for, ``out``, or a new one under ``runs/``; return its absolute path.

    Raises:
        UserError: If it cannot be written.
    """
    if config["out"] is not None:
        return _writable(Path(str(config["out"])).expanduser().absolute())
    name = f"seed{config['seed']}-{time.strftime('%Y%m%d-%H%M%S')}"
    parent = _writable(Path("runs", config["env"]["name"], config["algo"]["name"]).absolute())
    for number in itertools.count(1):  # several may start within one second
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return _writable(folder)
    raise AssertionError("unreachable")


def check_unused(folder: Path) -> None:
    """Raise a UserError if a folder holds a run; only the holder of its lock can rely on the answer."""
    if (folder / CONFIG).exists():
        raise UserError(f"out={folder}: holds a run: continue it with resume={folder}, or choose another folder")


def discard_unstarted(folder: Path) -> None:
    """Remove the files of a run that failed before its first result, so that ``out`` can be given again."""
    if not (folder / METRICS).exists():
        for name in (CONFIG, PARTS, f".{WORK}.lock"):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()  # which fails, as it should, where there is anything else


def how_to_continue(folder: Path) -> str:
    """Say how a run that ended early goes on: by ``resume``, if it got so far."""
    return f"continue with resume={folder}" if (folder / CONFIG).exists() else "start again"


def to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON; NaN and infinities, which it lacks, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def write_json(file: Path, value: Any) -> None:
    """Write a file of JSON."""
    write(file, to_json(value, indent=2) + "\n")


def read_json(file: Path) -> Any:
    """Read a JSON file of a run.

    Raises:
        UserError: If it is missing or cannot be read.
    """
    try:
        return json.loads(files.read(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    except RecursionError:
        raise UserError(f"{file}: cannot be read: lists or names and values that are nested too deep") from None


def read_results(folder: Path) -> JsonObject:
    """Read the ``results.json`` of a run.

    Raises:
        UserError: If the run is not finished, or the file cannot be read or holds something else.
    """
    file = folder / RESULTS
    if not file.exists():
        raise UserError(f"{folder}: its run is not finished: continue it with resume={folder}")
    results = read_json(file)
    for when in ("before", "after"):
        scores = results.get(when) if isinstance(results, dict) else None
        if not isinstance(scores, dict) or not all(value is None or _is_number(value) for value in scores.values()):
            raise UserError(f"{file}: are no results of a run: expected numbers by name under before and after")
    return results


def read_answers(folder: Path) -> list[JsonObject]:
    """Read the rows of a run's ``samples/answers.jsonl``.

    Raises:
        UserError: If it cannot be read, or a line holds something else.
    """
    file, rows = folder / ANSWERS, []
    try:
        for number, line in enumerate(files.read(file).decode().splitlines(), start=1):
            rows.append(json.loads(line))
            if not _is_row(rows[-1]):
                raise UserError(f"{file}: line {number} is no answer: expected task, key, index, before and after")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: cannot be read: {error}") from error
    except RecursionError:
        raise UserError(f"{file}: cannot be read: lists or names and values that are nested too deep") from None
    return rows


class Metrics:
    """``metrics.csv``: one row per update or evaluation, ``step``, ``wall_s``, then named columns as they appear.

    An existing file is continued. The file is written anew at each row: it is small beside what an update costs, and a
    column may appear late.

    Args:
        file: Path of the file.

    Attributes:
        rows: One dictionary per row; a column that a row lacks is absent.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows = read_metrics(file) if file.exists() else []
        self._spent = self.rows[-1]["wall_s"] if self.rows else 0.0
        self._start = time.monotonic()

    @property
    def wall_s(self) -> float:
        """Seconds that the run has taken so far, earlier starts included."""
        return self._spent + time.monotonic() - self._start

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row; those of later steps, which a resumed run reaches again, and an equal one make way.

        After a row of step 0 those of later steps stay: a resumed run that evaluates its beginning again has them.
        """
        earlier = [
            row for row in self.rows if row["step"] < step or (row["step"] == step and not row.keys() & values.keys())
        ]
        later = [row for row in self.rows if row["step"] > step == 0]
        spent = min([self.wall_s, *(row["wall_s"] for row in later)])
        self.rows = [*earlier, {"step": step, "wall_s": round(spent, 3), **values}, *later]
        columns = dict.fromkeys(name for row in self.rows for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write(self.file, text.getvalue())


def _number(cell: str) -> float:
    """Read a number; a whole one stays whole, so that a file that is continued keeps its form."""
    return int(cell) if cell.lstrip("-").isdecimal() else float(cell)


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Return the rows of a ``metrics.csv`` without their empty cells; ``step`` is an int.

    Raises:
        UserError: If it cannot be read, or its end is missing.
    """
    try:
        text = files.read(file).decode()
        header, *lines = csv.reader(io.StringIO(text, newline=""))
        if header[:2] != ["step", "wall_s"] or not text.endswith("\n") or any(len(row) != len(header) for row in lines):
            raise ValueError("expected columns step and wall_s, and whole lines")
        rows = [{name: _number(cell) for name, cell in zip(header, row, strict=True) if cell} for row in lines]
        return [{**row, "step": int(row["step"]), "wall_s": row["wall_s"]} for row in rows]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error


def _writable(folder: Path) -> Path:
    """Make a folder and write into it, as root may pass a check of permissions and still fail."""
    probe = folder / ".writable.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"out={folder}: cannot be written: {error.strerror}") from error
    return folder


def _is_row(row: Any) -> bool:
    """Check the types of a row of ``answers.jsonl``."""
    if not isinstance(row, dict) or not {"task", "key", "index", "before", "after"} <= row.keys():
        return False
    sides = (row["before"], row["after"])
    return all(isinstance(side, dict) and {"answer", "reward"} <= side.keys() for side in sides)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
