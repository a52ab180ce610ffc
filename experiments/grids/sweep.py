"""Sweeps: ``maskgym sweep learning_rate --jobs 2`` runs a wandb sweep file without network or account.

A sweep is a file in ``sweeps/`` (or any path) in the format of ``wandb sweep``. The search method ``grid`` runs every
combination, and ``random`` draws ``run_cap`` combinations with a fixed seed; ``bayes`` is not supported. Runs log to
their ``metrics.csv``, whatever logger the file names. The folder of a run is named by the hash of its config, so that a
stopped sweep resumes. Values reach a run exactly as the file has them, in type and in every digit. At the end, the
command writes a table of all runs, best first, as Markdown and CSV, and a plot with one axis per parameter.
``run.py -m`` does the same for values listed on the command line.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from hydra.core.override_parser.types import Quote, QuotedString

from maskgym.aliases import Config
from maskgym.errors import UserError
from maskgym.experiments.evaluation.measures import check_offered, main_of, measure
from maskgym.experiments.grids import files, summary
from maskgym.experiments.grids.processes import Runner
from maskgym.experiments.grids.runner import RunSpec, add_options, changed, compute
from maskgym.experiments.grids.sweep_table import Row, Value, write
from maskgym.experiments.wiring import command, composition, run_folder

SWEEPS = Path(__file__).parents[1] / "sweeps"
OPTIONAL = ("name", "description", "program", "command", "project", "entity", "run_cap")
NOT_HERE = {"early_terminate"}  # keys of wandb whose meaning is left out here
PRECISION = 1e-6  # of the sum of probabilities
METHODS, GOALS = ("grid", "random"), ("maximize", "minimize")
HELD_OUT = "held_out/"  # prefix of the names of logged measures


# Samplers by distribution.
DRAWS: dict[str, Callable[[np.random.Generator, Config], Value]] = {
    "constant": lambda rng, given: given["value"],
    "categorical": lambda rng, given: given["values"][rng.choice(len(given["values"]), p=_shares(given))],
    "int_uniform": lambda rng, given: int(rng.integers(given["min"], given["max"], endpoint=True)),
    "uniform": lambda rng, given: float(rng.uniform(given["min"], given["max"])),
    "log_uniform_values": lambda rng, given: math.exp(rng.uniform(math.log(given["min"]), math.log(given["max"]))),
    "normal": lambda rng, given: float(rng.normal(given.get("mu", 0.0), given.get("sigma", 1.0))),
}
NEEDED = {"constant": {"value"}, "categorical": {"values"}, "normal": set()}  # other distributions need min and max


def load(name: str) -> Config:
    """Load a sweep by the name of its file in ``sweeps/``, or by path.

    Raises:
        UserError: If the file does not exist, or is not a supported sweep.
    """
    sweep: Config = files.read(name, SWEEPS, "sweep", {"method", "metric", "parameters"}, (*OPTIONAL, *NOT_HERE))
    for key in NOT_HERE & sweep.keys():
        raise UserError(f"sweep '{name}': {key}: here every run goes to its end: remove it, or let wandb run the sweep")
    metric, parameters, cap = sweep["metric"], sweep["parameters"], sweep.get("run_cap")
    if sweep["method"] not in METHODS:
        raise UserError(f"sweep '{name}': method: {sweep['method']}: expected {' or '.join(METHODS)}; wandb has others")
    if not isinstance(metric, dict) or not str(metric.get("name", "")).startswith(HELD_OUT):
        raise UserError(f"sweep '{name}': metric: {metric}: expected a name that begins with {HELD_OUT}")
    if metric.get("goal", "minimize") not in GOALS:
        raise UserError(f"sweep '{name}': metric.goal: {metric['goal']}: expected {' or '.join(GOALS)}")
    if "goal" not in metric and measure(metric["name"].removeprefix(HELD_OUT)).higher_is_better:
        raise UserError(
            f"sweep '{name}': metric: {metric['name']}: expected goal: maximize; without it, less is better"
        )
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(f"sweep '{name}': parameters: expected a name and its values for each")
    for key, given in parameters.items():
        _check_parameter(f"sweep '{name}': parameters.{key}", given, sweep["method"])
    if (sweep["method"] == "random" or cap is not None) and (type(cap) is not int or cap < 1):
        raise UserError(f"sweep '{name}': run_cap: {cap}: expected how many runs to draw")
    return sweep


def rows(sweep: Config) -> list[Row]:
    """List the runs of a sweep, with one value per parameter; logger settings are left out."""
    parameters = {n: given for n, given in sweep["parameters"].items() if n.partition(".")[0] != "logger"}
    if sweep["method"] == "grid":
        choices = (given.get("values", [given.get("value")]) for given in parameters.values())
        combinations = itertools.islice(itertools.product(*choices), sweep.get("run_cap"))
        return [dict(zip(parameters, values, strict=True)) for values in combinations]
    rng = np.random.default_rng(0)
    draw = {name: DRAWS[_distribution(given)] for name, given in parameters.items()}
    return [{n: draw[n](rng, given) for n, given in parameters.items()} for _ in range(sweep["run_cap"])]


def spec(sweep: Config, row: Row) -> RunSpec:
    """Build a run, whose measure is the sweep's metric.

    Raises:
        UserError: If its config is invalid, the metric is not one of its measures, or a value has no argument.
    """
    arguments, metric = tuple(argument(name, value) for name, value in row.items()), sweep["metric"]["name"]
    config = composition.compose(arguments)
    check_offered(config, [metric.removeprefix(HELD_OUT)], f"metric.name: {metric}")
    return RunSpec(arguments, measure=metric.removeprefix(HELD_OUT))


def argument(name: str, value: Value) -> str:
    """Write the argument of `run.py` that sets a key to a value.

    Raises:
        UserError: If no argument gives this value, in type and in every digit.

    Example:
        >>> argument("algo.learning_rate", 1.00001e-05), argument("env.text", "null")
        ('algo.learning_rate=1.00001e-05', "env.text='null'")
    """
    written = f"{name}={_written(value)}"
    override = composition.parse(written)
    if "${" in written or override.is_sweep_override() or not _same(override.value(), value):
        raise UserError(f"{name}: {value!r}: cannot be written as an argument of a run")
    return written


def _written(value: Value) -> str:
    """Write a value in Hydra's grammar; texts are quoted unless they are plain words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z][\w/-]*", value, re.ASCII) and yaml.safe_load(value) == value
        return (
            value if plain and value.lower() not in ("inf", "nan") else QuotedString(value, Quote.single).with_quotes()
        )
    return repr(value)


