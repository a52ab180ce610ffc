"""Rewards of a batch of transitions: weighted sums of terms, and presets."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from maskgym.errors import UserError
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


class WeightedSum(Reward):
    """Weighted sum of terms.

    Args:
        terms: Terms with different names.
        weights: One finite weight per term.

    Attributes:
        range: Range of the sum, from the ranges of the terms and the weights.

    Raises:
        UserError: If there is no term, two names are equal, or the weights do not fit.
    """

    def __init__(self, terms: Sequence[Term], weights: Sequence[float]) -> None:
        names = [term.name for term in terms]
        if not names or len(set(names)) < len(names):
            raise UserError(f"terms of a weighted sum: expected one or more different names, got {names}")
        if len(weights) != len(names) or not all(math.isfinite(weight) for weight in weights):
            raise UserError(f"weights of a weighted sum: expected {len(names)} finite numbers, got {list(weights)}")
        self.terms = tuple(terms)
        self.weights = tuple(float(weight) for weight in weights)
        ends = [
            sorted(weight * end for end in term.range) for term, weight in zip(self.terms, self.weights, strict=True)
        ]
        self.range = (sum(low for low, _ in ends), sum(high for _, high in ends))

    def __call__(self, transitions: Sequence[Transition]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Compute the totals, float64 (B,), and the unweighted values of each term by name, float64 (B,).

        Raises:
            ValueError: If a term leaves its declared range, which is a bug of the term.
            UserError: If a sample cannot be scored; the message names it.
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


def _evaluate(term: Term, transitions: Sequence[Transition]) -> np.ndarray:
    """Compute the values of one term, float64 (B,), and check its range."""
    low, high = term.range
    values = np.empty(len(transitions))
    for index, transition in enumerate(transitions):
        values[index] = value = term(transition)
        if not low - 1e-9 <= value <= high + 1e-9:  # This refuses NaN too.
            key = transition.sample.key
            raise ValueError(f"term '{term.name}' gave {value} on sample '{key}': expected [{low}, {high}]")
    return values
