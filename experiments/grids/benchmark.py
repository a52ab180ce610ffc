"""Benchmarks: ``maskgym benchmark algorithms --jobs 2`` runs every cell of a matrix and writes a report.

A matrix is a file in ``matrices/`` (or any path): sections of rows (algorithms) and columns (environments).

    title: the report's
    about: text below it
    sections:
      - title: one update a batch
        about: text below it
        base: [evaluation.every=8]                     # arguments of `run.py`, of every run
        columns:                                       # name: more arguments, and what is shown, the quality first
          sis: {with: [env=sis], measures: [iasm, ap70]}
        rows:                                          # name: more arguments
          cgpo: {with: [algo=cgpo]}
        against: cgpo                                  # the row that the others are compared with
        seeds: [0, 1, 2]
    costs:                                             # measured alone, one after the other, in turn
      - title: an update of 128 answers
        about: text below it
        base: [env=sis, algo.updates=10]
        rows: {cgpo: {with: [algo=cgpo]}}
        rounds: 2
    published:                                         # of a paper, whose order of the rows is compared with ours
      cgpo: {sis: {ap70: 0.902}}                       # row, column, measure

Each run becomes one row of the table ``OUT/NAME.jsonl.gz``, whose key is the hash of its arguments. Rows that sections
share are therefore run once, and a stopped benchmark resumes. A row also holds the config of its run, and is made again
if a default has changed. ``--report`` writes the report from existing results and runs nothing.
Seconds are the number of updates times the seconds per update of a separate timing run, so that rows may train in
parallel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maskgym.errors import UserError
from maskgym.experiments.grids import comparison, results_table, study
from maskgym.experiments.wiring import command, run_folder

MATRICES = Path(__file__).parents[1] / "matrices"
KEYS = {"title", "about", "sections", "costs", "published"}
SECTION_KEYS = {"title", "about", "base", "columns", "rows", "against", "seeds"}
COST_KEYS = {"title", "about", "base", "rows", "rounds"}
SPENT = ("generated_tokens", "reward_calls")
# Prefixes of the logged names that the table keeps.
KEPT = (
    *SPENT,
    *("reward", "kl", "entropy", "completions/mean_length", "clip_ratio/region_mean", "grad_norm", "isr/loss"),
    *("cgpo/confidence", "cgpo/advantage", "group/share_without_signal", "dapo/", "spo/", "response_"),
)
SHOWN = {  # logged names in the report, as means of the first and of the last ten updates
    "training reward": "reward",
    "entropy": "entropy",
    "tokens an answer": "completions/mean_length",
    "confidence": "cgpo/confidence",
    "advantage": "cgpo/advantage",
    "groups without signal": "group/share_without_signal",
}
COSTS = "cost"  # key of the timing runs in the table
WARM_UP = 3  # initial updates that are not timed
LESS_IS_BETTER = ("mae",)


def load(name: str) -> dict[str, Any]:
    """Load a matrix by the name of its file in ``matrices/``, or by path.

    Raises:
        UserError: If the file does not exist, or is not a matrix.
    """
    matrix = study.read(name, MATRICES, "matrix", KEYS)
    for section in matrix["sections"]:
        study.check_keys(section, SECTION_KEYS, f"matrix '{name}': {section}: is not a section")
        if section["against"] not in section["rows"]:
            rows = ", ".join(section["rows"])
            raise UserError(f"matrix '{name}': against: {section['against']}: expected one of {rows}")
    for cost in matrix["costs"]:
        study.check_keys(cost, COST_KEYS, f"matrix '{name}': {cost}: is not a cost")
    return matrix


class Results:
    """Results of a matrix, in a table beside its report.

    Args:
        matrix: Matrix from `load`.
        folder: Folder of the pictures, after which the table is named.

    Attributes:
        rows: Results of each run by `key`.
        costs: Timing runs by `cost_key`.
    """

    def __init__(self, matrix: Mapping[str, Any], folder: Path) -> None:
        self.matrix, self.folder = matrix, folder
        self.table = folder.with_name(folder.name + results_table.SUFFIX)
        self.rows = results_table.read(self.table)
        self.costs: dict[str, list[dict[str, float]]] = self.rows.pop(COSTS, {}).get("rows", {})

    def write(self) -> None:
        """Write the table."""
        costs = {COSTS: {"threads": 1, "rows": self.costs}} if self.costs else {}
        results_table.write(self.table, self.rows | costs)

    def key(self, cell: study.Cell) -> str:
        """Return the key of a run; it depends on the arguments only, not on new config keys."""
        return study.digest(" ".join(sorted(cell.arguments)))

    def of(self, cell: study.Cell) -> dict[str, Any] | None:
        """Return the results of a run; None if there are none, or if defaults have changed since."""
        found = self.rows.get(self.key(cell))
        return found if found and results_table.agrees(found["config"], study.config_of(cell.arguments)) else None

    def cells(self) -> list[study.Cell]:
        """List every run once, in the order of the sections."""
        found = {
            self.key(cell): cell
            for section in self.matrix["sections"]
            for seed in section["seeds"]  # outermost, so that every row has one seed before any has two
            for row in section["rows"]
            for column in section["columns"]
            for cell in [run_of(section, row, column, seed)]
        }
        return list(found.values())

    def read(self, section: Mapping[str, Any], row: str, column: str) -> list[dict[str, Any]]:
        """Read the results of a row in a column, in the order of the seeds; missing ones are left out."""
        found = [self.of(run_of(section, row, column, seed)) for seed in section["seeds"]]
        return [run for run in found if run is not None]

    def keep(self, cell: study.Cell, run: Path) -> None:
        """Add a finished run to the table."""
        rows = run_folder.read_metrics(run / run_folder.METRICS)
        updates = [row for row in rows if any(name in row for name in SPENT)]
        held_out = [row for row in rows if any(name.startswith("held_out/") for name in row)]
        names = dict.fromkeys(name for row in updates for name in row if name.startswith(KEPT))
        measures = [name for name in held_out[0] if name.startswith("held_out/")]
        found = run_folder.read_json(run / run_folder.RESULTS)
        self.rows[self.key(cell)] = {
            "arguments": list(cell.arguments),
            "config": study.config_of(cell.arguments),
            **{name: found[name] for name in ("env", "algo", "seed", "device", "steps", "split", "versions")},
            "before": found["before"],
            "after": found["after"],
            "updates": {name: [_rounded(row.get(name)) for row in updates] for name in ("step", *names)},
            "held_out": {
                name.removeprefix("held_out/"): [_rounded(row.get(name)) for row in held_out]
                for name in ("step", *measures)
            },
        }
        self.write()

    def seconds(self, cell: study.Cell) -> float | None:
        """Return the mean seconds per update from the timing runs of a cell; None if it was not timed."""
        rounds = self.costs.get(cost_key(cell.arguments))
        return float(np.mean([part["step_s"] for part in rounds])) if rounds else None


def run_of(section: Mapping[str, Any], row: str, column: str, seed: int) -> study.Cell:
    """Build one run of a section; arguments of the row override those of the column."""
    up, left = section["columns"][column], section["rows"][row]
    given = (*section["base"], *up.get("with", ()), *left.get("with", ()), f"seed={seed}")
    last = {argument.partition("=")[0]: argument for argument in given}
    return study.Cell(tuple(last.values()), (), up["measures"][0])


def score(scores: Mapping[str, Any], column: str, measure: str) -> Any:
    """Look up a measure of a run; for a run of several tasks, it is that of the task named like the column.

    Raises:
        UserError: If the run lacks the measure.
    """
    for name in (measure, f"{column}/{measure}"):
        if name in scores:
            return scores[name]
    raise UserError(f"measure '{measure}' of {column}: expected one of {', '.join(scores)}")


def cost_key(arguments: Sequence[str]) -> str:
    """Build the key of an update's cost: the arguments without the seed, the budget and the like."""
    skipped = ("seed=", "evaluation.", "reward=", "algo.updates=", "algo.learning_rate=")
    return " ".join(sorted(argument for argument in arguments if not argument.startswith(skipped)))


