"""Runs to attack: finished and stopped ones of several kinds, and what tells whether two ended alike."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import torch

from maskgym.agents.common.checkpoints import read_checkpoint
from maskgym.aliases import JsonObject
from maskgym.benchmarks.attacked.harness import Broken, Stage, check_line
from maskgym.experiments import run
from maskgym.experiments.wiring import run_folder

SMALL = ("evaluation.samples=2", "evaluation.pictures=1", "env.num_envs=2", "algo.save_every=1", "seed=3")
RUNS = {
    "ppo": ("env=point_prompt", "algo=ppo", "env.horizon=3", "algo.epochs=1", "algo.updates=3"),
    "usersal_plus": ("env=user_need", "algo=usersal_plus", "algo.batch_size=2", "algo.updates=3"),
    "text": (
        *("env=sis", "algo=cgpo", "env.default_batch_size=2", "algo.updates=2"),
        *("algo.isr_period=2", "algo.isr_sft_steps=1"),
    ),
    "refer": ("env=refer", "algo=grpo", "algo.batch_size=4", "algo.group_size=2", "algo.updates=2"),
}
# Columns of metrics.csv that time decides.
TIMED = ("wall_s", "peak_memory_mib", "step_time", "scoring_seconds", "scoring_ms", "scoring_share")


def command(main: Callable[[list[str]], int], *arguments: str) -> tuple[int, str, str]:
    """Call a command in this process; return its status, its standard output, and the line that tells of a mistake.

    Raises:
        Broken: If a mistake is told in another form than one line.
    """
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(list(arguments))
    lines = error.getvalue().splitlines()
    line = ""
    if status == 2:
        line = check_line(lines[-1] if lines else "")
        if not line.startswith("error: ") or any("Traceback" in one for one in lines):
            raise Broken(f"status 2 with {lines[-3:]}")
    return status, out.getvalue(), line


def arguments(kind: str) -> list[str]:
    """List the arguments of a kind of run."""
    return [*RUNS[kind], *SMALL]


def finished(stage: Stage, kind: str) -> Path:
    """Return the folder of a finished run, which is made once; copy it to change it."""
    folder = stage.folder / f"finished-{kind}"
    if not (folder / run_folder.REPORT).exists():
        status, _, line = command(run.main, *arguments(kind), f"out={folder}")
        if status:
            raise Broken(f"the run that nothing happened to: {line}")
    return folder


def stopped(stage: Stage, kind: str) -> Path:
    """Return the folder of a run that was interrupted before its last update, which is made once."""
    folder = stage.folder / f"stopped-{kind}"
    if folder.exists():
        return folder
    add, last = run_folder.Metrics.add, int(RUNS[kind][-1].partition("=")[2]) if kind != "text" else 2

    def interrupted(metrics: run_folder.Metrics, step: int, values: Mapping[str, float]) -> None:
        if step == last:
            raise KeyboardInterrupt
        add(metrics, step, values)

    with mock.patch.object(run_folder.Metrics, "add", interrupted):
        status, _, _ = command(run.main, *arguments(kind), f"out={folder}")
    if status != 130:
        raise Broken(f"a run that is interrupted ended with status {status}")
    return folder


def ended(folder: Path) -> JsonObject:
    """Collect what a run computed: weights, scores, answers and metrics, without times."""
    results = json.loads((folder / run_folder.RESULTS).read_text())
    rows = run_folder.read_metrics(folder / run_folder.METRICS)
    return {
        "weights": weights(folder / run_folder.POLICY),
        **{name: results[name] for name in ("env", "algo", "seed", "steps", "samples", "before", "after")},
        "answers": (folder / run_folder.ANSWERS).read_text(),
        "metrics": [{name: value for name, value in row.items() if name not in TIMED} for row in rows],
    }


def weights(folder: Path) -> dict[str, str]:
    """Compute a digest of each file of weights in a folder."""
    found = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.suffix == ".pt":
            found[file.name] = _digest(read_checkpoint(file))
    return found


def _digest(value: object) -> str:
    """Compute a digest of nested dictionaries and lists of tensors and numbers."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()).hexdigest()
    if isinstance(value, Mapping):
        return hashlib.sha256(repr([(key, _digest(one)) for key, one in value.items()]).encode()).hexdigest()
    if isinstance(value, list | tuple):
        return hashlib.sha256(repr([_digest(one) for one in value]).encode()).hexdigest()
    return repr(value)


