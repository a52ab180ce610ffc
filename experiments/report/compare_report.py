"""Comparison report: one page without external requests, made from the files of several run folders.

Runs of one environment are grouped by their config: runs of a group differ in their seed only. Intervals are 95 %
bootstrap intervals, over the seeds of a group if it has at least three, else over the held-out samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from maskgym.errors import UserError
from maskgym.experiments.evaluation.evaluation import bootstrap_interval
from maskgym.experiments.report import curves, finished_run, report, report_page
from maskgym.experiments.report.finished_run import SECONDS, Run, better, differences
from maskgym.experiments.wiring import composition

# Runs that differ in these config keys only belong to one group.
APART = ("seed", "out", "logger", "evaluation.pictures")
SEEDS = 3  # minimum number of seeds for intervals over seeds
SHOWN = 8  # maximum number of samples in the gallery
NAMED = 3  # maximum number of settings in the name of a group
# Curves that are shown unfolded, besides those of the main measures.
CURVES = ("reward", "iou", "cgpo/confidence", "entropy", "train/entropy", "completions/mean_length")
COSTS = (SECONDS, "generated_tokens", "reward_calls", "peak_memory_mib")
ABSENT = object()  # marks a missing config key
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only.

    Attributes:
        name: Unique name among the groups of its environment.
        settings: Config by dotted key, without the keys in `APART`.
        runs: Runs in order of seed.
    """

    name: str
    settings: dict[str, Any]
    runs: list[Run]

    @cached_property
    def over_seeds(self) -> bool:
        """Whether intervals are over seeds; otherwise they are over samples."""
        return len(self.runs) >= SEEDS

    def mean(self, name: str, when: str) -> float | None:
        """Compute the mean over the runs of a measure ``before`` or ``after`` training, or of its ``gain``."""
        found = [run.gain(name) if when == "gain" else run.results[when].get(name) for run in self.runs]
        return None if None in found else float(np.mean([value for value in found if value is not None]))

    def values(self, name: str, when: str) -> list[float] | None:
        """Collect the values for the bootstrap of a measure: one per seed, or one per sample.

        If two seeds have the same samples, the value of a sample is the mean over both.
        """
        if self.over_seeds:
            found = [run.gain(name) if when == "gain" else run.results[when].get(name) for run in self.runs]
            return None if None in found else [value for value in found if value is not None]
        each: list[list[float]] = []
        for run in self.runs:
            old, new = run.values(name, "before"), run.values(name, "after")
            values = {"before": old, "after": new, "gain": differences(old, new)}[when]
            if values is None:
                return None
            each.append(values)
        same = len({tuple(row["key"] for row in run.samples_of(name)) for run in self.runs}) == 1
        return np.mean(each, axis=0).tolist() if same else [value for values in each for value in values]

    def interval(self, name: str) -> tuple[float, float] | None:
        """Compute the interval of a measure after training, or return None for fewer than two values."""
        values = self.values(name, "after")
        return bootstrap_interval(values) if values and len(values) > 1 else None


def write(folders: Sequence[Path], file: Path) -> Path:
    """Write the comparison report of some runs, and return its path.

    Raises:
        UserError: As in `render`, or if the file cannot be written.
    """
    report_page.save(file, render(folders))
    return file


