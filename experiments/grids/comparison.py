"""Statistics over runs with rliable: interquartile means, stratified bootstraps, probability of improvement, curves.

Scores of one method are a float64 array (seeds, tasks), or (seeds, tasks, points) along a curve. Bootstraps draw seeds
within a task (Agarwal et al., Deep RL at the Edge of the Statistical Precipice, section 4), 2,000 times, with a fixed
seed, and give percentile intervals of 95 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import trim_mean

from maskgym.errors import UserError

REPETITIONS = 2000
Interval = tuple[float, float, float]  # estimate, lower bound and upper bound


def iqm(scores: np.ndarray) -> Interval:
    """Compute the interquartile mean of scores (seeds, tasks); for fewer than four scores, it is their mean."""
    estimate, interval = _estimate([scores], lambda drawn: np.array([_metrics().aggregate_iqm(drawn)]))
    return float(estimate[0]), float(interval[0, 0]), float(interval[1, 0])


def iqm_curve(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute interquartile means (points,) along curves (seeds, tasks, points), and their intervals (2, points)."""

    def along(drawn: np.ndarray) -> np.ndarray:
        # This vectorises rliable's aggregate_iqm over points, because SciPy's checks take longer than its sums.
        return trim_mean(drawn.reshape(-1, drawn.shape[-1]), 0.25, axis=0)

    return _estimate([scores], along)


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> Interval:
    """Estimate the probability that a run of the first method beats one of the second on the same task."""
    estimate, interval = _estimate(
        [first, second], lambda *drawn: np.array([_metrics().probability_of_improvement(*drawn)])
    )
    return float(estimate[0]), float(interval[0, 0]), float(interval[1, 0])


def at_budget(curves: Sequence[tuple[Sequence[float], Sequence[float]]], budget: float) -> np.ndarray:
    """Interpolate the score of each curve at a budget linearly: (seeds, 1).

    Args:
        curves: For each seed the budgets spent at its points, rising from 0, and the scores there.
        budget: Budget in the same unit, at most the smallest final budget of the curves.
    """
    return np.array([[np.interp(budget, spent, scores)] for spent, scores in curves])


def draw_curves(panels: Mapping[str, Mapping[str, Sequence[tuple[Any, Any]]]], label: str) -> bytes:
    """Plot sample efficiency: one panel per unit of the budget, one curve per method with its 95 % band.

    Args:
        panels: Curves of the seeds as in `at_budget`, by unit and method.
        label: Label of the scores.

    Returns:
        A PNG image.
    """
    from io import BytesIO

    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axes, (unit, methods) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for method, curves in methods.items():
            grid = np.linspace(0, min(spent[-1] for spent, _ in curves), 33)
            scores = np.array([[np.interp(grid, spent, values)] for spent, values in curves])
            middle, (low, high) = iqm_curve(scores)
            (line,) = axes.plot(grid, middle, label=method, linewidth=1.6)
            axes.fill_between(grid, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_xlabel(unit)
        axes.locator_params(axis="x", nbins=4)  # more labels of token counts would overlap
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(label)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _estimate(scores: Sequence[np.ndarray], measure: Callable[..., np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Compute a measure of scores and its interval (2, …), which has zero width if every method has one seed."""
    if max(len(part) for part in scores) == 1:
        value = measure(*scores)
        return value, np.stack([value, value])
    library = _library()
    state = np.random.get_state()
    np.random.seed(0)  # rliable draws from NumPy's global generator
    try:
        given = scores[0] if len(scores) == 1 else list(scores)
        values, intervals = library.get_interval_estimates({"": given}, measure, reps=REPETITIONS)
    finally:
        np.random.set_state(state)
    return values[""], intervals[""]


def _library() -> Any:
    try:
        from rliable import library
    except ImportError as error:
        raise UserError("benchmarks: pip install 'maskgym[benchmark]'") from error
    return library


def _metrics() -> Any:
    _library()
    from rliable import metrics

    return metrics
