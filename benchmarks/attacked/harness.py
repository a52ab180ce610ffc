"""Run seeded cases of attacks one by one, and judge what each ended with.

A case survived if it ended in the right result, or in a `UserError` of one line. Any other exception, a hang, an
explosion of memory, or a result that is silently another one is a failure, which names row, seed and number.
"""

from __future__ import annotations

import contextlib
import io
import random
import resource
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from maskgym.aliases import JsonObject
from maskgym.errors import UserError

LONGEST_LINE = 1000  # characters of a message
MOST_MEMORY_MIB = 2000  # by which the peak of one case may exceed that of those before
TRACED = 3  # innermost frames that a failure shows


class Broken(AssertionError):
    """Say why a case did not survive."""


class Hang(BaseException):
    """A case took longer than its bound; no handler of ``Exception`` catches it."""


@dataclass
class Stage:
    """Place of the cases of one harness.

    Attributes:
        folder: Temporary folder, in which everything is written.
        kinds: Kinds of runs to attack, see `maskgym.benchmarks.attacked.runs.RUNS`.
        label: What the current case does, for failures.
        kept: What `maskgym.benchmarks.attacked.runs.baseline` measured, by kind of run.
    """

    folder: Path
    kinds: tuple[str, ...] = ("ppo", "usersal_plus", "text", "refer")
    label: str = ""
    kept: dict[str, tuple[JsonObject, int, float]] = field(default_factory=dict)

    def empty(self, name: str = "case") -> Path:
        """Return a path at which nothing is; what an earlier case left there is removed."""
        path = self.folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return path

    def copied(self, source: Path, name: str = "case") -> Path:
        """Copy a folder to the same place for each case, because paths stand in messages and reports."""
        return shutil.copytree(source, self.empty(name))


Case = Callable[[random.Random, int], str]  # returns the line that told what was wrong; empty for the right result


@dataclass(frozen=True)
class Row:
    """One class of attacks.

    Attributes:
        title: Its name in the table.
        count: Number of cases in the full harness.
        prepare: Function that builds what the cases share, and returns the function of one case.
        batch: Cases that one call of that function makes.
        bound_s: Longest time of one call, in seconds.
    """

    title: str
    count: int
    prepare: Callable[[Stage], Case]
    batch: int = 1
    bound_s: float = 60.0


@dataclass
class Tally:
    """Results of a row: cases tried and told, and the failures, one line each."""

    tried: int = 0
    told: int = 0
    failures: list[str] = field(default_factory=list)


def check_line(line: str) -> str:
    """Return a message if it is one printable line of a terminal.

    Raises:
        Broken: If it is empty, too long, or holds line breaks or escape sequences.
    """
    if not line.strip() or len(line) > LONGEST_LINE or not line.isprintable():
        raise Broken(f"told in {len(line)} characters, not in a printable line: {line[:300]!r}")
    return line


def told(act: Callable[[], object]) -> str:
    """Call a function; return the line of its UserError, empty if there was none."""
    try:
        act()
    except UserError as error:
        return check_line(str(error))
    return ""


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raise `Hang` in the main thread if the body takes longer."""

    def ring(number: int, frame: object) -> None:
        raise Hang(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def once(row: Row, case: Case, chance: random.Random, number: int) -> tuple[str, str]:
    """Run one case; return its failure, empty if it survived, and the line that told."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    silence = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    try:
        with silence[0], silence[1], warnings.catch_warnings(), bounded(row.bound_s):
            warnings.simplefilter("ignore")
            line = case(chance, number)
    except UserError as error:
        try:
            line = check_line(str(error))
        except Broken as broken:
            return str(broken), ""
    except KeyboardInterrupt:
        raise
    except Broken as broken:
        return str(broken), ""
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)[-TRACED:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({where})", ""
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    return (f"the peak of memory grew by {grown:.0f} MiB" if grown > MOST_MEMORY_MIB else ""), line


def run(name: str, row: Row, stage: Stage, seed: int, count: int) -> Tally:
    """Run the cases of a row with a progress bar."""
    tally = Tally()
    case = row.prepare(stage)
    for number in tqdm(range(-(-count // row.batch)), desc=name, unit="call", disable=None):
        stage.label = ""
        failure, line = once(row, case, random.Random(f"{seed} {name} {number}"), number)
        tally.tried += row.batch
        tally.told += bool(line)
        if failure:
            what = f"{stage.label}: " if stage.label else ""
            tally.failures.append(f"--seed {seed} {name}, number {number}: {what}{failure}")
            tqdm.write(tally.failures[-1])
    return tally
