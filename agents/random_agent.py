"""The floor: well-formed answers that name random things, and clicks anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import numpy as np
from gymnasium.spaces import MultiDiscrete
from gymnasium.vector import VectorEnv

from ..data.scenes import COLOURS, COLUMNS, ROWS, SHAPES
from ..rewards import format_answer


class RandomAgent:
    """Answer in the right form with one to three random descriptions, or click a random patch; never learns.

    Args:
        policy: Unused by a random agent; taken so that every agent is made alike.
        env: A vector environment with the action space of the clicks; text needs none.
        seed: Seed of the words and clicks.
        output: As ``policy``.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sod", "sis", "cosod", "point_prompt")

    def __init__(
        self, policy: Any = None, env: VectorEnv | None = None, seed: int = 0, output: str | Path | None = None
    ) -> None:
        self.seed = seed
        self.action_space = None if env is None else env.single_action_space

    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: Callable, resume: bool = False) -> None:
        """Return at once: there is nothing to learn."""

    def act(self, observations: Sequence[Mapping[str, Any]], greedy: bool = True) -> list[Any]:
        """Return one answer or click an observation."""
        return [self._answer(observation) for observation in observations]

    def save(self, path: str | Path) -> None:
        """Write nothing: there are no weights."""

    load = save

    def _answer(self, observation: Mapping[str, Any]) -> Any:
        shown = next(observation[name] for name in ("images", "image", "state") if name in observation)
        # Drawn for what is shown, not in turn: an evaluation that is repeated, or cut in other batches, finds the same.
        generator = np.random.default_rng([self.seed, crc32(np.ascontiguousarray(shown).data)])
        if "state" in observation:
            space: Any = self.action_space
            if "clicked" in observation:
                patch = generator.choice(np.flatnonzero(observation["clicked"] == 0))
                return np.array([patch, generator.integers(2)]) if isinstance(space, MultiDiscrete) else patch
            return generator.integers(space.nvec if isinstance(space, MultiDiscrete) else space.n)

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
