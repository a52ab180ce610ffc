"""Summary of runs: ``maskgym summary FOLDER …`` prints the gains of each group of seeds.

Each folder holds runs, at any depth, such as the folder of ``run -m``, a sweep or a study. Runs that differ in their
seed only are a group. Gains compare greedy answers to the same held-out samples before and after training; ``n`` is the
number of samples. Intervals are 95 % percentile bootstraps over the seeds.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from maskgym.aliases import JsonObject
from maskgym.errors import UserError
from maskgym.experiments.evaluation import provenance
from maskgym.experiments.evaluation.measures import main_of
from maskgym.experiments.evaluation.statistics import FEW, FEW_TOLD, mean_and_interval
from maskgym.experiments.grids import files
from maskgym.experiments.report.groups import differing, flat, named
from maskgym.experiments.wiring import command, composition, run_folder

HEAD = ("runs", "measure", "n", "before", "after", "gain", "gain per seed", "s per run")
# Results of runs that differ in their seed only, with their config, in order of seed, by name.
Groups = dict[str, list[JsonObject]]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status: 2 for a usage error, which is printed in one line."""
    return command.status(_main, argv)


def _main(arguments: Sequence[str]) -> None:
    parser = command.Parser(prog="maskgym summary", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    found = [read_groups(folder) for folder in parser.parse_args(arguments).folders]
    print("\n".join(table({name: runs for groups in found for name, runs in groups.items()})))


def read_groups(folder: Path) -> Groups:
    """Read the results of every finished run below a folder, in groups.

    Raises:
        UserError: As `groups_of`.
    """
    return groups_of([file.parent for file in sorted(folder.rglob(run_folder.RESULTS))], folder)


def groups_of(folders: Sequence[Path], root: Path) -> Groups:
    """Read the results of runs, in groups that are named by a folder above them and by the settings that differ.

    Raises:
        UserError: If there is no run, or a file cannot be read.
    """
    runs = []
    for folder in folders:
        found, stored = run_folder.read_json(folder / run_folder.RESULTS), folder / run_folder.CONFIG
        if isinstance(found, dict) and {"before", "after"} <= found.keys():  # the other files are of baselines
            config = composition.load(stored) if stored.exists() else {"env": {"name": found["env"]}}
            own = flat(config) if stored.exists() else {}
            own |= {"env": str(found["env"]), "algo": str(found["algo"])}
            runs.append(({**found, "config": config}, own))
    if not runs:
        raise UserError(f"{root}: no finished run below: expected {run_folder.RESULTS} files")
    kinds: dict[str, list[tuple[JsonObject, dict[str, str]]]] = {}
    for found, own in runs:
        kinds.setdefault(str(sorted(own.items())), []).append((found, own))
    settings = [group[0][1] for group in kinds.values()]
    keys = [key for key in differing(settings) if key not in ("env.name", "algo.name")]
    groups: Groups = {}
    for own, group in zip(settings, kinds.values(), strict=True):
        name = ", ".join([root.resolve().name, *named(own, keys)])
        while name in groups:  # settings beyond the named ones differ
            name += "'"
        groups[name] = sorted((found for found, _ in group), key=lambda run: run["seed"])
    return groups


def table(groups: Mapping[str, Sequence[JsonObject]]) -> list[str]:
    """Format the table of some groups as lines, with a warning if scores are of few samples."""
    body = [row for name, runs in groups.items() for row in _rows(name, runs)]
    counts = [counted["n"] for runs in groups.values() for run in runs for counted in run.get("samples", {}).values()]
    lines, least = files.table(HEAD, body), min(counts, default=FEW)  # older runs do not state it
    if least < FEW:
        lines.append(f"warning: scores of {least} samples: {FEW_TOLD}")
    return lines + incomparable(groups)


def incomparable(groups: Mapping[str, Sequence[JsonObject]]) -> list[str]:
    """Tell in one line each where runs of one task differ in their data, segmenter or weights, or do not name them."""
    results = [
        provenance.Result(name, run["seed"], run.get("config", {}), provenance.read(run))
        for name, runs in groups.items()
        for run in runs
    ]
    return [f"warning: {line}" for line in provenance.differences_by_task(results)]


def closing(groups: Mapping[str, Sequence[JsonObject]], folder: Path) -> str:
    """Format the table of some groups, and the command that writes the page which compares the runs in a folder."""
    return "\n".join(["", *table(groups), "", page_command(folder)])


def page_command(folder: Path) -> str:
    """Format the line that says how to get the page which compares the runs in a folder."""
    words = ["maskgym", "report", str(folder), "--out", str(folder.parent / "comparison.html")]
    return f"one page that compares the runs: {shlex.join(words)}"


def samples_of(runs: Sequence[JsonObject], measure: str) -> str:
    """Format the number of samples that a measure is of, such as ``256 of 512``; empty if no run states it."""
    told: dict[str, None] = {}
    for run in runs:
        counted = run.get("samples", {})
        own = counted.get(measure.rpartition("/")[0]) or next(iter(counted.values()), None)
        if own:
            told[f"{own['n']}" if own["n"] == own["of"] else f"{own['n']} of {own['of']}"] = None
    return " and ".join(told)


def _rows(name: str, runs: Sequence[JsonObject]) -> list[list[str]]:
    """Build one row of the table for the reward and for each main measure of a group."""
    seconds = np.mean([run["wall_s"] for run in runs])
    measures = main_of(runs[0]["env"], runs[0]["after"])
    return [[name, one, samples_of(runs, one), *_cells(runs, one), f"{seconds:.0f}"] for one in measures]


def _cells(runs: Sequence[JsonObject], name: str) -> list[str]:
    """Format the means before and after training, the mean gain with its interval, and the gains."""
    before, after = (np.array([run[side].get(name) for run in runs], float) for side in ("before", "after"))
    gains = (after - before).tolist()
    each = " ".join(f"{gain:+.3f}" for gain in gains)
    said = mean_and_interval(gains, "+") + " (one seed)" * (len(gains) == 1)
    return [mean_and_interval(before.tolist()), mean_and_interval(after.tolist()), said, each]
