"""A smoke run that is killed in the middle and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PATIENCE_S = 600


@pytest.fixture
def finish_after_a_kill() -> Callable[[str, Path, str], str]:
    """Return a function that runs an experiment's smoke run, and kills it once when a file below ``out`` is there."""

    def start(paper: str, out: Path) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "maskgym.experiments.cli", "reproduce", paper, "--smoke", "--out", str(out)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def run(paper: str, out: Path, file: str) -> str:
        process = start(paper, out)
        limit = time.monotonic() + PATIENCE_S
        while not (out / file).exists():
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        process = start(paper, out)
        printed, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, printed
        return printed

    return run
