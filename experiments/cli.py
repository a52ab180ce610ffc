"""The ``maskgym`` command: each subcommand a few lines over the library, which it imports when it is chosen."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from maskgym.errors import UserError
from maskgym.experiments.command import Parser, status

TASKS = ("sod", "sis", "cosod")


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


def evaluate(arguments: Sequence[str]) -> int:
    """Evaluate the trained agent of a run folder again."""
    from maskgym.experiments import run as runner

    options: list[tuple[str, dict]] = [
        ("folder", {"type": Path, "metavar": "RUN_DIR"}),
        ("changes", {"nargs": "*", "metavar": "key=value", "help": "what is to be different from the run"}),
    ]
    given = _parse("evaluate", evaluate, arguments, options)
    print(json.dumps(runner.scores(runner.evaluate_again(given.folder, given.changes)), indent=2))
    return 0


def data_check(arguments: Sequence[str]) -> int:
    """Read a whole data set and list its faults by name."""
    from maskgym.data.check import FORMATS, check

    given = _parse(
        "data check",
        data_check,
        arguments,
        [
            ("folder", {"metavar": "DIR"}),
            ("--data", {"choices": ("auto", *FORMATS), "default": "auto", "help": "the reader (default: %(default)s)"}),
            ("--task", {"choices": (*TASKS, "need"), "help": "how the masks are meant (default: the reader's)"}),
            ("--json", {"action": "store_true", "help": "print JSON"}),
        ],
    )
    report = check(given.data, given.folder, task=given.task)
    print(json.dumps(report.as_dict(), indent=2) if given.json else report)
    return 0 if report.ok else 1


def data_dig(arguments: Sequence[str]) -> int:
    """Dig user needs: detect, segment, write commands, correct them in a browser, export."""
    from maskgym.experiments.digging import dig

    return dig.main(arguments)


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
    from maskgym.segmenters import finetune

    return finetune.main(arguments)


def study(arguments: Sequence[str]) -> int:
    """Make a table of a paper: as experiments/study.py."""
    from maskgym.experiments import study as runner

    return runner.main(arguments)


def benchmark(arguments: Sequence[str]) -> int:
    """Compare algorithms: as experiments/benchmark.py."""
    from maskgym.experiments import benchmark as runner

    return runner.main(arguments)


COMMANDS: dict[tuple[str, ...], Callable[[Sequence[str]], int]] = {
    ("run",): run,
    ("evaluate",): evaluate,
    ("study",): study,
    ("benchmark",): benchmark,
    ("data", "check"): data_check,
    ("data", "dig"): data_dig,
    ("rewards", "audit"): rewards_audit,
    ("segmenter", "finetune"): segmenter_finetune,
}


def _parse(
    name: str, command: Callable, arguments: Sequence[str], options: Sequence[tuple[str, dict]]
) -> argparse.Namespace:
    parser = Parser(prog=f"maskgym {name}", description=command.__doc__)
    for flag, settings in options:
        parser.add_argument(flag, **settings)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
