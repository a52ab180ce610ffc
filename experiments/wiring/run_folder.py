"""The run folder and atomic writes of its files."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskgym.aliases import Config
from maskgym.errors import UserError
from maskgym.files import write

CONFIG, METRICS, RESULTS, REPORT = "config.yaml", "metrics.csv", "results.json", "report.html"
CHECKPOINTS, SAMPLES = "checkpoints", "samples"
POLICY = f"{CHECKPOINTS}/policy"  # the trained one, as a folder that policy.path takes
BEFORE = f"{CHECKPOINTS}/before.json"  # the evaluation before training, kept for a run that is killed
ANSWERS = f"{SAMPLES}/answers.jsonl"


def create(config: Config) -> Path:
    """Make the folder that a config asks for, ``out``, or a new one under ``runs/``; return its absolute path.

    Raises:
        UserError: If it cannot be written, or holds a run.
    """
    if config["out"] is not None:
        folder = Path(str(config["out"])).expanduser().absolute()
        if (folder / CONFIG).exists():
            raise UserError(f"out={folder}: holds a run: continue it with resume={folder}, or choose another folder")
        return _writable(folder)
    name = f"seed{config['seed']}-{time.strftime('%Y%m%d-%H%M%S')}"
    parent = _writable(Path("runs", config["env"]["name"], config["algo"]["name"]).absolute())
    for number in itertools.count(1):  # several may start within one second
        folder = parent / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            return _writable(folder)
    raise AssertionError("unreachable")


def discard_unstarted(folder: Path) -> None:
    """Remove the files of a run that failed before its first result, so that ``out`` can be given again."""
    if not (folder / METRICS).exists():
        (folder / CONFIG).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()  # which fails, as it should, where there is anything else


def is_full(folder: Path) -> bool:
    """Check whether the disk of a folder has less than a mebibyte left."""
    return shutil.disk_usage(folder).free < 2**20


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
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error


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
        """Add a row; those of later steps, which a resumed run reaches again, and an equal one make way."""
        self.rows = [
            row for row in self.rows if row["step"] < step or (row["step"] == step and not row.keys() & values.keys())
        ]
        self.rows.append({"step": step, "wall_s": round(self.wall_s, 3), **values})
        columns = dict.fromkeys(name for row in self.rows for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write(self.file, text.getvalue())


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Return the rows of a ``metrics.csv`` without their empty cells; ``step`` is an int.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(stream)]
        return [{**row, "step": int(row["step"])} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
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


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
