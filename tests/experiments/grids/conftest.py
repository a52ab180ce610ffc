"""Runners of commands for the tests of grids."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from maskgym.experiments import cli
from maskgym.experiments.grids.processes import Finished


class InProcess:
    """Runs commands in the process of the tests, which has imported everything; ``calls`` are their words."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, words: Sequence[str], cold: bool = False) -> Finished:
        self.calls.append(tuple(words))
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as error:
            status = cli.main(words)
        return Finished(status, out.getvalue(), error.getvalue())


class Fake:
    """Writes results in place of running; ``scores`` are those of every run and evaluation, ``calls`` the words."""

    def __init__(self) -> None:
        self.scores = {"reward": 0.5, "iou": 0.5, "iou@1": 0.25}
        self.calls: list[tuple[tuple[str, ...], bool]] = []
        self.status, self.error = 0, ""

    def __call__(self, words: Sequence[str], cold: bool = False) -> Finished:
        self.calls.append((tuple(words), cold))
        if self.status:
            return Finished(self.status, "", self.error)
        if words[0] == "evaluate":
            return Finished(0, json.dumps(self.scores), "")
        name, _, place = words[-1].partition("=")
        file = Path(place) if name == "--out" else Path(place) / "results.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"scores": self.scores} if name == "--out" else {"after": self.scores}))
        return Finished(0, "", "")


@pytest.fixture(scope="session")
def in_process() -> InProcess:
    return InProcess()


@pytest.fixture
def fake() -> Fake:
    return Fake()
