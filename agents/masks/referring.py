"""Referring segmentation as an agent: a frozen segmenter takes the need as its phrase."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from gymnasium.vector import VectorEnv

from maskgym.agents.base import FrozenAgent, Policy
from maskgym.aliases import Observation
from maskgym.errors import UserError
from maskgym.segmenters import ReferringSegmenter


class ReferringAgent(FrozenAgent):
    """Segment the need as a phrase; nothing is learned.

    The agent evaluates a text-conditioned segmenter by the RefCOCO protocol, on the same samples, at the same input
    size and by the same measures (mIoU, oIoU, P@X) as a policy.

    Args:
        policy: Unused; present because all agents share one constructor.
        env: Unused.
        seed: Unused; the agent is deterministic.
        output: Unused.
        segmenter: A referring segmenter of `maskgym.segmenters`.
        prefix: Prefix to remove from a need, ignoring case; the rest is the phrase. A need without a phrase gets an
            empty mask.

    Raises:
        UserError: If the segmenter takes no phrases.
    """

    tasks: ClassVar[tuple[str, ...]] = ("user_need",)
    takes: ClassVar[frozenset[str]] = frozenset({"segmenter"})

    def __init__(
        self,
        policy: Policy | None = None,
        env: VectorEnv | None = None,
        seed: int = 0,
        output: str | Path | None = None,
        segmenter: ReferringSegmenter | None = None,
        prefix: str = "find ",
    ) -> None:
        if not isinstance(segmenter, ReferringSegmenter):
            raise UserError(f"segmenter={segmenter}: takes no phrases: expected a referring one, such as evf_sam_tiny")
        self.segmenter, self.prefix = segmenter, prefix

    def act(self, observations: Sequence[Observation], greedy: bool = True) -> list[np.ndarray]:
        """Compute one probability map per observation, float32 (S, S)."""
        phrases = [self._phrase(observation["need"]) for observation in observations]
        images = [observation["image"] for observation in observations]
        found = self.segmenter.segment(images, [[phrase] if phrase else [] for phrase in phrases])
        return [masks[0] if len(masks) else np.zeros(masks.shape[1:], np.float32) for masks in found]

    def _phrase(self, need: str) -> str:
        words = need.strip()
        start = words[: len(self.prefix)]
        return words[len(self.prefix) :].strip() if start.casefold() == self.prefix.casefold() else words
