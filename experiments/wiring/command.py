"""Shared code of the commands: argument parsing and exit statuses."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence

from maskgym import interrupt
from maskgym.errors import UserError, one_line
from maskgym.files import disk_error

CLOSED = 128 + signal.SIGPIPE  # how a shell sees a program whose output nobody reads any more

# At exit the collector would walk every imported module several times, for seconds.
atexit.register(gc.freeze)


class Parser(argparse.ArgumentParser):
    """Raises `UserError` where argparse would print its usage and leave; help keeps the line breaks of its text."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **settings})  # type: ignore[arg-type]

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise a `UserError` with the message."""
        raise UserError(f"{self.prog}: {message}")


def status(
    act: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None, interrupted: str = "interrupted"
) -> int:
    """Run a command and return its exit status.

    Args:
        act: The command; returns its status, None for 0.
        argv: Its arguments; None takes those of this process.
        interrupted: Message after Ctrl-C.

    Returns:
        The command's status; 2 for a user error or a disk that takes no more, reported in one line on standard error;
        130 when interrupted; 141 when nobody reads the output any more, as after ``| head``.
    """
    try:
        found = _status(act, argv, interrupted)
        print(end="", flush=True)  # while a closed pipe can still be told
        return found
    except BrokenPipeError:
        if not _discard_unread():
            raise  # another pipe, or a connection
        return CLOSED


def _status(
    act: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None, interrupted: str = "interrupted"
) -> int:
    """Run a command and return its exit status, as `status` does as long as somebody reads the output."""
    # Spinning OpenMP threads take a busy machine from each other. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    interrupt.by_exception()
    try:
        return act(sys.argv[1:] if argv is None else argv) or 0
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:  # its argument, if any, says how to continue
        print(one_line(": ".join([interrupted, *map(str, stop.args)])), file=sys.stderr)
        return 130
    except Exception as error:
        if (fault := disk_error(error)) is None:
            raise
        print(f"error: {one_line(fault)}", file=sys.stderr)
        return 2


def _discard_unread() -> bool:
    """Let standard output and standard error go nowhere where they are pipes that nobody reads; return if one is."""
    pipes = select.poll()
    for place in (1, 2):
        pipes.register(place, 0)
    closed = [place for place, event in pipes.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    for place in closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, place)
        os.close(nowhere)
    return bool(closed)
