"""Panels of curves: positions of lines and ticks, moving averages and tables of values, for the template to draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from maskgym.experiments.report.run_data import Points

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 340, 190, 50, 24, 10, 12  # size and margins of a panel in SVG units
SMOOTHED_FROM = 40  # curves with more points are smoothed
WINDOWS = 12  # approximate number of smoothing windows along a curve
ROWS = 8  # maximum number of rows in the table of values


@dataclass(frozen=True)
class Curve:
    """A named line of a panel."""

    name: str
    points: Points  # at least one
    style: int = 0  # index of the line style
    band: Sequence[tuple[float, float, float]] = ()  # (step, low, high) in order

    @property
    def is_smoothed(self) -> bool:
        """Whether the line is a moving average, with the logged values drawn faintly behind it."""
        return len(self.points) > SMOOTHED_FROM

    @property
    def line(self) -> Points:
        """The points, or their centred moving average, whose window shrinks symmetrically at the ends."""
        if not self.is_smoothed:
            return self.points
        steps, values = zip(*self.points, strict=True)
        sums, place = np.cumsum([0.0, *values]), np.arange(len(steps))
        reach = np.minimum(len(steps) // WINDOWS // 2, np.minimum(place, place[::-1]))
        return list(zip(steps, (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1), strict=True))

    @property
    def outline(self) -> Points:
        """Corners of the band; none if the band has no width."""
        if all(low == high for _, low, high in self.band):
            return []
        return [(step, high) for step, _, high in self.band] + [(step, low) for step, low, _ in reversed(self.band)]

    @property
    def summary(self) -> str:
        """The line in words."""
        values = [value for _, value in self.points]
        first, last, low, high = map(number, (values[0], values[-1], min(values), max(values)))
        return first if len(values) == 1 else f"from {first} to {last}, between {low} and {high}"


class Axis:
    """Axis between two places in SVG units; Matplotlib chooses round ticks.

    Attributes:
        ticks: (place, label) of each tick.
    """

    def __init__(self, values: Iterable[float], start: float, end: float, whole: bool = False) -> None:
        from matplotlib.ticker import MaxNLocator

        known = list(values)
        low, high = min(known), max(known)
        spread = 0.0 if low < high else 0.5 if whole else abs(low) / 10 or 0.5
        self._low, self._high = low - spread, high + spread
        self._start, self._end = start, end
        locator = MaxNLocator(7, steps=[1, 2, 5, 10], integer=whole, min_n_ticks=1)
        ticks = np.asarray(locator.tick_values(self._low, self._high)) + 0.0  # no tick is -0.0
        decimals = max(0, math.ceil(-math.log10(ticks[1] - ticks[0]) - 1e-9))
        form = f",.{decimals}f" if decimals < 6 and max(map(abs, known)) < 1e7 else ".3g"
        places = [(self.place(tick), f"{tick:{form}}") for tick in ticks]
        self.ticks = [tick for tick in places if min(start, end) - 0.01 < tick[0] < max(start, end) + 0.01]

    def place(self, value: float) -> float:
        """Compute the place of a value."""
        return self._start + (value - self._low) / (self._high - self._low) * (self._end - self._start)


class Panel:
    """Curves on common axes, with a heading."""

    def __init__(self, title: str, curves: Sequence[Curve]) -> None:
        self.title, self.curves = title, curves
        points = [point for curve in curves for point in (*curve.points, *curve.outline)]
        self.x = Axis((step for step, _ in points), LEFT, WIDTH - RIGHT, whole=True)
        self.y = Axis((value for _, value in points), HEIGHT - BOTTOM, TOP)

    def path(self, points: Points) -> str:
        """Build the SVG path through some points."""
        return "M" + "L".join(f"{self.x.place(step):.1f} {self.y.place(value):.1f}" for step, value in points)

    @property
    def rows(self) -> list[list[str]]:
        """Table of the values at evenly spread steps that include the first and the last."""
        steps = sorted({step for curve in self.curves for step, _ in curve.points})
        kept = [steps[round(place)] for place in np.linspace(0, len(steps) - 1, min(ROWS, len(steps)))]
        known = [dict(curve.points) for curve in self.curves]
        return [[f"{step:.0f}", *(number(one[step]) if step in one else "–" for one in known)] for step in kept]


def number(value: float) -> str:
    """Format a number with three significant digits, or with thousands separators from 1000."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