def cost_arguments(cost: Mapping[str, Any], row: str) -> tuple[str, ...]:
    """Return the arguments of a timing run."""
    return (*cost["base"], *cost["rows"][row].get("with", ()))


def measure_costs(results: Results, runs: Path) -> None:
    """Make the timing runs of the matrix, one at a time and in rounds; existing results are kept.

    Raises:
        UserError: If a run fails.
    """
    wanted = {  # keyed by cost, so that a row of two tables is timed once
        (number, cost_key(arguments)): arguments
        for cost in results.matrix["costs"]
        for number in range(cost["rounds"])
        for arguments in (cost_arguments(cost, row) for row in cost["rows"])
    }
    plan = [arguments for (number, key), arguments in wanted.items() if len(results.costs.get(key, [])) <= number]
    for arguments in tqdm(plan, desc="cost", unit="run", disable=None):
        rounds = results.costs.setdefault(cost_key(arguments), [])
        folder = runs / f"cost-{study.digest(cost_key(arguments))}-{len(rounds)}"
        shutil.rmtree(folder, ignore_errors=True)  # a resumed run would include the time of two starts
        timed = (*study.RUN, *arguments, "evaluation.samples=1", "evaluation.pictures=0", f"out={folder}")
        threads = {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(timed, env=os.environ | threads, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        rounds.append(_cost_of(folder))
        results.write()


def report(results: Results, name: str) -> tuple[str, dict[str, bytes]]:
    """Build the report as Markdown, and its pictures by file name."""
    lines = [f"# {results.matrix['title']}\n", f"{results.matrix['about'].strip()}\n"]
    pictures: dict[str, bytes] = {}
    for number, section in enumerate(results.matrix["sections"]):
        lines += [f"## {section['title']}\n", f"{section['about'].strip()}\n"]
        there = [row for row in section["rows"] if all(results.read(section, row, c) for c in section["columns"])]
        if not there:
            lines.append("Not run yet.\n")
            continue
        lines += _quality_table(results, section, there)
        if section["against"] in there and len(there) > 1:
            lines += _comparison_table(results, section, there)
            lines += _order_table(results, section, there)
        column = next(iter(section["columns"]))
        if len(there) > 1 and len(section["columns"]) == 1:
            lines += _budget_table(results, section, there, column)
            file = f"{name}-{number + 1}.png"
            label = f"{section['columns'][column]['measures'][0]}, {column}, held out"
            pictures[file] = comparison.draw_curves(_panels(results, section, there, column), label)
            lines.append(f"![Quality against what was spent]({results.folder.name}/{file})\n")
        lines += _log_table(results, section, there, column)
    for cost in results.matrix["costs"]:
        lines += [f"## {cost['title']}\n", f"{cost['about'].strip()}\n", *_cost_table(results, cost)]
    return "\n".join(lines), pictures


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark; return the exit status: 2 for a usage error, 130 when interrupted."""
    return command.status(_main, argv, "interrupted: the same command goes on")


def _main(arguments: Sequence[str]) -> None:
    parser = command.Parser(prog="maskgym benchmark", description=__doc__)
    parser.add_argument("matrix", help=f"a path, or one of {study.known(MATRICES)}")
    parser.add_argument("--out", type=Path, default=Path("results"), help="for report and results (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"), help="for run folders (%(default)s)")
    study.add_options(parser)
    parser.add_argument("--report", action="store_true", help="run nothing: report what is there")
    given = parser.parse_args(arguments)
    name, runs = Path(given.matrix).stem, given.runs.absolute()
    results = Results(load(given.matrix), given.out / name)
    if not given.report:
        missing = [cell for cell in results.cells() if results.of(cell) is None]
        for cell in missing:
            if cell.file(runs).exists():  # the benchmark stopped between the run and its row
                results.keep(cell, cell.folder(runs))
        study.compute(missing, runs, given.jobs, lambda cell: results.keep(cell, cell.folder(runs)), given.ray)
        measure_costs(results, runs)
    text, pictures = report(results, name)
    for file, content in pictures.items():
        run_folder.write(results.folder / file, content)
    run_folder.write(given.out / f"{name}.md", text)
    print(given.out / f"{name}.md")


def _quality_table(results: Results, section: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """Build the table of measures before and after training."""
    shown = [(column, measure) for column, up in section["columns"].items() for measure in up["measures"]]
    lines = [f"| | {' | '.join(map(' '.join, shown))} | seeds |", f"|{'---|' * (len(shown) + 2)}"]
    for label, row, side in [("before", rows[0], "before"), *((row, row, "after") for row in rows)]:
        found = {column: results.read(section, row, column) for column in section["columns"]}
        cells = [_interval([[score(run[side], column, name)] for run in found[column]]) for column, name in shown]
        seeds = sorted({len(runs) for runs in found.values()})
        lines.append(f"| {label} | {' | '.join(cells)} | {' to '.join(map(str, seeds))} |")
    return [*lines, "\nInterquartile means over the seeds, with 95 % stratified bootstrap intervals.\n"]


def _comparison_table(results: Results, section: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """Build the table of the probability of improvement of ``against`` over each other row, over all columns."""
    against = section["against"]
    scores = {row: _quality(results, section, row) for row in rows}
    lines = [
        f"| {against} against | {against} | the other | probability that {against} is better |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if row != against:
            chance, low, high = comparison.probability_of_improvement(scores[against], scores[row])
            sides = " | ".join(_interval(scores[side]) for side in (against, row))
            lines.append(f"| {row} | {sides} | {chance:.2f} [{low:.2f}, {high:.2f}] |")
    measured = ", ".join(f"{up['measures'][0]} on {column}" for column, up in section["columns"].items())
    return [*lines, f"\nOf {measured}.\n"]


def _order_table(results: Results, section: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """Build the table of published orders and whether they hold; it is empty if none concerns this section."""
    against, published = section["against"], results.matrix["published"]
    lines, counts = [], dict.fromkeys(("holds", "open", "reversed"), 0)
    for row in rows:
        for column, up in section["columns"].items():
            for measure in up["measures"]:
                sides = [published.get(side, {}).get(column, {}).get(measure) for side in (against, row)]
                if row == against or None in sides or sides[0] == sides[1]:
                    continue
                sign = -1 if measure in LESS_IS_BETTER else 1
                order = (against, row) if sign * (sides[0] - sides[1]) > 0 else (row, against)
                values = sorted(sides, reverse=sign > 0)
                runs = [results.read(section, side, column) for side in order]
                scores = [[[sign * score(run["after"], column, measure)] for run in some] for some in runs]
                chance = comparison.probability_of_improvement(*map(np.array, scores))
                word = "holds" if chance[1] > 0.5 else "reversed" if chance[2] < 0.5 else "open"
                counts[word] += 1
                claim = f"{column} {measure} | {order[0]} before {order[1]} | {values[0]:.3f}, {values[1]:.3f}"
                lines.append(f"| {claim} | {'{:.2f} [{:.2f}, {:.2f}]'.format(*chance)} | {word} |")
    if not lines:
        return []
    head = ["| measure | published order | published | probability of it here | |", "|---|---|---|---|---|"]
    found = "{holds} hold here, {reversed} are reversed, {open} are open: their intervals hold 0.5".format(**counts)
    return [*head, *lines, f"\nOf {len(lines)} published orders {found}.\n"]


def _budget_table(results: Results, section: Mapping[str, Any], rows: Sequence[str], column: str) -> list[str]:
    """Build the table of quality at equal updates, tokens and seconds; each budget is the least that a run spends."""
    panels = _panels(results, section, rows, column)
    budgets = {
        unit: min(spent[-1] for curves in methods.values() for spent, _ in curves) for unit, methods in panels.items()
    }
    heads = [f"{budget:,.0f} {unit}" for unit, budget in budgets.items()]
    lines = [f"| after | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 1)}"]
    for row in rows:
        cells = [
            _interval(comparison.at_budget(panels[unit][row], budget)) if row in panels[unit] else ""
            for unit, budget in budgets.items()
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    quality = section["columns"][column]["measures"][0]
    return [*lines, f"\n{quality} on {column} at equal budgets, between evaluations by straight lines.\n"]


def _panels(results: Results, section: Mapping[str, Any], rows: Sequence[str], column: str) -> dict[str, dict]:
    """Collect curves of quality by unit of the budget and by row; a row that spends nothing of a unit has none."""
    measure = section["columns"][column]["measures"][0]
    panels: dict[str, dict[str, list]] = {"updates": {}, "generated tokens": {}, "seconds": {}}
    for row in rows:
        seconds = results.seconds(run_of(section, row, column, 0))
        for run in results.read(section, row, column):
            steps, scores = run["held_out"]["step"], score(run["held_out"], column, measure)
            tokens = np.concatenate([[0], np.cumsum(run["updates"]["generated_tokens"])])
            at = np.searchsorted([0, *run["updates"]["step"]], steps)
            panels["updates"].setdefault(row, []).append((steps, scores))
            if tokens[-1]:
                panels["generated tokens"].setdefault(row, []).append((tokens[at].tolist(), scores))
            if seconds is not None:
                panels["seconds"].setdefault(row, []).append(([step * seconds for step in steps], scores))
    if len(panels["seconds"]) < len(rows):
        del panels["seconds"]
    return {unit: methods for unit, methods in panels.items() if methods}


def _log_table(results: Results, section: Mapping[str, Any], rows: Sequence[str], column: str) -> list[str]:
    """Build the table of logged values in a column: means of the first and of the last ten updates with a value."""
    lines = [f"| log, {column} | {' | '.join(SHOWN)} |", f"|{'---|' * (len(SHOWN) + 1)}"]
    for row in rows:
        runs = results.read(section, row, column)
        cells = [_ends([run["updates"].get(name, ()) for run in runs]) for name in SHOWN.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return [*lines, ""]


def _cost_table(results: Results, cost: Mapping[str, Any]) -> list[str]:
    """Build the table of costs per update."""
    if not any(results.costs.get(cost_key(cost_arguments(cost, row))) for row in cost["rows"]):
        return ["Not run yet.\n"]
    lines = ["| | answers an update | tokens an update | s an update | memory, MiB |", "|---|---|---|---|---|"]
    for row in cost["rows"]:
        rounds = results.costs.get(cost_key(cost_arguments(cost, row)))
        if rounds:
            mean = {name: np.mean([part[name] for part in rounds]) for name in rounds[0]}
            each = ", ".join(f"{part['step_s']:.2f}" for part in rounds)
            lines.append(
                f"| {row} | {mean['reward_calls']:.0f} | {mean['generated_tokens']:,.0f} "
                f"| {mean['step_s']:.2f} ({each}) | {mean['peak_memory_mib']:,.0f} |"
            )
    return [
        *lines,
        f"\nEach alone on one thread, in turn; without the first {WARM_UP} updates; each round's seconds.\n",
    ]


def _cost_of(folder: Path) -> dict[str, float]:
    """Compute the mean cost per update of a run, without the warm-up updates."""
    rows = run_folder.read_metrics(folder / run_folder.METRICS)
    updates = [row for row in rows if "generated_tokens" in row]
    timed = updates[WARM_UP:]
    if not timed:
        raise UserError(f"{folder}: expected more than {WARM_UP} updates")
    return {
        "step_s": (updates[-1]["wall_s"] - updates[WARM_UP - 1]["wall_s"]) / len(timed),
        "peak_memory_mib": updates[-1]["peak_memory_mib"],
        **{name: float(np.mean([row[name] for row in timed])) for name in SPENT},
    }


def _quality(results: Results, section: Mapping[str, Any], row: str) -> np.ndarray:
    """Return the quality after training (seeds, columns), for the number of seeds that all columns have."""
    columns = [
        [score(run["after"], column, up["measures"][0]) for run in results.read(section, row, column)]
        for column, up in section["columns"].items()
    ]
    least = min(map(len, columns))
    return np.array([values[:least] for values in columns]).T


def _interval(scores: Any) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*comparison.iqm(np.asarray(scores)))


def _ends(logs: Sequence[Sequence[float | None]]) -> str:
    """Format the means of the first and of the last ten values of several logs; empty if a log has no values."""
    numbers = [[value for value in log if value is not None] for log in logs]
    if not all(numbers):
        return ""
    ends = [np.mean([np.mean(values[part]) for values in numbers]) for part in (slice(10), slice(-10, None))]
    return " → ".join(f"{end:.1f}" if abs(end) >= 10 else f"{end:.3f}" for end in ends)


def _rounded(value: float | None) -> float | None:
    """Round to six significant digits, which is finer than the variation between seeds."""
    return None if value is None else float(f"{value:.6g}")
