"""Reward terms: how good one transition is, by one measure each.

A term is a callable over a ``Transition`` with a ``name`` and a ``range``. Three cases are never mixed:

- a fault of ours (masks that do not fit, a measure that is not a number) raises ``ValueError``;
- a malformed answer is a legal action and gets what the rules give it: 0 from every measure of masks, and from
  ``format`` the halves that it earned;
- a sample that cannot be scored raises ``UserError`` with its key.

Pixels marked void are set to background in the prediction and in the truth. A score then depends on neither
there: for IoU and IASM's matching that is exclusion; for S-measure, which is defined on whole rectangles, void
counts as background that is right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from maskgym.errors import UserError
from maskgym.metrics import iasm, iou, mae, s_measure, sa_sor
from maskgym.rewards.transition import Click, Transition, Unscored


class Term(ABC):
    """One measure of a transition.

    Attributes:
        name: What the term is called in sums, logs and tables.
        range: The lowest and the highest value.
    """

    name: str
    range: tuple[float, float] = (0.0, 1.0)

    @abstractmethod
    def __call__(self, transition: Transition) -> float:
        """Return the value of one transition, within ``range``."""


class MaskTerm(Term):
    """A measure of the predicted masks: the mean over the sample's images; 0 for what is malformed or `Unscored`."""

    def __call__(self, transition: Transition) -> float:
        """Return the mean of `score` over the images.

        Raises:
            UserError: If the sample cannot be scored.
        """
        # Checked before the answer, so that a broken sample is reported whatever the policy says.
        pairs = list(scored_masks(transition))
        malformed = transition.answer is not None and not transition.answer.tagged
        if malformed or isinstance(transition.action, Unscored):
            return 0.0
        return float(np.mean([self.score(*pair, transition) for pair in pairs]))

    @abstractmethod
    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Return the score of one image: (m, H, W) predictions, bool or soft, and bool (n, H, W) targets, no void."""


@dataclass(frozen=True)
class SMeasure(MaskTerm):
    """S-measure of the union of the predicted masks against the union of the truth (supplement, Eq. 18-21).

    Range [0, 1]. Over a group it is the mean of its images; an image without the common object scores 1 minus the
    share of it that is predicted.
    """

    name = "s_measure"

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Return the S-measure of the unions of one image."""
        return float(s_measure(union(predictions), targets.any(axis=0)))


@dataclass(frozen=True)
class IoU(MaskTerm):
    """Intersection over union of the union of the predicted masks and the union of the truth.

    Range [0, 1]. Over a group it is the mean of its images; nothing predicted where nothing is to be found is 1.
    """

    name = "iou"

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Return the IoU of the unions of one image."""
        return float(iou(union(predictions), targets.any(axis=0), empty=1.0))


@dataclass(frozen=True)
class OneMinusMAE(MaskTerm):
    """1 minus the mean absolute error of the union of the predicted masks against the union of the truth.

    Range [0, 1], larger is better; results have ``mae`` itself. A blank prediction of a small object is close to 1.
    """

    name = "one_minus_mae"

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Return it for the unions of one image."""
        return float(1 - mae(union(predictions), targets.any(axis=0)))


@dataclass(frozen=True)
class IASM(MaskTerm):
    """Instance-aligned S-measure (supplement, Eq. 22 and 23). Range [0, 1].

    Instances and predictions that lie in void entirely are left out.

    Args:
        threshold: The smallest IoU of a matched pair.
        published: Score what is unmatched as the paper does, against an empty mask. S-measure gives a small spurious
            mask almost 1 there, and an empty one 1, so answers grow longer instead of better. Without it, the
            default, whatever is unmatched scores 0.
    """

    threshold: float = 0.1
    published: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        """The registered name of this form."""
        return "iasm_published" if self.published else "iasm"

    def score(self, predictions: np.ndarray, targets: np.ndarray, transition: Transition) -> float:
        """Return the IASM of one image; raise `UserError` if its truth has no instance."""
        if not len(targets):
            raise UserError(f"sample '{transition.sample.key}' cannot be scored by {self.name}: it has no instance")
        unmatched = "published" if self.published else "zero"
        return iasm(predictions, targets, threshold=self.threshold, unmatched=unmatched)


