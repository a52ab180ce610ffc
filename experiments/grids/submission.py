"""One algorithm on the levels of a protocol: its runs, a forecast of their hours, and their comparison."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from maskgym.errors import UserError
from maskgym.experiments.grids import compare, protocol
from maskgym.experiments.grids.matrix import Results, Section, run_of
from maskgym.experiments.grids.processes import Runner
from maskgym.experiments.grids.protocol import Level
from maskgym.experiments.grids.runner import RunSpec, compute
from maskgym.experiments.wiring import composition, run_folder

TAKEN = "algo"  # the only part that a submission chooses


def run(given: argparse.Namespace, runner: Runner | None) -> None:
    """Run an algorithm on the levels that it supports, and compare it with the baselines.

    Args:
        given: Arguments of ``maskgym benchmark``.
        runner: Runner of commands, see `compute`.

    Raises:
        UserError: If an argument is invalid, no level supports the algorithm, or a run fails.
    """
    results = protocol.results(given.matrix.partition("=")[2])
    settings = _checked(given.settings)
    named = [protocol.level(results.matrix, name) for name in given.level]
    asked = named or list(protocol.levels(results.matrix).values())
    specs, told = plan(asked, settings, given.seeds)
    for line in told:
        print(line)
    root = (given.runs or given.out / "runs").absolute()
    protocol.check_version(results.matrix, given.out)
    run_folder.write_json(given.out / protocol.STAMP, protocol.stamp(results.matrix))
    missing = [spec for spec in specs if not spec.file(root).exists()]
    print(forecast(results, asked, missing, given.jobs))
    compute(missing, root, given.jobs, given.ray, runner)
    own = compare.read_methods([spec.folder(root) for spec in specs], results.matrix)
    compare.write(compare.Comparison(results, own), given.out)


def _checked(settings: Sequence[str]) -> list[str]:
    """Check that the arguments are an algorithm and its settings.

    Raises:
        UserError: If there is none, or another part is chosen.
    """
    for argument in settings:
        key = argument.partition("=")[0].lstrip("+")
        if key.partition(".")[0] != TAKEN:
            raise UserError(f"{argument}: the protocol chooses it: expected {TAKEN}=NAME and {TAKEN}.KEY=VALUE alone")
    if not any(argument.startswith(f"{TAKEN}=") for argument in settings):
        raise UserError(f"protocol=NAME: expected {TAKEN}=NAME too")
    return list(settings)


def plan(
    asked: Sequence[Level], settings: Sequence[str], seeds: Sequence[int] | None
) -> tuple[list[RunSpec], list[str]]:
    """List the runs of an algorithm on the levels that it supports, and tell in one line which it does not.

    Raises:
        UserError: If it supports none, or a setting is invalid.
    """
    from maskgym.experiments.wiring import build

    specs: list[RunSpec] = []
    refused: dict[str, str] = {}
    for level in asked:
        own: Section = {**level.section, "rows": {"": {"with": list(settings)}}}
        for seed in seeds or level.section["seeds"]:
            spec = run_of(own, "", level.name, seed)
            try:
                build.check(composition.compose(spec.arguments))
            except UserError as error:
                refused[level.name] = str(error)
                break
            specs.append(spec)
    if not specs:
        raise UserError(next(iter(refused.values())))
    return specs, [f"left out: {', '.join(refused)}: {next(iter(refused.values()))}"] if refused else []


def forecast(results: Results, asked: Sequence[Level], missing: Sequence[RunSpec], jobs: int) -> str:
    """Tell in one line how long the missing runs take, by the times of the baselines' runs on the same levels."""
    took = {level.config["env"]["name"]: _seconds(results, level) for level in asked}
    seconds = [took[spec.config["env"]["name"]] for spec in missing]
    known = [one for one in seconds if one is not None]
    if not known:
        return f"{len(missing)} runs; no baseline says how long they take"
    hours = sum(known) / len(known) * len(missing) / jobs / 3600
    return f"{len(missing)} runs: about {hours:.1f} h with --jobs {jobs}, at one core a run, as the baselines took"


def _seconds(results: Results, level: Level) -> float | None:
    """Compute the mean time of the trained baselines' runs on a level; None if no run says it."""
    rows = [run for row in level.section["rows"] for run in results.read(level.section, row, level.name)]
    found = [run["wall_s"] for run in rows if "wall_s" in run and run["updates"]["step"]]
    return sum(found) / len(found) if found else None
