"""Panels of curves: positions, ticks, moving averages and tables of values."""

from __future__ import annotations

import pytest

from maskgym.experiments.report.curves import Axis, Curve, Panel


def test_many_points_are_smoothed_and_few_are_not():
    few, many = (Curve("a", [(step, float(step % 2)) for step in range(count)]) for count in (40, 480))
    assert not few.is_smoothed and few.line == few.points
    assert many.is_smoothed and [step for step, _ in many.line] == list(range(480))
    middle = [value for _, value in many.line[50:-50]]
    assert min(middle) > 0.45 and max(middle) < 0.55  # 20 neighbours on either side, and itself: about one half
    assert many.line[0] == many.points[0] and many.line[-1] == many.points[-1]  # the window shrinks at the ends
    assert many.summary == "from 0 to 1, between 0 and 1"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 1.0], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([3e-5, 3e-5], ["2.7e-05", "2.8e-05", "2.9e-05", "3e-05", "3.1e-05", "3.2e-05", "3.3e-05"]),
        ([0.0, 0.0], ["-0.4", "-0.2", "0.0", "0.2", "0.4"]),
        ([-5000.0, 5000.0], ["-4,000", "-2,000", "0", "2,000", "4,000"]),
        ([0.1, 0.7], ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"]),
    ],
)
def test_ticks_are_round_and_told_apart(values, labels):
    assert [label for _, label in Axis(values, 0, 100).ticks] == labels


def test_steps_have_whole_ticks():
    assert Axis([0], 0, 100, whole=True).ticks == [(50, "0")]
    assert [label for _, label in Axis([0, 3], 0, 100, whole=True).ticks] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("values", [[1e300], [-1e300, 1e300], [5e-324], [1.0, 1.0 + 2**-52]])
def test_extreme_values_have_short_labels(values):
    axis = Axis(values, 0, 100)
    assert all(len(label) <= 12 for _, label in axis.ticks) and 0 <= axis.place(values[0]) <= 100


def test_a_panel_holds_its_lines_bands_and_values():
    curves = [Curve("a", [(0, 1.0), (10, 2000.0)], 0, [(0, 0.0, 2.0), (10, 2000.0, 2000.0)]), Curve("b", [(5, 3.0)], 1)]
    panel = Panel("title", curves)
    assert panel.path(curves[0].points).count("L") == 1 and panel.path([(10, 2000.0)]) == "M328.0 10.0"
    assert curves[0].outline == [(0, 2.0), (10, 2000.0), (10, 2000.0), (0, 0.0)]
    assert Curve("c", [(0, 1.0)], 0, [(0, 1.0, 1.0)]).outline == []  # one seed has no band
    assert panel.rows == [["0", "1", "–"], ["5", "–", "3"], ["10", "2,000", "–"]]
    assert len(Panel("long", [Curve("a", [(step, 0.0) for step in range(100)])]).rows) == 8
