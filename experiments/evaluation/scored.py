"""Hold what a sample adds to an evaluation, small enough to be sent to another worker, and the evaluation itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from maskgym.aliases import JsonObject
from maskgym.metrics import InstanceScores, ReferringScores, SaliencyScores, prepare
from maskgym.rewards import Transition
from maskgym.rewards.terms import union

# The final transition of an episode, whose action is all actions as text, and the numbers of the episode.
Played = tuple[Transition, dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """Scores and answers of an agent on a set of samples.

    Attributes:
        scores: Measures of the whole set: the means of `per_sample`, and measures that are defined on a set only.
        per_sample: ``key`` and named numbers of each sample: the reward, its terms, the task's measures,
            ``expressions`` (their number, or that of objects) and ``characters`` (length of the answer).
        answers: The answer to each sample, as `maskgym.experiments.evaluation.rollout.write_actions` formats it.
        sets: Measures of each set alone, by its name, where several sets were put together; otherwise empty.
    """

    scores: dict[str, float]
    per_sample: list[JsonObject]
    answers: list[str]
    sets: dict[str, dict[str, float]] = field(default_factory=dict)


class ImageNumbers(NamedTuple):
    """Numbers that the scores accumulate of one image.

    Attributes:
        pixels: From `SaliencyScores.measure`.
        areas: From `ReferringScores.measure`.
        instances: From `InstanceScores.measure`; empty if not asked for.
    """

    pixels: dict[str, float | np.ndarray]
    areas: tuple[float, float, float]
    instances: JsonObject


class Scored(NamedTuple):
    """Contribution of one sample to an evaluation, without its masks.

    Attributes:
        row: See `Evaluation.per_sample`.
        answer: See `Evaluation.answers`.
        images: Numbers of each scored image.
        ranks: From `RankingScores.measure`; empty except for ranking.
        category: The sample's category.
        malformed: Whether the answer is a text that could not be parsed.
    """

    row: JsonObject
    answer: str
    images: list[ImageNumbers]
    ranks: Mapping[str, float] = {}
    category: str | None = None
    malformed: bool = False


class Scorer(Protocol):
    """Scores of one kind of actions."""

    def measure(self, transition: Transition, numbers: Mapping[str, float]) -> Scored:
        """Compute what one sample adds."""

    def collect(self, scored: Iterable[Scored]) -> Evaluation:
        """Compute the measures of a set from what its samples add, in order."""


def numbers_of(predictions: np.ndarray, targets: np.ndarray, instances: bool = False) -> ImageNumbers:
    """Compute the numbers of an image.

    Args:
        predictions: bool (n, H, W), or soft maps float in [0, 1].
        targets: bool (m, H, W).
        instances: Whether to match instances too.
    """
    pair = union(predictions), prepare(targets.any(axis=0))  # prepared once, for both
    matched = InstanceScores().measure(predictions, targets) if instances else {}
    return ImageNumbers(SaliencyScores.measure(*pair), ReferringScores.measure(*pair), matched)
