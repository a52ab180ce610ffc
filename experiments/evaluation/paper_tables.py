"""Tables of papers as Markdown, LaTeX and CSV: the published rows with the measured rows below.

The published numbers lie in ``papers/PAPER.yaml``. A table is named ``PAPER/TABLE``, such as ``saliency_r1/4-sod``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from maskgym.aliases import JsonObject
from maskgym.errors import UserError
from maskgym.experiments.evaluation.measures import measure

PAPERS = Path(__file__).parents[1] / "papers"
Column = tuple[str, str]  # data set and measure, by their names in maskgym


@dataclass(frozen=True)
class Table:
    """A table with one row per method and one column per data set and measure.

    Attributes:
        caption: Caption of the table.
        columns: Columns in order.
        rows: Method and its values in the order of the columns; None marks a missing value.
        preset: Protocol of the measured rows: a name in `maskgym.experiments.evaluation.presets`.
        task: Segmentation task.
        scale: Factor of the measured values in print, such as 100 for per cent.
        ours: Measured rows below the published ones, in the same form, as unscaled fractions.
        notes: Lines to print below the table.
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
        """Return the published and the measured rows, scaled as printed."""
        ours = [(name, tuple(None if v is None else v * self.scale for v in values)) for name, values in self.ours]
        return [(name, list(values)) for name, values in (*self.rows, *ours)]


def names() -> list[str]:
    """List the names of all published tables."""
    return [f"{file.stem}/{table}" for file in sorted(PAPERS.glob("*.yaml")) for table in _read(file)["tables"]]


def published(name: str) -> Table:
    """Load a published table.

    Raises:
        UserError: If there is no table of this name.
    """
    paper, _, number = name.partition("/")
    file = PAPERS / f"{paper}.yaml"
    tables: JsonObject = _read(file)["tables"] if file.is_file() else {}
    if number not in tables:
        raise UserError(f"table '{name}': expected one of {', '.join(names())}")
    content, table = _read(file), tables[number]
    return Table(
        caption=f"{content['title']} Table {number}: {table['caption']}",
        columns=tuple((str(dataset), str(name)) for dataset, name in table["columns"]),
        rows=tuple((str(method), tuple(values)) for method, *values in table["rows"]),
        preset=content["preset"],
        task=table["task"],
        scale=table.get("scale", 1),
        notes=tuple(table.get("notes", ())),
    )


def to_markdown(table: Table) -> str:
    """Format a table as Markdown: the best value of a column in bold, measured rows marked with a star."""
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
    """Format a table as LaTeX with booktabs: a heading over each data set, the best value of a column in bold."""
    groups = [(name, sum(dataset == name for dataset, _ in table.columns)) for name in table.datasets]
    heads = " & ".join(rf"\multicolumn{{{count}}}{{c}}{{{_tex(_dataset(name))}}}" for name, count in groups)
    arrows = [
        rf"{_tex(measure(m).title)} $\{'up' if measure(m).higher_is_better else 'down'}arrow$" for _, m in table.columns
    ]
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
    """Format a table as CSV: method, source of the row, and one column per data set and measure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "source", *map("/".join, table.columns)])
    for number, (method, values) in enumerate(table.all_rows()):
        source = "published" if number < len(table.rows) else "measured"
        writer.writerow([method, source, *("" if value is None else f"{value:.6g}" for value in values)])
    return text.getvalue()


def _read(file: Path) -> JsonObject:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def _cells(table: Table, bold: Callable[[str], str]) -> list[tuple[str, list[str]]]:
    """Format the values of each method as printed, with the best value of a column in bold."""
    rows = table.all_rows()
    columns = []
    for (_, name), values in zip(table.columns, zip(*(values for _, values in rows), strict=True), strict=True):
        known = [round(value, 3) for value in values if value is not None]
        best = (max if measure(name).higher_is_better else min)(known) if len(known) > 1 else None
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
    dataset, name = column
    where = f"{_dataset(dataset)} " if len(table.datasets) > 1 or dataset else ""
    return f"{where}{measure(name).title} {measure(name).arrow}"


def _dataset(name: str) -> str:
    return name.replace("_", "-").upper() if name.islower() else name


def _escape(text: str, special: str) -> str:
    return text.replace(special, f"\\{special}")


def _tex(text: str) -> str:
    """Escape the special characters of LaTeX in a text."""
    marks = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(marks.get(mark, f"\\{mark}" if mark in "&%$#_{}" else mark) for mark in text)


FORMATS: dict[str, Callable[[Table], str]] = {"md": to_markdown, "tex": to_latex, "csv": to_csv}  # by suffix
