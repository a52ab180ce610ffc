"""Random baseline: well-formed answers with random descriptions, random clicks, and masks of random boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from zlib import crc32

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import VectorEnv

from maskgym.agents.base import Action, FrozenAgent, Policy
from maskgym.aliases import Observation
from maskgym.data.scenes import COLOURS, COLUMNS, ROWS, SHAPES
from maskgym.envs.text.located import Frame
from maskgym.envs.text.refer import ReferVectorEnv
from maskgym.rewards import Located, format_answer, format_objects


class RandomAgent(FrozenAgent):
    """Answer with one to three random descriptions in the required form, click a random patch, or mask a random box.

    Args:
        policy: Unused; present because all agents share one constructor.
        env: Vector environment with the action space of clicks or masks; text needs none.
        seed: Seed of the words, clicks and boxes.
        output: Unused.
    """

    tasks: ClassVar[tuple[str, ...]] = (
        *("sod", "sis", "cosod", "refer", "point_prompt"),
        *("user_need", "user_need_point", "ranking"),
    )

    def __init__(
        self,
        policy: Policy | None = None,
        env: VectorEnv | None = None,
        seed: int = 0,
        output: str | Path | None = None,
    ) -> None:
        self.seed = seed
        self.action_space = None if env is None else env.single_action_space
        self.env = None if env is None else env.unwrapped

    def act(self, observations: Sequence[Observation], greedy: bool = True) -> list[Action]:
        """Draw one answer, click or mask per observation."""
        return [self._draw(observation) for observation in observations]

    def _draw(self, observation: Observation) -> Action:
        shown = next(observation[name] for name in ("images", "image", "state") if name in observation)
        # The draw depends on the observation, not on call order, so evaluations repeat exactly at any batch size.
        generator = np.random.default_rng([self.seed, crc32(np.ascontiguousarray(shown).data)])
        space = self.action_space
        if isinstance(space, MultiDiscrete | Discrete):
            return _click(generator, space, observation.get("clicked"))
        if isinstance(self.env, ReferVectorEnv):
            return _objects(generator, observation["image"].shape, self.env)
        return _box(generator, space.shape) if isinstance(space, Box) else _text(generator, observation)


def _click(
    generator: np.random.Generator, space: MultiDiscrete | Discrete, clicked: np.ndarray | None
) -> np.ndarray | int:
    """Draw a patch, with a label if the space has labels, among the patches that were not clicked if these count."""
    if clicked is not None:
        patch = int(generator.choice(np.flatnonzero(clicked == 0)))
        return np.array([patch, generator.integers(2)]) if isinstance(space, MultiDiscrete) else patch
    return generator.integers(space.nvec) if isinstance(space, MultiDiscrete) else int(generator.integers(int(space.n)))


def _text(generator: np.random.Generator, observation: Observation) -> str:
    """Draw an answer to the instruction."""

    def pick(words: Sequence[str]) -> str:
        return words[int(generator.integers(len(words)))]

    if "images" in observation:
        return format_answer("", [f"[semantic] {pick(SHAPES)}"], "cosod")
    task = "sis" if "<ins>" in observation["instruction"] else "sod"
    return format_answer("", [_phrase(generator) for _ in range(generator.integers(1, 4))], task)


def _phrase(generator: np.random.Generator) -> str:
    """Draw a description of an object of scenes."""
    colour, shape, row, column = (
        options[int(generator.integers(len(options)))] for options in (tuple(COLOURS), SHAPES, ROWS, COLUMNS)
    )
    return f"a {colour} {shape} at {row} {column}"


def _objects(generator: np.random.Generator, shape: tuple[int, ...], env: ReferVectorEnv) -> str:
    """Draw an answer to a query: up to three random boxes, points or phrases."""
    found = []
    for _ in range(generator.integers(0, 4)):
        (top, bottom), (left, right) = (np.sort(generator.choice(side + 1, 2, replace=False)) for side in shape[:2])
        x, y = generator.uniform(left, right), generator.uniform(top, bottom)
        drawn = Located((left, top, right, bottom), ((x, y),), (1,), _phrase(generator))
        size = shape[0], shape[1]
        found.append(Frame(size, size, size, env.coordinates).to_answer(drawn))
    return format_objects("" if env.reasoning else None, found, env.form)


def _box(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a soft map float32 (H, W) of a random box with a random confidence inside and a lower one outside."""
    values = np.full(shape, generator.uniform(0, 0.4), np.float32)
    (top, bottom), (left, right) = (np.sort(generator.choice(side + 1, size=2, replace=False)) for side in shape)
    values[top:bottom, left:right] = generator.uniform(0.6, 1)
    return values
