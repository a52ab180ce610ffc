"""``maskgym reproduce``: a paper's experiment from the data sets to its tables."""

from __future__ import annotations

import argparse
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from maskgym import files
from maskgym.errors import UserError, one_line
from maskgym.experiments.reproduce import alignsam, saliency_r1, stages, usersod
from maskgym.experiments.reproduce.stages import Stage
from maskgym.experiments.wiring.command import Parser


class Experiment(Protocol):
    """A module with a paper's experiment: its options, miniatures, stages, tables and plan.

    Attributes:
        PARTS: Modules that its stages import, and ``module:name`` for entries of registries.
    """

    PARTS: tuple[str, ...]

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that other experiments do not have."""

    def write_miniatures(self, given: Namespace, root: Path) -> None:
        """Write miniatures of data sets and checkpoints, and make them those of the arguments."""

    def stages(self, given: Namespace) -> list[Stage]:
        """List the stages."""

    def report(self, given: Namespace) -> None:
        """Write what the finished stages do not write themselves."""

    def plan(self, given: Namespace) -> str:
        """Write the samples, hours and memory of the stages as text."""


EXPERIMENTS: dict[str, Experiment] = {"alignsam": alignsam, "saliency_r1": saliency_r1, "usersod": usersod}


def main(arguments: Sequence[str]) -> int:
    """Run the stages of an experiment, or print its plan."""
    named = next((word for word in arguments if word in EXPERIMENTS), None)
    described = EXPERIMENTS[named] if named else saliency_r1
    parser = Parser(prog="maskgym reproduce", description=described.__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS, help="a paper's experiment; --help after it has its options")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the runs that differ")
    parser.add_argument("--data", type=Path, metavar="DIR", help="holds the data sets by their usual names")
    parser.add_argument("--models", type=Path, metavar="DIR", help="holds the checkpoints by their published names")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the experiment (reproduced/EXPERIMENT)")
    parser.add_argument("--smoke", action="store_true", help="on miniatures and random checkpoints, which it writes")
    parser.add_argument("--plan", action="store_true", help="print samples, time and memory of each stage; run nothing")
    parser.add_argument("--gpu", metavar="NAME", help="plan for this GPU, from its data sheet (measured here)")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="of them, shared by training (%(default)s)")
    if named:
        EXPERIMENTS[named].add_options(parser)
    given = parser.parse_intermixed_args(arguments)
    if given.gpu and not given.plan:
        raise UserError(f"--gpu {given.gpu}: expected --plan too")
    if given.gpus < 1 or (given.gpus > 1 and not given.gpu):
        raise UserError(f"--gpus {given.gpus}: expected at least 1, with --gpu NAME")
    experiment = EXPERIMENTS[given.experiment]
    smoke = given.smoke and not given.out
    given.out = given.out or (tempfile.mkdtemp(prefix="maskgym-") if smoke else Path("reproduced") / given.experiment)
    given.out = Path(given.out).absolute()
    if given.smoke:
        experiment.write_miniatures(given, given.out)
        print(one_line(f"miniatures and random checkpoints in {given.out}: scores mean nothing"), flush=True)
    if given.gpu:
        print(experiment.plan(given))
        return 0
    for name in ("data", "models"):
        folder = getattr(given, name)
        if folder is None or not folder.is_dir():
            raise UserError(f"--{name}{f' {folder}' if folder else ''}: expected a folder, or --smoke")
    given.data, given.models = given.data.absolute(), given.models.absolute()
    asked = experiment.stages(given)
    if given.plan:
        print(experiment.plan(given))
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    with files.alone(given.out, "reproduction"):
        if status := stages.execute(asked, given.out, experiment.PARTS):
            return status
        experiment.report(given)
    return 0
