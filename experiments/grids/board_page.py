"""Page of the board: a Markdown table per level, and one of all, from what checks found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np

from maskgym.errors import one_line
from maskgym.experiments.evaluation.statistics import interquartile_mean
from maskgym.experiments.grids import benchmark_report, files, protocol
from maskgym.experiments.grids.matrix import Matrix
from maskgym.experiments.grids.protocol import UNITS, Level

ABOUT = """\
Made by `maskgym board page` of folders that `maskgym board check` found to be right. Scores are those of the final
answers on the held-out samples of a level, as the check computed them: 0 is the floor of the level (random actions),
1 its ceiling (an oracle). They are interquartile means over seeds, and over levels in the first table, with 95 %
stratified bootstrap intervals.

**What is verified.** The settings of the level, its samples and its frozen networks, and every number of the final
answers, which were scored again. *Replayed* means that the submitted policy gave these answers again, too. Where they
were not replayed, nothing says that a policy gave them: anyone can make the scenes again, with their ground truth, so
that answers alone prove little.

**What is as submitted.** What was spent, as a multiple of the level's budget, and the curves; how a policy was
trained; and which seeds there are.
"""
REPLAYED = {True: "replayed", False: "**answers only: not replayed**"}
HEAD = ("method", "submission", "seeds")


class Entry(TypedDict):
    """A run in ``board.json``.

    Attributes:
        folder: Its folder, relative to the submission's.
        method: Name of its method; runs that differ in their seed only share it.
        level: Name of its level.
        seed: Its seed.
        measure: Name of the level's measure.
        score: The measure of the final answers.
        normalised: The score on the scale from the level's floor, 0, to its ceiling, 1.
        samples: Number of answers that were scored.
        replayed: Whether the submitted policy gave the same answers again.
        spent: What it spent as a multiple of the budget; absent if it acted in no environment.
    """

    folder: str
    method: str
    level: str
    seed: int
    measure: str
    score: float
    normalised: float
    samples: int
    replayed: bool
    spent: NotRequired[float]


class Board(TypedDict):
    """Content of ``board.json``.

    Attributes:
        protocol: Title of the protocol.
        version: Its version.
        maskgym: Version of maskgym that checked.
        date: Day of the check, UTC, as 2026-01-31.
        runs: The runs.
        files: Size and checksum of each file that the check was of, by its path in the submission.
    """

    protocol: str
    version: int
    maskgym: str
    date: str
    runs: list[Entry]
    files: dict[str, dict[str, int | str]]


class Line(NamedTuple):
    """A method of a submission, as the board shows it.

    Attributes:
        method: Name of the method.
        submission: Name of the folder.
        date: Day of its check.
        runs: Its runs by level and seed.
    """

    method: str
    submission: str
    date: str
    runs: dict[str, dict[int, Entry]]


def page(boards: Mapping[str, Board], matrix: Matrix) -> str:
    """Write the board of checked submissions, by name, as Markdown."""
    lines: list[Line] = []
    for name, board in boards.items():
        methods: dict[str, dict[str, dict[int, Entry]]] = {}
        for entry in board["runs"]:
            methods.setdefault(entry["method"], {}).setdefault(entry["level"], {})[entry["seed"]] = entry
        lines += [Line(method, name, board["date"], runs) for method, runs in methods.items()]
    text = [f"# Board of {matrix['title']}, version {matrix['version']}\n", ABOUT]
    text += _overall(lines, protocol.levels(matrix))
    for level in protocol.levels(matrix).values():
        text += _level([line for line in lines if level.name in line.runs], level)
    return "\n".join(text)


def _overall(lines: Sequence[Line], known: Mapping[str, Level]) -> list[str]:
    """Build the table over all levels: methods with the most levels first, because levels are not equally hard."""
    rows: list[tuple[tuple[int, float], list[str]]] = []
    without: list[str] = []
    for line in lines:
        own = [name for name in known if name in line.runs]
        seeds = sorted(set.intersection(*(set(line.runs[name]) for name in own)))
        if not seeds:
            without.append(f"{' of '.join(_named(line))} has no seed on all its levels.\n")
            continue
        scores = np.array([[line.runs[name][seed]["normalised"] for name in own] for seed in seeds])
        cells = [*_named(line), _counted(seeds), f"{len(own)} of {len(known)}", benchmark_report.mean(scores)]
        entries = [line.runs[name][seed] for name in own for seed in seeds]
        rows.append(((len(own), interquartile_mean(scores)[0]), [*cells, _replayed(entries), escape(line.date)]))
    head = [*HEAD, "levels", "score", "answers", "date"]
    told = "Seeds that a method has on all its levels; the most levels first, then the best score.\n"
    return ["## All levels\n", told, *files.table(head, _ordered(rows)), "", *without]


def _level(lines: Sequence[Line], level: Level) -> list[str]:
    """Build the table of a level, best first; nothing if no method has runs of it."""
    rows: list[tuple[tuple[int, float], list[str]]] = []
    for line in lines:
        runs = line.runs[level.name]
        scores = np.array([[entry["normalised"]] for entry in runs.values()])
        raw = float(np.mean([entry["score"] for entry in runs.values()]))
        spent = [entry["spent"] for entry in runs.values() if "spent" in entry]
        told = f"{np.mean(spent):.2f}" if spent else "none"
        cells = [*_named(line), _counted(sorted(runs)), benchmark_report.mean(scores), f"{raw:.3f}", told]
        answers = _replayed(list(runs.values()))
        rows.append(((0, interquartile_mean(scores)[0]), [*cells, answers, escape(line.date)]))
    head = [*HEAD, "score", f"{level.measure}, mean", "spent", "answers", "date"]
    budget = f"Budget: {level.budget:,} {UNITS[level.unit]}.\n"
    return [f"## {level.name}\n", budget, *files.table(head, _ordered(rows)), ""] if rows else []


def _named(line: Line) -> list[str]:
    return [escape(line.method), escape(line.submission)]


def _counted(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} ({', '.join(map(str, seeds))})"


def _replayed(entries: Sequence[Entry]) -> str:
    return REPLAYED[all(entry["replayed"] for entry in entries)]


def _ordered(rows: Sequence[tuple[tuple[int, float], list[str]]]) -> list[list[str]]:
    return [cells for _, cells in sorted(rows, key=lambda row: row[0], reverse=True)]


def escape(text: str) -> str:
    """Write text of a submission for a cell of a Markdown table: what could be markup or a link becomes an entity.

    Example:
        >>> escape("ppo, lr=1e-4 | <b>")
        'ppo, lr=1e-4 &#124; &#60;b&#62;'
    """
    safe = "".join(one if one.isalnum() or one in " ,.=+-/_" else f"&#{ord(one)};" for one in one_line(text)[:120])
    return safe.replace("www.", "www&#46;")
