"""Matrices of benchmarks, and the table that holds the results of their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, TypeVar

import numpy as np

from maskgym.aliases import JsonObject
from maskgym.errors import UserError
from maskgym.experiments.evaluation.measures import AP_RULE, check_offered
from maskgym.experiments.evaluation.provenance import KEY
from maskgym.experiments.grids import files, results_table
from maskgym.experiments.grids.processes import threads_of
from maskgym.experiments.grids.runner import RunSpec, digest
from maskgym.experiments.wiring import composition, run_folder

MATRICES = Path(__file__).parents[1] / "matrices"
HELD_OUT = "held_out/"  # prefix of the logged names of evaluations
SPENT = ("generated_tokens", "reward_calls")
# Prefixes of the logged names that the table keeps.
KEPT = (
    *(*SPENT, "env_steps"),
    *("reward", "kl", "entropy", "completions/mean_length", "clip_ratio/region_mean", "grad_norm", "isr/loss"),
    *("cgpo/confidence", "cgpo/advantage", "group/share_without_signal", "dapo/", "spo/", "response_"),
)
# Facts of a run that the table keeps.
FACTS = (
    *("env", "algo", "seed", "device", "steps", "split", "samples", "instruction", "hint", "versions", AP_RULE[0]),
    KEY,
)
COSTS = "cost"  # key of the timing runs in the table
OPTIONAL = ("costs", "published", "version")  # keys of a matrix
# Keys of a section whose columns are levels, see `maskgym.experiments.grids.protocol`.
LEVELS = ("unit", "floor", "ceiling", "gate", "chosen_on")
WARM_UP = 3  # initial updates that are not timed
Value = TypeVar("Value", float, Sequence[float])

# A row is more arguments; a column is more arguments and the measures to show, the quality first.
# A column that is a level has a budget too, in the unit of its section.
Part = TypedDict("Part", {"with": list[str], "measures": list[str], "budget": int}, total=False)


class Section(TypedDict):
    """Rows that are compared in some columns; ``against`` is the row that the others are compared with.

    Columns that are levels have budgets in ``unit``, a logged name. ``floor`` and ``ceiling`` are the scores that are 0
    and 1 after normalisation, or the rows that have them. ``gate`` is the row of `maskgym.experiments.grids.gate`,
    ``chosen_on`` the seeds by which the levels were chosen (`maskgym.experiments.grids.spread`).
    """

    title: str
    about: str
    base: list[str]
    columns: dict[str, Part]
    rows: dict[str, Part]
    against: str
    seeds: list[int]
    unit: NotRequired[str]
    floor: NotRequired[str | float]
    ceiling: NotRequired[str | float]
    gate: NotRequired[str]
    chosen_on: NotRequired[list[int]]


class Cost(TypedDict):
    """Rows whose updates are timed alone, in rounds."""

    title: str
    about: str
    base: list[str]
    rows: dict[str, Part]
    rounds: int


class Matrix(TypedDict):
    """Content of a matrix's file; ``published`` maps row, column and measure to a paper's value.

    A matrix with a ``version`` is a protocol (`maskgym.experiments.grids.protocol`).
    """

    title: str
    about: str
    sections: list[Section]
    costs: list[Cost]
    published: dict[str, dict[str, dict[str, float]]]
    version: NotRequired[int]


def load(name: str) -> Matrix:
    """Load a matrix by the name of its file in ``matrices/``, or by path.

    Raises:
        UserError: If the file does not exist, or is not a matrix.
    """
    needed = {"title", "about", "sections"}
    matrix: Matrix = files.read(name, MATRICES, "matrix", needed, OPTIONAL)
    matrix.setdefault("costs", [])
    matrix.setdefault("published", {})
    for section in matrix["sections"]:
        keys = set(Section.__annotations__) - set(LEVELS)
        files.check_keys(section, keys, f"matrix '{name}': {section}: is not a section", LEVELS)
        where = f"matrix '{name}': {section['title']}"
        files.check_parts(section["rows"], {"with"}, f"{where}: rows")
        files.check_parts(section["columns"], Part.__optional_keys__, f"{where}: columns")
        if lacking := [column for column, up in section["columns"].items() if not up.get("measures")]:
            raise UserError(f"{where}: columns.{lacking[0]}: expected measures, the quality first")
        if section["against"] not in section["rows"]:
            rows = ", ".join(section["rows"])
            raise UserError(f"matrix '{name}': against: {section['against']}: expected one of {rows}")
    for cost in matrix["costs"]:
        files.check_keys(cost, set(Cost.__annotations__), f"matrix '{name}': {cost}: is not a cost")
        files.check_parts(cost["rows"], {"with"}, f"matrix '{name}': {cost['title']}: rows")
    return matrix


def check(matrix: Matrix) -> None:
    """Check every run of a matrix before one of them trains.

    Raises:
        UserError: If a config is invalid, a measure is not one of its run, or a timing run has too few updates.
    """
    for section in matrix["sections"]:
        for column, up in section["columns"].items():
            for row in section["rows"]:
                config = run_of(section, row, column, 0).config
                tasks = config["env"]["gym_ids"]
                names = [f"{column}/{name}" if len(tasks) > 1 else name for name in up["measures"]]
                check_offered(config, names, f"{section['title']}: {row}, {column}")
    for cost in matrix["costs"]:
        for row in cost["rows"]:
            updates = composition.compose(cost_arguments(cost, row))["algo"]["updates"]
            if updates <= WARM_UP:
                told = f"algo.updates={updates}: expected more than {WARM_UP}, which are not timed"
                raise UserError(f"{cost['title']}: {row}: {told}")


def run_of(section: Section, row: str, column: str, seed: int) -> RunSpec:
    """Build one run of a section; arguments of the row override those of the column, whose budget ends the run."""
    up, left = section["columns"][column], section["rows"][row]
    ends = [f"budget.{section['unit']}={up['budget']}"] if "budget" in up else []
    given = (*section["base"], *up.get("with", ()), *left.get("with", ()), *ends, f"seed={seed}")
    last = {argument.partition("=")[0]: argument for argument in given}
    return RunSpec(tuple(last.values()), measure=up["measures"][0])


class Results:
    """Results of a matrix, in a table beside its report.

    Args:
        matrix: Matrix from `load`.
        folder: Folder of the pictures, after which the table is named.
        table: Another place of the table.

    Attributes:
        rows: Results of each run by `key`.
        costs: Timing runs by `cost_key`.
        threads: Number of threads of the timing runs, as ``OMP_NUM_THREADS`` has it.
    """

    def __init__(self, matrix: Matrix, folder: Path, table: Path | None = None) -> None:
        self.matrix, self.folder = matrix, folder
        self.table = table or folder.with_name(folder.name + results_table.SUFFIX)
        self.rows = results_table.read(self.table)
        costs = self.rows.pop(COSTS, {})
        self.costs: dict[str, list[dict[str, float]]] = costs.get("rows", {})
        self.threads = str(costs.get("threads", threads_of(1)))

    def write(self) -> None:
        """Write the table."""
        threads = int(self.threads) if self.threads.isdecimal() else self.threads
        costs = {COSTS: {"threads": threads, "rows": self.costs}} if self.costs else {}
        results_table.write(self.table, self.rows | costs)

    def key(self, spec: RunSpec) -> str:
        """Return the key of a run; it depends on the arguments only, not on new config keys."""
        return digest(" ".join(sorted(spec.arguments)))

    def of(self, spec: RunSpec) -> JsonObject | None:
        """Return the results of a run; None if there are none, or if defaults have changed since."""
        found = self.rows.get(self.key(spec))
        return found if found and results_table.agrees(found["config"], spec.config) else None

    def specs(self) -> list[RunSpec]:
        """List every run once, in the order of the sections."""
        found = {
            self.key(spec): spec
            for section in self.matrix["sections"]
            for seed in section["seeds"]  # outermost, so that every row has one seed before any has two
            for row in section["rows"]
            for column in section["columns"]
            for spec in [run_of(section, row, column, seed)]
        }
        return list(found.values())

    def read(self, section: Section, row: str, column: str) -> list[JsonObject]:
        """Return the results of a row in a column, in the order of the seeds; missing ones are left out."""
        found = [self.of(run_of(section, row, column, seed)) for seed in section["seeds"]]
        return [run for run in found if run is not None]

    def keep(self, spec: RunSpec, run: Path) -> None:
        """Add a finished run to the table."""
        self.rows[self.key(spec)] = {
            "arguments": list(spec.arguments),
            "config": spec.config,
            **record(run),
            **(of_protocol(run, spec.measure) if "version" in self.matrix else {}),
        }
        self.write()

    def seconds(self, spec: RunSpec) -> float | None:
        """Compute the mean seconds per update from the timing runs like this run; None if it was not timed."""
        rounds = self.costs.get(cost_key(spec.arguments))
        return float(np.mean([part["step_s"] for part in rounds])) if rounds else None


def record(run: Path) -> JsonObject:
    """Collect from a finished run what a table keeps of it: facts, scores, and curves of the log."""
    rows = run_folder.read_metrics(run / run_folder.METRICS)
    updates = updates_of(rows)
    held_out = [row for row in rows if any(name.startswith(HELD_OUT) for name in row)]
    names = dict.fromkeys(name for row in updates for name in row if name.startswith(KEPT))
    measures = [name for name in held_out[0] if name.startswith(HELD_OUT)]
    found = run_folder.read_json(run / run_folder.RESULTS)
    return {
        **{name: found[name] for name in FACTS if name in found},
        "before": found["before"],
        "after": found["after"],
        "updates": {name: [_rounded(row.get(name)) for row in updates] for name in ("step", *names)},
        "held_out": {
            name.removeprefix(HELD_OUT): [_rounded(row.get(name)) for row in held_out] for name in ("step", *measures)
        },
    }


def of_protocol(run: Path, measure: str) -> JsonObject:
    """Collect what a protocol keeps beside: the time of a run, and a measure of each held-out sample after training."""
    samples = [_rounded(row["after"][measure]) for row in run_folder.read_answers(run)]
    return {"wall_s": run_folder.read_json(run / run_folder.RESULTS)["wall_s"], "per_sample": {measure: samples}}


def cost_key(arguments: Sequence[str]) -> str:
    """Build the key of the cost per update: the arguments without seed, budget, reward and learning rate."""
    skipped = ("seed=", "evaluation.", "reward=", "algo.updates=", "algo.learning_rate=")
    return " ".join(sorted(argument for argument in arguments if not argument.startswith(skipped)))


def cost_arguments(cost: Cost, row: str) -> tuple[str, ...]:
    """List the arguments of a timing run."""
    return (*cost["base"], *cost["rows"][row].get("with", ()))


def updates_of(rows: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """Select the rows of a log that are of updates: those that state what was spent, else all but the evaluations."""
    spent = [row for row in rows if any(name in row for name in SPENT)]
    times = ("step", "wall_s")
    return spent or [row for row in rows if any(n not in times and not n.startswith(HELD_OUT) for n in row)]


def score(scores: Mapping[str, Value], column: str, measure: str) -> Value:
    """Look up a measure of a run or its curve; a run of several tasks has one per task, named like the column.

    Values that are undefined, null in the files, are NaN.

    Raises:
        UserError: If the run lacks the measure.
    """
    for name in (measure, f"{column}/{measure}"):
        if name in scores:
            return np.array(scores[name], float).tolist()
    raise UserError(f"measure '{measure}' of {column}: expected one of {', '.join(scores)}")


def _rounded(value: float | None) -> float | None:
    """Round to six significant digits, which is finer than the variation between seeds."""
    return None if value is None else float(f"{value:.6g}")
