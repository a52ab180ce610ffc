"""Answer with the ground truth: the ceiling of boxes, points and phrases under a segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NoReturn

from gymnasium.vector import VectorEnv

from maskgym.agents.base import Chooser, FrozenAgent, Policy
from maskgym.aliases import Observation
from maskgym.envs.base import unwrap
from maskgym.envs.text.base import TextVectorEnv
from maskgym.errors import UserError


class OracleTextAgent(FrozenAgent):
    """Answer with the phrases of the ground truth; queries with its tight boxes or deepest points, as their form asks.

    Args:
        policy: Unused; present because all agents share one constructor.
        env: Unused; `begin` takes the environment.
        seed: Unused; the answers are deterministic.
        output: Unused.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sod", "sis", "cosod", "refer")

    def __init__(
        self,
        policy: Policy | None = None,
        env: VectorEnv | None = None,
        seed: int = 0,
        output: str | Path | None = None,
    ) -> None:
        pass

    def act(self, observations: Sequence[Observation], greedy: bool = True) -> NoReturn:
        """Refuse: observations do not hold the ground truth; see `begin`."""
        raise UserError("algo=oracle: answers in an environment: observations alone do not suffice")

    def begin(self, env: VectorEnv, count: int) -> Chooser:
        """Build the policy that answers with the ground truth of the current episodes."""
        answers = unwrap(env, TextVectorEnv).true_answers()[:count]
        return lambda step, observations: answers
