"""The stages of Saliency-R1, from the data sets to its tables.

    maskgym reproduce saliency_r1 --data DATASETS --models MODELS --rationales FILE --out OUT
    maskgym reproduce saliency_r1 --smoke            # the whole chain on miniatures, in minutes on two cores

DATASETS holds the data sets, MODELS the checkpoints, by the folder names of their publishers. The stages: check the
data, imitate rationales, tune the segmenter on them, CGPO, evaluate on every test set, and the paper's tables with our
row below. Each is a maskgym command, printed so that it can be run alone. The same command goes on where it was
stopped. Extra ``key=value`` settings are those of a run, such as ``scale=ray scale.num_workers=8``.
"""

from __future__ import annotations

import argparse
import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from maskgym.errors import UserError
from maskgym.experiments.evaluation import paper_tables
from maskgym.experiments.reproduce.stages import Stage
from maskgym.experiments.wiring import composition, run_folder
from maskgym.experiments.wiring.recipes import with_recipe

TASKS = ("sod", "sis", "cosod")
# Of the miniatures: as little of everything as shows that each part works.
SMOKE = (
    *("data.parts.sft.sod=4", "data.parts.sft.sis=6", "data.parts.sft.cosod=4", "data.parts.rl=3", "data.parts.isr=2"),
    *("env.image_size=56", "env.num_envs=4", "policy.dtype=float32", "segmenter.dtype=float32"),
    *("algo.updates=5", "algo.max_new_tokens=24", "algo.save_every=1"),
    *("evaluation.samples=2", "evaluation.pictures=2"),
)
SMOKE_STEPS = 2  # of the segmenter
POLICIES = {"7b": "Qwen2.5-VL-7B-Instruct", "3b": "Qwen2.5-VL-3B-Instruct"}
SEGMENTER = "evf-sam-multitask"
PARTS: tuple[str, ...] = ("maskgym.agents.text.training", "maskgym.policies:qwen2_5_vl", "maskgym.segmenters:evf_sam")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this experiment."""
    parser.add_argument("--rationales", type=Path, nargs="+", metavar="FILE", help="of `maskgym data reason`")
    parser.add_argument("--task", choices=("unified", *TASKS), default="unified", help="(%(default)s)")
    parser.add_argument("--size", choices=POLICIES, default="7b", help="of the policy (%(default)s)")
    parser.add_argument("--segmenter-steps", type=int, default=1000, metavar="N", help="(%(default)s)")


def config_of(given: Namespace, *more: str) -> composition.Config:
    """Compose the config of the runs."""
    return composition.compose([f"experiment={recipe(given)}", f"size={given.size}", *given.settings, *more])


def recipe(given: Namespace) -> str:
    """Return the name of the recipe: of one task, or of all together."""
    return f"saliency_r1_{given.task}"


def tasks(given: Namespace) -> tuple[str, ...]:
    """List the tasks that are trained together."""
    return TASKS if given.task == "unified" else (given.task,)


def texts(given: Namespace) -> str:
    """Build the argument that names the rationales."""
    return f"data.rationales=[{','.join(str(file.absolute()) for file in given.rationales)}]"


def held_out_sets(given: Namespace, task: str) -> list[str]:
    """List the data sets of the paper's main table."""
    return list(paper_tables.published(f"saliency_r1/4-{task}").datasets)


def model(given: Namespace, name: str) -> Path:
    """Find the folder of a checkpoint.

    Raises:
        UserError: If it is not there.
    """
    folder = given.models / name
    if not folder.is_dir():
        raise UserError(f"--models {given.models}: has no folder {name}: expected the published checkpoint")
    return folder


def write_miniatures(given: Namespace, root: Path) -> None:
    """Write miniatures of the data sets and random checkpoints, and make them the experiment's.

    Args:
        given: Arguments of the command, which are changed.
        root: Folder to write; what it holds already stands.
    """
    from maskgym.experiments.reproduce import miniature_models, miniature_sets

    given.data, given.models = root / "data", root / "models"
    given.rationales = [given.data / miniature_sets.RATIONALES]
    given.settings, given.segmenter_steps = [*SMOKE, *given.settings], SMOKE_STEPS
    if not given.rationales[0].exists():  # it is written last
        miniature_models.write_policy(given.models / POLICIES[given.size], miniature_models.MINIATURES[given.size])
        miniature_models.write_segmenter(given.models / SEGMENTER)
        miniature_sets.write_sets(given.data)


