"""The ``maskgym`` command: each subcommand a few lines over the library, which it imports when it is chosen."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskgym.errors import UserError, one_line
from maskgym.experiments.wiring.command import Parser, status

TASKS = ("sod", "sis", "cosod", "refer")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit status: 2 for a mistake in what was given, told in one line."""
    return status(_main, argv)


def _main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: maskgym COMMAND ...\n")
        print("\n".join(f"  maskgym {' '.join(words):<20}{command.__doc__}" for words, command in COMMANDS.items()))
        return 0
    known = next((words for words in COMMANDS if tuple(arguments[: len(words)]) == words), None)
    if known is None:
        names = ", ".join(" ".join(words) for words in COMMANDS)
        raise UserError(f"unknown command '{' '.join(arguments[:2])}': expected one of {names}")
    return COMMANDS[known](arguments[len(known) :])


def run(arguments: Sequence[str]) -> int:
    """Train and evaluate: as experiments/run.py."""
    from maskgym.experiments import run as runner

    return runner.main(arguments)


def plan(arguments: Sequence[str]) -> int:
    """Print the memory and the hours of a run, and what they rest on; run nothing."""
    from maskgym.experiments.planning import command

    return command.main(arguments)


def evaluate(arguments: Sequence[str]) -> int:
    """Score predictions or the agent of a run; a paper's table with ours below."""
    from maskgym.experiments.evaluation import evaluate_command

    given = evaluate_command.parse(arguments)
    if given.scale is None:
        print(evaluate_command.answer(given))
        return 0
    from maskgym.experiments.on_ray import evaluating

    print(evaluating.answer(given))
    return 0


def play(arguments: Sequence[str]) -> int:
    """Play an environment in a browser, beside an oracle or a trained policy."""
    from maskgym.experiments.web import play as player

    return player.main(arguments)


def data_check(arguments: Sequence[str]) -> int:
    """Read a whole data set, or with sod=NAME sis=[NAME,NAME] … those of each task, and list their faults by name."""
    from maskgym.data.check import check
    from maskgym.data.tasks import TASKS

    given = _parse("data check", data_check, arguments, [*_reader(), ("--json", {"action": "store_true"})])
    if given.data == "tasks" or any(
        setting.startswith(tuple(f"{task}=" for task in TASKS)) for setting in given.settings
    ):
        return _check_tasks(given)
    name, settings = _chosen(given)
    report = check(name, given.folder, given.task, **settings)
    print(json.dumps(report.as_dict(), indent=2) if given.json else report)
    return 0 if report.ok else 1


def data_show(arguments: Sequence[str]) -> int:
    """Draw samples of a data set with their masks, on one sheet."""
    from maskgym.experiments.annotation import contact_sheet

    more: list[tuple[str, dict]] = [
        ("--out", {"type": Path, "default": Path("contact_sheet.png"), "help": "the picture (%(default)s)"}),
        ("--split", {"default": "all", "help": "train, validation or test (%(default)s)"}),
        ("--samples", {"type": int, "default": 24, "help": "at most so many, spread evenly (%(default)s)"}),
    ]
    given = _parse("data show", data_show, arguments, [*_reader(), *more])
    name, settings = _chosen(given)
    count = contact_sheet.draw(name, given.folder, given.out, given.task, given.split, given.samples, **settings)
    print(one_line(f"{given.out}: {count} samples"))
    return 0


def data_dig(arguments: Sequence[str]) -> int:
    """Dig user needs: detect, segment, write commands, correct them in a browser, export."""
    from maskgym.experiments.annotation.needs import dig

    return dig.main(arguments)


def data_reason(arguments: Sequence[str]) -> int:
    """Have a model write rationales to imitate: it sees the masks, and says how to come to them."""
    from maskgym.experiments.annotation import reasoning_data

    return reasoning_data.main(arguments)


def report(arguments: Sequence[str]) -> int:
    """Write the page of a finished run again, or one page that compares several."""
    from maskgym.experiments.report import report as pages

    options: list[tuple[str, dict]] = [
        ("runs", {"nargs": "+", "type": Path, "metavar": "RUN", "help": "folder of a finished run"}),
        ("--out", {"type": Path, "help": "the page (report.html of the run; of several comparison.html, here)"}),
    ]
    given = _parse("report", report, arguments, options)
    print(one_line(pages.write(given.runs, given.out)))
    return 0


