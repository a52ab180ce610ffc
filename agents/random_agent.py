"""Random baseline: well-formed answers of random descriptions, random clicks, and masks of random boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import numpy as np
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import VectorEnv

from maskgym.agents.base import FrozenAgent
from maskgym.data.scenes import COLOURS, COLUMNS, ROWS, SHAPES
from maskgym.rewards import format_answer


class RandomAgent(FrozenAgent):
    """Answer with one to three random descriptions in the right form, click a random patch, or mask a random box.

    The agent never learns.

    Args:
        policy: Unused; present because all agents share one constructor.
        env: A vector environment with the action space of clicks or masks; text needs none.
        seed: Seed of the words, clicks and boxes.
        output: Unused.
    """

    tasks: ClassVar[tuple[str, ...]] = (
        *("sod", "sis", "cosod", "point_prompt"),
        *("user_need", "user_need_point", "ranking"),
    )

    def __init__(
        self, policy: Any = None, env: VectorEnv | None = None, seed: int = 0, output: str | Path | None = None
    ) -> None:
        self.seed = seed
        self.action_space = None if env is None else env.single_action_space

    def act(self, observations: Sequence[Mapping[str, Any]], greedy: bool = True) -> list[Any]:
        """Return one answer, click or mask per observation."""
        return [self._answer(observation) for observation in observations]

    def _answer(self, observation: Mapping[str, Any]) -> Any:
        shown = next(observation[name] for name in ("images", "image", "state") if name in observation)
        # The draw depends on the observation, not on call order, so evaluations repeat exactly at any batch size.
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
    """Draw a soft map float32 (H, W) of a random box with a random confidence inside and a lower one outside."""
    values = np.full(shape, generator.uniform(0, 0.4), np.float32)
    (top, bottom), (left, right) = (np.sort(generator.choice(side + 1, size=2, replace=False)) for side in shape)
    values[top:bottom, left:right] = generator.uniform(0.6, 1)
    return values
