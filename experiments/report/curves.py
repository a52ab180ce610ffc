"""Curves as inline SVG: light gridlines, lines that differ in colour and dashes, and a table of the values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from maskgym.experiments.report.report_page import table

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 340, 190, 48, 24, 10, 12  # figure size and margins in view box units
STYLES = 7  # number of line styles in `report_page.STYLE`
SMOOTHED_FROM = 40  # curves with more points are smoothed
WINDOWS = 12  # approximate number of smoothing windows along a curve
TICKS = 7  # approximate maximum number of ticks per axis
ROWS = 8  # maximum number of rows in the table


@dataclass(frozen=True)
class Curve:
    """A named line.

    Attributes:
        name: Name in the legend.
        points: (step, value) in order, at least one.
        style: Index of the line style.
        band: (step, low, high) in order; empty for no band.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0
    band: Sequence[tuple[float, float, float]] = ()


def figure(title: str, curves: Sequence[Curve]) -> str:
    """Draw curves with axes, a legend and a table of values as HTML."""
    x = _Axis([step for curve in curves for step, _ in curve.points], LEFT, WIDTH - RIGHT, whole=True)
    y = _y_axis(curves)
    grid = [f'<path class="grid" d="M{LEFT} {y.place(value):.1f}H{WIDTH - RIGHT}"/>' for value in y.ticks]
    labels = [
        f'<text x="{LEFT - 6}" y="{y.place(value) + 4:.1f}" text-anchor="end">{text}</text>'
        for value, text in zip(y.ticks, y.labels, strict=True)
    ] + [
        f'<text x="{x.place(value):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{text}</text>'
        for value, text in zip(x.ticks, x.labels, strict=True)
    ]
    lines = [_line(curve, x, y) for curve in curves]
    told = "; ".join(f"{curve.name} {_told(curve)}" for curve in curves)
    legend = "".join(
        f"<li>{key(curve.style)}{escape(curve.name)} <b>{shown(curve.points[-1][1])}</b></li>" for curve in curves
    )
    return (
        f'<figure class="panel"><h4>{escape(title)}</h4><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(f"{title} by update: {told}", quote=True)}">{"".join(grid + labels + lines)}</svg>'
        f'<figcaption><ul class="legend">{legend}</ul><details><summary>Values</summary>{_values(title, curves)}'
        "</details></figcaption></figure>"
    )


def key(style: int) -> str:
    """Draw a short line of a style for a legend."""
    path = f'<path class="curve c{style % STYLES}" d="M1 4H25"/>'
    return f'<svg class="key" viewBox="0 0 26 8" aria-hidden="true">{path}</svg>'


def is_smoothed(points: Sequence[tuple[float, float]]) -> bool:
    """Check whether a curve is smoothed, with the logged values drawn faintly behind it."""
    return len(points) > SMOOTHED_FROM


def shown(value: float) -> str:
    """Format a number with three significant digits, or with thousands separators from 1000."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class _Axis:
    """Axis that maps values to positions, with round numbers as ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, whole: bool = False) -> None:
        low, high = min(values), max(values)
        if high == low:
            spread = 0.5 if whole or not low else abs(low) / 10
            low, high = low - spread, high + spread
        self._low, self._high = low, high
        self._start, self._end = start, end
        step = _round_step((self._high - self._low) / TICKS)
        if whole:
            step = max(1, round(step))
        first, last = math.ceil(self._low / step - 1e-9), math.floor(self._high / step + 1e-9)
        self.ticks = [number * step for number in range(first, last + 1)]
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        self.labels = [
            f"{tick:.3g}" if decimals > 5 else shown(tick) if decimals == 0 else f"{tick:.{decimals}f}"
            for tick in self.ticks
        ]

    def place(self, value: float) -> float:
        return self._start + (value - self._low) / (self._high - self._low) * (self._end - self._start)


def _y_axis(curves: Sequence[Curve]) -> _Axis:
    values = [value for curve in curves for _, value in curve.points]
    values += [end for curve in curves for _, low, high in curve.band for end in (low, high)]
    return _Axis(values, HEIGHT - BOTTOM, TOP)


def _round_step(about: float) -> float:
    """Round a step up to 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(about))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= about * (1 - 1e-9))


def _line(curve: Curve, x: _Axis, y: _Axis) -> str:
    """Draw the band, the line and the points of a curve; a curve with many points has a smoothed line instead."""

    def joined(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x.place(step):.1f},{y.place(value):.1f}" for step, value in points)

    kind, parts = f"c{curve.style % STYLES}", []
    if any(high > low for _, low, high in curve.band):
        around = [(step, high) for step, _, high in curve.band] + [(step, low) for step, low, _ in reversed(curve.band)]
        parts.append(f'<polygon class="band {kind}" points="{joined(around)}"/>')
    many = is_smoothed(curve.points)
    if many:
        parts.append(f'<polyline class="raw {kind}" points="{joined(curve.points)}"/>')
    line = _smoothed(curve.points) if many else curve.points
    title = f"<title>{escape(curve.name)}: {escape(_told(curve))}</title>"
    # The last point is repeated, so that round caps draw a curve of one point as a dot.
    parts.append(f'<polyline class="curve {kind}" points="{joined(line)} {joined(line[-1:])}">{title}</polyline>')
    if not many:
        parts += [
            f'<circle class="{kind}" cx="{x.place(step):.1f}" cy="{y.place(value):.1f}" r="2.5"><title>'
            f"{escape(curve.name)}, update {step:.0f}: {shown(value)}</title></circle>"
            for step, value in curve.points
        ]
    return "".join(parts)


def _told(curve: Curve) -> str:
    values = [value for _, value in curve.points]
    if len(values) == 1:
        return shown(values[0])
    return f"from {shown(values[0])} to {shown(values[-1])}, between {shown(min(values))} and {shown(max(values))}"


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Compute a centred moving average, whose window shrinks symmetrically at the ends."""
    reach = max(1, len(points) // WINDOWS // 2)
    sums = [0.0, *itertools.accumulate(value for _, value in points)]
    found = []
    for place, (step, _) in enumerate(points):
        near = min(reach, place, len(points) - 1 - place)
        found.append((step, (sums[place + near + 1] - sums[place - near]) / (2 * near + 1)))
    return found


def _values(title: str, curves: Sequence[Curve]) -> str:
    """Build a table of evenly spread steps that include the first and the last."""
    steps = sorted({step for curve in curves for step, _ in curve.points})
    count = min(ROWS, len(steps))
    kept = [steps[round(number * (len(steps) - 1) / max(1, count - 1))] for number in range(count)]
    known = [dict(curve.points) for curve in curves]
    rows = [[f"{step:.0f}", *(shown(one[step]) if step in one else "–" for one in known)] for step in kept]
    return table(f"{title}: values", ["update", *(curve.name for curve in curves)], rows)