def export(arguments: Sequence[str]) -> int:
    """Write what the agent of a run does as JSON lines, for training elsewhere."""
    from maskgym.experiments.evaluation import trajectories

    return trajectories.main(arguments)


def rewards_audit(arguments: Sequence[str]) -> int:
    """Print what degenerate answers earn under each reward."""
    from maskgym import data
    from maskgym.rewards.audit import audit

    options: list[tuple[str, dict]] = [
        ("--task", {"choices": TASKS, "default": "sis"}),
        ("--samples", {"type": int, "default": 256, "help": "scenes of the test split (default: %(default)s)"}),
    ]
    given = _parse("rewards audit", rewards_audit, arguments, options)
    scenes = data.make("scenes", task=given.task, split="test", size=given.samples)
    print(audit((scenes[index] for index in range(len(scenes))), given.task))
    return 0


def segmenter_finetune(arguments: Sequence[str]) -> int:
    """Fine-tune EVF-SAM's mask decoder on referring expressions."""
    from maskgym.experiments.pretraining import finetune

    return finetune.main(arguments)


def policy_merge(arguments: Sequence[str]) -> int:
    """Merge the adapters of a run into their base model, in float32."""
    from maskgym.experiments.wiring import run_folder
    from maskgym.policies.text import adapters
    from maskgym.policies.text.mllm import LanguagePolicy

    options: list[tuple[str, dict]] = [
        ("run", {"type": Path, "metavar": "RUN", "help": "folder of a finished run, or of saved adapters"}),
        ("out", {"type": Path, "metavar": "OUT", "help": "new folder for the whole model"}),
        ("--dtype", {"default": "float32", "help": "of the merged weights (%(default)s); half precision rounds them"}),
    ]
    given = _parse("policy merge", policy_merge, arguments, options)
    folder = given.run / run_folder.POLICY if (given.run / run_folder.POLICY).is_dir() else given.run
    if not adapters.are_in(folder):
        raise UserError(f"{folder}: no {adapters.CONFIG} there: expected a run with policy.lora_rank, or its adapters")
    config = adapters.read_config(folder)
    LanguagePolicy(folder, config.r, config.lora_alpha, device="cpu").merge(given.out, given.dtype)
    print(one_line(f"{given.out}: adapters of rank {config.r} merged, {given.dtype}"))
    return 0


def board_check(arguments: Sequence[str]) -> int:
    """Score the answers of submitted runs again, and name what differs."""
    from maskgym.experiments.grids import board

    return board.check_main(arguments)


def board_page(arguments: Sequence[str]) -> int:
    """Make the board of submissions that were checked, as Markdown."""
    from maskgym.experiments.grids import board

    return board.page_main(arguments)


def study(arguments: Sequence[str]) -> int:
    """Train what a table of a paper needs, and print the table."""
    from maskgym.experiments.grids import study as runner

    return runner.main(arguments)


def benchmark(arguments: Sequence[str]) -> int:
    """Compare algorithms on the runs of a matrix."""
    from maskgym.experiments.grids import benchmark as runner

    return runner.main(arguments)


def compare(arguments: Sequence[str]) -> int:
    """Compare runs with the baselines of a protocol, and say what their seeds can show."""
    from maskgym.experiments.grids import compare as runner

    return runner.main(arguments)


def sweep(arguments: Sequence[str]) -> int:
    """Run a wandb sweep's file without wandb."""
    from maskgym.experiments.grids import sweep as runner

    return runner.main(arguments)


def baselines(arguments: Sequence[str]) -> int:
    """Train and score PerSAM, SAMed or MSA on the samples of the clicking agents."""
    from maskgym.experiments.grids import baselines as runner

    return runner.main(arguments)


def response_study(arguments: Sequence[str]) -> int:
    """Count and draw the response types of many answers, and their advantages."""
    from maskgym.experiments.grids import response_study as runner

    return runner.main(arguments)


def summary(arguments: Sequence[str]) -> int:
    """Print the gains of groups of runs over their seeds, with intervals."""
    from maskgym.experiments.grids import summary as runner

    return runner.main(arguments)


def reproduce(arguments: Sequence[str]) -> int:
    """Go from the data sets to a paper's tables: train, tune, evaluate, each stage a command."""
    from maskgym.experiments.reproduce import command

    return command.main(arguments)


