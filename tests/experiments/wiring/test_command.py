"""The exit status of commands, and the one line that they print."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from maskgym.errors import UserError
from maskgym.experiments.wiring.command import status


def raising(error):
    def act(arguments):
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "expected", "line"),
    [
        (UserError("a\n  b"), 2, "error: a b"),
        (UserError("\x1b[31mred\x07\u202e.png \udce9"), 2, r"error: \x1b[31mred\x07\u202e.png \udce9"),
        (KeyboardInterrupt("continue with \x1b]0;x"), 130, r"interrupted: continue with \x1b]0;x"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "x", "\x1bfile"), 2, r"error: \x1bfile: No space left on device"),
    ],
)
def test_a_mistake_is_one_line_without_control_characters(capsys, error, expected, line):
    assert status(raising(error), []) == expected
    assert capsys.readouterr() == ("", f"{line}\n")


def test_a_fault_of_ours_is_raised():
    with pytest.raises(ZeroDivisionError):
        status(raising(ZeroDivisionError()), [])


PRINTS = """
import sys
from maskgym.experiments.wiring.command import status
def act(arguments):
    for number in range({lines}):
        print(number, file=sys.{stream})
    return 3
sys.exit(status(lambda arguments: status(act, arguments), []))
"""


def closed(stream: str, lines: int, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a command that prints lines into a pipe that nobody reads, and returns 3."""
    reading, writing = os.pipe()
    os.close(reading)
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writing}
    try:
        words = [sys.executable, *flags, "-c", PRINTS.format(lines=lines, stream=stream)]
        return subprocess.run(words, **outputs, text=True, check=False)
    finally:
        os.close(writing)


@pytest.mark.parametrize(("lines", "flags"), [(1, ()), (1, ("-u",)), (100_000, ())])  # at the end; while it runs
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_whose_output_nobody_reads_ends_quietly(stream, lines, flags):
    done = closed(stream, lines, *flags)
    assert done.returncode == 128 + 13 and not done.stdout and not done.stderr


def test_a_command_that_prints_nothing_does_not_notice():
    assert closed("stdout", 0).returncode == 3


def test_another_pipe_that_breaks_is_a_fault():
    with pytest.raises(BrokenPipeError):
        status(raising(BrokenPipeError()), [])
