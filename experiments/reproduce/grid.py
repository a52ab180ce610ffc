"""Rows of a paper's tables, and the stages that measure them: training runs, evaluations and baselines.

Rows share runs, and tables share rows: a stage is made once. When all stages are finished, each table is written with
its published rows above ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maskgym.aliases import JsonObject
from maskgym.experiments.evaluation import paper_tables, predictions, presets, provenance
from maskgym.experiments.reproduce.stages import Stage
from maskgym.experiments.wiring import run_folder

EVERY = 10**9  # held-out samples at most: all
CONVENTIONS = {"semantic": predictions.Classes.convention, "ranking": predictions.Ranks.convention}  # else the preset's


@dataclass(frozen=True)
class Agent:
    """A trained agent.

    Attributes:
        name: Name of its run's folder.
        settings: Arguments of its run, without the folder.
        start: Agent whose policy it starts from; None for none.
    """

    name: str
    settings: tuple[str, ...]
    start: Agent | None = None

    def stages(self, out: Path) -> list[Stage]:
        """List its training run, after that of the agent it starts from; the tables score it, so the run does not."""
        words, first = ["run", *self.settings, "evaluation.samples=0"], list[Stage]()
        if self.start is not None:
            first = self.start.stages(out)
            words.append(f"policy.checkpoint={self.start.folder(out) / run_folder.POLICY}")
        return [*first, Stage(self.name, (*words, f"out={self.folder(out)}"), self.folder(out))]

    def folder(self, out: Path) -> Path:
        """Return the folder of its run."""
        return out / "runs" / self.name


@dataclass(frozen=True)
class Row:
    """A row of ours in a table.

    Attributes:
        table: Table in ``papers/``, such as ``2-blur``.
        name: Name of the row, as the paper has it.
        agent: The agent that is evaluated, or the settings of a baseline.
        changes: Settings of the evaluation that differ from the run, or options of a baseline.
        baseline: Baseline that is fitted in place of an agent; empty for none.
        scored: Table that the evaluation is made for, if another one has the same samples.
    """

    table: str
    name: str
    agent: Agent
    changes: tuple[str, ...] = ()
    baseline: str = ""
    scored: str = ""

    @property
    def place(self) -> str:
        """Folder of the row's scores below ``scores/``; rows of the same scores share it."""
        changed = (re.sub(r"\W+", "-", change.rpartition(".")[2]).strip("-") for change in self.changes)
        return "/".join([self.scored or self.table, "-".join([self.baseline or self.agent.name, *changed])])

    def results(self, out: Path) -> Path:
        """Return the file of the row's scores."""
        return out / "scores" / self.place / run_folder.RESULTS


def stages(paper: str, rows: Sequence[Row], data: Path, out: Path) -> list[Stage]:
    """List the stages of rows: for each the run of its agent, unless an earlier row has it, and its evaluation.

    Args:
        paper: Name of the paper's file in ``papers/``.
        rows: The rows.
        data: Folder that holds the data sets.
        out: Folder of the experiment.
    """
    found: dict[str, Stage] = {}
    for row in rows:
        if row.baseline:
            words = (
                row.baseline,
                *row.agent.settings,
                *row.changes,
                f"evaluation.samples={EVERY}",
                "--out",
                str(row.results(out)),
            )
            found.setdefault(row.place, Stage(row.place, ("baselines", *words)))
            continue
        for stage in row.agent.stages(out):
            found.setdefault(stage.name, stage)
        table = ("--table", f"{paper}/{row.scored or row.table}", "--root", str(data))
        words = (*row.changes, *table, "--name", row.name, "--out", str(row.results(out).parent))
        found.setdefault(row.place, Stage(row.place, ("evaluate", str(row.agent.folder(out)), *words)))
    return list(found.values())


def write_tables(paper: str, rows: Sequence[Row], out: Path) -> None:
    """Write the tables of measured rows to ``tables/`` as Markdown, LaTeX and CSV, and print them."""
    for name in dict.fromkeys(row.table for row in rows):
        own = [(row, run_folder.read_json(row.results(out))) for row in rows if row.table == name]
        table = paper_tables.published(f"{paper}/{name}")
        ours = tuple((row.name, tuple(_score(results, *column) for column in table.columns)) for row, results in own)
        table = replace(table, ours=ours, notes=(*table.notes, *_notes(table, own)))
        for suffix, make in paper_tables.FORMATS.items():
            run_folder.write(out / "tables" / f"{name}.{suffix}", make(table))
        print(paper_tables.to_markdown(table))


def _score(results: JsonObject, dataset: str, measure: str) -> float | None:
    """Look up a score of an evaluation, which names its data set, or of a baseline, which has one."""
    scores = results["scores"]
    return (scores if "baseline" in results else scores.get(dataset, {})).get(measure)


def _notes(table: paper_tables.Table, own: Sequence[tuple[Row, JsonObject]]) -> list[str]:
    """Build the lines below a table: how it is measured, what it is of, and what is to be noted about rows."""
    convention = CONVENTIONS.get(table.task, presets.find(table.preset).note)
    told: list[tuple[str, str]] = []
    for row, results in own:
        scores = {} if "baseline" in results else results["scores"]
        for dataset, found in scores.items():
            told += [(row.name, f"{dataset}: {found['images']:.0f} images") for _ in range("images" in found)]
            told += [(row.name, f"{dataset}: {note}") for note in found.get("notes", ())]
    names = {row.name for row, _ in own}
    of = [(row.name, found) for row, results in own if (found := provenance.read(results))]
    lines = [*provenance.labelled(told, names), *provenance.shown_of_several(of)]
    return [f"Measured as {table.preset}: {convention}", *lines]
