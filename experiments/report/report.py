"""Report of a run: one page without external requests, made from the files of the run folder only."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from maskgym.experiments.report import curves, finished_run, report_page
from maskgym.experiments.report.finished_run import SECONDS, Points, Run, better, differences, reward_gain
from maskgym.experiments.wiring import composition, run_folder

# Groups of panels, with the pattern of logged names for each panel title; the first match wins.
PANELS = {
    "Learning": {
        "Reward and its terms": r"reward$|reward/",
        "Held-out reward": r"held_out/(.*/)?reward$",
        "Held-out measures": r"held_out/(.*/)?(iasm|s_measure|iou|format|sa_sor)$",
        "IoU and repeated clicks": r"(iou|repeated)$",
        "Confidence": r"cgpo/confidence$",
        "Advantage": r"(cgpo|spo)/advantage|train/advantage",
        "Response types (share of the extremes)": r"response_types/",
        "Rank-normalised advantage of the response types": r"response_advantage/",
        "Groups without signal (share)": r"group/share_without_signal$",
        "Entropy": r"(train/)?entropy(_loss)?$",
        "Response length (tokens)": r"completions/(mean|min|max)_length$",
        "Cells that the draw changed (share)": r"changed$",
    },
    "Optimisation": {
        "Loss": r"(isr/|train/)?loss$|train/(mse|appearance)$",
        "Losses of policy and value": r"train/(policy_gradient|value)_loss$",
        "Loss of the recalibration": r"recalibration/loss$",
        "Explained variance of returns": r"train/explained_variance$",
        "Divergence from the policy before": r"kl$|train/approx_kl$",
        "Clip fraction": r"clip_ratio/region_mean$|train/clip_fraction$",
        "Learning rate": r"(train/)?learning_rate$",
        "Gradient norm": r"(train/)?grad_norm$",
    },
    "Cost": {
        "Seconds an update": rf"{SECONDS}$",
        "Tokens generated an update": r"generated_tokens$",
        "Rewards computed an update": r"reward_calls$",
        "Scoring, seconds an update": r"(scoring|reward)_seconds$",
        "Scoring, share of the time": r"scoring_share$",
        "Peak memory (MiB)": r"peak_memory_mib$",
    },
}
ORDERS = {  # orders of the gallery: the name of the CSS variable, and the label of the control
    "turn": "losses and gains in turn",
    "loss": "largest loss first",
    "gain": "largest gain first",
    "data": "as in the data",
}


def write(folder: Path, file: Path | None = None) -> Path:
    """Write the report of a run folder to ``file``, by default its ``report.html``; return the path.

    Raises:
        UserError: As in `render`, or if the file cannot be written.
    """
    file = file or folder / run_folder.REPORT
    report_page.save(file, render(folder))
    return file


def render(folder: Path) -> str:
    """Build the report of a run folder as HTML.

    Raises:
        UserError: If the run is not finished, or a file of the run cannot be read.
    """
    run = finished_run.read(folder)
    versions = ", ".join(f"{name} {version}" for name, version in run.results["versions"].items())
    config = escape(composition.dump(run.config))
    sections = {
        "Before and after": _scores(run),
        "Training": _training(run),
        "Samples": _samples(run),
        "Config": f"<details><summary>Every setting of the run</summary><pre>{config}</pre></details>"
        f'<p class="soft">{escape(versions)}</p>',
    }
    return report_page.document(run.title, "report of a run", _head(run), sections)


def panel_of(name: str) -> str | None:
    """Return the title of the panel of a logged name, or None if no panel matches."""
    panels = (pair for group in PANELS.values() for pair in group.items())
    return next((title for title, pattern in panels if re.match(pattern, name)), None)


def cost(run: Run) -> str:
    """Describe the cost of a run in words."""
    parts = {
        "tokens generated": run.total("generated_tokens"),
        "rewards computed": run.total("reward_calls"),
        "MiB of memory at most": run.peak_memory_mib,
    }
    told = ", ".join(f"{value:,.0f} {name}" for name, value in parts.items() if value is not None)
    updates = f"{run.results['steps']:,} update" + "s" * (run.results["steps"] != 1)
    time = finished_run.duration(run.results["wall_s"])
    return f"{updates} in {time} on {run.results['device']}" + f": {told}" * bool(told) + "."


def _head(run: Run) -> str:
    """Build the head of the report: the cost of the run and its main measures."""
    entries = [
        (
            f"{name}, before → after",
            f"{report_page.number(run.results['before'].get(name))} → {report_page.number(run.results['after'][name])}",
            f"gain {_gain_cell(run, name)}",
        )
        for name in run.main
    ]
    return f'<p class="lead">{escape(cost(run))}</p>{report_page.tiles(entries)}'


def _scores(run: Run) -> str:
    """Build the table of scores before and after, with intervals for scores that are means over samples."""
    rows = [
        [
            escape(name),
            report_page.number(run.results["before"].get(name), run.values(name, "before")),
            report_page.number(value, run.values(name, "after")),
            _gain_cell(run, name),
        ]
        for name, value in run.results["after"].items()
    ]
    return (
        f'<p class="soft">Greedy answers to the same {len(run.samples):,} held-out samples '
        f"({escape(run.results['split'])} split). Intervals: 95 %, bootstrap over samples; gains are paired, and "
        "coloured where their interval excludes 0. Measures of a whole set have none.</p>"
        + report_page.table("Measures before and after", ["measure", "before", "after", "gain"], rows)
    )


def _gain_cell(run: Run, name: str) -> str:
    gains = differences(run.values(name, "before"), run.values(name, "after"))
    return report_page.number(run.gain(name), gains, better(name))


def _training(run: Run) -> str:
    """Build the curves in groups of panels; curves without a panel are folded up."""
    logged, parts = run.curves(), []
    if not logged:
        return '<p class="soft">Nothing was logged.</p>'
    for group, titles in PANELS.items():
        panels = {title: {name: logged[name] for name in logged if panel_of(name) == title} for title in titles}
        drawn = "".join(_panel(title, found) for title, found in panels.items() if found)
        parts.append(f'<h3>{group}</h3><div class="panels">{drawn}</div>' * bool(drawn))
    if rest := [_panel(name, {name: points}) for name, points in logged.items() if panel_of(name) is None]:
        parts.append(folded_panels(rest))
    return smoothing_note(logged.values()) + "".join(parts)


def folded_panels(panels: Sequence[str]) -> str:
    """Fold up secondary panels."""
    return (
        f"<details><summary>Everything else that was logged: {len(panels)} more</summary>"
        f'<div class="panels">{"".join(panels)}</div></details>'
    )


def smoothing_note(drawn: Iterable[Points]) -> str:
    """Return a note on smoothed curves, or an empty text if there are none."""
    if not any(map(curves.is_smoothed, drawn)):
        return ""
    return (
        f'<p class="soft">Curves of more than {curves.SMOOTHED_FROM} points are means of their neighbours; '
        "the faint line is what was logged.</p>"
    )


def _panel(title: str, found: Mapping[str, Points]) -> str:
    return curves.figure(
        title, [curves.Curve(name, points, style) for style, (name, points) in enumerate(found.items())]
    )


def _samples(run: Run) -> str:
    """Build the gallery of samples with a picture, and the control of its order."""
    moved = [reward_gain(row) for row in run.samples]
    up, down = sum(gain > 0 for gain in moved), sum(gain < 0 for gain in moved)
    still = len(moved) - up - down
    told = f"Of {len(moved):,} samples the reward rose in {up:,}, fell in {down:,} and stayed in {still:,}."
    places = _places([row for row in run.samples if run.picture(row)])
    if not places:
        return f'<p class="soft">{told} No picture was kept.</p>'
    choices = "".join(
        f'<label><input type="radio" name="order" value="{name}"{" checked" * (name == "turn")}>{text}</label>'
        for name, text in ORDERS.items()
    )
    figures = "".join(_figure(run, row, kept) for row, kept in places)
    return (
        f'<p class="soft">{told} Below are those where it moved most. Expressions have the colours of their masks; '
        f"clicks are numbered.</p><fieldset><legend>Order:</legend>{choices}</fieldset>"
        f'<div class="gallery">{figures}</div>'
    )


def _places(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], dict[str, int]]]:
    """Order samples with losses and gains in turn; return each with its place in every order."""
    worst = sorted(rows, key=reward_gain)
    falling = [row for row in worst if reward_gain(row) < 0]
    rising = [row for row in reversed(worst) if reward_gain(row) >= 0]
    both = itertools.chain.from_iterable(itertools.zip_longest(falling, rising))
    turn = [row for row in both if row is not None]
    orders = {"turn": turn, "loss": worst, "gain": worst[::-1], "data": rows}
    place = {name: {id(row): place for place, row in enumerate(order)} for name, order in orders.items()}
    return [(row, {name: place[name][id(row)] for name in ORDERS}) for row in turn]


def _figure(run: Run, row: Mapping[str, Any], places: Mapping[str, int]) -> str:
    """Build the figure of a sample: picture, rewards and answers, with its place in each order as CSS variables."""
    picture, key, gain = run.picture(row), str(row["key"]), reward_gain(row)
    assert picture is not None  # `_samples` skips rows without a picture
    kind = "good" if gain > 0 else "bad" if gain < 0 else ""
    rewards = f"reward {row['before']['reward']:.3f} → {row['after']['reward']:.3f}"
    said = {when: report_page.answer(row[when].get("answer"), row["task"]) for when in ("before", "after")}
    answers = "".join(f"<p><strong>{when}</strong> {text}</p>" for when, text in said.items() if text)
    style = "; ".join(f"--{name}: {place}" for name, place in places.items())
    return (
        f'<figure style="{style}">{report_page.picture(picture, f"{key}: image, truth, before and after")}'
        f'<figcaption><p><strong>{escape(key)}</strong>: {rewards} <span class="{kind}">({gain:+.3f})</span></p>'
        f"{answers}</figcaption></figure>"
    )