def _same(found: Value, wanted: Value) -> bool:
    """Check that two values are equal, and of the same types."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return list(found) == list(wanted) and all(_same(found[key], wanted[key]) for key in wanted)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return type(found) is type(wanted) and (found == wanted or (found != found and wanted != wanted))


def main(argv: Sequence[str] | None = None, run: Runner | None = None) -> int:
    """Run a sweep; return the exit status: 2 for a usage error, 130 when interrupted."""
    return command.status(partial(_main, run=run), argv, "interrupted: the same command goes on")


def _main(arguments: Sequence[str], run: Runner | None) -> None:
    parser = command.Parser(prog="maskgym sweep", description=__doc__)
    parser.add_argument("sweep", help=f"a path, or one of {files.known(SWEEPS)}")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sweeps"), help="folder of runs, tables and pictures (%(default)s)"
    )
    add_options(parser)
    given = parser.parse_args(arguments)
    sweep, root, name = load(given.sweep), given.out.absolute() / "runs", Path(given.sweep).stem
    pairs = [(row, spec(sweep, row)) for row in rows(sweep)]
    old = changed([wanted.named("", root) for _, wanted in pairs if wanted.file(root).exists()])
    compute([wanted for _, wanted in pairs], root, given.jobs, given.ray, run)
    measure, best_first = sweep["metric"]["name"], sweep["metric"].get("goal") == "maximize"
    found = [(wanted.value(root), row) for row, wanted in pairs]
    found.sort(key=lambda pair: (math.isnan(pair[0]), -pair[0] if best_first else pair[0]))  # undefined ones last
    scores = [{measure: value} for value, _ in found]
    groups = summary.groups_of([wanted.folder(root) for _, wanted in pairs], Path(name))
    notes = [*summary.incomparable(groups), *old]
    write(given.out, name, sweep.get("name", name), [row for _, row in found], scores, notes)
    print("\n".join([summary.closing(groups, root), *old]))


def multirun(arguments: Sequence[str], run: Runner | None = None) -> int:
    """Run ``run.py -m``: every combination of the listed values; return the exit status."""
    return command.status(partial(_multirun, run=run), arguments, "interrupted: the same command goes on")


def _multirun(arguments: Sequence[str], run: Runner | None) -> None:
    parser = command.Parser(prog="run.py -m", description="Every combination of listed values; see run.py --help.")
    parser.add_argument("settings", nargs="*")
    add_options(parser)
    given = parser.parse_intermixed_args(arguments)
    named = {argument.partition("=")[0]: argument for argument in given.settings}
    if "resume" in named:
        raise UserError("resume=DIR continues one run: expected it without -m")
    out = Path(named.get("out", "=runs/multirun").partition("=")[2]).absolute()
    combinations = composition.expand([argument for argument in given.settings if not argument.startswith("out=")])
    for combination in combinations:
        composition.compose(combination)
    wanted = [RunSpec(tuple(combination)) for combination in combinations]
    old = changed([one.named("", out / "runs") for one in wanted if one.file(out / "runs").exists()])
    compute(wanted, out / "runs", given.jobs, given.ray, run)
    runs = [run_folder.read_json(one.file(out / "runs")) for one in wanted]
    found = [one["after"] for one in runs]
    measures = [name for name in main_of(runs[0]["env"], found[0]) if all(name in scores for scores in found)]
    varied = [{one.key_or_group: one.value() for one in map(composition.parse, row)} for row in combinations]
    scores = [{name: scores[name] for name in measures} for scores in found]
    groups = summary.groups_of([one.folder(out / "runs") for one in wanted], out)
    write(out, "multirun", " ".join(given.settings), varied, scores, [*summary.incomparable(groups), *old])
    print("\n".join([summary.closing(groups, out / "runs"), *old]))


def _check_parameter(what: str, given: Config, method: str) -> None:
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
    if kind == "categorical":
        if not isinstance(given["values"], list) or not given["values"]:
            raise UserError(f"{what}: values: {given['values']}: expected a list")
        if "probabilities" in given:
            _check_probabilities(f"{what}: probabilities: {given['probabilities']}", given, method)
    if "min" in needed:
        least = 0 if kind.startswith("log") else -math.inf
        ends = given["min"], given["max"]
        if {type(end) for end in ends} - {int, float} or not least < ends[0] <= ends[1]:
            raise UserError(f"{what}: {given}: expected numbers, min not above max" + ", above 0" * (least == 0))
        if kind == "int_uniform" and {type(end) for end in ends} != {int}:
            raise UserError(f"{what}: {given}: expected whole numbers")
    if kind == "normal":
        mu, sigma = given.get("mu", 0.0), given.get("sigma", 1.0)
        if {type(mu), type(sigma)} - {int, float} or not (math.isfinite(mu) and 0 <= sigma < math.inf):
            raise UserError(f"{what}: {given}: expected numbers, sigma not below 0")


def _check_probabilities(what: str, given: Config, method: str) -> None:
    shares = given["probabilities"]
    if method == "grid":
        raise UserError(f"{what}: a grid draws nothing: expected values alone")
    if (
        not isinstance(shares, list)
        or len(shares) != len(given["values"])
        or {type(share) for share in shares} - {int, float}
        or not all(0 <= share <= 1 for share in shares)
        or abs(sum(shares) - 1) > PRECISION
    ):
        raise UserError(f"{what}: expected {len(given['values'])} numbers, one per value, that add up to 1")


def _shares(given: Config) -> np.ndarray | None:
    """Return the probabilities of values, whose sum is 1 up to the rounding of decimals; None if all are equal."""
    shares = given.get("probabilities")
    return None if shares is None else np.array(shares) / np.sum(shares)


def _distribution(given: Config) -> str:
    """Name the distribution of a parameter, with wandb's default if it names none."""
    if "distribution" in given:
        return str(given["distribution"])
    if "value" in given or "values" in given:
        return "constant" if "value" in given else "categorical"
    return "int_uniform" if all(isinstance(given.get(end), int) for end in ("min", "max")) else "uniform"
