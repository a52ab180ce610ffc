"""The floor: well-formed answers that name random things, clicks anywhere, and masks of random boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import numpy as np
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import VectorEnv

from maskgym.data.scenes import COLOURS, COLUMNS, ROWS, SHAPES
from maskgym.rewards import format_answer


class RandomAgent:
    """Answer in the right form with one to three random descriptions, click a random patch, or mask a random box.

    It never learns.

    Args:
        policy: Unused by a random agent; taken so that every agent is made alike.
        env: A vector environment with the action space of clicks or masks; text needs none.
        seed: Seed of the words, clicks and boxes.
        output: As ``policy``.
    """

    tasks: ClassVar[tuple[str, ...]] = (
        *("sod", "sis", "cosod", "point_prompt"),
        *("user_need", "user_need_point", "ranking"),
    )
    learns: ClassVar[bool] = False

    def __init__(
        self, policy: Any = None, env: VectorEnv | None = None, seed: int = 0, output: str | Path | None = None
    ) -> None:
        self.seed = seed
        self.action_space = None if env is None else env.single_action_space

    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: Callable, resume: bool = False) -> None:
        """Return at once: there is nothing to learn."""

    def act(self, observations: Sequence[Mapping[str, Any]], greedy: bool = True) -> list[Any]:
        """Return one answer, click or mask an observation."""
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

        if isinstance(self.action_space, Box):
            return _box(generator, self.action_space.shape)

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


def _box(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return a soft map float32 (H, W) of a box anywhere: sure of it to some degree, and less of what is around."""
    values = np.full(shape, generator.uniform(0, 0.4), np.float32)
    (top, bottom), (left, right) = (np.sort(generator.choice(side + 1, size=2, replace=False)) for side in shape)
    values[top:bottom, left:right] = generator.uniform(0.6, 1)
    return values
