"""``maskgym evaluate RUN scale=ray``: workers print and write what one process does, and refuse in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskgym.experiments import cli, run
from maskgym.experiments.evaluation import predictions

pytest.importorskip("ray")

SHARED = ("scale=ray", "scale.num_workers=2")
COMMAND = (sys.executable, "-m", "maskgym.experiments.cli", "evaluate")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a finished run on ten samples, in batches of four."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    few = ("algo.updates=0", "evaluation.samples=10", "evaluation.pictures=0", "data.size=10", "env.num_envs=4")
    assert run.main(["env=sis", "algo=random", *few, f"out={folder}"]) == 0
    return folder


def evaluate(*arguments: str | Path) -> tuple[int, str, str]:
    """Run the command as a user would, so that Ray belongs to it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=240, env=environment
    )
    return found.returncode, found.stdout, found.stderr


@pytest.mark.e2e(seconds=40)
def test_two_workers_print_and_write_what_one_process_does(trained, tmp_path):
    alone, together = (evaluate(trained, *more) for more in ((), SHARED))
    assert alone[0] == 0 and together == alone  # what is told on standard error too
    assert set(json.loads(alone[1])) > {"reward", "provenance"}
    (status, table, _), (_, other, _) = (
        evaluate(trained, "--jobs", "1", "--name", "ours", "--out", tmp_path / str(len(more)), *more)
        for more in ((), SHARED)
    )
    assert status == 0 and table == other
    for name in ("table.csv", "images.csv", "results.json"):
        assert (tmp_path / "0" / name).read_text() == (tmp_path / "2" / name).read_text()
    lines = [predictions.read_lines(tmp_path / count / "predictions" / predictions.INSTANCES) for count in "02"]
    assert lines[0] == lines[1] and len(lines[0]) == 10


@pytest.mark.e2e(seconds=20)
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("scale.use_gpu=true", "scale.num_workers=512"), "scale.num_workers=512: takes 512 "),
        (("env.instruction=unknown",), "env.instruction=unknown"),  # found by the workers
    ],
)
def test_a_refusal_is_one_line(trained, arguments, told):
    status, _, error = evaluate(trained, *SHARED, *arguments)
    assert (status, error.count("\n")) == (2, 1) and told in error


def test_workers_answer_and_do_not_score(trained, tmp_path, capsys):
    for arguments, told in (
        ((tmp_path, *SHARED), "scale=ray: expected for a run"),
        ((trained, *SHARED, "scale.reward_actors=1"), "scale.reward_actors=1: expected for training"),
        ((trained, *SHARED, "scale.num_workers=0"), "scale.num_workers=0: expected at least 1"),
    ):
        assert cli.main(["evaluate", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and told in error
    assert cli.main(["evaluate", str(trained), "scale=local"]) == 0
