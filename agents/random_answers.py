"""The floor: well-formed answers that name random things."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import numpy as np
from gymnasium.vector import VectorEnv

from ..data.scenes import COLOURS, COLUMNS, ROWS, SHAPES
from ..rewards import format_answer


class RandomAgent:
    """Answer in the right form with one to three random descriptions; never learns.

    Args:
        policy: Unused by a random agent; taken so that every agent is made alike.
        seed: Seed of the words.
        output: As ``policy``.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sod", "sis", "cosod")

    def __init__(self, policy: Any = None, seed: int = 0, output: str | Path | None = None) -> None:
        self.seed = seed

    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: Callable, resume: bool = False) -> None:
        """Return at once: there is nothing to learn."""

    def act(self, observations: Sequence[Mapping[str, Any]], greedy: bool = True) -> list[str]:
        """Return one answer an observation."""
        return [self._answer(observation) for observation in observations]

    def save(self, path: str | Path) -> None:
        """Write nothing: there are no weights."""

    load = save

    def _answer(self, observation: Mapping[str, Any]) -> str:
        pixels = observation["images"] if "images" in observation else observation["image"]
        # Drawn for the picture, not in turn: an evaluation that is repeated, or cut in other batches, finds the same.
        generator = np.random.default_rng([self.seed, crc32(np.ascontiguousarray(pixels).data)])

        def pick(words: Sequence[str]) -> str:
            return words[int(generator.integers(len(words)))]

        if "images" in observation:
            return format_answer("", [f"[semantic] {pick(SHAPES)}"], "cosod")
        task = "sis" if "<ins>" in observation["instruction"] else "sod"
        phrases = [
            f"a {pick(list(COLOURS))} {pick(SHAPES)} at {pick(ROWS)} {pick(COLUMNS)}"
            for _ in range(generator.integers(1, 4))
        ]
        return format_answer("", phrases, task)