def render(folders: Sequence[Path]) -> str:
    """Build the comparison report of the runs in some folders as HTML.

    Raises:
        UserError: If a folder holds no finished run, or two folders hold the same run.
    """
    environments: dict[str, list[Run]] = {}
    for run in _read(folders):
        environments.setdefault(run.results["env"], []).append(run)
    grouped = {name: group_runs(runs) for name, runs in environments.items()}
    several = len(grouped) > 1
    lead = "".join(
        f'<p class="lead">{escape(f"{env}: " * several + told)}</p>'
        for env, groups in grouped.items()
        for told in conclusions(groups)
    )
    sections: dict[str, str] = {}
    for env, groups in grouped.items():
        parts = {
            "Groups": _settings(groups),
            "Measures": _measures(groups),
            "Curves": _curves(groups),
            "Samples": _samples(groups),
        }
        whole = "".join(f"<h3>{name}</h3>{part}" for name, part in parts.items())
        sections |= {env: whole} if several else parts
    sections["Runs"] = _runs(grouped)
    count = sum(len(groups) for groups in grouped.values())
    title = f"{len(folders)} runs in {count} group{'s' * (count != 1)}"
    return report_page.document(title, f"runs of {', '.join(grouped)} compared", lead, sections)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group the runs of one environment by config, in input order."""
    found: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run in runs:
        settings = _flat(run.config)
        found.setdefault(repr(sorted(settings.items())), (settings, []))[1].append(run)
    names = _names([(group[0].results["algo"], settings) for settings, group in found.values()])
    return [
        Group(name, settings, sorted(group, key=lambda run: run.results["seed"]))
        for name, (settings, group) in zip(names, found.values(), strict=True)
    ]


def conclusions(groups: Sequence[Group]) -> list[str]:
    """Write one conclusion per main measure: the best group, and whether the two best groups' intervals overlap."""
    shared = [name for name in groups[0].runs[0].main if all(group.mean(name, "after") is not None for group in groups)]
    if len(groups) == 1:
        return [f"All runs are of one group, {groups[0].name}: there is nothing to compare it with."]
    if not shared:
        return ["The groups have no main measure in common."]
    return [_conclusion(name, groups) for name in shared]


def differing(groups: Sequence[Group]) -> list[str]:
    """List the config keys whose values differ between groups."""
    keys = dict.fromkeys(key for group in groups for key in group.settings)
    return [key for key in keys if len({_text(group.settings.get(key, ABSENT)) for group in groups}) > 1]


def _read(folders: Sequence[Path]) -> list[Run]:
    """Read every run; raise a UserError if one is given twice."""
    places: dict[Path, Path] = {}
    configs: dict[str, Path] = {}
    runs = []
    for folder in folders:
        if folder.resolve() in places:
            raise UserError(f"{folder}: is given twice: expected each run once")
        places[folder.resolve()] = folder
        run = finished_run.read(folder)
        same = configs.setdefault(f"{run.config['seed']} {sorted(_flat(run.config).items())!r}", folder)
        if same != folder:
            raise UserError(f"{folder}: is the same run as {same}: its config and its seed are the same")
        runs.append(run)
    return runs


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a config to dotted keys, without the keys in `APART`."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name not in APART:
            found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def _text(value: Any) -> str:
    return "–" if value is ABSENT else "null" if value is None else str(value)


