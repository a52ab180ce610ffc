"""Common parts of reports: a light and dark style, and HTML elements of a page that makes no requests.

The functions take text and return HTML. Text from data, models and file names is escaped here.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from maskgym.envs.instructions import INSTRUCTIONS
from maskgym.envs.rendering import PALETTE
from maskgym.errors import UserError
from maskgym.experiments.evaluation.evaluation import bootstrap_interval
from maskgym.experiments.wiring import run_folder
from maskgym.rewards import parse

# The policy blocks scripts and requests, even if an answer or a file name contained HTML.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# Lines have a contrast of 3:1 against the page, and text 4.5:1. Dashes distinguish lines without colour.
STYLE = """
:root { color-scheme: light dark;
  --text: #1b1f24; --page: #fff; --card: #f6f7f9; --line: #d5d9de; --soft: #59636e; --link: #0b5cad;
  --good: #00734f; --bad: #b3400a; --shade: rgb(27 31 36 / .06);
  --c0: #0b63b0; --c1: #c2410c; --c2: #00734f; --c3: #8e3a8e; --c4: #806000; --c5: #0e7490; --c6: #5b6470; }
@media (prefers-color-scheme: dark) { :root {
  --text: #e6e8eb; --page: #14171a; --card: #1c2024; --line: #3a4149; --soft: #a3adb8; --link: #7fbcff;
  --good: #4cc9a0; --bad: #ff9a5c; --shade: rgb(0 0 0 / .3);
  --c0: #6cb6ff; --c1: #ff9a5c; --c2: #4cc9a0; --c3: #e39ae3; --c4: #e3c04f; --c5: #5fd0e6; --c6: #a8b1bb; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 0; }
header, nav ul, main { max-width: 1120px; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.25rem; }
h1, h2, h3, h4, p, li, summary, figcaption, dt, dd { overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 2.75rem 0 .5rem; padding-top: .25rem; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .6rem; }
h4 { font-size: .9rem; margin: 0 0 .35rem; }
p { margin: .4rem 0; max-width: 75ch; }
.eyebrow { color: var(--soft); font-size: .85rem; margin: 0 0 .2rem; }
.lead { font-size: 1.1rem; }
.soft, figcaption { color: var(--soft); }
.good { color: var(--good); }
.bad { color: var(--bad); }
a { color: var(--link); }
nav { position: sticky; top: 0; z-index: 1; background: var(--page); border-bottom: 1px solid var(--line);
  margin-top: 1.25rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .1rem 1.4rem; list-style: none; padding-top: .55rem;
  padding-bottom: .55rem; }
nav a { text-decoration: none; font-weight: 500; }
nav a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 205px), 1fr)); gap: .75rem;
  margin: 1.25rem 0 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem .9rem; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; font-size: .9rem; }
.tiles dd:first-of-type { font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; max-width: 100%; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .25rem; }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; }
tbody th { font-weight: 500; }
tbody tr:hover { background: var(--shade); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); gap: .9rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem .9rem;
  min-width: 0; }
