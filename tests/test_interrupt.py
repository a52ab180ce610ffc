"""Ctrl-C while a command starts, and who is left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import maskgym

CODE = """
import os, signal, sys
sys.meta_path.insert(0, type("Slow", (), {"find_spec": staticmethod(
    lambda name, path=None, target=None: os.kill(os.getpid(), signal.SIGINT) if name == "maskgym.envs" else None)}))
sys.modules["__main__"].__file__ = FILE
import maskgym
"""


@pytest.mark.parametrize(
    ("file", "status", "lines"),
    [
        ("/usr/bin/maskgym", 130, 1),
        (str(Path(maskgym.__file__).parent / "experiments" / "run.py"), 130, 1),
        ("/home/somebody/run.py", -signal.SIGINT, None),  # a program that uses the package: Python's own way
    ],
)
def test_ctrl_c_during_the_imports_of_a_command_is_one_line(file, status, lines):
    found = subprocess.run(
        [sys.executable, "-c", CODE.replace("FILE", repr(file))],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert found.returncode == status, found.stderr
    assert (found.stderr == "interrupted\n") == (lines == 1)
