"""Faults of the machine, in process: kills, Ctrl-C, full disks, and two at once on one folder.

A fault hits a forked child at a seeded moment: before its k-th write below the run folder, or after some time. The run
is then resumed in this process, and must end with the weights, scores, answers and metrics of the undisturbed run.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from maskgym.benchmarks.attacked import runs
from maskgym.benchmarks.attacked.harness import Broken, Case, Stage, check_line, told
from maskgym.experiments import run
from maskgym.experiments.annotation.needs import dig, review, sources, stages
from maskgym.experiments.annotation.needs.project import Project
from maskgym.experiments.web import play
from maskgym.experiments.wiring import run_folder

START_UP_S = 2.0  # seconds in which a command imports its libraries


def _hit(place: Path, kind: str, act: Callable[[int], None], after: float | None = None) -> Callable[[], int]:
    """Build a child's function: a run that is hit before each write, and by an alarm after some seconds."""

    def child() -> int:
        if after is not None:
            signal.signal(signal.SIGALRM, lambda number, frame: act(-1))
            signal.setitimer(signal.ITIMER_REAL, after)
        with runs.Writes(place, act if after is None else lambda number: None):
            return run.main([*runs.arguments(kind), f"out={place}"])

    return child


def killed(stage: Stage) -> Case:
    """Prepare: runs that are killed (kill -9) before a write or after some time, and resumed."""

    def case(chance: random.Random, number: int) -> str:
        kind = stage.kinds[number % len(stage.kinds)]
        expected, writes, seconds = runs.baseline(stage, kind)
        place = stage.empty()
        moment = chance.randrange(writes) if chance.random() < 0.7 else None
        after = chance.uniform(0.02, max(seconds, 0.1)) if moment is None else None
        stage.label = f"{kind}, before write {moment} of {writes}" if after is None else f"{kind}, after {after:.2f} s"

        def kill(found: int) -> None:
            if found in (moment, -1):
                os.kill(os.getpid(), signal.SIGKILL)

        status, lines = runs.forked(_hit(place, kind, kill, after))
        if status not in (-signal.SIGKILL, 0):
            raise Broken(f"the child ended with status {status}: {lines[-2:]}")
        return _whole(runs.resumed(place, kind, expected))

    return case


def _whole(line: str) -> str:
    """Raise if a resumed run was refused: after a fault it must go on."""
    if line:
        raise Broken(f"not resumed: {line}")
    return ""


def interrupted(stage: Stage) -> Case:
    """Prepare: runs that receive Ctrl-C at a moment, and are resumed."""

    def case(chance: random.Random, number: int) -> str:
        kind = stage.kinds[number % len(stage.kinds)]
        expected, writes, _ = runs.baseline(stage, kind)
        place, moment = stage.empty(), chance.randrange(writes)
        stage.label = f"{kind}, before write {moment} of {writes}"

        def stop(found: int) -> None:
            if found == moment:
                os.kill(os.getpid(), signal.SIGINT)

        status, lines = runs.forked(_hit(place, kind, stop))
        if status not in (130, 0) or any("Traceback" in line for line in lines):
            raise Broken(f"status {status}: {lines[-2:]}")
        line = check_line(lines[-1]) if status else ""
        _whole(runs.resumed(place, kind, expected))
        return line

    return case