svg { width: 100%; height: auto; display: block; }
svg.key { width: 26px; flex: none; display: inline-block; vertical-align: middle; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.legend { list-style: none; margin: .2rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0 1rem;
  font-size: .82rem; }
.legend li { display: flex; align-items: center; gap: .4rem; min-width: 0; }
.legend b { color: var(--text); font-weight: 600; }
.grid { stroke: var(--line); stroke-width: .7; fill: none; }
.curve, .raw { fill: none; stroke-linecap: round; stroke-linejoin: round; stroke-width: 1.8; }
.raw { stroke-width: 1; opacity: .3; }
.band { opacity: .16; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: .9rem;
  margin-top: .9rem; }
.gallery .scroll img { display: block; width: 100%; min-width: 500px; height: auto; border-radius: 6px; }
.gallery figcaption { font-size: .88rem; }
.gallery h3 { margin: 0; }
.gallery figcaption strong, .gallery h3 { color: var(--text); }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: .9rem; }
.sides > div { min-width: 0; }
.wide { grid-template-columns: 100%; }
fieldset { border: 0; margin: .6rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .4rem; }
legend { float: left; margin-right: .6rem; padding: .3rem 0; }
fieldset label { border: 1px solid var(--line); border-radius: 999px; padding: .25rem .8rem; cursor: pointer; }
fieldset label:has(:checked) { background: var(--card); border-color: var(--link); color: var(--link); }
fieldset input { accent-color: var(--link); margin: 0 .4rem 0 0; }
section:has([value=loss]:checked) figure { order: var(--loss); }
section:has([value=gain]:checked) figure { order: var(--gain); }
section:has([value=data]:checked) figure { order: var(--data); }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--link); }
pre { padding: .9rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
mark { border-radius: 3px; padding: .05em .1em; -webkit-box-decoration-break: clone; box-decoration-break: clone; }
footer { margin: 3rem 0 2rem; font-size: .85rem; }
@media (max-width: 600px) { th, td { padding: .3rem .5rem; } }
@media print { nav { display: none; } figure { break-inside: avoid; } }
"""
DASHES = ("", "7 4", "2 3.5", "9 3 2 3", "5 2.5", "11 4", "1 5")


def save(file: Path, page: str) -> None:
    """Write a page to a file.

    Raises:
        UserError: If the file cannot be written.
    """
    try:
        run_folder.write(file, page)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from error


def document(title: str, kind: str, head: str, sections: Mapping[str, str]) -> str:
    """Build a whole HTML page.

    Args:
        title: Heading of the page, as text.
        kind: Kind of the page, as text.
        head: HTML below the heading.
        sections: HTML of each section by its heading, which is text.
    """
    places = {name: re.sub(r"\W+", "-", name.lower()) for name in sections}
    links = "".join(f'<li><a href="#{places[name]}">{escape(name)}</a></li>' for name in sections)
    parts = "".join(
        f'<section><h2 id="{places[name]}">{escape(name)}</h2>{body}</section>' for name, body in sections.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(f"{title} · maskgym")}</title>
<style>{STYLE}{_generated_style()}</style>
</head>
<body>
<header><p class="eyebrow">maskgym · {escape(kind)}</p><h1>{escape(title)}</h1>{head}</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>{parts}</main>
</body>
</html>
"""


def table(label: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Build a table that scrolls within its box.

    Args:
        label: Accessible name of the table, as text.
        head: Column headings, as text.
        rows: HTML of each cell; the first cell of a row is its heading.
    """
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    return scrolling(label, f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>")


def scrolling(label: str, content: str) -> str:
    """Wrap HTML in a box that scrolls horizontally, also by keyboard; ``label`` is text."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label, quote=True)}">{content}</div>'


def number(value: float | None, values: Sequence[float] | None = None, better: int | None = None) -> str:
    """Format a value, with the bootstrap interval of the mean of ``values``.

    Args:
        value: Value to show; None is shown as a dash.
        values: Values whose mean it is, if any.
        better: For a gain, 1 if more is better, -1 if less is better, 0 if neither is. A gain has a sign, and a colour
            if its interval excludes 0.
    """
    if value is None:
        return "–"
    text = f"{value:.3f}" if better is None else f"{value:+.3f}"
    if not values or len(values) < 2:
        return text
    low, high = bootstrap_interval(values)
    kind = {1: "good", -1: "bad", 0: ""}[(better or 0) * ((low > 0) - (high < 0))]
    return f'<span class="{kind}">{text}</span> <span class="soft">[{low:.3f}, {high:.3f}]</span>'


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Build cards, each with a name (text), a large value and a note (HTML)."""
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{value}</dd><dd>{note}</dd></div>" for name, value, note in entries
    )
    return f'<dl class="tiles">{cards}</dl>'


def picture(file: Path, label: str) -> str:
    """Inline a PNG file in the page; ``label`` is a text that describes the picture."""
    data = base64.b64encode(file.read_bytes()).decode()
    return scrolling(label, f'<img src="data:image/png;base64,{data}" alt="{escape(label, quote=True)}">')


def answer(text: str | None, task: str) -> str:
    """Format a text answer as HTML; return an empty text for clicks and masks.

    In a well-formed answer, expressions have the colours of their masks.
    """
    return coloured(text, task) if text and task in INSTRUCTIONS else ""


def coloured(text: str, task: str) -> str:
    """Format an answer as HTML, with expressions in the colours of their masks if it is well-formed."""
    if not parse(text, task).tagged:
        return escape(text)
    head, opening, rest = text.partition("<answer>")
    pieces, place = [escape(head), escape(opening)], -1
    for piece in re.split(r"(</?(?:rg|ins)>)", rest):
        if piece in ("<rg>", "<ins>"):
            place += 1
        inside = pieces[-1] in ("&lt;rg&gt;", "&lt;ins&gt;")
        pieces.append(f'<mark class="m{place % len(PALETTE)}">{escape(piece)}</mark>' if inside else escape(piece))
    return "".join(pieces)


def _generated_style() -> str:
    """Build the CSS rules of line styles and mask colours."""
    lines = (
        f".c{place} {{ stroke: var(--c{place}); stroke-dasharray: {dash or 'none'}; }} "
        f"circle.c{place}, polygon.c{place} {{ fill: var(--c{place}); stroke: none; }}\n"
        f".raw.c{place} {{ stroke-dasharray: none; }}\n"
        for place, dash in enumerate(DASHES)
    )
    # Text on a mask colour is black or white, whichever has more contrast by relative luminance.
    linear = np.where((share := PALETTE / 255) <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    bright = linear @ (0.2126, 0.7152, 0.0722) > 0.179
    marks = (
        f".gallery mark.m{place} {{ background: rgb{tuple(colour)}; color: {'#000' if light else '#fff'}; }}\n"
        for place, (colour, light) in enumerate(zip(PALETTE.tolist(), bright, strict=True))
    )
    return "".join(itertools.chain(lines, marks))
