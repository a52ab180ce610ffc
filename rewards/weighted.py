"""Rewards of a batch of transitions: weighted sums of terms, and presets."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from maskgym.errors import UserError, brief
from maskgym.rewards.instances import InstanceIoU
from maskgym.rewards.terms import SASOR, Correctness, Format, SMeasure, Term
from maskgym.rewards.transition import Transition


class Reward(ABC):
    """Function that scores the transitions of an environment.

    Attributes:
        range: Lowest and highest total.
    """

    range: tuple[float, float]

    @abstractmethod
    def __call__(self, transitions: Sequence[Transition]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Compute the totals, float64 (B,), and the unweighted values of each term by name, float64 (B,)."""

    def return_range(self, horizon: int) -> tuple[float, float]:
        """Find the lowest and the highest return of an episode of ``horizon`` steps."""
        low, high = self.range
        return low * horizon, high * horizon


class WeightedSum(Reward):
    """Weighted sum of terms.

    Args:
        terms: Terms with different names.
        weights: One finite weight per term.

    Attributes:
        range: Range of the sum, from the ranges of the terms and the weights.

    Raises:
        UserError: If there is no term, two names are equal, the weights do not fit, or a term has no range.
    """

    def __init__(self, terms: Sequence[Term], weights: Sequence[float]) -> None:
        names = [term.name for term in terms]
        if not names or len(set(names)) < len(names):
            raise UserError(f"terms of a weighted sum: expected one or more different names, got {names}")
        if len(weights) != len(names) or not all(math.isfinite(weight) for weight in weights):
            raise UserError(f"weights of a weighted sum: expected {len(names)} finite numbers, got {list(weights)}")
        self.terms = tuple(terms)
        self.weights = tuple(float(weight) for weight in weights)
        self.range = self._sum([check_range(f"term '{term.name}'", term.range) for term in self.terms])

    def return_range(self, horizon: int) -> tuple[float, float]:
        """Sum the ranges of the terms' sums over an episode."""
        return self._sum([term.return_range(horizon) for term in self.terms])

    def _sum(self, ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
        """Sum ranges of the terms by weight."""
        ends = [sorted(weight * end for end in pair) for pair, weight in zip(ranges, self.weights, strict=True)]
        return sum(low for low, _ in ends), sum(high for _, high in ends)

    def __call__(self, transitions: Sequence[Transition]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Compute the totals, float64 (B,), and the unweighted values of each term by name, float64 (B,).

        Raises:
            UserError: If a sample cannot be scored, or a term gives no number in its range; it names the sample.
        """
        values = {term.name: _evaluate(term, transitions) for term in self.terms}
        totals = np.zeros(len(transitions))
        for weight, column in zip(self.weights, values.values(), strict=True):
            totals += weight * column
        return totals, values


def saliency_r1(format_weight: float = 0.5, threshold: float = 0.1, published: bool = True) -> WeightedSum:
    """Build the published reward of Saliency-R1 (Eq. 16): λ · ``correctness`` + (1 - λ) · ``format``, in [0, 1].

    Args:
        format_weight: 1 - λ, in [0, 1]; 0.5 in the paper.
        threshold: Smallest IoU of a matched pair in IASM (τ).
        published: Whether unmatched instances are scored as published; see `IASM`.

    Raises:
        UserError: If the weight is outside [0, 1].
    """
    if not 0 <= format_weight <= 1:
        raise UserError(f"format_weight={format_weight}: expected a number in [0, 1]")
    return WeightedSum([Correctness(threshold, published), Format()], [1 - format_weight, format_weight])


def saliency_strict(format_weight: float = 0.5, threshold: float = 0.1) -> WeightedSum:
    """Build `saliency_r1` with the strict IASM, which longer answers do not raise: the training default."""
    return saliency_r1(format_weight, threshold, published=False)


def refer_strict(format_weight: float = 0.5) -> WeightedSum:
    """Build the training default of Refer: (1 - λ) · ``instance_iou`` + λ · ``format``, in [0, 1].

    An empty answer to a query without a target earns 1, as a perfect one to any other query. A malformed answer earns
    at most λ / 2, for its blocks.

    Args:
        format_weight: λ, in [0, 1].

    Raises:
        UserError: If the weight is outside [0, 1].
    """
    if not 0 <= format_weight <= 1:
        raise UserError(f"format_weight={format_weight}: expected a number in [0, 1]")
    return WeightedSum([InstanceIoU(), Format()], [1 - format_weight, format_weight])


def ranking(sa_sor_weight: float = 1.0) -> WeightedSum:
    """Build the reward of ranking: the S-measure of each step, plus SA-SOR at the last one.

    Args:
        sa_sor_weight: Weight of SA-SOR, at least 0; the S-measure has weight 1.

    Raises:
        UserError: If the weight is negative.
    """
    if not sa_sor_weight >= 0:
        raise UserError(f"sa_sor_weight={sa_sor_weight}: expected a number, at least 0")
    return WeightedSum([SMeasure(), SASOR()], [1.0, sa_sor_weight])


def check_range(name: str, value: Sequence[float]) -> tuple[float, float]:
    """Check the declared range of a term or a reward; return it.

    Raises:
        UserError: If it is not two finite numbers in ascending order.
    """
    try:
        low, high = (float(end) for end in value)
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low <= high < math.inf:
        raise UserError(f"{name}: range {value!r}: expected the lowest and the highest value, such as (0.0, 1.0)")
    return low, high


class BadValue(UserError):
    """Value that a term or a reward must not give.

    Args:
        row: Index of the transition in the batch.
        message: What came for which sample, and what was expected.
    """

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def score(
    reward: Reward, transitions: Sequence[Transition], rows: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Score transitions and check the result, whoever wrote the reward: environments call rewards only here.

    Args:
        reward: Any reward.
        transitions: B transitions.
        rows: Sub-environment of each, for messages.

    Returns:
        The totals and the values of each term by name, float64 (B,) each.

    Raises:
        UserError: If the reward does not return totals and terms, one of them has not the shape (B,), a value is not
            finite, or a total lies outside the declared range. It names the reward, the sub-environment and the key.
    """
    name = f"reward {type(reward).__name__}"
    try:
        found = reward(transitions)
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
            raise UserError(f"{name} returned {brief(found)}: expected totals (B,) and a dictionary of terms (B,)")
        totals = _column(f"{name}: total", found[0], transitions, *check_range(name, reward.range))
        terms = {str(term): _column(f"{name}: term '{term}'", found[1][term], transitions) for term in found[1]}
    except BadValue as error:
        raise UserError(f"sub-environment {rows[error.row]}: {error}") from None
    return totals, terms


def _column(
    name: str, values: np.ndarray, transitions: Sequence[Transition], low: float = -np.inf, high: float = np.inf
) -> np.ndarray:
    """Check one value per transition, finite and within its range; return them as float64 (B,)."""
    try:
        column = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, and tensors that NumPy cannot read
        column = np.empty((), object)
    if column.dtype.kind not in "fiub" or column.shape != (len(transitions),):
        raise UserError(f"{name}: {brief(values)}: expected {len(transitions)} numbers, one per transition")
    column = column.astype(np.float64)
    slack = 1e-6 * max(1.0, abs(low), abs(high)) if low > -np.inf else 0.0  # A reward may compute in float32.
    wrong = np.flatnonzero(~(np.isfinite(column) & (column >= low - slack) & (column <= high + slack)))
    if len(wrong):
        row = int(wrong[0])
        expected = f"a number in [{low:g}, {high:g}]" if low > -np.inf else "a finite number"
        raise BadValue(row, f"{name} {column[row]:g} on sample '{transitions[row].sample.key}': expected {expected}")
    return column


def _evaluate(term: Term, transitions: Sequence[Transition]) -> np.ndarray:
    """Compute the values of one term, float64 (B,), and check its range."""
    low, high = term.range
    values = np.full(len(transitions), np.nan)
    for index, transition in enumerate(transitions):
        value = term(transition)
        with suppress(TypeError, ValueError):  # What is no number stays NaN.
            values[index] = math.nan if isinstance(value, (str, bytes)) else float(value)
        if not low - 1e-9 <= values[index] <= high + 1e-9:  # This refuses NaN too.
            came = f"{values[index]:g}" if isinstance(value, (int, float, np.number)) else brief(value)
            message = f"term '{term.name}' gave {came} on sample '{transition.sample.key}'"
            raise BadValue(index, f"{message}: expected a number in [{low:g}, {high:g}]")
    return values