def _names(kinds: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Name each group by its algorithm and the first settings that differ between groups of that algorithm."""
    names: list[str] = []
    for algo, settings in kinds:
        alike = [other for name, other in kinds if name == algo]
        keys = [key for key in settings if len({_text(other.get(key, ABSENT)) for other in alike}) > 1]
        told = ", ".join(f"{key.rpartition('.')[2]}={_text(settings[key])}" for key in keys[:NAMED])
        name = f"{algo}, {told}" if told else algo
        count = names.count(name)
        names.append(f"{name} ({count + 1})" if count else name)
    return names


def _conclusion(name: str, groups: Sequence[Group]) -> str:
    ordered = sorted(groups, key=lambda group: -(better(name) or 1) * (group.mean(name, "after") or 0.0))
    first, second = ordered[:2]
    best, next_best = (_with_interval(group, name) for group in (first, second))
    if first.mean(name, "after") == second.mean(name, "after"):
        return f"{name}: {first.name} and {second.name} end the same, at {best}."
    told = f"{name}: {first.name} ends best, at {best}, ahead of {second.name}, at {next_best}"
    keys = {tuple(row["key"] for row in run.samples_of(name)) for group in (first, second) for run in group.runs}
    if len(keys) > 1:
        return f"{told}. They were scored on different samples, so that this says little."
    one, two = first.interval(name), second.interval(name)
    if one is None or two is None:
        return f"{told}. There are too few values for intervals."
    apart = one[0] > two[1] or two[0] > one[1]
    verdict = "do not overlap" if apart else "overlap: the order may be chance"
    if first.over_seeds and second.over_seeds:
        return f"{told}. The intervals, over seeds, {verdict}."
    kind = "over seeds or samples" if first.over_seeds or second.over_seeds else "over samples"
    return f"{told}. The intervals, {kind}, {verdict}; other seeds may end otherwise."


def _with_interval(group: Group, name: str) -> str:
    mean, interval = group.mean(name, "after"), group.interval(name)
    return f"{mean:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _label(groups: Sequence[Group], place: int) -> str:
    """Format the name of a group as HTML, with its line style."""
    return f"{curves.key(place)} {escape(groups[place].name)}"


def _settings(groups: Sequence[Group]) -> str:
    """Build the table of settings that differ between groups."""
    rows = [
        [escape(key), *(escape(_text(group.settings.get(key, ABSENT))) for group in groups)]
        for key in differing(groups)
    ]
    seeds = ["seeds", *(", ".join(str(run.results["seed"]) for run in group.runs) for group in groups)]
    names = [group.name for group in groups]
    return (
        '<p class="soft">Settings that are not the same in all groups. Runs of a group differ in their seed alone.</p>'
        + report_page.table("Settings that differ between groups", ["setting", *names], [*rows, seeds])
    )


def _measures(groups: Sequence[Group]) -> str:
    """Build the tables of measures, secondary ones folded up, and of costs."""
    names = list(dict.fromkeys(name for group in groups for name in group.runs[0].results["after"]))
    main = [name for name in names if name in groups[0].runs[0].main]
    rest = [name for name in names if name not in main]
    more = _measure_table("More measures", rest, groups)
    return (
        '<p class="soft">Greedy answers to held-out samples, as means over the seeds of a group. Intervals: 95 %, '
        f"bootstrap over {_over(groups)}. Gains are coloured where their interval excludes 0.</p>"
        f"{_measure_table('Measures', main, groups)}<h3>Cost of a run</h3>{_cost_table(groups)}"
        + f"<details><summary>{len(rest)} more measures</summary>{more}</details>"
        * bool(rest)
    )


def _over(groups: Sequence[Group]) -> str:
    """Describe whether intervals are over seeds or samples."""
    over_seeds = [group.over_seeds for group in groups]
    if all(over_seeds):
        return "seeds"
    return (
        "seeds where a group has three of them, else over samples"
        if any(over_seeds)
        else "samples: no group has 3 seeds"
    )


def _measure_table(label: str, names: Sequence[str], groups: Sequence[Group]) -> str:
    rows = [
        [
            _label(groups, place),
            escape(name),
            *(report_page.number(group.mean(name, when), group.values(name, when)) for when in ("before", "after")),
            report_page.number(group.mean(name, "gain"), group.values(name, "gain"), better(name)),
        ]
        for name in names
        for place, group in enumerate(groups)
        if name in group.runs[0].results["after"]
    ]
    return report_page.table(label, ["group", "measure", "before", "after", "gain"], rows)


def _cost_table(groups: Sequence[Group]) -> str:
    rows = []
    for place, group in enumerate(groups):
        columns = [
            [run.results["wall_s"] for run in group.runs],
            *([run.total(name) for run in group.runs] for name in ("generated_tokens", "reward_calls")),
            [run.peak_memory_mib for run in group.runs],
        ]
        time, *counts = (None if None in column else float(np.mean(column)) for column in columns)
        cells = ["–" if value is None else f"{value:,.0f}" for value in counts]
        updates = f"{group.runs[0].results['steps']:,}"
        told = "–" if time is None else finished_run.duration(time)
        rows.append([_label(groups, place), str(len(group.runs)), updates, told, *cells])
    head = ["group", "runs", "updates", "time", "tokens generated", "rewards computed", "peak memory (MiB)"]
    return report_page.table("Cost of a run, in the mean", head, rows)


def _curves(groups: Sequence[Group]) -> str:
    """Build one panel per logged name with one curve per group; secondary panels are folded up."""
    logged = [[run.curves() for run in group.runs] for group in groups]
    names = dict.fromkeys(name for group in logged for run in group for name in run)
    if not names:
        return '<p class="soft">Nothing was logged.</p>'
    main = [f"held_out/{name}" for group in groups for name in group.runs[0].main]
    first = [name for name in dict.fromkeys((*main, *CURVES)) if name in names]
    costs = [name for name in COSTS if name in names]
    panels = {
        name: curves.figure(
            name,
            [
                _mean_curve(groups[place].name, [run[name] for run in group if name in run], place)
                for place, group in enumerate(logged)
                if any(name in run for run in group)
            ],
        )
        for name in names
    }
    drawn = "".join(
        f'<h3>{title}</h3><div class="panels">{"".join(panels[name] for name in chosen)}</div>' * bool(chosen)
        for title, chosen in (("Learning", first), ("Cost", costs))
    )
    rest = [panel for name, panel in panels.items() if name not in (*first, *costs)]
    note = report.smoothing_note(points for group in logged for run in group for points in run.values())
    return (
        '<p class="soft">Lines are means over the seeds of a group; the band around one reaches from the least to the '
        f"largest seed.</p>{note}{drawn}{report.folded_panels(rest) if rest else ''}"
    )


def _mean_curve(name: str, runs: Sequence[finished_run.Points], style: int) -> curves.Curve:
    """Compute the mean and the range at each step, over the seeds that have a value there."""
    by_step: dict[float, list[float]] = {}
    for points in runs:
        for step, value in points:
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step.items())
    return curves.Curve(
        name,
        [(step, sum(values) / len(values)) for step, values in steps],
        style,
        [(step, min(values), max(values)) for step, values in steps],
    )


def _samples(groups: Sequence[Group]) -> str:
    """Build the gallery of samples on which the groups differ most; two groups at least have a picture of each."""
    shown = sorted(_shared(groups), key=lambda sides: -_spread(sides))[:SHOWN]
    if len(groups) < 2 or not shown:
        return '<p class="soft">No two groups kept a picture of the same sample.</p>'
    rows = "".join(_row(groups, sides) for sides in shown)
    return (
        '<p class="soft">Where rewards after training are furthest apart, one run a group. Each picture has image, '
        f'truth, and what the answers before and after led to.</p><div class="gallery wide">{rows}</div>'
    )


def _shared(groups: Sequence[Group]) -> Iterator[dict[int, tuple[Run, Row]]]:
    """Yield the run and row of each group, by group index, for samples with pictures from at least two groups."""
    found: dict[tuple[str, str], dict[int, tuple[Run, Row]]] = {}
    for place, group in enumerate(groups):
        for run in group.runs:
            for row in run.samples:
                if run.picture(row):
                    found.setdefault((row["task"], str(row["key"])), {}).setdefault(place, (run, row))
    return (sides for sides in found.values() if len(sides) > 1)


def _spread(sides: Mapping[int, tuple[Run, Row]]) -> float:
    rewards = [row["after"]["reward"] for _, row in sides.values()]
    return max(rewards) - min(rewards)


def _row(groups: Sequence[Group], sides: Mapping[int, tuple[Run, Row]]) -> str:
    """Build the figure of a sample with the picture and answer of each group."""
    key = str(next(iter(sides.values()))[1]["key"])
    parts = []
    for place, (run, row) in sides.items():
        file = run.picture(row)
        assert file is not None  # `_shared` skips rows without a picture
        name = f"{groups[place].name}, seed {run.results['seed']}"
        said = report_page.answer(row["after"].get("answer"), row["task"])
        parts.append(
            f"<div><p>{curves.key(place)} <strong>{escape(name)}</strong>: reward {row['after']['reward']:.3f}</p>"
            f"{report_page.picture(file, f'{key}, {name}: image, truth, before and after')}<p>{said}</p></div>"
        )
    return f'<figure><figcaption><h3>{escape(key)}</h3><div class="sides">{"".join(parts)}</div></figcaption></figure>'


def _runs(grouped: Mapping[str, Sequence[Group]]) -> str:
    rows = [
        [
            escape(str(run.folder)),
            escape(env),
            escape(group.name),
            str(run.results["seed"]),
            escape(run.results["device"]),
        ]
        for env, groups in grouped.items()
        for group in groups
        for run in group.runs
    ]
    configs = "".join(
        f"<details><summary>Config of {escape(str(run.folder))}</summary>"
        f"<pre>{escape(composition.dump(run.config))}</pre></details>"
        for groups in grouped.values()
        for group in groups
        for run in group.runs[:1]
    )
    head = ["folder", "environment", "group", "seed", "device"]
    return report_page.table("Runs", head, rows) + configs
