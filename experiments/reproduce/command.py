"""``maskgym reproduce``: a paper's experiment from the data sets to its tables."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from maskgym import files
from maskgym.errors import UserError, one_line
from maskgym.experiments.reproduce import plan, saliency_r1, stages
from maskgym.experiments.wiring.command import Parser

EXPERIMENTS = {"saliency_r1": saliency_r1}


def main(arguments: Sequence[str]) -> int:
    """Run the stages of an experiment, or print its plan."""
    parser = Parser(prog="maskgym reproduce", description=saliency_r1.__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS, help="a paper's experiment")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the runs that differ")
    parser.add_argument("--data", type=Path, metavar="DIR", help="holds the data sets by their usual names")
    parser.add_argument("--models", type=Path, metavar="DIR", help="holds the checkpoints by their published names")
    parser.add_argument("--rationales", type=Path, nargs="+", metavar="FILE", help="of `maskgym data reason`")
    parser.add_argument("--task", choices=("unified", *saliency_r1.TASKS), default="unified", help="(%(default)s)")
    parser.add_argument("--size", choices=saliency_r1.POLICIES, default="7b", help="of the policy (%(default)s)")
    parser.add_argument("--segmenter-steps", type=int, default=1000, metavar="N", help="(%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the experiment (reproduced/EXPERIMENT)")
    parser.add_argument("--smoke", action="store_true", help="on miniatures and random checkpoints, which it writes")
    parser.add_argument("--plan", action="store_true", help="print samples, time and memory of each stage; run nothing")
    parser.add_argument("--gpu", metavar="NAME", help="plan for this GPU, from its data sheet (measured here)")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="of them, shared by training (%(default)s)")
    given = parser.parse_intermixed_args(arguments)
    if given.gpu and not given.plan:
        raise UserError(f"--gpu {given.gpu}: expected --plan too")
    if given.gpus < 1 or (given.gpus > 1 and not given.gpu):
        raise UserError(f"--gpus {given.gpus}: expected at least 1, with --gpu NAME")
    experiment = EXPERIMENTS[given.experiment]
    if given.smoke:
        given.out = (given.out or Path(tempfile.mkdtemp(prefix="maskgym-"))).absolute()
        experiment.write_miniatures(given, given.out)
        print(one_line(f"miniatures and random checkpoints in {given.out}: scores mean nothing"), flush=True)
    if given.gpu:
        print(plan.table(given, plan.computed(given, given.gpu, given.gpus)))
        return 0
    for name in ("data", "models"):
        folder = getattr(given, name)
        if folder is None or not folder.is_dir():
            raise UserError(f"--{name}{f' {folder}' if folder else ''}: expected a folder, or --smoke")
    given.data, given.models = given.data.absolute(), given.models.absolute()
    given.out = (given.out or Path("reproduced") / given.experiment).absolute()
    given.out.mkdir(parents=True, exist_ok=True)
    asked = experiment.stages(given)
    if given.plan:
        print(plan.table(given, plan.measured(given)))
        return 0
    with files.alone(given.out, "reproduction"):
        return stages.execute(asked, given.out)
