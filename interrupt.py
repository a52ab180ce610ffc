"""Ctrl-C while a command starts: one line and status 130, as later on, in place of a traceback out of the imports.

The package imports this module before everything else, because its own imports take most of a start. Nothing was begun
until `maskgym.experiments.wiring.command.status` runs the command, which calls `by_exception`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

STATUS = 130


def by_exception() -> None:
    """Raise ``KeyboardInterrupt`` from now on, as Python does."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(STATUS)


def _is_command() -> bool:
    """Check whether this process is a command of ours, not a program that uses the package."""
    main = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    return main.name == "maskgym" or main.resolve().parent == Path(__file__).resolve().parent / "experiments"


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
