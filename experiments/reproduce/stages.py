"""Run the stages of an experiment: each is a ``maskgym`` command, printed, run in its own process, and remembered.

The processes are forked from one that has imported what the stages need, once.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskgym import files
from maskgym.aliases import JsonObject
from maskgym.data.published import PUBLISHED, folder_of
from maskgym.errors import UserError, one_line
from maskgym.experiments.grids.processes import ForkServer
from maskgym.experiments.grids.runner import COMMON
from maskgym.experiments.wiring import run_folder

FILE = "stages.json"


@dataclass(frozen=True)
class Stage:
    """A stage of an experiment.

    Attributes:
        name: Name of the stage.
        words: Its command, without ``maskgym``.
        run: Folder of the run that the command makes, which is resumed where it was stopped; None for a command that
            goes on by itself.
    """

    name: str
    words: tuple[str, ...]
    run: Path | None = None

    @property
    def command(self) -> str:
        """The command as one types it."""
        return shlex.join(["maskgym", *self.words])


def checkpoint(models: Path | None, *names: str) -> Path:
    """Find a checkpoint by the first name that exists; a plan for another machine has no folder of checkpoints.

    Raises:
        UserError: If none is.
    """
    if models is None:
        return Path("MODELS") / names[0]
    found = next((models / name for name in names if (models / name).exists()), None)
    if found is None:
        raise UserError(f"--models {models}: has no {' or '.join(names)}: expected the published checkpoint")
    return found


def dataset(data: Path | None, name: str) -> Path:
    """Find the folder of a published data set by its usual names; a plan for another machine has no folder of sets.

    Raises:
        UserError: If it is not there.
    """
    if data is None:
        return Path("DATASETS") / PUBLISHED[name].folder[0]
    found = folder_of(data, name)
    if found is None:
        raise UserError(f"--data {data}: has no {' or '.join(PUBLISHED[name].folder)}: expected the folder of {name}")
    return found


def check_of(data: Path, name: str) -> Stage:
    """Build the stage that checks a published data set."""
    return Stage(f"data, {name}", ("data", "check", str(dataset(data, name)), "--data", name))


def execute(stages: Sequence[Stage], out: Path, parts: Sequence[str]) -> int:
    """Run the stages in order; those that were finished by the same command stand.

    ``out`` receives `FILE`, with the command and the seconds of each finished stage.

    Args:
        stages: The stages.
        out: Folder of the experiment.
        parts: Modules that the stages import, and entries of registries, beside those of every run.

    Returns:
        0, or the exit status of the stage that failed; the same command goes on with it.

    Raises:
        UserError: If a stage was finished by another command.
    """
    finished = _read(out)
    for stage in stages:
        if (done := finished.get(stage.name)) and done["command"] != stage.command:
            raise UserError(f"{out}: its stage {stage.name} was made by another command: expected another --out")
    with ForkServer(os.cpu_count() or 1, (*COMMON, *parts)) as server:
        for number, stage in enumerate(stages, 1):
            title = f"[{number}/{len(stages)}] {stage.name}"
            if stage.name in finished:
                print(one_line(f"{title}: stands"), flush=True)
                continue
            print(f"{title}\n$ {one_line(stage.command)}", flush=True)
            begun = time.monotonic()
            if status := server.show(_words(stage)):
                told = f"{stage.name}: ended with status {status}; the same command goes on with it"
                print(one_line(told), flush=True)
                return status
            finished[stage.name] = {"command": stage.command, "seconds": round(time.monotonic() - begun, 1)}
            files.write(out / FILE, json.dumps(finished, indent=2) + "\n")
    return 0


def _words(stage: Stage) -> Sequence[str]:
    """Choose the words of a stage's command: those that resume its run, if it has begun."""
    if stage.run is not None and (stage.run / run_folder.CONFIG).exists():
        return "run", f"resume={stage.run}"
    return stage.words


def _read(out: Path) -> dict[str, JsonObject]:
    """Read the finished stages.

    Raises:
        UserError: If the file is damaged.
    """
    file = out / FILE
    if not file.exists():
        return {}
    found = run_folder.read_json(file)
    if not isinstance(found, dict) or not all(isinstance(one, dict) and "command" in one for one in found.values()):
        raise UserError(f"{file}: is not the list of an experiment's stages: remove it to begin again")
    return found
