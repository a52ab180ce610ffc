"""Verdicts on fuzzed cases: exceptions and messages that are allowed, bounds of time and memory, tallies."""

from __future__ import annotations

import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from maskgym.errors import UserError

LONGEST = 1000  # characters of a message
PATIENCE_S = 20.0  # seconds for one case
MEMORY_KIB = 2**20  # growth of the process that one case may cause
SHOWN = 5  # failures of a class that are printed


class TooLong(BaseException):
    """A case did not end in time; no ``except Exception`` of the tested code can hide it."""


@dataclass
class Tally:
    """Cases of one class.

    Attributes:
        name: Name of the class.
        named: Whether its cases have to be told by name.
        tried: Number of cases.
        told: Number of cases that were told by name.
        failures: One line per case that did not survive.
    """

    name: str
    named: bool
    tried: int = 0
    told: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def survived(self) -> int:
        """Number of cases that survived."""
        return self.tried - len(self.failures)

    def add(self, label: str, failure: str) -> None:
        """Count a case; ``failure`` is empty if it survived, and ``label`` says how to repeat it."""
        self.tried += 1
        if failure:
            self.failures.append(f"{label}: {failure}"[:LONGEST])
        else:
            self.told += self.named

    def __str__(self) -> str:
        told = f"{self.told:,}" if self.named else "–"
        return f"| {self.name} | {self.tried:,} | {self.survived:,} | {told} |"


def describe(error: BaseException) -> str:
    """Describe an exception that must not leave the library, by type, place and text."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        place, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
    try:
        text = str(error)
    except Exception:
        text = "?"
    return f"{type(error).__name__} at {place[-60:]}: {text[:200]!r}"


def wrong_line(line: str) -> str:
    """Say what is wrong about the form of a message, empty if nothing is."""
    if not line.isprintable():
        return f"a message of several lines or with control characters: {line[:200]!r}"
    return f"a message of {len(line)} characters: {line[:200]!r}" if len(line) > LONGEST else ""


def lines_of(error: UserError) -> list[str]:
    """List the lines of an error: its message, and each fault of a `DataFault`."""
    return [str(error), *(one for one in error.args if isinstance(one, str))]


def guarded(act: Callable[[], str]) -> str:
    """Judge one case: what ``act`` returns, or the exception, the time or the memory that it must not take.

    Args:
        act: Tries the case, and returns the failure, empty if it survived.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clocked = threading.current_thread() is threading.main_thread()
    if clocked:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    try:
        failure = act()
    except TooLong:
        return f"did not end within {PATIENCE_S:g} s"
    except Exception as error:
        return describe(error)
    finally:
        if clocked:
            signal.setitimer(signal.ITIMER_REAL, 0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return failure or (f"took {grown >> 10} MiB" if grown > MEMORY_KIB else "")


@contextmanager
def strict() -> Iterator[None]:
    """Bound the time of cases inside, and turn warnings that point at our code into errors."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise TooLong

    clocked = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGALRM, interrupt) if clocked else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", module="maskgym")
            yield
    finally:
        if clocked:
            signal.signal(signal.SIGALRM, previous)


def print_failures(tally: Tally) -> None:
    """Print the first failures of a class on standard error."""
    for failure in tally.failures[:SHOWN]:
        print(failure, file=sys.stderr)
