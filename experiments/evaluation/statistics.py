"""Statistics over runs: bootstrap intervals of means, interquartile means, and probabilities of improvement.

Scores of one method are a float64 array (N seeds, T tasks), or (N, T, P points) along a curve. Intervals are percentile
bootstraps at 95 % from 2,000 resamples with a fixed seed.

`smallest_difference` and `seeds_needed` are of the two-sided t-test of two methods with equally many seeds, at 5 %
significance and a power of 80 %.

References:
    Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS 2021, section 4:
    stratified bootstrap, interquartile mean and probability of improvement.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEW = 30  # samples below which differences between scores are mostly chance
FEW_TOLD = f"with fewer than {FEW} samples, differences are mostly chance"
RESAMPLES = 2000
POWER = 0.8  # probability that a difference which is there is found
MOST = 1000  # seeds that are tried
LEVEL = 0.95  # share of the resampled estimates inside an interval
Interval = tuple[float, float, float]  # estimate, lower bound and upper bound


def bootstrap_interval(
    values: Sequence[float], level: float = LEVEL, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of the mean of some values, with a fixed seed.

    Args:
        values: Values, at least one; the interval of a single value has zero width.
        level: Share of the resampled means inside the interval.
        resamples: Number of resamples with replacement.
    """
    if len(values) == 1:
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap  # This takes a third of a second, and a report of one run does not need it.

    settings = {"n_resamples": resamples, "confidence_level": level, "method": "percentile"}
    low, high = bootstrap((values,), np.mean, rng=np.random.default_rng(0), **settings).confidence_interval
    return float(low), float(high)


def mean_and_interval(values: Sequence[float], sign: str = "") -> str:
    """Format the mean of some values, and its interval if there are several; a dash if a value is no number.

    Args:
        values: At least one.
        sign: ``+`` to write the sign of positive numbers too.

    Example:
        >>> mean_and_interval([0.25], "+"), mean_and_interval([0.5, 0.5]), mean_and_interval([0.5, float("nan")])
        ('+0.250', '0.500 [0.500, 0.500]', '–')
    """
    if not np.isfinite(values).all():
        return "–"
    mean = f"{sum(values) / len(values):{sign}.3f}"
    if len(values) == 1:
        return mean
    low, high = bootstrap_interval(values)
    return f"{mean} [{low:{sign}.3f}, {high:{sign}.3f}]"


def interquartile_mean(scores: np.ndarray) -> Interval:
    """Estimate the interquartile mean of scores (N, T): their mean without the lowest and the highest quarter.

    All N·T scores are sorted together, and ⌊N·T / 4⌋ are dropped at each end.
    """
    middle, (low, high) = interquartile_curve(scores[..., None])
    return float(middle[0]), float(low[0]), float(high[0])


def interquartile_curve(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate interquartile means (P,) along curves (N, T, P), and their pointwise intervals (2, P)."""
    drawn = _resampled(scores, np.random.default_rng(0))
    return _trimmed(scores[None])[0], _bounds(_trimmed(drawn))


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> Interval:
    """Estimate the probability that a run of the first method beats a run of the second on the same task.

    This is the share of pairs of runs in which the first has the higher score, averaged over tasks; a tie counts half.
    The two methods are resampled independently.

    Args:
        first: Scores (N, T) of the first method, higher is better.
        second: Scores (M, T) of the second method on the same tasks.
    """
    rng = np.random.default_rng(0)
    low, high = _bounds(_improvement(_resampled(first, rng), _resampled(second, rng)))
    return float(_improvement(first[None], second[None])[0]), float(low), float(high)


def smallest_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Compute the smallest difference of two methods' means that so many seeds can show, from their deviations.

    Args:
        first: Scores of the seeds of one method, at least two.
        second: Scores of the seeds of the other, at least two.
    """
    from scipy.optimize import brentq

    deviation, seeds = _deviation(first, second), min(len(first), len(second))
    if not deviation:
        return 0.0
    return float(deviation * brentq(lambda effect: _power(effect, seeds) - POWER, 1e-6, 20.0))


def seeds_needed(first: Sequence[float], second: Sequence[float]) -> int | None:
    """Compute the seeds of each method that would show the difference of their means; None if more than `MOST`.

    Arguments as of `smallest_difference`.
    """
    deviation, difference = _deviation(first, second), abs(float(np.mean(first) - np.mean(second)))
    if not deviation:
        return 2 if difference else None
    return next((seeds for seeds in range(2, MOST + 1) if _power(difference / deviation, seeds) >= POWER), None)


def p_values(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[float]:
    """Compute the p-values of several pairs of methods by Welch's t-test, corrected for their number by Holm's method.

    Args:
        pairs: Scores of the seeds of the two methods of each pair, at least two each.
    """
    from scipy.stats import ttest_ind

    raw = []
    for first, second in pairs:
        if _deviation(first, second):
            raw.append(float(ttest_ind(first, second, equal_var=False).pvalue))
        else:  # no seed deviates
            raw.append(float(np.mean(first) == np.mean(second)))
    order = np.argsort(raw)
    corrected = np.maximum.accumulate([(len(raw) - place) * raw[i] for place, i in enumerate(order)])
    return [min(1.0, float(corrected[list(order).index(i)])) for i in range(len(raw))]


def hedges_g(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Compute Hedges' g: the difference of two methods' means in standard deviations of a seed, for few seeds.

    Arguments as of `smallest_difference`. None if no seed deviates.

    References:
        Hedges, Distribution theory for Glass's estimator of effect size, 1981: the factor 1 - 3 / (4 (n + m) - 9).
    """
    deviation = _deviation(first, second)
    if not deviation:
        return None
    return float(np.mean(first) - np.mean(second)) / deviation * (1 - 3 / (4 * (len(first) + len(second)) - 9))


def _deviation(first: Sequence[float], second: Sequence[float]) -> float:
    """Compute the standard deviation of a seed, the same in both methods."""
    squares = sum(len(scores) * float(np.var(scores)) for scores in (first, second))
    return float(np.sqrt(squares / (len(first) + len(second) - 2)))


def _power(effect: float, seeds: int) -> float:
    """Compute the power of the t-test for a difference in standard deviations."""
    from scipy.stats import ncf, t

    freedom, shift = 2 * seeds - 2, effect * np.sqrt(seeds / 2)
    limit = t.ppf((1 + LEVEL) / 2, freedom)
    return float(ncf.sf(limit**2, 1, freedom, shift**2))  # of t²; the distribution of t itself is NaN for large shifts


def _resampled(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the seeds of each task with replacement (B, N, T, …): the stratified bootstrap, whose strata are tasks."""
    seeds, tasks = scores.shape[:2]
    return scores[rng.integers(seeds, size=(RESAMPLES, seeds, tasks)), np.arange(tasks)]


def _trimmed(drawn: np.ndarray) -> np.ndarray:
    """Compute the interquartile means (B, P) of resamples (B, N, T, P)."""
    from scipy.stats import trim_mean

    return trim_mean(drawn.reshape(len(drawn), -1, drawn.shape[-1]), 0.25, axis=1)


def _improvement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the probabilities of improvement (B,) of resamples (B, N, T) over resamples (B, M, T)."""
    gains = first[:, :, None] - second[:, None]  # (B, N, M, T)
    return ((gains > 0) + 0.5 * (gains == 0)).mean(axis=(1, 2, 3))


def _bounds(estimates: np.ndarray) -> np.ndarray:
    """Compute the percentile interval (2, …) of resampled estimates (B, …)."""
    return np.quantile(estimates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
