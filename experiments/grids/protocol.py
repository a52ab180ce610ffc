"""Protocols: matrices with a ``version``, whose columns are levels that any algorithm can be scored on.

A level is an environment (`docs/benchmark.md`) with everything that its runs share: data, segmenter, reward, the policy
to begin with, held-out samples, and a budget. The score of a run is its first measure at the budget, between
evaluations by straight lines, on a scale from 0, the floor (random actions), to 1, the ceiling (an oracle's). Both are
rows of the same table of results, so that they are measured as the runs are.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskgym.aliases import Config, JsonObject
from maskgym.errors import UserError
from maskgym.experiments.grids import matrix
from maskgym.experiments.grids.matrix import Matrix, Results, Section, run_of, score
from maskgym.experiments.grids.results_table import SUFFIX
from maskgym.experiments.wiring import composition, run_folder
from maskgym.experiments.wiring.build import UNITS

# What the runs of a level share, by key of the config.
SHARED = ("env", "data", "segmenter", "reward", "policy", "train_samples")
NEEDED = ("unit", "floor", "ceiling")  # keys of a section
EVALUATED = ("split", "samples")  # keys of `evaluation` that they share too
STAMP = "protocol.json"  # file of a folder of runs


@dataclass(frozen=True)
class Level:
    """A level of a protocol.

    Attributes:
        name: Name of its environment, and of its column.
        section: Section of the column.
        budget: What a run may spend, in the unit of the section.
    """

    name: str
    section: Section
    budget: int

    @property
    def measure(self) -> str:
        """Name of the measure that is the score."""
        return self.section["columns"][self.name]["measures"][0]

    @property
    def unit(self) -> str:
        """Logged name of what is spent."""
        return self.section["unit"]

    @property
    def config(self) -> Config:
        """Config of a run of the row that the others are compared with."""
        return run_of(self.section, self.section["against"], self.name, self.section["seeds"][0]).config


def load(name: str) -> Matrix:
    """Load a protocol by name or path.

    Raises:
        UserError: If there is none, or the matrix is no protocol.
    """
    found = matrix.load(name)
    if "version" not in found:
        raise UserError(f"protocol={name}: has no version: expected a protocol, such as maskgym_v0")
    for one in found["sections"]:
        section: Mapping[str, Any] = one
        where = f"protocol={name}: {section['title']}"
        if missing := [key for key in NEEDED if key not in section]:
            raise UserError(f"{where}: expected the key {missing[0]}")
        if section["unit"] not in UNITS:
            raise UserError(f"{where}: unit={section['unit']}: expected one of {', '.join(UNITS)}")
        for key in ("floor", "ceiling", *(["gate"] if "gate" in section else [])):
            if section[key] not in section["rows"] and not isinstance(section[key], float):
                raise UserError(f"{where}: {key}={section[key]}: expected one of {', '.join(section['rows'])}")
        if strange := [seed for seed in section.get("chosen_on", ()) if seed not in section["seeds"]]:
            raise UserError(f"{where}: chosen_on={strange[0]}: expected one of its seeds")
        if lacking := [column for column, up in section["columns"].items() if "budget" not in up]:
            raise UserError(f"{where}: columns.{lacking[0]}: expected a budget")
    return found


def results(name: str, table: Path | None = None, out: Path | None = None) -> Results:
    """Open the results of a protocol: its baselines, or another table.

    Args:
        name: Name or path of the protocol.
        table: Table of results; None for the one beside the protocol's file.
        out: Folder of pictures; None where nothing is drawn.
    """
    found = load(name)
    beside = (Path(name) if name.endswith(".yaml") else matrix.MATRICES / name).with_suffix(SUFFIX)
    return Results(found, out or beside.parent, table or beside)


def check_version(protocol: Matrix, folder: Path) -> None:
    """Check that a folder of runs, if it says of which protocol they are, is of this one.

    Raises:
        UserError: If it is of another protocol or version.
    """
    file = folder / STAMP
    if file.exists() and (found := run_folder.read_json(file)) != stamp(protocol):
        raise UserError(f"{file}: the runs are of {_named(found)}: expected {_named(stamp(protocol))}")


def stamp(protocol: Matrix) -> JsonObject:
    """Build what `STAMP` holds in a folder of runs of a protocol."""
    return {"protocol": protocol["title"], "version": protocol["version"]}


def _named(found: JsonObject) -> str:
    return f"'{found['protocol']}', version {found['version']}"


def levels(protocol: Matrix) -> dict[str, Level]:
    """List the levels of a protocol by name."""
    return {level.name: level for section in protocol["sections"] for level in levels_of(section)}


def levels_of(section: Section) -> list[Level]:
    """List the levels of a section; sections of a matrix may share them."""
    return [Level(column, section, up["budget"]) for column, up in section["columns"].items()]


def level(protocol: Matrix, name: str) -> Level:
    """Look up a level by name.

    Raises:
        UserError: If there is none; the message names the closest first.
    """
    known = levels(protocol)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise UserError(f"level '{name}': expected one of {', '.join(dict.fromkeys([*close, *known]))}")
    return known[name]


def differences(asked: Level, config: Config) -> list[str]:
    """Tell in one line each where the config of a run is not what its level asks for.

    Keys that an older config lacks are left out, as `results_table.agrees` does.
    """
    wanted = asked.config
    pairs = [(f"evaluation.{key}", wanted["evaluation"][key], config["evaluation"].get(key)) for key in EVALUATED]
    for part in SHARED:
        value, found = wanted[part], config[part]
        if isinstance(value, dict) and isinstance(found, dict):
            pairs += [(f"{part}.{key}", value.get(key), found[key]) for key in found]
        else:
            pairs.append((part, value, found))
    return [f"{key}={found}: level {asked.name} has {key}={value}" for key, value, found in pairs if value != found]


def arguments(asked: Level, algo: Config) -> tuple[str, ...]:
    """List the arguments of a run of a level with the algorithm of another run's config."""
    given = (*asked.section["base"], *asked.section["columns"][asked.name].get("with", ()), f"algo={algo['name']}")
    listed = composition.compose(given)["algo"]
    changed = [f"++algo.{key}={_text(value)}" for key, value in algo.items() if listed.get(key, ...) != value]
    return (*given, *changed)


