"""Groups of runs that differ in their seed only: scores with intervals, and conclusions.

Intervals are 95 % bootstrap intervals: over the seeds of a group if it has at least three, otherwise over the held-out
samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from maskgym.aliases import Config
from maskgym.experiments.evaluation.measures import measure
from maskgym.experiments.evaluation.statistics import MOST, bootstrap_interval, seeds_needed, smallest_difference
from maskgym.experiments.report.run_data import Run, When

APART = ("seed", "out", "logger", "evaluation.pictures")  # config keys that do not separate groups
SEEDS = 3  # minimum number of seeds for intervals over seeds
NAMED = 3  # maximum number of settings in the name of a group
ABSENT = "–"
T = TypeVar("T")


@dataclass(frozen=True)
class Score:
    """Mean of a measure over the runs of a group."""

    value: float | None  # None if a run lacks the measure
    interval: tuple[float, float] | None = None  # None for fewer than two values
    verdict: str = ""  # "good" or "bad" for a gain whose interval excludes 0

    def __str__(self) -> str:
        interval = f" [{self.interval[0]:.3f}, {self.interval[1]:.3f}]" if self.interval else ""
        return ABSENT if self.value is None else f"{self.value:.3f}{interval}"


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    name: str  # unique among the groups of the environment
    settings: dict[str, str]  # as `flat` makes them of the config
    runs: list[Run]  # in order of seed
    style: int = 0  # index of the line style of its curves

    @property
    def over_seeds(self) -> bool:
        """Whether intervals are over seeds; otherwise they are over samples."""
        return len(self.runs) >= SEEDS

    def score(self, name: str, when: When) -> Score:
        """Compute the mean of a measure over the runs, and its interval."""
        value, values = mean([run.score(name, when) for run in self.runs]), self.values(name, when)
        if value is None or not values or len(values) < 2:
            return Score(value)
        low, high = bootstrap_interval(values)
        sign = measure(name).direction * ((low > 0) - (high < 0)) if when == "gain" else 0
        return Score(value, (low, high), {1: "good", -1: "bad", 0: ""}[sign])

    def values(self, name: str, when: When) -> list[float] | None:
        """Collect the values for the bootstrap of a measure: one per seed, or one per sample.

        If all seeds have the same samples, the value of a sample is its mean over the seeds.
        """
        if self.over_seeds:
            return present([run.score(name, when) for run in self.runs])
        each = present([run.values(name, when) for run in self.runs])
        if each and len({run.keys(name) for run in self.runs}) == 1:
            return np.mean(each, axis=0).tolist()
        return None if each is None else [value for values in each for value in values]


def present(values: Sequence[T | None]) -> list[T] | None:
    """Return the values as a list, or None if one is missing."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def mean(values: Sequence[float | None]) -> float | None:
    """Compute the mean of some values, or None if one is missing."""
    known = present(values)
    return None if known is None else float(np.mean(known))


def flat(config: Config, prefix: str = "") -> dict[str, str]:
    """Flatten a config to text by dotted key, without the keys in `APART`."""
    found: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name not in APART:
            text = {name: "null" if value is None else str(value)}
            found |= flat(value, f"{name}.") if isinstance(value, dict) else text
    return found


def differing(groups: Sequence[dict[str, str]]) -> list[str]:
    """List the keys whose values are not the same in the settings of all groups."""
    names = dict.fromkeys(key for settings in groups for key in settings)
    return [key for key in names if len({settings.get(key, ABSENT) for settings in groups}) > 1]


def named(own: dict[str, str], keys: Sequence[str]) -> list[str]:
    """Format the first of the settings that name a group."""
    return [f"{key.rpartition('.')[2]}={own[key]}" for key in keys if key in own][:NAMED]


def settings(groups: Sequence[Group]) -> list[list[str]]:
    """List the settings that differ between groups, each with its value per group, and the seeds."""
    rows = [
        [key, *(group.settings.get(key, ABSENT) for group in groups)]
        for key in differing([group.settings for group in groups])
    ]
    return [*rows, ["seeds", *(", ".join(str(run.results["seed"]) for run in group.runs) for group in groups)]]


