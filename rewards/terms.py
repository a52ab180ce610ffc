"""Reward terms: each scores one transition by one measure.

A term is a callable over a `Transition` with a ``name`` and a ``range``. It treats three cases separately:

- Masks that do not fit, which is a bug of ours, raise ``ValueError``. A value that is no number in the range of its
  term raises ``UserError``, because the term may be the user's.
- A malformed answer is a legal action. Every measure of masks scores it 0, and ``format`` scores its correct halves.
- A sample that cannot be scored raises ``UserError`` with its key.

Void pixels are set to background in the prediction and in the ground truth, so that the score depends on neither. IoU
and the matching of IASM thereby exclude them. The S-measure is defined on whole rectangles, so it counts them as
correct background.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from maskgym.errors import UserError
from maskgym.metrics import iasm, iou, mae, s_measure, sa_sor
from maskgym.rewards.transition import Click, Transition, Unscored


class Term(ABC):
    """Measure of one transition.

    Attributes:
        name: Name of the term in sums, logs and tables.
        range: Lowest and highest value.
    """

    name: str
    range: tuple[float, float] = (0.0, 1.0)

    @abstractmethod
    def __call__(self, transition: Transition) -> float:
        """Compute the value of one transition, within ``range``."""

    def return_range(self, horizon: int) -> tuple[float, float]:
        """Find the lowest and the highest sum over an episode of ``horizon`` steps."""
        low, high = self.range
        return low * horizon, high * horizon


class Function(Term):
    """Function of one transition as a term, with its own name.

    Args:
        function: Function from a transition to a number. Its range is (0, 1), or its attribute ``range``.
    """

    def __init__(self, function: Callable[[Transition], float]) -> None:
        self.function = function
        self.name = str(getattr(function, "name", getattr(function, "__name__", type(function).__name__))).strip("<>")
        self.range = getattr(function, "range", Term.range)

    def __call__(self, transition: Transition) -> float:
        """Call the function."""
        return self.function(transition)


class MaskTerm(Term):
    """Measure of the predicted masks: the mean over the images; 0 for a malformed answer or an `Unscored` action."""

    def __call__(self, transition: Transition) -> float:
        """Compute the mean of `score` over the images.

        Raises:
            UserError: If the sample cannot be scored.
        """
        # The sample is checked before the answer, so that a broken sample is reported for any answer.
        pairs = list(scored_masks(transition))
        malformed = transition.answer is not None and not transition.answer.tagged
        if malformed or isinstance(transition.action, Unscored):
            return 0.0
        return float(np.mean([self.score(*pair, transition) for pair in pairs]))

    @abstractmethod
    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Score one image by its predictions (m, H, W), bool or soft, and targets, bool (n, H, W), without void."""


@dataclass(frozen=True)
class SMeasure(MaskTerm):
    """S-measure between the unions of the predicted masks and of the ground truth (supplement, Eq. 18-21).

    Range [0, 1]. A group scores the mean over its images. An image without the common object scores 1 minus the
    predicted share of its pixels.
    """

    name = "s_measure"

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Compute the S-measure of the unions of one image."""
        return float(s_measure(union(predictions), targets.any(axis=0)))


@dataclass(frozen=True)
class IoU(MaskTerm):
    """Intersection over union between the unions of the predicted masks and of the ground truth.

    Range [0, 1]. A group scores the mean over its images. An empty prediction for an empty target scores 1.
    """

    name = "iou"

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Compute the IoU of the unions of one image."""
        return float(iou(union(predictions), targets.any(axis=0), empty=1.0))


@dataclass(frozen=True)
class OneMinusMAE(MaskTerm):
    """1 minus the mean absolute error between the unions of the predicted masks and of the ground truth.

    Range [0, 1], larger is better; results have ``mae`` itself. A blank prediction of a small object scores near 1.
    """

    name = "one_minus_mae"

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Compute 1 minus the error of the unions of one image."""
        return float(1 - mae(union(predictions), targets.any(axis=0)))


@dataclass(frozen=True)
class IASM(MaskTerm):
    """Instance-aligned S-measure (supplement, Eq. 22 and 23). Range [0, 1].

    Instances and predictions entirely in void are ignored.

    Args:
        threshold: Smallest IoU of a matched pair.
        published: Whether unmatched masks are scored against an empty mask, as in the paper. There the S-measure of a
            small spurious mask is almost 1, and that of an empty one 1, so answers grow longer instead of better. By
            default, unmatched masks score 0.
    """

    threshold: float = 0.1
    published: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        """Registered name of this form."""
        return "iasm_published" if self.published else "iasm"

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Compute the IASM of one image; raise a `UserError` if its ground truth has no instance."""
        if not len(targets):
            raise UserError(f"sample '{transition.sample.key}' cannot be scored by {self.name}: it has no instance")
        unmatched = "published" if self.published else "zero"
        return iasm(predictions, targets, threshold=self.threshold, unmatched=unmatched)


