"""Tables of a sweep's runs: Markdown, CSV, and a plot with one axis per parameter."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from maskgym.experiments.grids import files
from maskgym.experiments.wiring import run_folder

Value: TypeAlias = str | float | bool | list["Value"] | dict[str, "Value"] | None  # of a parameter, as YAML has it
Row = Mapping[str, Value]  # one value per parameter


def write(
    out: Path,
    name: str,
    title: str,
    rows: Sequence[Row],
    scores: Sequence[Mapping[str, float]],
    notes: Sequence[str] = (),
) -> None:
    """Write the parameters that vary and the scores of runs as Markdown, CSV and a plot; print the table.

    Args:
        out: Folder for the three files.
        name: Name of the files without the ending.
        title: Title of the table and the plot.
        rows: Parameters of each run.
        scores: Scores of each run.
        notes: Lines below the table of Markdown; who calls prints them.
    """
    varied = [key for key in rows[0] if len({_exact(row[key]) for row in rows}) > 1]
    head = [*varied, *scores[0]]
    body = [[*(row[key] for key in varied), *found.values()] for row, found in zip(rows, scores, strict=True)]
    columns = [labels(column) for column in zip(*body, strict=True)]
    shown = "\n".join([f"{title}\n", *files.table(head, zip(*columns, strict=True)), ""])
    run_folder.write(out / f"{name}.md", "\n".join([shown, *files.items(notes)]))
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([head, *body])
    run_folder.write(out / f"{name}.csv", stream.getvalue())
    run_folder.write(out / f"{name}.png", draw(title, head, body))
    print(f"{shown}\n{out / name}.png")


def labels(values: Sequence[Value]) -> list[str]:
    """Format the values of a column: decimals with four digits, or with as many as tell different values apart.

    Example:
        >>> labels([0.5, 1.00001e-05, 1.00002e-05]), labels([1, 1.0, 0.1]), labels([True, "null", None])
        (['0.5', '1.00001e-05', '1.00002e-05'], ['1', '1.0', '0.1'], ['true', '"null"', 'null'])
    """
    different = len({_exact(value) for value in values})
    for digits in range(4, 18):
        shown = [f"{value:.{digits}g}" if isinstance(value, float) else _exact(value) for value in values]
        if len(set(shown)) == different:
            break
    else:  # 1 and 1.0
        shown = [_exact(value) for value in values]
    words = [value if isinstance(value, str) else text for value, text in zip(values, shown, strict=True)]
    return words if len(set(words)) == different else shown


def _exact(value: Value) -> str:
    return json.dumps(value, sort_keys=True)


def draw(title: str, head: Sequence[str], body: Sequence[Sequence[Value]]) -> bytes:
    """Plot parallel coordinates as PNG: one axis per column, one line per run, coloured by the last column."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 * len(head) + 1.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    columns = [_axis([line[place] for line in body]) for place in range(len(head))]
    for run in zip(*(heights for heights, _ in columns), strict=True):
        axes.plot(range(len(head)), run, color=colormaps["viridis"](run[-1]), alpha=0.8, linewidth=1.5)
    for place, (_, ticks) in enumerate(columns):
        axes.axvline(place, color="0.7", linewidth=1, zorder=0)
        for height, label in ticks:
            axes.text(place + 0.03, height, label, fontsize=8, va="center", backgroundcolor=(1, 1, 1, 0.6))
    axes.set_xticks(range(len(head)), head, fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.15, len(head) - 0.5)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def _axis(values: Sequence[Value]) -> tuple[list[float], list[tuple[float, str]]]:
    """Compute the height of each value in [0, 1] on its axis, and the labels of the axis with their heights."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    shown = labels(values)
    if len(numbers) < len(values):
        kinds = sorted(set(shown))
        scaled = np.array([kinds.index(text) for text in shown], float)
    else:
        scaled = np.array(numbers, float)
        if scaled.min() > 0 and scaled.max() >= 20 * scaled.min():
            scaled = np.log(scaled)
    heights = ((scaled - scaled.min()) / (np.ptp(scaled) or 1.0)).tolist()
    # More than six labels would overlap, so that only the two ends of numbers are labelled then.
    ticks = dict(zip(heights, shown, strict=True))
    few = len(ticks) <= 6 or len(numbers) < len(values)
    return heights, [(h, t) for h, t in sorted(ticks.items()) if few or h in (0, max(ticks))]
