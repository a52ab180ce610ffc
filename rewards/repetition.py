"""Reward term of reasoning that repeats itself."""

from __future__ import annotations

from dataclasses import dataclass

from maskgym.errors import UserError
from maskgym.rewards.terms import Term
from maskgym.rewards.transition import Transition

REPEATS = 2  # so many repeated sentences are too many


@dataclass(frozen=True)
class NonRepetition(Term):
    """Non-repetition of VisionReasoner: 1, and 0 if two sentences repeat an earlier one.

    Range [0, 1]. Sentences end with a full stop, and spaces around them do not matter.

    Args:
        published: Whether the whole text is searched, as published, whatever its form. A decimal point of a coordinate
            then ends a sentence too. By default, only the reasoning is searched.

    Convention:
        No reasoning: 1. A malformed answer: 0 by default.

    References:
        dvlab-research/Seg-Zero, verl/utils/reward_score/vision_reasoner.py, commit 42a33455.
    """

    published: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        """Registered name of this form."""
        return "non_repetition_published" if self.published else "non_repetition"

    def __call__(self, transition: Transition) -> float:
        """Search the sentences; raise a `UserError` if the action is not a text."""
        answer = transition.answer
        if answer is None:
            raise UserError(f"{self.name} scores a text: the action on sample '{transition.sample.key}' is not one")
        if not (answer.tagged or self.published):
            return 0.0
        text = answer.text if self.published else answer.think or ""
        sentences = [sentence.strip() for sentence in text.split(".") if sentence.strip()]
        return float(len(sentences) - len(set(sentences)) < REPEATS)