@dataclass(frozen=True)
class Correctness(Term):
    """Saliency-R1's correctness reward (supplement, 7.1): IASM for ``sis``, else S-measure. Range [0, 1].

    Args:
        threshold: As in ``IASM``.
        published: As in ``IASM``.
    """

    threshold: float = 0.1
    published: bool = False

    name = "correctness"

    def __call__(self, transition: Transition) -> float:
        """Return the measure of the transition's task."""
        measure = IASM(self.threshold, self.published) if transition.task == "sis" else SMeasure()
        return measure(transition)


@dataclass(frozen=True)
class Format(Term):
    """Saliency-R1's format reward (supplement, 7.2 and Eq. 24): 0.5 for the blocks and 0.5 for the tags.

    Range [0, 1]; ``maskgym.rewards.answers.parse`` states the rules.
    """

    name = "format"

    def __call__(self, transition: Transition) -> float:
        """Return the sum of the halves; raise `UserError` if the action is not a text."""
        if transition.answer is None:
            raise UserError(f"format scores a text: the action on sample '{transition.sample.key}' is not one")
        return 0.5 * transition.answer.structured + 0.5 * transition.answer.tagged


def union(masks: np.ndarray) -> np.ndarray:
    """Return the union (H, W) of masks (m, H, W): of soft ones the largest value; of none nothing."""
    return np.logical_or.reduce(masks, axis=0) if masks.dtype == bool else np.max(masks, axis=0, initial=0)


def scored_masks(transition: Transition) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the predictions (m, H, W) and the targets (n, H, W) of each image, with void made background.

    A row that void empties is dropped.

    Raises:
        UserError: If the sample has no image, or one with an empty mask or nothing but void.
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
    """Return the masks (n, H, W) with void pixels made background, less the rows that this empties."""
    kept = masks & ~void if masks.dtype == bool else masks * ~void
    return kept[kept.any(axis=(1, 2)) | ~masks.any(axis=(1, 2))]


@dataclass(frozen=True)
class ForegroundHit(Term):
    """+1 where a click is on the truth, -1 elsewhere (AlignSAM, Section 3.2). The label of the click does not count."""

    name = "foreground_hit"
    range = (-1.0, 1.0)

    def __call__(self, transition: Transition) -> float:
        """Return 1 or -1.

        Raises:
            UserError: If the action is not a click.
        """
        click = transition.action
        if not isinstance(click, Click):
            raise UserError(f"foreground_hit: the action of sample '{transition.sample.key}' is no click")
        return 1.0 if transition.sample.masks[0][:, int(click.y), int(click.x)].any() else -1.0


@dataclass(frozen=True)
class DeltaIoU(Term):
    """How much a step raised the IoU of the mask. Range [-1, 1]; the sum over an episode telescopes."""

    name = "delta_iou"
    range = (-1.0, 1.0)

    def __call__(self, transition: Transition) -> float:
        """Return the IoU after the step less the one before."""
        after = IoU()(transition)
        if transition.previous_masks is None:
            return after
        return after - IoU()(replace(transition, masks=transition.previous_masks, previous_masks=None))


@dataclass(frozen=True)
class SASOR(Term):
    """SA-SOR of what an episode of ranking detected, at its last step; 0 before, and with fewer than two objects.

    Range [-1, 1].
    """

    name = "sa_sor"
    range = (-1.0, 1.0)

    def __call__(self, transition: Transition) -> float:
        """Return the correlation.

        Raises:
            UserError: If the transition is not of ranking.
        """
        if transition.task != "ranking":
            raise UserError(f"sa_sor scores a ranking: sample '{transition.sample.key}' is one of {transition.task}")
        episode = transition.ranked
        if episode is None or len(episode.targets) < 2:
            return 0.0
        return sa_sor(episode.masks, -np.arange(len(episode.masks)), episode.targets, episode.ranks)
