"""Tables of papers: the published rows with ours below, as Markdown, LaTeX and CSV.

The published numbers lie in ``papers/PAPER.yaml``; a table is named ``PAPER/TABLE``, as in ``saliency_r1/4-sod``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from maskgym.errors import UserError
from maskgym.experiments.evaluation.presets import LESS_IS_BETTER, NAMES

PAPERS = Path(__file__).parents[1] / "papers"
Column = tuple[str, str]  # data set and measure, by our names


@dataclass(frozen=True)
class Table:
    """A table of methods by measures on data sets.

    Attributes:
        caption: What it is about.
        columns: In order.
        rows: Method, and its values in the columns' order, None where there is none.
        preset: How ours are measured: a name in `maskgym.experiments.evaluation.presets`.
        task: What is segmented.
        scale: What values are multiplied by where they are printed, such as 100 for per cent.
        ours: Rows below the published ones, in the same form; fractions, not scaled.
        notes: Lines below the table.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...] = ()
    preset: str = "pysodmetrics"
    task: str = "sod"
    scale: float = 1
    ours: tuple[tuple[str, tuple[float | None, ...]], ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets, in order."""
        return tuple(dict.fromkeys(dataset for dataset, _ in self.columns))

    def all_rows(self) -> list[tuple[str, list[float | None]]]:
        """Return the published rows and ours, scaled as printed."""
        ours = [(name, tuple(None if v is None else v * self.scale for v in values)) for name, values in self.ours]
        return [(name, list(values)) for name, values in (*self.rows, *ours)]


def names() -> list[str]:
    """Return the name of every published table."""
    return [f"{file.stem}/{table}" for file in sorted(PAPERS.glob("*.yaml")) for table in _read(file)["tables"]]


def published(name: str) -> Table:
    """Return a published table.

    Raises:
        UserError: If there is none of this name.
    """
    paper, _, number = name.partition("/")
    file = PAPERS / f"{paper}.yaml"
    tables: Mapping[str, Any] = _read(file)["tables"] if file.is_file() else {}
    if number not in tables:
        raise UserError(f"table '{name}': expected one of {', '.join(names())}")
    content, table = _read(file), tables[number]
    return Table(
        caption=f"{content['title']} Table {number}: {table['caption']}",
        columns=tuple((str(dataset), str(measure)) for dataset, measure in table["columns"]),
        rows=tuple((str(method), tuple(values)) for method, *values in table["rows"]),
        preset=content["preset"],
        task=table["task"],
        scale=table.get("scale", 1),
    )


def to_markdown(table: Table) -> str:
    """Return a table as Markdown: the best value of a column in bold, ours marked with a star."""
    published_rows = len(table.rows)
    lines = [f"**{table.caption}**\n"] if table.caption else []
    lines += [f"| method | {' | '.join(_heading(table, column) for column in table.columns)} |"]
    lines += [f"|---|{'---|' * len(table.columns)}"]
    for number, (method, cells) in enumerate(_cells(table, "**{}**".format)):
        star = " *" if number >= published_rows and table.rows else ""
        lines.append(f"| {_escape(method, '|')}{star} | {' | '.join(cells)} |")
    lines += ["", *([r"\* measured here."] if table.rows and table.ours else []), *table.notes]
    return "\n".join(lines).rstrip() + "\n"


def to_latex(table: Table) -> str:
    """Return a table as LaTeX with booktabs: a heading over each data set, the best value of a column in bold."""
    groups = [(name, sum(dataset == name for dataset, _ in table.columns)) for name in table.datasets]
    heads = " & ".join(rf"\multicolumn{{{count}}}{{c}}{{{_tex(_dataset(name))}}}" for name, count in groups)
    arrows = [rf"{_tex(NAMES.get(m, m))} $\{'down' if m in LESS_IS_BETTER else 'up'}arrow$" for _, m in table.columns]
    rows = []
    for number, (method, cells) in enumerate(_cells(table, r"\textbf{{{}}}".format)):
        if number == len(table.rows) and number:
            rows.append(r"\midrule")
        rows.append(f"{_tex(method)} & {' & '.join(cells)} \\\\")
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_tex(table.caption)}}}",
            rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
            r"\toprule",
            *([rf" & {heads} \\"] if any(table.datasets) else []),
            rf"Method & {' & '.join(arrows)} \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *(f"% {note}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def to_csv(table: Table) -> str:
    """Return a table as CSV: method, where its row is from, and a column a data set and measure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "source", *(f"{dataset}/{measure}" for dataset, measure in table.columns)])
    for number, (method, values) in enumerate(table.all_rows()):
        source = "published" if number < len(table.rows) else "measured"
        writer.writerow([method, source, *("" if value is None else f"{value:.6g}" for value in values)])
    return text.getvalue()


def _read(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _cells(table: Table, bold: Callable[[str], str]) -> list[tuple[str, list[str]]]:
    """Return each method with its values as printed, the best of a column in bold."""
    rows = table.all_rows()
    columns = []
    for (_, measure), values in zip(table.columns, zip(*(values for _, values in rows), strict=True), strict=True):
        known = [round(value, 3) for value in values if value is not None]
        best = (min if measure in LESS_IS_BETTER else max)(known) if len(known) > 1 else None
        shown = [_show(value, table.scale) for value in values]
        columns.append(
            [
                bold(text) if value is not None and round(value, 3) == best else text
                for text, value in zip(shown, values, strict=True)
            ]
        )
    return [(method, list(cells)) for (method, _), cells in zip(rows, zip(*columns, strict=True), strict=True)]


def _show(value: float | None, scale: float) -> str:
    return "–" if value is None else f"{value:.{2 if scale == 100 else 3}f}"


def _heading(table: Table, column: Column) -> str:
    dataset, measure = column
    arrow = "↓" if measure in LESS_IS_BETTER else "↑"
    where = f"{_dataset(dataset)} " if len(table.datasets) > 1 or dataset else ""
    return f"{where}{NAMES.get(measure, measure)} {arrow}"


def _dataset(name: str) -> str:
    return name.replace("_", "-").upper() if name.islower() else name


def _escape(text: str, special: str) -> str:
    return text.replace(special, f"\\{special}")


def _tex(text: str) -> str:
    """Return text as LaTeX prints it."""
    marks = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(marks.get(mark, f"\\{mark}" if mark in "&%$#_{}" else mark) for mark in text)