def group_runs(runs: Sequence[Run], parts: Sequence[str] = ()) -> list[Group]:
    """Group runs by config, in input order; those of one environment, unless ``parts`` of a config alone separate them.

    A group is named by its algorithm and the first settings that differ between groups of that algorithm.
    """
    found: dict[str, list[Run]] = {}
    own_settings = {run.folder: flat({part: run.config[part] for part in parts or run.config}) for run in runs}
    for run in runs:
        found.setdefault(str(sorted(own_settings[run.folder].items())), []).append(run)
    kinds = [(group[0].results["algo"], own_settings[group[0].folder]) for group in found.values()]
    names: list[str] = []
    groups = []
    for place, ((algo, own), group) in enumerate(zip(kinds, found.values(), strict=True)):
        keys = differing([other for name, other in kinds if name == algo])
        name = ", ".join([algo, *named(own, keys)])
        names.append(name)
        unique = name if names.count(name) == 1 else f"{name} ({names.count(name)})"
        groups.append(Group(unique, own, sorted(group, key=lambda run: run.results["seed"]), place))
    return groups


def conclusions(groups: Sequence[Group]) -> list[str]:
    """Write one conclusion per main measure: the best group, and whether the two best groups' intervals overlap."""
    if len(groups) == 1:
        return [f"All runs are of one group, {groups[0].name}: there is nothing to compare it with."]
    scored = {name: [(group.score(name, "after"), group) for group in groups] for name in groups[0].runs[0].main}
    told = [_conclusion(*each) for each in scored.items() if all(score.value is not None for score, _ in each[1])]
    return told or ["The groups have no main measure in common."]


def _prompt(group: Group) -> str:
    """Name the words in which a group's agents were asked; runs of older versions have no such settings."""
    hint = {"False": "", ABSENT: ""}.get(group.settings.get("env.hint", ABSENT), " with a hint at the form")
    return f"{group.settings.get('env.instruction', 'maskgym')}{hint}"


def _power(name: str, first: Group, second: Group) -> str:
    """Tell what the seeds of two groups can show, and how many would show the difference that is seen."""
    scores = present([first.values(name, "after"), second.values(name, "after")])
    if scores is None:
        return ""
    needed = seeds_needed(*scores)
    count = f"more than {MOST}" if needed is None else f"{needed}"
    least = f"{smallest_difference(*scores):.3f} is the smallest difference that these seeds would show"
    return f" {least} in four of five cases (t-test, 5 %); the one that is seen takes {count} seeds of each."


def _conclusion(name: str, scored: Sequence[tuple[Score, Group]]) -> str:
    sign = measure(name).direction or 1
    (best, first), (runner_up, second), *_ = sorted(scored, key=lambda pair: -sign * (pair[0].value or 0.0))
    if best.value == runner_up.value:
        return f"{name}: {first.name} and {second.name} end the same, at {best}."
    told = f"{name}: {first.name} ends best, at {best}, ahead of {second.name}, at {runner_up}"
    if (asked := [_prompt(group) for group in (first, second)])[0] != asked[1]:
        told += f" (asked by other words: {first.name} by {asked[0]}, {second.name} by {asked[1]})"
    if len({run.keys(name) for run in (*first.runs, *second.runs)}) > 1:
        return f"{told}. They were scored on different samples, so that this says little."
    if best.interval is None or runner_up.interval is None:
        return f"{told}. There are too few values for intervals."
    apart = best.interval[0] > runner_up.interval[1] or runner_up.interval[0] > best.interval[1]
    verdict = "do not overlap" if apart else "overlap: the order may be chance"
    if first.over_seeds and second.over_seeds:
        return f"{told}. The intervals, over seeds, {verdict}.{'' if apart else _power(name, first, second)}"
    kind = "over seeds or samples" if first.over_seeds or second.over_seeds else "over samples"
    return f"{told}. The intervals, {kind}, {verdict}; other seeds may end otherwise."