def stages(given: Namespace) -> list[Stage]:
    """List the stages.

    Raises:
        UserError: If a checkpoint or the rationales are missing.
    """
    policy, segmenter = model(given, POLICIES[given.size]), model(given, SEGMENTER)
    if not given.rationales:
        asked = [
            f"maskgym data reason rationales/{task} --data tasks --task {task} --model NAME --server URL "
            f"data.root={given.data} {shlex.join(_data_arguments(given, (task,)))}"
            for task in tasks(given)
        ]
        raise UserError(f"--rationales: expected the texts to imitate, which are made by: {'; '.join(asked)}")
    common = (f"experiment={recipe(given)}", f"size={given.size}", f"data.root={given.data}", texts(given))
    common += tuple(given.settings)
    supervised, tuned, trained = given.out / "sft", given.out / "segmenter", given.out / "cgpo"

    def run(name: str, folder: Path, start: Path, eyes: Path, *more: str) -> Stage:
        parts = ("policy=qwen2_5_vl", f"policy.path={start}", f"segmenter.checkpoint={eyes}")
        return Stage(name, ("run", *common, *parts, *more, f"out={folder}"), folder)

    sets = _data_arguments(given, tasks(given))
    checked = [one.removeprefix("data.") for one in sets if not one.startswith("data.parts.")]
    found = [
        Stage("data", ("data", "check", str(given.data), *checked)),
        run("supervised training", supervised, policy, segmenter, "algo=sft"),
        Stage("segmenter", ("segmenter", "finetune", *_finetune(given, segmenter), f"out={tuned}")),
        run("CGPO", trained, supervised / run_folder.POLICY, tuned),
    ]
    for task in tasks(given):
        table = given.out / "tables" / f"4-{task}"
        words = ("evaluate", str(trained), "--table", f"saliency_r1/4-{task}", "--root", str(given.data))
        found.append(Stage(f"evaluation, {task}", (*words, "--name", "ours", "--out", str(table))))
        words = ("evaluate", str(table / "predictions"), "--table", f"saliency_r1/1-{task}", "--root", str(given.data))
        found.append(
            Stage(f"table 1, {task}", (*words, "--name", "ours", "--out", str(given.out / "tables" / f"1-{task}")))
        )
    return found


def report(given: Namespace) -> None:
    """Write nothing: the last stages of each task write its tables."""


def plan(given: Namespace) -> str:
    """Write the samples, hours and memory of the stages as text."""
    from maskgym.experiments.reproduce import plan

    rates = plan.computed(given, given.gpu, given.gpus) if given.gpu else plan.measured(given)
    return plan.table(given, rates)


def _finetune(given: Namespace, segmenter: Path) -> tuple[str, ...]:
    """Build the arguments of ``maskgym segmenter finetune``: the samples that are imitated, of the same tasks."""
    settings = config_of(given)
    size = [f"group_size={settings['env']['group_size']}"] if "group_size" in settings["env"] else []
    dtype = settings["segmenter"]["dtype"]
    of_data = ("data=tasks", *_data_arguments(given, tasks(given)), f"data.root={given.data}", texts(given))
    of_segmenter = ("segmenter=evf_sam", f"segmenter.checkpoint={segmenter}", f"segmenter.dtype={dtype}")
    return (*of_segmenter, *of_data, *size, f"steps={given.segmenter_steps}")


def _data_arguments(given: Namespace, asked: Sequence[str]) -> list[str]:
    """List the recipe's arguments on the data of some tasks, and on the parts of it."""
    arguments = with_recipe([f"experiment={recipe(given)}", *given.settings], tuple(composition.groups()))
    others = {task for task in TASKS if task not in asked}
    return [
        argument
        for argument in arguments
        if argument.startswith("data.") and argument.partition("=")[0].rpartition(".")[2] not in others
    ]
