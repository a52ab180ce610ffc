"""Report of a benchmark: tables and curves in Markdown, each from numbers that are computed apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np

from maskgym.aliases import JsonObject
from maskgym.experiments.evaluation import provenance
from maskgym.experiments.evaluation.measures import is_average_precision, measure, older_notes
from maskgym.experiments.evaluation.provenance import Result
from maskgym.experiments.evaluation.statistics import (
    Interval,
    interquartile_curve,
    interquartile_mean,
    probability_of_improvement,
)
from maskgym.experiments.grids import files, protocol, results_table, spread
from maskgym.experiments.grids.matrix import (
    SPENT,
    WARM_UP,
    Cost,
    Results,
    Section,
    cost_arguments,
    cost_key,
    run_of,
    score,
)
from maskgym.experiments.grids.protocol import Level
from maskgym.experiments.grids.summary import samples_of

SHOWN = {  # logged names in the report, as means of the first and of the last ten updates
    "training reward": "reward",
    "entropy": "entropy",
    "tokens per answer": "completions/mean_length",
    "confidence": "cgpo/confidence",
    "advantage": "cgpo/advantage",
    "zero-variance groups": "group/share_without_signal",
}
TOKENS = "generated_tokens"  # logged name
Curve = tuple[Sequence[float], Sequence[float]]  # budgets spent at the points of a run, from 0, and the scores there
Panels = dict[str, dict[str, list[Curve]]]  # curves of the seeds by unit of the budget and by row


def report(results: Results, name: str) -> tuple[str, dict[str, bytes]]:
    """Build the report as Markdown, and its pictures by file name."""
    lines = [f"# {results.matrix['title']}\n", f"{results.matrix['about'].strip()}\n"]
    pictures: dict[str, bytes] = {}
    for number, section in enumerate(results.matrix["sections"]):
        lines += [f"## {section['title']}\n", f"{section['about'].strip()}\n"]
        there = _complete(results, section)
        if not there:
            lines.append("Not run yet.\n")
            continue
        lines += _quality_table(results, section, there)
        if "budget" in next(iter(section["columns"].values())):
            lines += [*_normalised_table(results, section, there), *spread.table(results, section)]
        lines += files.items(named(results, section, there))
        if section["against"] in there and len(there) > 1:
            lines += _comparison_table(results, section, there)
            lines += _order_table(published_orders(results, section, there))
        column, trained = next(iter(section["columns"])), _trained(results, section, there)
        drawn = _level_pictures(results, section, trained, name)
        if not drawn and len(trained) > 1 and len(section["columns"]) == 1:
            panels, quality = curves(results, section, trained, column), section["columns"][column]["measures"][0]
            lines += _budget_table(panels, trained, f"{quality} on {column}")
            logs = {row: [run["updates"] for run in results.read(section, row, column)] for row in trained}
            if silent := [row for row, found in logs.items() if not all(TOKENS in log for log in found)]:
                lines.append(f"No {TOKENS} in the log of {', '.join(silent)}, and so no score at equal tokens.\n")
            drawn = {f"{name}-{number + 1}.png": draw_curves(panels, f"{quality}, {column}, held out")}
        lines += [f"![Quality against what was spent]({results.folder.name}/{file})\n" for file in drawn]
        pictures |= drawn
        lines += _log_table(results, section, trained, column) if trained else []
    for cost in results.matrix["costs"]:
        lines += [f"## {cost['title']}\n", f"{cost['about'].strip()}\n", *_cost_table(results, cost)]
    return "\n".join(lines), pictures


def overview(results: Results) -> list[str]:
    """Format the scores before and after training of every section that has runs, for the console."""
    lines = []
    for section in results.matrix["sections"]:
        if there := _complete(results, section):
            lines += [f"\n{section['title']}\n", *_quality_table(results, section, there)]
            lines += named(results, section, there)
    return lines


def named(results: Results, section: Section, rows: Sequence[str]) -> list[str]:
    """Tell in one line each what the numbers of a section are of, and where rows differ in it or do not say it."""
    columns: dict[str, list[Result]] = {column: [] for column in section["columns"]}
    configs = {}
    for column, row, seed in itertools.product(columns, rows, section["seeds"]):
        spec = run_of(section, row, column, seed)
        if run := results.of(spec):
            columns[column].append(Result(row, seed, run["config"], provenance.read(run)))
            configs[results.key(spec)] = run["config"], spec.config
    return results_table.named(columns, configs)


def _complete(results: Results, section: Section) -> list[str]:
    """List the rows of a section that have runs in every column."""
    return [row for row in section["rows"] if all(results.read(section, row, c) for c in section["columns"])]


def _trained(results: Results, section: Section, rows: Sequence[str]) -> list[str]:
    """List the rows whose runs made updates, unlike those of an oracle."""
    column = next(iter(section["columns"]))
    return [row for row in rows if results.read(section, row, column)[0]["updates"]["step"]]


def compare(results: Results, section: Section, first: str, second: str) -> tuple[Interval, Interval, Interval]:
    """Compare two rows by the quality after training, the first measure of each column.

    Returns:
        The interquartile mean of each row over all columns, and the probability that the first row is better.
    """
    ours, theirs = _quality(results, section, first), _quality(results, section, second)
    signs = np.array([_sign(up["measures"][0]) for up in section["columns"].values()])
    chance = probability_of_improvement(signs * ours, signs * theirs)
    return interquartile_mean(ours), interquartile_mean(theirs), chance


class Order(NamedTuple):
    """An order of two rows that a paper published, and the probability of that order here.

    Attributes:
        column: Column of the measure.
        measure: Name of the measure.
        rows: The better row of the paper, and the other.
        published: Values of the paper for the two rows.
        chance: Probability that a run of the better row beats one of the other here.
    """

    column: str
    measure: str
    rows: tuple[str, str]
    published: tuple[float, float]
    chance: Interval

    @property
    def verdict(self) -> str:
        """Whether the order ``holds``, is ``reversed``, or is ``open`` because the interval holds 0.5."""
        _, low, high = self.chance
        return "holds" if low > 0.5 else "reversed" if high < 0.5 else "open"


def published_orders(results: Results, section: Section, rows: Sequence[str]) -> list[Order]:
    """List the published orders of ``against`` and each other row; ties and missing values have none."""
    against, published = section["against"], results.matrix["published"]
    orders = []
    for row in rows:
        for column, up in section["columns"].items():
            for name in up["measures"]:
                values = {r: published.get(r, {}).get(column, {}).get(name) for r in (against, row)}
                known = {r: value for r, value in values.items() if value is not None}
                if len(set(known.values())) < 2:
                    continue
                sign = _sign(name)
                better, other = sorted(known, key=lambda r: sign * known[r], reverse=True)
                after = [
                    np.array([[sign * score(run["after"], column, name)] for run in results.read(section, r, column)])
                    for r in (better, other)
                ]
                chance = probability_of_improvement(*after)
                orders.append(Order(column, name, (better, other), (known[better], known[other]), chance))
    return orders


def curves(results: Results, section: Section, rows: Sequence[str], column: str) -> Panels:
    """Collect curves of quality; a row that spends nothing of a unit has none."""
    quality = section["columns"][column]["measures"][0]
    panels: Panels = {"updates": {}, "generated tokens": {}, "seconds": {}}
    for row in rows:
        seconds = results.seconds(run_of(section, row, column, 0))
        for run in results.read(section, row, column):
            steps, scores = run["held_out"]["step"], score(run["held_out"], column, quality)
            spent = run["updates"].get(TOKENS, [None])
            tokens = np.concatenate([[0], np.cumsum([math.nan if part is None else part for part in spent])])
            at = np.searchsorted([0, *run["updates"]["step"]], steps)
            panels["updates"].setdefault(row, []).append((steps, scores))
            if tokens[-1] and math.isfinite(tokens[-1]):
                panels["generated tokens"].setdefault(row, []).append((tokens[at].tolist(), scores))
            if seconds is not None:
                panels["seconds"].setdefault(row, []).append(([step * seconds for step in steps], scores))
    if len(panels["seconds"]) < len(rows):
        del panels["seconds"]
    return {unit: methods for unit, methods in panels.items() if methods}


def level_curves(results: Results, level: Level, rows: Mapping[str, Iterable[JsonObject]]) -> dict[str, list[Curve]]:
    """Collect normalised curves by what was spent, of the runs of each row; rows that spend nothing have none."""
    found: dict[str, list[Curve]] = {}
    for row, runs in rows.items():
        for curve in filter(None, (protocol.curve(level, run) for run in runs)):
            spent, scores = curve
            found.setdefault(row, []).append((spent, protocol.normalised(results, level, scores).tolist()))
    return found


def at_budget(seeds: Sequence[Curve], budget: float) -> np.ndarray:
    """Interpolate the score of each seed at a budget linearly: (N, 1).

    Args:
        seeds: Curves of the seeds.
        budget: Budget in the unit of the curves, at most the smallest final budget.
    """
    return np.array([[np.interp(budget, spent, scores)] for spent, scores in seeds])


def draw_curves(panels: Panels, label: str) -> bytes:
    """Plot sample efficiency as PNG: one panel per unit of the budget, one curve per method with its 95 % band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axes, (unit, methods) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for method, seeds in methods.items():
            grid = np.linspace(0, min(spent[-1] for spent, _ in seeds), 33)
            scores = np.array([[np.interp(grid, spent, values)] for spent, values in seeds])
            middle, (low, high) = interquartile_curve(scores)
            (line,) = axes.plot(grid, middle, label=method, linewidth=1.6)
            axes.fill_between(grid, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_xlabel(unit)
        axes.locator_params(axis="x", nbins=4)  # more labels of token counts would overlap
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(label)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _quality_table(results: Results, section: Section, rows: Sequence[str]) -> list[str]:
    """Format the measures before and after training."""
    shown = [(column, name) for column, up in section["columns"].items() for name in up["measures"]]

    def cells(row: str, side: str) -> list[str]:
        found = {column: results.read(section, row, column) for column in section["columns"]}
        means = [mean(np.array([[score(run[side], column, name)] for run in found[column]])) for column, name in shown]
        return [*means, " to ".join(map(str, sorted({len(runs) for runs in found.values()})))]

    starts: dict[tuple[str, ...], list[str]] = {}  # rows by where they begin
    for row in _trained(results, section, rows):
        starts.setdefault(tuple(cells(row, "before")), []).append(row)
    body = [["before" if len(starts) == 1 else f"{', '.join(own)}: before", *start] for start, own in starts.items()]
    body += [[row, *cells(row, "after")] for row in rows]
    note = "\nInterquartile means over the seeds, with 95 % stratified bootstrap intervals.\n"
    counts = {
        f"{column}: {text}"
        for column, name in shown
        for row in rows
        if (text := samples_of(results.read(section, row, column), f"{column}/{name}"))
    }
    told = [f"Held-out samples per run: {', '.join(sorted(counts))}.\n"] if counts else []
    if any(is_average_precision(name) for _, name in shown):
        runs = [run for row in rows for column in section["columns"] for run in results.read(section, row, column)]
        told += [f"**{line[0].upper()}{line[1:]}.**\n" for line in older_notes(runs)]
    return [*files.table(["", *map(" ".join, shown), "seeds"], body), note, *told]


def _normalised_table(results: Results, section: Section, rows: Sequence[str]) -> list[str]:
    """Format the normalised scores at the budgets of a protocol's levels, of the rows that were trained."""
    levels, body = protocol.levels_of(section), []
    for row in _trained(results, section, rows):
        raw = [[protocol.at_budget(level, run) for run in results.read(section, row, level.name)] for level in levels]
        scaled = [protocol.normalised(results, *pair)[:, None] for pair in zip(levels, raw, strict=True)]
        body.append([row, *map(mean, scaled)])
    heads = [f"{level.name}, {level.budget:,} {protocol.UNITS[level.unit]}" for level in levels]
    note = f"\nAt the budgets, on the scale from {section['floor']} (0) to {section['ceiling']} (1).\n"
    return [*files.table(["normalised", *heads], body), note]


def _level_pictures(results: Results, section: Section, rows: Sequence[str], name: str) -> dict[str, bytes]:
    """Draw the curves of each level by file name; none of trials of settings, whose sections share their levels."""
    pictures = {}
    for level in protocol.levels_of(section) if "unit" in section else ():
        own = sum(level.name in other["columns"] for other in results.matrix["sections"]) == 1
        runs = {row: results.read(section, row, level.name) for row in rows}
        if own and (found := level_curves(results, level, runs)):
            panels = {protocol.UNITS[level.unit]: found}
            pictures[f"{name}-{level.name}.png"] = draw_curves(panels, f"{level.name}, normalised {level.measure}")
    return pictures


def _comparison_table(results: Results, section: Section, rows: Sequence[str]) -> list[str]:
    """Format the comparison of ``against`` with each other row."""
    against, body = section["against"], []
    for row in rows:
        if row != against:
            ours, theirs, chance = compare(results, section, against, row)
            body.append([row, interval(ours), interval(theirs), interval(chance, 2)])
    head = [f"{against} against", against, "the other", f"probability that {against} is better"]
    measured = ", ".join(f"{up['measures'][0]} on {column}" for column, up in section["columns"].items())
    return [*files.table(head, body), f"\nOf {measured}.\n"]


def _order_table(orders: Sequence[Order]) -> list[str]:
    """Format published orders and their verdicts; empty if there are none."""
    if not orders:
        return []
    body = [
        [
            f"{order.column} {order.measure}",
            " before ".join(order.rows),
            ", ".join(f"{value:.3f}" for value in order.published),
            interval(order.chance, 2),
            order.verdict,
        ]
        for order in orders
    ]
    count = {verdict: sum(order.verdict == verdict for order in orders) for verdict in ("holds", "reversed", "open")}
    found = "{holds} hold here, {reversed} are reversed, {open} are open: their intervals hold 0.5".format(**count)
    head = ["measure", "published order", "published", "probability of it here", ""]
    return [*files.table(head, body), f"\nOf {len(orders)} published orders {found}.\n"]


def _budget_table(panels: Panels, rows: Sequence[str], quality: str) -> list[str]:
    """Format the quality at equal updates, tokens and seconds; each budget is the least that a run spends."""
    budgets = {unit: min(spent[-1] for seeds in rows.values() for spent, _ in seeds) for unit, rows in panels.items()}
    body = [
        [row, *(mean(at_budget(panels[u][row], spent)) if row in panels[u] else "" for u, spent in budgets.items())]
        for row in rows
    ]
    heads = [f"{budget:,.0f} {unit}" for unit, budget in budgets.items()]
    note = f"\n{quality} at equal budgets, between evaluations by straight lines.\n"
    return [*files.table(["after", *heads], body), note]


def _log_table(results: Results, section: Section, rows: Sequence[str], column: str) -> list[str]:
    """Format logged values in a column: means of the first and of the last ten updates with a value."""
    body = []
    for row in rows:
        logs = [run["updates"] for run in results.read(section, row, column)]
        body.append([row, *(_ends([log.get(name, ()) for log in logs]) for name in SHOWN.values())])
    return [*files.table([f"log, {column}", *SHOWN], body), ""]


def _cost_table(results: Results, cost: Cost) -> list[str]:
    """Format the costs per update."""
    found = {row: results.costs.get(cost_key(cost_arguments(cost, row))) for row in cost["rows"]}
    body = []
    for row, rounds in found.items():
        if rounds:
            mean = {name: np.mean([part[name] for part in rounds]) for name in rounds[0]}
            each = ", ".join(f"{part['step_s']:.2f}" for part in rounds)
            spent = [f"{mean[name]:,.0f}" if name in mean else "" for name in ("reward_calls", "generated_tokens")]
            body.append([row, *spent, f"{mean['step_s']:.2f} ({each})", f"{mean['peak_memory_mib']:,.0f}"])
    if not body:
        return ["Not run yet.\n"]
    head = ["", "answers per update", "tokens per update", "s per update", "memory, MiB"]
    threads = "one thread" if results.threads == "1" else f"{results.threads} threads"
    note = f"\nEach alone on {threads}, in turn; without the first {WARM_UP} updates; each round's seconds.\n"
    silent = [
        f"{row} does not log {name}: its cell is empty.\n"
        for row, rounds in found.items()
        for name in SPENT
        if rounds and name not in rounds[0]
    ]
    return [*files.table(head, body), note, *silent]


def _quality(results: Results, section: Section, row: str) -> np.ndarray:
    """Collect the quality after training (seeds, columns), for the number of seeds that all columns have."""
    columns = [
        [score(run["after"], column, up["measures"][0]) for run in results.read(section, row, column)]
        for column, up in section["columns"].items()
    ]
    least = min(map(len, columns))
    return np.array([values[:least] for values in columns]).T


def _sign(name: str) -> int:
    """Return -1 for a measure of which less is better, otherwise 1."""
    return -1 if measure(name).direction < 0 else 1


def mean(scores: np.ndarray) -> str:
    """Format the interquartile mean of scores (N, T) with its interval."""
    return interval(interquartile_mean(scores))


def interval(found: Interval, digits: int = 3) -> str:
    """Format an estimate with its interval."""
    estimate, low, high = (f"{value:.{digits}f}" for value in found)
    return f"{estimate} [{low}, {high}]"


def _ends(logs: Sequence[Sequence[float | None]]) -> str:
    """Format the means of the first and of the last ten values of several logs; empty if a log has no values."""
    numbers = [[value for value in log if value is not None] for log in logs]
    if not all(numbers):
        return ""
    ends = [np.mean([np.mean(values[part]) for values in numbers]) for part in (slice(10), slice(-10, None))]
    return " → ".join(f"{end:.1f}" if abs(end) >= 10 else f"{end:.3f}" for end in ends)
