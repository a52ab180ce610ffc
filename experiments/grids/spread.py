"""Spread: how far apart the trained rows of a level lie, on the seeds that it was chosen by and on others.

A section of a protocol with ``chosen_on``, some of its seeds, has such a table: the best, the middle and the worst row
by the mean on those seeds, and how the same rows stand on the others. Of an even number of rows the better middle one
counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maskgym.experiments.evaluation.statistics import mean_and_interval, seeds_needed
from maskgym.experiments.grids import files, protocol
from maskgym.experiments.grids.matrix import Results, Section
from maskgym.experiments.grids.protocol import Level

SMALL = 0.05  # normalised difference of which the table says how many seeds would show it
PLACES = ("best", "middle", "worst")


class Spread(NamedTuple):
    """Rows of a level by place, and their normalised scores at the budget.

    Attributes:
        rows: Names of the best, the middle and the worst row, on the seeds that the level was chosen by.
        chosen: Scores of each of them on these seeds.
        others: Scores of each of them on the other seeds.
    """

    rows: tuple[str, ...]
    chosen: list[list[float]]
    others: list[list[float]]


def table(results: Results, section: Section) -> list[str]:
    """Format the spread of each level of a section as Markdown; nothing without ``chosen_on`` or with too few rows."""
    body = []
    for level in protocol.levels_of(section) if "chosen_on" in section else ():
        if found := spread(results, level):
            body += _lines(level.name, found, section)
    if not body:
        return []
    head = ["level", "seeds", *PLACES, "best − middle", "best − worst", f"seeds that would show {SMALL}"]
    note = (
        "\nNormalised scores at the budgets, means with 95 % bootstrap intervals over the seeds. Rows are placed by "
        "the seeds of a level's first line, by which it was chosen; its second line has the same rows on other seeds.\n"
    )
    return [*files.table(head, body), note]


def spread(results: Results, level: Level) -> Spread | None:
    """Place the rows of a level that act in training; None if fewer than three have all seeds."""
    section = level.section
    chosen = [section["seeds"].index(seed) for seed in section["chosen_on"]]
    scores: dict[str, np.ndarray] = {}
    for row in section["rows"]:
        runs = results.read(section, row, level.name)
        if len(runs) == len(section["seeds"]) and all(protocol.curve(level, run) for run in runs):
            scores[row] = protocol.normalised(results, level, [protocol.at_budget(level, run) for run in runs])
    if len(scores) < len(PLACES):
        return None
    order = sorted(scores, key=lambda row: -scores[row][chosen].mean())
    rows = order[0], order[(len(order) - 1) // 2], order[-1]
    return Spread(
        rows,
        [scores[row][chosen].tolist() for row in rows],
        [np.delete(scores[row], chosen).tolist() for row in rows],
    )


def _lines(name: str, found: Spread, section: Section) -> list[list[str]]:
    """Format the lines of a level: on the seeds that chose it, and on the others, if there are any."""
    best, middle = (np.array(a + b) for a, b in zip(found.chosen[:2], found.others[:2], strict=True))
    needed = seeds_needed((best - best.mean() + SMALL).tolist(), (middle - middle.mean()).tolist())
    others = [seed for seed in section["seeds"] if seed not in section["chosen_on"]]
    lines = [[name, _seeds(section["chosen_on"]), *_cells(found.rows, found.chosen), str(needed or "more than 1,000")]]
    if others:
        lines.append(["", _seeds(others), *_cells(found.rows, found.others), ""])
    return lines


def _cells(rows: Sequence[str], scores: Sequence[Sequence[float]]) -> list[str]:
    best, middle, worst = (float(np.mean(values)) for values in scores)
    placed = [f"{row} {mean_and_interval(values)}" for row, values in zip(rows, scores, strict=True)]
    return [*placed, f"{best - middle:+.3f}", f"{best - worst:+.3f}"]


def _seeds(seeds: Sequence[int]) -> str:
    return f"{min(seeds)} to {max(seeds)}"