@dataclass(frozen=True)
class Correctness(Term):
    """Correctness reward of Saliency-R1 (supplement, 7.1): IASM for ``sis``, else S-measure. Range [0, 1].

    Args:
        threshold: As in `IASM`.
        published: As in `IASM`.
    """

    threshold: float = 0.1
    published: bool = False

    name = "correctness"

    def __call__(self, transition: Transition) -> float:
        """Compute the measure of the task."""
        measure = IASM(self.threshold, self.published) if transition.task == "sis" else SMeasure()
        return measure(transition)


@dataclass(frozen=True)
class Format(Term):
    """Format reward of Saliency-R1 (supplement, 7.2 and Eq. 24): 0.5 for the blocks and 0.5 for the tags.

    Range [0, 1]. `maskgym.rewards.answers.parse` states the rules.
    """

    name = "format"

    def __call__(self, transition: Transition) -> float:
        """Compute the sum of the halves; raise a `UserError` if the action is not a text."""
        if transition.answer is None:
            raise UserError(f"format scores a text: the action on sample '{transition.sample.key}' is not one")
        return 0.5 * transition.answer.structured + 0.5 * transition.answer.tagged


def union(masks: np.ndarray) -> np.ndarray:
    """Compute the union (H, W) of masks (m, H, W): the largest value of soft masks, and 0 of no masks."""
    return np.logical_or.reduce(masks, axis=0) if masks.dtype == bool else np.max(masks, axis=0, initial=0)


def scored_masks(transition: Transition) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the predictions (m, H, W) and the targets (n, H, W) of each image, with void set to background.

    Masks that this empties are dropped.

    Raises:
        UserError: If the sample has no image, an empty mask, or an image of void only.
    """
    sample = transition.sample
    if not sample.masks:
        raise UserError(f"sample '{sample.key}' cannot be scored: it has no image")
    for index, (predictions, targets) in enumerate(zip(transition.masks, sample.masks, strict=True)):
        if not targets.any(axis=(1, 2)).all():
            raise UserError(f"sample '{sample.key}' cannot be scored: a mask of image {index} is empty")
        if sample.void is not None and sample.void[index].any():
            void = sample.void[index]
            if void.all():
                raise UserError(f"sample '{sample.key}' cannot be scored: image {index} is all void")
            predictions, targets = _without(void, predictions), _without(void, targets)
        yield predictions, targets


def _without(void: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Set void to background in masks (n, H, W), and drop the masks that this empties."""
    kept = masks & ~void if masks.dtype == bool else masks * ~void
    return kept[kept_rows(void, masks)]


def kept_rows(void: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Find the masks of (n, H, W) that void does not empty, bool (n,)."""
    return np.asarray(masks[:, ~void].any(axis=1) | ~masks.any(axis=(1, 2)))


@dataclass(frozen=True)
class ForegroundHit(Term):
    """+1 for a click on the ground truth, -1 elsewhere, whatever its label (AlignSAM, Section 3.2).

    A click on void, which is neither, is 0 (ours). Range [-1, 1].
    """

    name = "foreground_hit"
    range = (-1.0, 1.0)

    def __call__(self, transition: Transition) -> float:
        """Compute 1, -1, or 0 for a click on void, which is neither foreground nor background.

        Raises:
            UserError: If the action is not a click.
        """
        click = transition.action
        if not isinstance(click, Click):
            raise UserError(f"foreground_hit: the action of sample '{transition.sample.key}' is no click")
        sample, row, column = transition.sample, int(click.y), int(click.x)
        if sample.void is not None and sample.void[0][row, column]:
            return 0.0
        return 1.0 if sample.masks[0][:, row, column].any() else -1.0


@dataclass(frozen=True)
class DeltaIoU(Term):
    """Increase of the IoU of the mask by a step. Range [-1, 1]; the sum over an episode telescopes."""

    name = "delta_iou"
    range = (-1.0, 1.0)

    def __call__(self, transition: Transition) -> float:
        """Compute the IoU after the step minus the IoU before it."""
        after = IoU()(transition)
        if transition.previous_masks is None:
            return after
        return after - IoU()(replace(transition, masks=transition.previous_masks, previous_masks=None))

    def return_range(self, horizon: int) -> tuple[float, float]:
        """Find the range of the last IoU minus the first: the steps cancel."""
        return self.range


@dataclass(frozen=True)
class SASOR(Term):
    """SA-SOR of an episode of ranking, at its last step; 0 before, and with fewer than two objects. Range [-1, 1]."""

    name = "sa_sor"
    range = (-1.0, 1.0)

    def __call__(self, transition: Transition) -> float:
        """Compute the correlation.

        Raises:
            UserError: If the task is not ranking.
        """
        if transition.task != "ranking":
            raise UserError(f"sa_sor scores a ranking: sample '{transition.sample.key}' is one of {transition.task}")
        episode = transition.ranked
        if episode is None or len(episode.targets) < 2:
            return 0.0
        return sa_sor(episode.masks, -np.arange(len(episode.masks)), episode.targets, episode.ranks)

    def return_range(self, horizon: int) -> tuple[float, float]:
        """Find the range of the last step's value: the others are 0."""
        return self.range
