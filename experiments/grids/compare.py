"""Comparison: ``maskgym compare RUN … --against grpo,cgpo`` sets runs beside the stored baselines of a protocol.

A RUN is the folder of a finished run, or a folder of such, on levels of the protocol (`docs/benchmark.md`). Runs that
differ in their seed only are a method. Methods are compared at the budget of each level, in generated tokens, clicks or
scored masks; with ``--retime`` at equal seconds too, which baselines and runs take now on this machine.

Scores are normalised: 0 is the level's floor, 1 its ceiling. Tables show interquartile means over seeds and levels with
95 % stratified bootstrap intervals, the probability that a run of the method beats one of the baseline, and of the
seeds' means over the levels: Hedges' g, a t-test, the smallest difference that it would show, and the seeds that the
difference seen would need. What differs in samples, reward, segmenter or version is refused.

OUT gets ``comparison.md``, a picture per level, ``scores.csv`` (one row per run) and ``marl_eval.json``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskgym.aliases import JsonObject
from maskgym.errors import UserError
from maskgym.experiments.evaluation import provenance
from maskgym.experiments.evaluation.provenance import Result
from maskgym.experiments.evaluation.statistics import (
    LEVEL,
    MOST,
    hedges_g,
    p_values,
    probability_of_improvement,
    seeds_needed,
    smallest_difference,
)
from maskgym.experiments.grids import benchmark_report, costs, files, matrix, protocol
from maskgym.experiments.grids.matrix import Matrix, Results
from maskgym.experiments.grids.processes import Runner
from maskgym.experiments.grids.protocol import UNITS, Level
from maskgym.experiments.report import groups, run_data
from maskgym.experiments.wiring import command, run_folder

DEFAULT = "maskgym_v0"
HEAD = ("method", "level", "seed", "budget", "unit", "measure", "score", "normalised")
TIMED = 8  # updates of a timing run, with those that are not timed
SECONDS = "seconds"
TENTHS = 11  # points of a curve in marl-eval's file
METRIC = "normalised_score"  # of marl-eval's file
VERDICTS = {"better": "is better than", "worse": "is worse than", "open": "is not told apart from"}
AGAINST = (
    *("against", "levels", "seeds", "the other", "probability of improvement", "p", "Hedges' g"),
    *("smallest difference shown", "seeds needed", "verdict"),
)
CAPTION = (
    "Scores are at the budget of each level; normalised, 0 is its floor and 1 its ceiling. Interquartile means with "
    "95 % stratified bootstrap intervals. A verdict is of Welch's t-test of the seeds' means over the levels at 5 %, "
    "corrected for the number of baselines (Holm). Such a test shows the smallest difference in four of five cases, "
    "and the one that is seen with the seeds needed of each method."
)
Records = dict[str, dict[int, JsonObject]]  # of one method: what a table keeps of a run, by level and seed


@dataclass(frozen=True)
class Method:
    """Runs of one algorithm with the same settings, on some levels.

    Attributes:
        name: Unique name.
        records: Its runs.
    """

    name: str
    records: Records

    def seeds(self, levels: Iterable[str]) -> list[int]:
        """List the seeds that it has on all of some levels."""
        return sorted(set.intersection(*(set(self.records.get(name, ())) for name in levels)))


def main(argv: Sequence[str] | None = None) -> int:
    """Compare runs with baselines; return the exit status: 2 for a usage error."""
    return command.status(_main, argv)


def _main(arguments: Sequence[str]) -> None:
    parser = command.Parser(prog="maskgym compare", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of several")
    parser.add_argument("--protocol", default=DEFAULT, help="name or path (%(default)s)")
    parser.add_argument("--baselines", type=Path, help="table of baselines (that of the protocol)")
    parser.add_argument("--against", help="baselines, as grpo,cgpo (all that were trained)")
    parser.add_argument("--level", nargs="+", default=[], help="of these levels only (all that the runs are of)")
    parser.add_argument("--retime", action="store_true", help="compare at equal seconds too, timed here")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder to write (%(default)s)")
    given = parser.parse_intermixed_args(arguments)
    results = protocol.results(given.protocol, given.baselines)
    asked = [protocol.level(results.matrix, name).name for name in given.level]
    for folder in given.runs:
        protocol.check_version(results.matrix, folder)
    own = read_methods([folder for run in given.runs for folder in run_data.below(run)], results.matrix, asked)
    comparison = Comparison(results, own, given.against.split(",") if given.against else None)
    if given.retime:
        comparison.retime(given.out / "timing")
    write(comparison, given.out)


def write(comparison: Comparison, out: Path) -> None:
    """Write the files of a comparison into a folder, and print its text."""
    text = comparison.text()
    contents: dict[str, str | bytes] = {**comparison.pictures(), **comparison.tables(), "comparison.md": text}
    for file, content in contents.items():
        run_folder.write(out / file, content)
    print(text)
    print(out / "comparison.md")


def read_methods(folders: Sequence[Path], matrix_: Matrix, asked: Sequence[str] = ()) -> list[Method]:
    """Read finished runs, in methods; of some levels only, if any are named.

    Raises:
        UserError: If a folder holds no finished run, or its run is not what its level asks for.
    """
    runs = []
    for folder in folders:
        run = run_data.read(folder)
        level = protocol.level(matrix_, run.config["env"]["name"])
        if found := protocol.differences(level, run.config):
            raise UserError(f"{folder}: {found[0]}: not comparable")
        runs += [run] * (not asked or level.name in asked)
    if not runs:
        raise UserError(f"no run of level {', '.join(asked)}: expected one")
    names: dict[str, Records] = {}
    for group in groups.group_runs(runs, ("algo",)):
        for run in group.runs:
            of_level = names.setdefault(group.name, {}).setdefault(run.config["env"]["name"], {})
            if run.config["seed"] in of_level:
                raise UserError(f"{run.folder}: {group.name} has two runs of seed {run.config['seed']}: expected one")
            of_level[run.config["seed"]] = {"config": run.config, **matrix.record(run.folder)}
    return [Method(name, records) for name, records in names.items()]


class Comparison:
    """Methods beside baselines of a protocol, on the levels that the methods have runs of.

    Args:
        results: Results of the protocol's baselines.
        own: Methods.
        against: Names of baselines; None for all that were trained.

    Raises:
        UserError: If a baseline is unknown, or results differ in what they are of.
    """

    def __init__(self, results: Results, own: Sequence[Method], against: Sequence[str] | None = None) -> None:
        rows = {row for section in results.matrix["sections"] for row in section["rows"]}
        self.results = results
        self.own = [Method(f"{one.name} (given)" if one.name in rows else one.name, one.records) for one in own]
        known = protocol.levels(results.matrix)
        self.seconds: dict[tuple[str, str], float] = {}  # per update, by method and level
        self.levels = [level for name, level in known.items() if any(name in method.records for method in own)]
        self.baselines = [self._baseline(name) for name in against or self._trained()]
        for level in self.levels:
            self._check(level)

    def _trained(self) -> list[str]:
        """List the rows whose runs made updates on some level."""
        found = {}
        for level in self.levels:
            for row in level.section["rows"]:
                runs = self.results.read(level.section, row, level.name)
                if runs and runs[0]["updates"]["step"]:
                    found[row] = True
        return list(found)

    def _baseline(self, name: str) -> Method:
        records: Records = {}
        for level in self.levels:
            if name in level.section["rows"]:
                runs = self.results.read(level.section, name, level.name)
                records |= {level.name: {run["seed"]: run for run in runs}} if runs else {}
        if not records:
            offer = ", ".join(self._trained()) or "none"
            raise UserError(f"--against {name}: no baseline with runs on {', '.join(self._names)}: expected of {offer}")
        return Method(name, records)

    @property
    def _names(self) -> list[str]:
        return [level.name for level in self.levels]

    @property
    def methods(self) -> list[Method]:
        """All methods, the baselines last."""
        return [*self.own, *self.baselines]

    def _check(self, level: Level) -> None:
        """Raise a UserError if the results of a level are not of the same samples and segmenter."""
        each = [
            Result(method.name, seed, record["config"], provenance.read(record))
            for method in self.methods
            for seed, record in method.records.get(level.name, {}).items()
        ]
        if found := provenance.differences(each):
            raise UserError(f"level {level.name}: {found[0]}")

    def scores(self, method: Method, level: Level, seeds: Sequence[int]) -> list[float]:
        """Compute the scores at the budget of some seeds, not normalised.

        Raises:
            UserError: As `protocol.at_budget`.
        """
        found = []
        for seed in seeds:
            try:
                found.append(protocol.at_budget(level, method.records[level.name][seed]))
            except UserError as error:
                raise UserError(f"{method.name}, seed {seed}: {error}") from None
        return found

    def table_of(self, method: Method, levels: Sequence[Level]) -> np.ndarray:
        """Compute normalised scores at the budgets, float64 (N, T), of the seeds that a method has on all levels.

        Raises:
            UserError: If there is no such seed, or as `protocol.at_budget`.
        """
        seeds = method.seeds(level.name for level in levels)
        if not seeds:
            raise UserError(f"{method.name}: has no seed on all of {', '.join(level.name for level in levels)}")
        scaled = [protocol.normalised(self.results, level, self.scores(method, level, seeds)) for level in levels]
        return np.stack(scaled, axis=1)

    def retime(self, folder: Path, run: Runner = costs.run_alone) -> None:
        """Time some updates of each method that trains, on each level, one after the other on this machine.

        Args:
            folder: Folder for the runs.
            run: Runner of commands.

        Raises:
            UserError: If a run fails.
        """
        plan = [
            (method, level)
            for level in self.levels
            for method in self.methods
            if any(record["updates"]["step"] for record in method.records.get(level.name, {}).values())
        ]
        for number, (method, level) in enumerate(tqdm(plan, desc="timing", unit="run", disable=None)):
            config = next(iter(method.records[level.name].values()))["config"]
            words = (*protocol.arguments(level, config["algo"]), f"algo.updates={TIMED}", "evaluation.every=null")
            self.seconds[method.name, level.name] = costs.measure_once(words, folder / f"{number}", run)["step_s"]

    def text(self) -> str:
        """Write the comparison as Markdown."""
        version, lines = self.results.matrix["version"], [f"# {', '.join(method.name for method in self.own)}\n"]
        lines.append(f"{self.results.matrix['title']}, version {version}. {CAPTION}\n")
        for method in self.own:
            lines += self._verdicts(method)
        for level in self.levels:
            lines += self._level(level)
        return "\n".join(lines)

    def _level(self, level: Level) -> list[str]:
        body = []
        for method in self.methods:
            if records := method.records.get(level.name):
                raw = self.scores(method, level, sorted(records))
                scaled = protocol.normalised(self.results, level, raw)[:, None]
                count = f"{len(records)} ({', '.join(map(str, sorted(records)))})"
                body.append([method.name, f"{np.mean(raw):.3f}", benchmark_report.mean(scaled), count])
        floor, ceiling = protocol.bounds(self.results, level)
        told = f"Floor {floor:.3f}, ceiling {ceiling:.3f}; at {level.budget:,} {UNITS[level.unit]}."
        head = ["", f"{level.measure}, mean", "normalised", "seeds"]
        picture = [f"![Learning curves]({level.name}.png)\n"] * bool(self._panels(level))
        return [f"## {level.name}\n", f"{told}\n", *files.table(head, body), "", *self._timed(level), *picture]

    def _timed(self, level: Level) -> list[str]:
        """Format the scores at equal seconds, the least that a run of a method takes for all its updates."""
        curves = self._panels(level).get(SECONDS, {})
        if not curves:
            return []
        budget = min(spent[-1] for seeds in curves.values() for spent, _ in seeds)
        body = [
            [
                name,
                f"{self.seconds[name, level.name]:.2f}",
                benchmark_report.mean(benchmark_report.at_budget(seeds, budget)),
            ]
            for name, seeds in curves.items()
        ]
        return [*files.table(["", "s per update", f"normalised after {budget:,.0f} s"], body), ""]

    def _verdicts(self, method: Method) -> list[str]:
        """Compare a method with each baseline, on the levels that both have runs of."""
        pairs = [
            (other, levels)
            for other in self.baselines
            if (levels := [one for one in self.levels if one.name in method.records and one.name in other.records])
        ]
        scores = [(self.table_of(method, levels), self.table_of(other, levels)) for other, levels in pairs]
        several = [min(len(ours), len(theirs)) > 1 for ours, theirs in scores]
        tested = iter(p_values([_means(pair) for pair, enough in zip(scores, several, strict=True) if enough]))
        body, told = [], {verdict: list[str]() for verdict in VERDICTS}
        for (other, levels), pair, enough in zip(pairs, scores, several, strict=True):
            row = [other.name, f"{len(levels)}", ", ".join(f"{len(one)}" for one in pair)]
            row += [benchmark_report.mean(one) for one in pair]
            if enough:
                cells, verdict = _compared(pair, next(tested))
                told[verdict].append(other.name)
                body.append([*row, *cells, verdict])
            else:
                body.append([*row, "", "", "", "", "", "one seed: no verdict"])
        lost = sorted(
            {seed for records in method.records.values() for seed in records} - set(method.seeds(method.records))
        )
        left = [f"Left out here: seeds {', '.join(map(str, lost))}, which are not on all levels.\n"] * bool(lost)
        head = [*AGAINST[:3], method.name, *AGAINST[3:]]
        return [f"**{_sentence(method.name, told)}**\n", *files.table(head, body), "", *left]

    def _panels(self, level: Level) -> benchmark_report.Panels:
        """Collect normalised curves by what was spent, and by seconds if methods were timed."""
        records = {
            method.name: [run for run in method.records.get(level.name, {}).values() if protocol.curve(level, run)]
            for method in self.methods
        }
        spent = benchmark_report.level_curves(self.results, level, records)
        timed = {name: update for name in spent if (update := self.seconds.get((name, level.name)))}
        took: dict[str, list[benchmark_report.Curve]] = {
            name: [
                ([step * update for step in record["held_out"]["step"]], scores)
                for record, (_, scores) in zip(records[name], spent[name], strict=True)
            ]
            for name, update in timed.items()
        }
        return {unit: found for unit, found in ((UNITS[level.unit], spent), (SECONDS, took)) if found}

    def pictures(self) -> dict[str, bytes]:
        """Draw the curves of each level, by file name."""
        return {
            f"{level.name}.png": benchmark_report.draw_curves(panels, f"{level.name}, normalised {level.measure}")
            for level in self.levels
            if (panels := self._panels(level))
        }

    def tables(self) -> dict[str, str]:
        """Write ``scores.csv`` and ``marl_eval.json``, whose format is that of marl-eval (Gorsane et al., 2022)."""
        rows: list[list[object]] = []
        found: JsonObject = {}
        for level in self.levels:
            for method in self.methods:
                for seed, record in sorted(method.records.get(level.name, {}).items()):
                    raw = self.scores(method, level, [seed])
                    scaled = float(protocol.normalised(self.results, level, raw)[0])
                    rows.append([method.name, level.name, seed, level.budget, level.unit, level.measure, *raw, scaled])
                    steps = self._steps(level, record)
                    name = method.name.replace(",", "")  # marl-eval takes none
                    runs = found.setdefault(level.name, {}).setdefault(name, {})
                    runs[f"seed_{seed}"] = {**steps, "absolute_metrics": {METRIC: [scaled]}}
        stream = io.StringIO()
        csv.writer(stream).writerows([HEAD, *rows])
        return {"scores.csv": stream.getvalue(), "marl_eval.json": run_folder.to_json({"maskgym": found}, indent=1)}

    def _steps(self, level: Level, record: JsonObject) -> JsonObject:
        """Read a curve at the tenths of the budget: marl-eval takes curves of equal length only."""
        curve = protocol.curve(level, record)
        if curve is None:
            return {}
        spent = np.linspace(0, level.budget, TENTHS)
        scaled = protocol.normalised(self.results, level, np.interp(spent, *curve).tolist())
        return {
            f"step_{number}": {"step_count": round(at), METRIC: [value]}
            for number, (at, value) in enumerate(zip(spent.tolist(), scaled.tolist(), strict=True))
        }


def _means(pair: tuple[np.ndarray, np.ndarray]) -> tuple[list[float], list[float]]:
    """Compute the means over levels of each seed, of both sides of a pair (N, T), (M, T)."""
    first, second = pair
    return first.mean(axis=1).tolist(), second.mean(axis=1).tolist()


def _compared(pair: tuple[np.ndarray, np.ndarray], p_value: float) -> tuple[list[str], str]:
    """Format the comparison of two methods' scores (N, T), (M, T), and find the verdict on the first."""
    ours, theirs = _means(pair)
    effect, needed = hedges_g(ours, theirs), seeds_needed(ours, theirs)
    verdict = "open" if p_value > 1 - LEVEL else "better" if np.mean(ours) > np.mean(theirs) else "worse"
    cells = [
        benchmark_report.interval(probability_of_improvement(*pair), 2),
        f"{p_value:.3f}",
        "" if effect is None else f"{effect:+.1f}",
        f"{smallest_difference(ours, theirs):.3f}",
        f"more than {MOST}" if needed is None else f"{needed}",
    ]
    return cells, verdict


def _sentence(name: str, told: Mapping[str, Sequence[str]]) -> str:
    """Put the verdicts on a method into one sentence."""
    parts = [f"{VERDICTS[verdict]} {', '.join(others)}" for verdict, others in told.items() if others]
    return f"{name} {'; '.join(parts)}." if parts else f"{name}: no verdict: each side needs at least two seeds."
