"""Rewards: weighted sums of terms over a batch of transitions, and the presets."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from maskgym.errors import UserError
from maskgym.rewards.terms import SASOR, Correctness, Format, SMeasure, Term
from maskgym.rewards.transition import Transition


class Reward(ABC):
    """What an environment asks how good its transitions are.

    Attributes:
        range: The lowest and the highest total.
    """

    range: tuple[float, float]

    @abstractmethod
    def __call__(self, transitions: Sequence[Transition]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the totals, float64 (B,), and each term's unweighted values by name, float64 (B,)."""


class WeightedSum(Reward):
    """The sum over its terms of weight times value.

    Args:
        terms: Terms with different names.
        weights: One finite weight a term.

    Attributes:
        range: The sum's range, from the terms' ranges and the weights.

    Raises:
        UserError: If there is no term, names repeat, or the weights do not fit.
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
        """Return the totals, float64 (B,), and each term's unweighted values by name, float64 (B,).

        Raises:
            ValueError: If a term leaves the range that it declares (a fault in the term).
            UserError: If a sample cannot be scored; the message names it.
        """
        values = {term.name: _evaluate(term, transitions) for term in self.terms}
        totals = np.zeros(len(transitions))
        for weight, column in zip(self.weights, values.values(), strict=True):
            totals += weight * column
        return totals, values


def saliency_r1(format_weight: float = 0.5, threshold: float = 0.1, published: bool = True) -> WeightedSum:
    """Return Saliency-R1's reward as published (Eq. 16): λ · ``correctness`` + (1 - λ) · ``format``, in [0, 1].

    Args:
        format_weight: 1 - λ, in [0, 1]; the paper has 0.5.
        threshold: The smallest IoU of a matched pair in IASM (τ).
        published: Score unmatched instances as published; see ``IASM``.

    Raises:
        UserError: If the weight is outside [0, 1].
    """
    if not 0 <= format_weight <= 1:
        raise UserError(f"format_weight={format_weight}: expected a number in [0, 1]")
    return WeightedSum([Correctness(threshold, published), Format()], [1 - format_weight, format_weight])


def saliency_strict(format_weight: float = 0.5, threshold: float = 0.1) -> WeightedSum:
    """Return ``saliency_r1`` with the strict IASM, which cannot be gained by saying more: the training default."""
    return saliency_r1(format_weight, threshold, published=False)


def ranking(sa_sor_weight: float = 1.0) -> WeightedSum:
    """Return the S-measure of each step of ranking, plus SA-SOR at the last one.

    Args:
        sa_sor_weight: What SA-SOR counts, at least 0; a step's S-measure counts 1.

    Raises:
        UserError: If the weight is negative.
    """
    if not sa_sor_weight >= 0:
        raise UserError(f"sa_sor_weight={sa_sor_weight}: expected a number, at least 0")
    return WeightedSum([SMeasure(), SASOR()], [1.0, sa_sor_weight])


def _evaluate(term: Term, transitions: Sequence[Transition]) -> np.ndarray:
    """Return the values of one term, float64 (B,), checked against its range."""
    low, high = term.range
    values = np.empty(len(transitions))
    for index, transition in enumerate(transitions):
        values[index] = value = term(transition)
        if not low - 1e-9 <= value <= high + 1e-9:  # NaN fails too
            key = transition.sample.key
            raise ValueError(f"term '{term.name}' gave {value} on sample '{key}': expected [{low}, {high}]")
    return values