def pretrain(arguments: Sequence[str]) -> int:
    """Train one of the bundled models again."""
    from maskgym.experiments.pretraining import pretrain as recipes

    return recipes.main(arguments)


def check(arguments: Sequence[str]) -> int:
    """Check whether a part of your own keeps its contract: env, data, segmenter, reward, policy or agent."""
    from maskgym.experiments.conformance import check_command

    return check_command.main(arguments)


def doctor(arguments: Sequence[str]) -> int:
    """Say what is installed, on what machine, and whether it works."""
    from maskgym.experiments import doctor as examiner

    return examiner.main(arguments)


COMMANDS: dict[tuple[str, ...], Callable[[Sequence[str]], int]] = {
    ("run",): run,
    ("plan",): plan,
    ("evaluate",): evaluate,
    ("study",): study,
    ("benchmark",): benchmark,
    ("compare",): compare,
    ("sweep",): sweep,
    ("baselines",): baselines,
    ("response_study",): response_study,
    ("summary",): summary,
    ("reproduce",): reproduce,
    ("pretrain",): pretrain,
    ("play",): play,
    ("check",): check,
    ("doctor",): doctor,
    ("export",): export,
    ("report",): report,
    ("data", "check"): data_check,
    ("data", "show"): data_show,
    ("data", "dig"): data_dig,
    ("data", "reason"): data_reason,
    ("rewards", "audit"): rewards_audit,
    ("segmenter", "finetune"): segmenter_finetune,
    ("policy", "merge"): policy_merge,
    ("board", "check"): board_check,
    ("board", "page"): board_page,
}


def _check_tasks(given: argparse.Namespace) -> int:
    """Check the sets of each task in a folder that holds them."""
    from maskgym.data.check import check_tasks
    from maskgym.experiments.wiring import composition, sources

    settings = [f"data.{setting}" for setting in given.settings]
    chosen = composition.compose(["env=saliency", "data=tasks", f"data.root={given.folder}", *settings])["data"]
    reports = check_tasks(**{key: value for key, value in chosen.items() if key not in sources.NOT_READ})
    shown = [report.as_dict() for report in reports]
    print(json.dumps(shown, indent=2) if given.json else "\n\n".join(map(str, reports)))
    return 0 if all(report.ok for report in reports) else 1


def _reader() -> list[tuple[str, dict]]:
    """Return the arguments that choose a reader of a folder."""
    from maskgym.data.check import READERS
    from maskgym.data.published import PUBLISHED

    names = ", ".join((*READERS, *PUBLISHED))
    tasks = "sod, sis, cosod, need, refer, blur, shadow, glass, camouflage, semantic, ranking"
    return [
        ("folder", {"metavar": "DIR"}),
        ("settings", {"nargs": "*", "metavar": "key=value", "help": "of the reader, such as splits=hash"}),
        ("--data", {"default": "auto", "help": f"the data set or the reader: {names} (default: told from the folder)"}),
        ("--task", {"help": f"how the masks are meant: {tasks} (default: the reader's)"}),
    ]


def _chosen(given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return the name of the reader, told from the folder if need be, and its arguments that are given.

    Raises:
        UserError: If it has no such argument, or takes another kind of value.
    """
    import inspect

    from maskgym import data
    from maskgym.data.check import detect
    from maskgym.data.published import PUBLISHED
    from maskgym.experiments.wiring import composition

    name = detect(given.folder) if given.data == "auto" else given.data
    taken = inspect.signature(data.get(PUBLISHED[name].reader if name in PUBLISHED else name)).parameters
    keys = [setting.partition("=")[0] for setting in given.settings]
    if unknown := [key for key in keys if key not in taken]:
        raise UserError(f"argument '{unknown[0]}': data={name} takes {', '.join(taken)}")
    found = composition.compose(["env=sod", f"data={name}", *(f"++data.{setting}" for setting in given.settings)])
    return name, {key: found["data"][key] for key in keys}


def _parse(
    name: str, command: Callable, arguments: Sequence[str], options: Sequence[tuple[str, dict]]
) -> argparse.Namespace:
    parser = Parser(prog=f"maskgym {name}", description=command.__doc__)
    for flag, settings in options:
        parser.add_argument(flag, **settings)
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