def starting(stage: Stage) -> Case:
    """Prepare: the command in a process of its own that receives Ctrl-C while it imports its libraries."""

    def case(chance: random.Random, number: int) -> str:
        place, moment = stage.empty(), chance.uniform(0.05, START_UP_S)
        stage.label = f"after {moment:.3f} s"
        process = subprocess.Popen(
            [sys.executable, run.__file__, *runs.arguments("ppo"), f"out={place}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        # Before the package itself is imported, only Python can answer.
        early = process.returncode in (-signal.SIGINT, 1) and "maskgym" not in error.replace(str(run.__file__), "")
        if process.returncode != 130 and not early:
            raise Broken(f"status {process.returncode}: {error[-300:]}")
        if process.returncode == 130:
            return check_line(error.splitlines()[-1])
        return ""

    return case


def full_disk(stage: Stage) -> Case:
    """Prepare: from a write on the disk is full or read-only, or files cannot grow; then there is room again."""

    def case(chance: random.Random, number: int) -> str:
        if number % 5 == 3:
            return _journal(stage, chance)
        kind = stage.kinds[number % len(stage.kinds)]
        expected, writes, _ = runs.baseline(stage, kind)
        place, moment = stage.empty(), chance.randrange(writes)
        limit = chance.choice((0, 100, 5_000, 200_000, 1_000_000, 8_000_000)) if number % 2 else None
        fault = chance.choice((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))
        stage.label = (
            f"{kind}, files of at most {limit} bytes"
            if limit is not None
            else f"{kind}, {errno.errorcode[fault]} from write {moment} of {writes}"
        )

        def fail(found: int) -> None:
            if limit is None and found >= moment:
                raise OSError(fault, os.strerror(fault), str(place))

        def child() -> int:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return _hit(place, kind, fail)()

        status, lines = runs.forked(child)
        if status not in (2, 0) or any("Traceback" in line for line in lines):
            raise Broken(f"status {status}: {lines[-3:]}")
        line = check_line(lines[-1]) if status == 2 else ""
        if status == 0 and moment < writes - 4 and limit is None:
            raise Broken("the fault was not told")
        _whole(runs.resumed(place, kind, expected))
        return line

    return case


def _journal(stage: Stage, chance: random.Random) -> str:
    """Let a journal of decisions meet a limit of the size of files; what was saved stays, and nothing else is there."""
    project = Project(stage.empty("journal"), {"dataset": "scenes", "samples": 1, "segmenter": "annotations"})
    limit = chance.randrange(50, 3000)
    stage.label = f"a journal of at most {limit} bytes"

    def child() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        decisions = review.Decisions(project, writing=True)
        for one in range(100):
            line = told(lambda one=one: decisions.decide(f"object{one}", "ann", "rejected", ["find it"]))
            if line:
                print(line, file=sys.stderr)
                return one  # so many were acknowledged
        return 101

    kept, lines = runs.forked(child)
    found = list(review.Decisions(project, writing=True).made)
    if found != [f"object{one}" for one in range(kept)] or not lines:
        raise Broken(f"{kept} were acknowledged, {len(found)} are there: {lines[-1:]}")
    return check_line(lines[-1])


def two_runs(stage: Stage) -> Case:
    """Prepare: a second run, or a resume, comes into the folder of one that is at work."""

    def case(chance: random.Random, number: int) -> str:
        kind = stage.kinds[number % len(stage.kinds)]
        expected, writes, _ = runs.baseline(stage, kind)
        place, moment = stage.empty(), chance.randrange(3, writes)
        stage.label = f"{kind}, at write {moment} of {writes}"
        arrived, go_on = os.pipe(), os.pipe()

        def hold(found: int) -> None:
            if found == moment:
                os.write(arrived[1], b"x")
                os.read(go_on[0], 1)

        started = runs.fork(_hit(place, kind, hold))
        os.read(arrived[0], 1)
        try:
            lines = [runs.command(run.main, *runs.arguments(kind), f"out={place}")[2]]
            if (place / run_folder.CONFIG).exists():
                lines.append(runs.command(run.main, f"resume={place}")[2])
        finally:
            os.write(go_on[1], b"x")
            status, said = runs.wait(started)
            for end in (*arrived, *go_on):
                os.close(end)
        if not all(lines):
            raise Broken("a second run was let in")
        if status or (other := runs.differences(runs.ended(place), expected)):
            raise Broken(f"the first run: status {status}, other {other if not status else said[-1:]}")
        return lines[0]

    return case


def two_reviewers(stage: Stage) -> Case:
    """Prepare: a second reviewer comes to a project while the page of another one is open."""

    def case(chance: random.Random, number: int) -> str:
        project = Project(stage.empty("reviewed"), {"dataset": "scenes", "samples": 1, "segmenter": "annotations"})
        source = sources.open_source(project.settings)
        for act in stages.STAGES.values():
            act(project, source, project.settings, False)
        with project.alone("correct"):
            # A lock belongs to an open file, so another opening of it in this process is refused as well.
            status, _, line = runs.command(dig.main, str(project.folder), "--stage", "correct", "--port", "0")
        if status != 2:
            raise Broken(f"a second reviewer was let in: status {status}")
        return line

    return case


def two_players(stage: Stage) -> Case:
    """Prepare: two players save episodes into one folder; every acknowledged one must be there."""

    def case(chance: random.Random, number: int) -> str:
        place, each = stage.empty("players"), 25
        picture = np.zeros((4, 4, 3), np.uint8)

        def child(name: str) -> Callable[[], int]:
            def save() -> int:
                journal = play.Journal(place)
                for one in range(each):
                    journal.add({"player": name, "number": one}, picture)
                return 0

            return save

        started = [runs.fork(child(name)) for name in ("a", "b", "c")]
        if any(runs.wait(one)[0] for one in started):
            raise Broken("a player failed")
        lines = (place / play.EPISODES).read_text().splitlines()
        pictures = list((place / play.PICTURES).iterdir())
        if len(lines) != 3 * each or len(pictures) != 3 * each:
            raise Broken(f"{len(lines)} episodes and {len(pictures)} pictures of {3 * each}")
        return ""

    return case
