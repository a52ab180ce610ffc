"""Sweeps: ``maskgym sweep learning_rate --jobs 2`` runs a wandb sweep file without network or account.

A sweep is a file in ``sweeps/`` (or any path) in the format of ``wandb sweep``. The search method ``grid`` runs every
combination, and ``random`` draws ``run_cap`` combinations with a fixed seed; ``bayes`` is not supported. Runs log to
their ``metrics.csv``, whatever logger the file names. The folder of a run is named by the hash of its config, so that a
stopped sweep resumes. At the end, the command writes a table of all runs, best first, as Markdown and CSV, and a plot
with one axis per parameter. ``run.py -m`` does the same for values listed on the command line.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from maskgym.errors import UserError
from maskgym.experiments.grids import study
from maskgym.experiments.run import SUMMARISED
from maskgym.experiments.wiring import command, composition, run_folder

SWEEPS = Path(__file__).parents[1] / "sweeps"
REQUIRED = {"method", "metric", "parameters"}
OPTIONAL = {"name", "description", "program", "command", "project", "entity", "run_cap"}
METHODS, GOALS = ("grid", "random"), ("maximize", "minimize")
HELD_OUT = "held_out/"  # prefix of the names of logged measures
# Samplers by distribution, which take a generator and the settings of a parameter.
DRAWS: dict[str, Callable[[np.random.Generator, Mapping[str, Any]], Any]] = {
    "constant": lambda rng, given: given["value"],
    "categorical": lambda rng, given: given["values"][rng.choice(len(given["values"]), p=given.get("probabilities"))],
    "int_uniform": lambda rng, given: int(rng.integers(given["min"], given["max"], endpoint=True)),
    "uniform": lambda rng, given: float(rng.uniform(given["min"], given["max"])),
    "log_uniform_values": lambda rng, given: math.exp(rng.uniform(math.log(given["min"]), math.log(given["max"]))),
    "normal": lambda rng, given: float(rng.normal(given.get("mu", 0.0), given.get("sigma", 1.0))),
}
NEEDED = {"constant": {"value"}, "categorical": {"values"}, "normal": set()}  # other distributions need min and max

Row = dict[str, Any]  # one value per parameter


def load(name: str) -> dict[str, Any]:
    """Load a sweep by the name of its file in ``sweeps/``, or by path.

    Raises:
        UserError: If the file does not exist, or is not a supported sweep.
    """
    sweep = study.read(name, SWEEPS, "sweep", None)
    if not isinstance(sweep, dict) or not set(sweep) >= REQUIRED or not set(sweep) <= REQUIRED | OPTIONAL:
        keys = f"{', '.join(sorted(REQUIRED))}, and perhaps {', '.join(sorted(OPTIONAL))}"
        raise UserError(f"sweep '{name}': is not a sweep: expected the keys {keys}")
    metric, parameters = sweep["metric"], sweep["parameters"]
    if sweep["method"] not in METHODS:
        raise UserError(f"sweep '{name}': method: {sweep['method']}: expected {' or '.join(METHODS)}; wandb has others")
    if not isinstance(metric, dict) or not str(metric.get("name", "")).startswith(HELD_OUT):
        raise UserError(f"sweep '{name}': metric: {metric}: expected a name that begins with {HELD_OUT}")
    if metric.get("goal", "minimize") not in GOALS:  # wandb's default
        raise UserError(f"sweep '{name}': metric.goal: {metric['goal']}: expected {' or '.join(GOALS)}")
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(f"sweep '{name}': parameters: expected a name and its values for each")
    for key, given in parameters.items():
        _check_parameter(f"sweep '{name}': parameters.{key}", given, sweep["method"])
    if sweep["method"] == "random" and not _is_count(sweep.get("run_cap")):
        raise UserError(f"sweep '{name}': run_cap: {sweep.get('run_cap')}: expected how many runs to draw")
    return sweep


def rows(sweep: Mapping[str, Any]) -> list[Row]:
    """List the runs of a sweep, with one value per parameter; logger settings are left out."""
    parameters = {n: given for n, given in sweep["parameters"].items() if n.partition(".")[0] != "logger"}
    if sweep["method"] == "grid":
        found = [
            dict(zip(parameters, values, strict=True))
            for values in itertools.product(
                *(given.get("values", [given.get("value")]) for given in parameters.values())
            )
        ]
        return found[: sweep.get("run_cap")]
    rng = np.random.default_rng(0)
    draw = {name: DRAWS[_distribution(given)] for name, given in parameters.items()}
    return [{n: draw[n](rng, given) for n, given in parameters.items()} for _ in range(sweep["run_cap"])]


def cell(sweep: Mapping[str, Any], row: Row) -> study.Cell:
    """Build the cell of a run, whose measure is the sweep's metric.

    Raises:
        UserError: If its config is invalid.
    """
    arguments = tuple(f"{name}={_text(value)}" for name, value in row.items())
    composition.compose(arguments)
    return study.Cell(arguments, (), sweep["metric"]["name"].removeprefix(HELD_OUT))


def table(sweep: Mapping[str, Any], found: Sequence[tuple[Row, float]]) -> tuple[list[str], list[list[Any]]]:
    """Build the header and the rows of the runs, best first: the parameters that vary, and the metric."""
    varied = [name for name in found[0][0] if len({_text(row[name]) for row, _ in found}) > 1]
    sign = -1 if sweep["metric"].get("goal") == "maximize" else 1
    ordered = sorted(found, key=lambda pair: sign * pair[1])
    return [*varied, sweep["metric"]["name"]], [[*(row[name] for name in varied), value] for row, value in ordered]


def draw(title: str, head: Sequence[str], body: Sequence[Sequence[Any]]) -> bytes:
    """Plot parallel coordinates as PNG: one axis per column, one line per run, coloured by the last column."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    axes_of = [_axis([row[place] for row in body]) for place in range(len(head))]
    figure = Figure(figsize=(1.8 * len(head) + 1.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    places, last = range(len(head)), axes_of[-1][0]
    for number in range(len(body)):
        heights = [heights[number] for heights, _ in axes_of]
        axes.plot(places, heights, color=colormaps["viridis"](last[number]), alpha=0.8, linewidth=1.5)
    for place, (_, ticks) in zip(places, axes_of, strict=True):
        axes.axvline(place, color="0.7", linewidth=1, zorder=0)
        for height, text in ticks:
            axes.text(place + 0.03, height, text, fontsize=8, va="center", backgroundcolor=(1, 1, 1, 0.6))
    axes.set_xticks(list(places), head, fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.15, len(head) - 0.5)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep; return the exit status: 2 for a usage error, 130 when interrupted."""
    return command.status(_main, argv, "interrupted: the same command goes on")


def _main(arguments: Sequence[str]) -> None:
    parser = command.Parser(prog="maskgym sweep", description=__doc__)
    parser.add_argument("sweep", help=f"a path, or one of {study.known(SWEEPS)}")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sweeps"), help="folder of runs, tables and pictures (%(default)s)"
    )
    study.add_options(parser)
    given = parser.parse_args(arguments)
    sweep, root, name = load(given.sweep), given.out.absolute() / "runs", Path(given.sweep).stem
    pairs = [(row, cell(sweep, row)) for row in rows(sweep)]
    study.compute([wanted for _, wanted in pairs], root, given.jobs, cluster=given.ray)
    head, body = table(sweep, [(row, wanted.value(root)) for row, wanted in pairs])
    write(given.out, name, sweep.get("name", name), head, body)


def multirun(arguments: Sequence[str]) -> int:
    """Run ``run.py -m``: every combination of the listed values; return the exit status."""
    return command.status(_multirun, arguments, "interrupted: the same command goes on")


def _multirun(arguments: Sequence[str]) -> None:
    parser = command.Parser(prog="run.py -m", description="Every combination of listed values; see run.py --help.")
    parser.add_argument("settings", nargs="*")
    study.add_options(parser)
    given = parser.parse_intermixed_args(arguments)
    named = {argument.partition("=")[0]: argument for argument in given.settings}
    if "resume" in named:
        raise UserError("resume=DIR continues one run: expected it without -m")
    out = Path(named.get("out", "=runs/multirun").partition("=")[2]).absolute()
    combinations = composition.expand([argument for argument in given.settings if not argument.startswith("out=")])
    wanted = [study.Cell(tuple(row), (), "reward") for row in combinations]
    for row in combinations:
        composition.compose(row)
    study.compute(wanted, out / "runs", given.jobs, cluster=given.ray)
    found = [run_folder.read_json(cell.file(out / "runs"))["after"] for cell in wanted]
    measures = [name for name in SUMMARISED if all(name in scores for scores in found)]
    places = [place for place in range(len(combinations[0])) if len({row[place] for row in combinations}) > 1]
    head = [*(combinations[0][place].partition("=")[0] for place in places), *measures]
    body = [
        [*(yaml.safe_load(row[place].partition("=")[2]) for place in places), *(scores[name] for name in measures)]
        for row, scores in zip(combinations, found, strict=True)
    ]
    write(out, "multirun", " ".join(given.settings), head, body)


def write(out: Path, name: str, title: str, head: Sequence[str], body: Sequence[Sequence[Any]]) -> None:
    """Write a table of runs as Markdown, CSV and a plot; print the table and the path of the plot."""
    shown = [f"| {' | '.join(_text(value) for value in row)} |" for row in body]
    text = "\n".join([f"{title}\n", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *shown, ""])
    run_folder.write(out / f"{name}.md", text)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([head, *body])
    run_folder.write(out / f"{name}.csv", stream.getvalue())
    run_folder.write(out / f"{name}.png", draw(title, head, body))
    print(f"{text}\n{out / name}.png")


def _check_parameter(what: str, given: Any, method: str) -> None:
    if not isinstance(given, dict):
        raise UserError(f"{what}: {given}: expected value, values, or min and max")
    kind = _distribution(given)
    if kind not in DRAWS:
        raise UserError(f"{what}: distribution: {kind}: expected one of {', '.join(DRAWS)}; wandb has others")
    needed = NEEDED.get(kind, {"min", "max"})
    if not needed <= set(given):
        raise UserError(f"{what}: {given}: expected {' and '.join(sorted(needed))}")
    if method == "grid" and kind not in ("constant", "categorical"):
        raise UserError(f"{what}: {given}: a grid has no {kind}: expected value or values")
    if kind == "categorical" and (not isinstance(given["values"], list) or not given["values"]):
        raise UserError(f"{what}: values: {given['values']}: expected a list")
    if needed == {"min", "max"}:
        least = 0 if kind.startswith("log") else -math.inf
        if not all(_is_number(given[end]) for end in needed) or not least < given["min"] <= given["max"]:
            raise UserError(f"{what}: {given}: expected numbers, min not above max" + ", above 0" * (least == 0))


def _distribution(given: Mapping[str, Any]) -> str:
    """Return the distribution of a parameter, with wandb's default if it names none."""
    if "distribution" in given:
        return str(given["distribution"])
    if "value" in given or "values" in given:
        return "constant" if "value" in given else "categorical"
    return "int_uniform" if all(isinstance(given.get(end), int) for end in ("min", "max")) else "uniform"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    """Format a value for an argument of `run.py` or a table."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _axis(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Compute the height of each value in [0, 1] on its axis, and the labels of the axis with their heights."""
    if not all(map(_is_number, values)):
        kinds = sorted({_text(value) for value in values})
        heights = {kind: place / max(1, len(kinds) - 1) for place, kind in enumerate(kinds)}
        return [heights[_text(value)] for value in values], [(height, kind) for kind, height in heights.items()]
    scaled = np.array(values, float)
    if scaled.min() > 0 and scaled.max() >= 20 * scaled.min():
        scaled = np.log(scaled)
    low, span = scaled.min(), float(np.ptp(scaled)) or 1.0
    heights = ((scaled - low) / span).tolist()
    # More than six labels would overlap, so that only the two ends are labelled then.
    ticks = dict(zip(heights, map(_text, values), strict=True))
    return heights, [(h, t) for h, t in sorted(ticks.items()) if len(ticks) <= 6 or h in (0, max(ticks))]