def differences(found: JsonObject, expected: JsonObject) -> str:
    """Name the parts of two results of `ended` that differ; empty if they are equal."""
    return ", ".join(name for name in expected if repr(found.get(name)) != repr(expected[name]))


def resumed(folder: Path, kind: str, expected: JsonObject) -> str:
    """Resume a run, or start it again if it was stopped before it wrote its config; return the line that told.

    Raises:
        Broken: If it ends otherwise than the undisturbed run.
    """
    there = (folder / run_folder.CONFIG).exists()
    given = [f"resume={folder}"] if there else [*arguments(kind), f"out={folder}"]
    status, out, line = command(run.main, *given)
    if status not in (0, 2):
        raise Broken(f"resumed with status {status}")
    other = "" if status else differences(ended(folder), expected)
    if other == "metrics" and (lost := [one for one in out.splitlines() if f"{run_folder.METRICS}: lacks" in one]):
        return check_line(lost[0])
    if other:
        raise Broken(f"silently other: {other}")
    return line


class Writes:
    """Counts the writes of this process below a folder, and acts before one of them.

    Python's own audit events tell of files that are opened for writing, renamed and removed. What libraries in other
    languages write goes through a rename of ours.

    Args:
        folder: Writes below it count.
        act: Function that is called with the number of each write, from 0, before it happens.
    """

    _hooked: Writes | None = None
    _added = False

    def __init__(self, folder: Path, act: Callable[[int], None]) -> None:
        self._prefix, self._act, self.number = f"{folder}{os.sep}", act, 0

    def __enter__(self) -> Writes:
        if not Writes._added:  # an audit hook stays for the rest of the process
            Writes._added = True
            sys.addaudithook(_audit)
        Writes._hooked = self
        return self

    def __exit__(self, *details: object) -> None:
        Writes._hooked = None

    def seen(self, path: object) -> None:
        """Count a write to a path."""
        if isinstance(path, str | os.PathLike) and str(path).startswith(self._prefix):
            number = self.number
            self.number += 1
            self._act(number)


def _audit(event: str, given: tuple[object, ...]) -> None:
    if Writes._hooked is None or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        return
    if event == "open":
        flags = given[2]
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_APPEND):
            return
    Writes._hooked.seen(given[0])


def forked(act: Callable[[], int]) -> tuple[int, list[str]]:
    """Run a function in a forked process; return its status, negative for a signal, and its lines of standard error."""
    return wait(fork(act))


def fork(act: Callable[[], int]) -> tuple[int, int]:
    """Start a function in a forked process; return the process and the end of a pipe with its standard error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        torch.set_num_threads(1)
        status = act()
    except BaseException as error:
        print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def wait(started: tuple[int, int]) -> tuple[int, list[str]]:
    """Wait for a process of `fork`; return what `forked` returns."""
    child, reading = started
    with open(reading, "rb") as stream:
        lines = stream.read().decode(errors="replace").splitlines()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), lines


def baseline(stage: Stage, kind: str) -> tuple[JsonObject, int, float]:
    """Measure the undisturbed run: what it ends with, its number of writes, and its seconds."""
    if kind in stage.kept:
        return stage.kept[kind]
    folder, place = finished(stage, kind), stage.empty("counted")
    counted: list[int] = []
    with Writes(place, counted.append):
        status, _, line = command(run.main, *arguments(kind), f"out={place}")
    if status:
        raise Broken(f"the run that nothing happened to: {line}")
    expected = ended(folder)
    if other := differences(ended(place), expected):
        raise Broken(f"{kind}: two equal runs differ: {other}")
    seconds = json.loads((place / run_folder.RESULTS).read_text())["wall_s"]
    return stage.kept.setdefault(kind, (expected, len(counted), seconds))


def pick(chance: random.Random, folder: Path) -> Path:
    """Choose a file of a folder, by its place below it."""
    return chance.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
