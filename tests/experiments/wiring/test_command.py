"""The exit status of commands, and the one line that they print."""

from __future__ import annotations

import errno

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