def _text(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def bounds(results: Results, asked: Level) -> tuple[float, float]:
    """Compute the scores of floor and ceiling, means over their seeds.

    Raises:
        UserError: If the table lacks one of them, or the ceiling is not above the floor.
    """
    found = []
    for key in (asked.section["floor"], asked.section["ceiling"]):
        if isinstance(key, float):
            found.append(key)
            continue
        rows = results.read(asked.section, key, asked.name)
        if not rows:
            raise UserError(f"{results.table}: level {asked.name}: has no run of '{key}', which the scale needs")
        found.append(float(np.mean([score(row["after"], asked.name, asked.measure) for row in rows])))
    floor, ceiling = found
    if ceiling <= floor:
        raise UserError(f"{results.table}: level {asked.name}: ceiling {ceiling:.3f}, floor {floor:.3f}: no scale")
    return floor, ceiling


def normalised(results: Results, asked: Level, scores: Sequence[float]) -> np.ndarray:
    """Map scores float64 (N,) of a level linearly, so that its floor is 0 and its ceiling is 1."""
    floor, ceiling = bounds(results, asked)
    return (np.asarray(scores, float) - floor) / (ceiling - floor)


def curve(asked: Level, record: JsonObject) -> tuple[list[float], list[float]] | None:
    """Collect what a run had spent at each evaluation, from 0, and its scores there, not normalised.

    Returns None for a run that acted in no environment while it trained, as supervised ones and oracles.

    Raises:
        UserError: If the run acted, or may have, and does not log what it spent.
    """
    updates, steps = record["updates"], record["held_out"]["step"]
    spent = updates.get(asked.unit)
    counted = [updates[name] for name in (asked.unit, "env_steps") if name in updates]
    if (counted or not updates["step"]) and not any(map(any, counted)):
        return None
    if not spent or any(part is None for part in spent):
        raise UserError(f"level {asked.name}: the log of the run lacks {asked.unit}: what it spent is unknown")
    total = np.concatenate([[0.0], np.cumsum(spent)])
    at = np.searchsorted([0, *updates["step"]], steps)
    return total[at].tolist(), list(score(record["held_out"], asked.name, asked.measure))


def at_budget(asked: Level, record: JsonObject) -> float:
    """Compute a run's score at the budget of its level, not normalised; of one that spends nothing, its last.

    Raises:
        UserError: If the run has spent less, or does not log what it spent.
    """
    found = curve(asked, record)
    if found is None:
        return float(score(record["after"], asked.name, asked.measure))
    spent, scores = found
    if not spent[-1] >= asked.budget:  # what is no number falls short too
        told = f"the run spent {spent[-1]:,.0f} of {asked.budget:,} {UNITS[asked.unit]}"
        raise UserError(f"level {asked.name}: {told}: expected more algo.updates")
    return float(np.interp(asked.budget, spent, scores))
