"""The report of a run: one page without external requests, made from the run folder's files alone."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from maskgym.envs.instructions import INSTRUCTIONS
from maskgym.envs.rendering import PALETTE
from maskgym.experiments import run_folder
from maskgym.experiments.evaluation import bootstrap_interval
from maskgym.rewards import parse

# Titles of the curves' panels with what belongs in them; a name goes to the first that fits it.
PANELS = {
    "Held-out": r"held_out/(.*/)?(reward|iasm|s_measure|iou|format)$",
    "Reward and its terms": r"reward$|reward/",
    "Confidence and advantage": r"cgpo/(confidence|advantage)",
    "Response types (share of the extremes)": r"response_types/",
    "Rank-normalised advantage of the response types": r"response_advantage/",
    "Groups without signal (share)": r"group/share_without_signal$",
    "Divergence from the policy before training": r"kl$",
    "Entropy": r"entropy$",
    "Response length (tokens)": r"completions/(mean|min|max)_length$",
    "Clip fraction": r"clip_ratio/region_mean$",
    "Loss": r"(isr/)?loss$",
    "Learning rate": r"learning_rate$",
    "Gradient norm": r"grad_norm$",
}
LESS = ("noc85", "noc90", "repeated", "mae")  # measures of which less is better
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 420, 210, 52, 24, 8, 10  # of a panel, units of its view box

STYLE = """
:root { color-scheme: light dark;
  --text: #1c1e21; --page: #fff; --line: #d5d8dc; --soft: #667; --good: #00734f; --bad: #b3400a; }
@media (prefers-color-scheme: dark) { :root {
  --text: #e6e8eb; --page: #15171a; --line: #3a3f46; --soft: #9aa3ad; --good: #4cc9a0; --bad: #ff9a5c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  margin: 2rem auto; max-width: 1000px; padding: 0 1rem; }
table { border-collapse: collapse; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.soft, figcaption { color: var(--soft); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 1rem; }
figure { margin: 0 0 1rem; }
svg { width: 100%; height: auto; }
svg.key { width: 18px; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
img { max-width: 100%; height: auto; }
pre { padding: .8rem; border: 1px solid var(--line); white-space: pre-wrap; overflow-wrap: anywhere; }
.axis { stroke: var(--line); fill: none; }
.curve { fill: none; stroke-width: 1.6; stroke-linecap: round; }
.c0 { stroke: #0072b2; }
.c1 { stroke: #e69f00; }
.c2 { stroke: #009e73; }
.c3 { stroke: #cc79a7; }
.c4 { stroke: #56b4e9; }
.c5 { stroke: #d55e00; }
.c6 { stroke: #999; }
mark { color: #000; border-radius: 3px; padding: 0 .2em; }
figcaption p { margin: .3rem 0; overflow-wrap: anywhere; }
""" + "".join(f".m{number} {{ background: rgb{tuple(colour.tolist())}; }}\n" for number, colour in enumerate(PALETTE))


def write(folder: Path) -> None:
    """Write ``report.html`` from the other files of a run folder."""
    run_folder.write(folder / run_folder.REPORT, render(folder))


def render(folder: Path) -> str:
    """Return the report of a run folder as HTML.

    Raises:
        UserError: If a file that it is made from is missing or cannot be read.
    """
    results = run_folder.read_json(folder / run_folder.RESULTS)
    rows = run_folder.read_metrics(folder / run_folder.METRICS)
    samples = [json.loads(line) for line in (folder / run_folder.ANSWERS).read_text(encoding="utf-8").splitlines()]
    title = escape(f"{results['env']} {results['algo']}, seed {results['seed']}")
    facts = f"{results['steps']} updates in {results['wall_s']:.0f} s on {results['device']}"
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    split = escape(results["split"])
    config = (folder / run_folder.CONFIG).read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>maskgym: {title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>{escape(facts)}.</p>
<h2>Before and after</h2>
<p class="soft">Greedy answers to the same held-out samples ({split} split). Intervals: 95 %, bootstrap over samples;
gains are paired. Measures of a whole set have none.</p>
<div class="scroll">{_table(results, samples)}</div>
<h2>Training</h2>
<div class="panels">{_panels(rows)}</div>
<h2>Samples</h2>
<p class="soft">Those whose reward fell most and those where it rose most, in turn. Expressions have the colours of
their masks.</p>
<div class="gallery">{_gallery(folder / run_folder.SAMPLES, samples)}</div>
<h2>Config</h2>
<pre>{escape(config)}</pre>
<p class="soft">{escape(versions)}</p>
</body>
</html>
"""


def _table(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> str:
    """Return the scores before and after as a table, with intervals where a score is a mean over samples."""
    several = len({row["task"] for row in samples}) > 1
    lines = []
    for name in results["after"]:
        task, _, measure = name.rpartition("/")
        chosen = [row for row in samples if not several or row["task"] == task]
        old, new = ([row[when].get(measure) for row in chosen] for when in ("before", "after"))
        known = None not in old and None not in new
        gain = [b - a for a, b in zip(old, new, strict=True)] if known else None
        cells = [
            _number(results["before"].get(name), old if known else None),
            _number(results["after"][name], new if known else None),
            _number(
                _difference(results["before"].get(name), results["after"][name]), gain, -1 if measure in LESS else 1
            ),
        ]
        lines.append(f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>")
    head = "<tr><th>measure</th><th>before</th><th>after</th><th>gain</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"


def _number(value: float | None, values: Sequence[float] | None, better: int = 0) -> str:
    """Return a cell: the value, and the interval of the mean of ``values``.

    A gain says which way is ``better``, 1 or -1; it is coloured where its interval excludes 0.
    """
    if value is None:
        return "<td>–</td>"
    text = f"{value:+.3f}" if better else f"{value:.3f}"
    if not values:
        return f"<td>{text}</td>"
    low, high = bootstrap_interval(values)
    away = better * ((low > 0) - (high < 0))
    kind = {1: "good", -1: "bad", 0: ""}[away]
    return f'<td class="{kind}">{text} <span class="soft">[{low:.3f}, {high:.3f}]</span></td>'


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _panels(rows: Sequence[Mapping[str, float]]) -> str:
    """Return one figure a panel that has curves."""
    names = dict.fromkeys(name for row in rows for name in row if name not in ("step", "wall_s"))
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {title: {} for title in PANELS}
    for name in names:
        title = next((title for title, pattern in PANELS.items() if re.match(pattern, name)), None)
        points = [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
        if title and points:
            panels[title][name] = points
    return "".join(_panel(title, curves) for title, curves in panels.items() if curves)


def _panel(title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return a figure with named curves, each (step, value) points, as an inline picture."""
    steps = [step for points in curves.values() for step, _ in points]
    values = [value for points in curves.values() for _, value in points]
    (first, last), (low, high) = _range(steps), _range(values)

    def place(step: float, value: float) -> str:
        x = LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP)
        return f"{x:.1f},{y:.1f}"

    lines, legend = [], []
    for number, (name, points) in enumerate(curves.items()):
        kind = f"c{number % 7}"
        marks = " ".join(place(*point) for point in points)
        # A curve of one point has no length: round caps make it a dot.
        lines.append(f'<polyline class="curve {kind}" points="{marks} {place(*points[-1])}"/>')
        key = f'<svg class="key" viewBox="0 0 18 8" aria-hidden="true"><path class="curve {kind}" d="M0 4H18"/></svg>'
        legend.append(f"{key} {escape(name)} {points[-1][1]:.3g}")
    axis = f"M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"
    labels = [
        f'<text x="{LEFT - 6}" y="{TOP + 9}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{LEFT - 6}" y="{HEIGHT - BOTTOM}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{first:.0f}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">update {last:.0f}</text>',
    ]
    return (
        f'<figure><strong>{escape(title)}</strong><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f'<title>{escape(title)}</title><path class="axis" d="{axis}"/>{"".join(labels)}{"".join(lines)}</svg>'
        f"<figcaption>{' &nbsp; '.join(legend)}</figcaption></figure>"
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis, never equal."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _gallery(folder: Path, samples: Sequence[Mapping[str, Any]]) -> str:
    """Return a figure for each sample that has a picture, the largest loss first, the largest gain next, and so on."""
    shown = sorted((row for row in samples if row.get("picture")), key=_gain)
    falling = [row for row in shown if _gain(row) < 0]
    rising = [row for row in reversed(shown) if _gain(row) >= 0]
    turns = itertools.chain.from_iterable(itertools.zip_longest(falling, rising))
    return "".join(_figure(folder / row["picture"], row) for row in turns if row is not None)


def _gain(row: Mapping[str, Any]) -> float:
    return row["after"]["reward"] - row["before"]["reward"]


def _figure(picture: Path, row: Mapping[str, Any]) -> str:
    data, key = base64.b64encode(picture.read_bytes()).decode(), escape(str(row["key"]), quote=True)
    before, after, gain = row["before"]["reward"], row["after"]["reward"], _gain(row)
    kind = "good" if gain > 0 else "bad" if gain < 0 else ""
    text = f'{key}: reward {before:.3f} → {after:.3f} <span class="{kind}">({gain:+.3f})</span>'
    answers = "".join(
        f"<p><b>{when}</b> {_coloured(row[when]['answer'], row['task'])}</p>"
        for when in ("before", "after")
        if row["task"] in INSTRUCTIONS and row[when].get("answer")  # clicks are in the picture, and masks no one reads
    )
    image = f'<img src="data:image/png;base64,{data}" alt="{key}: image, truth, before and after">'
    return f"<figure>{image}<figcaption>{text}{answers}</figcaption></figure>"


def _coloured(text: str, task: str) -> str:
    """Return an answer as HTML; in one that is well-formed, expressions have the colours of their masks."""
    if not parse(text, task).tagged:
        return escape(text)
    head, opening, rest = text.partition("<answer>")
    pieces, number = [escape(head), escape(opening)], -1
    for piece in re.split(r"(</?(?:rg|ins)>)", rest):
        if piece in ("<rg>", "<ins>"):
            number += 1
        inside = pieces[-1] in ("&lt;rg&gt;", "&lt;ins&gt;")
        pieces.append(f'<mark class="m{number % len(PALETTE)}">{escape(piece)}</mark>' if inside else escape(piece))
    return "".join(pieces)
