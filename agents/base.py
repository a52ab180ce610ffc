"""The contract of agents: what a run, an evaluation and a report may ask of any of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from maskgym.aliases import Observation, Observations

if TYPE_CHECKING:
    from maskgym.segmenters.outputs import Weights

# One action: an answer as text, a click (patch, or patch and label), or a mask float32 (S, S).
Action = str | int | tuple[int, int] | np.ndarray
# A policy for episodes that were just reset: it maps the step and the observations to one action per episode.
Chooser = Callable[[int, Observations], Sequence[Action] | np.ndarray]
# A receiver of the number of an update, from 1, and its named scalars; it may raise `BudgetSpent`.
OnLog = Callable[[int, Mapping[str, float]], None]


class BudgetSpent(Exception):
    """Raised after an update that has spent the budget of a run, to end its training there."""


class Policy(Protocol):
    """Network that an agent runs and trains; each kind of agent asks for a kind of policy."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that the policy supports, as in `Agent`."""
        ...


class Scorer(Protocol):
    """Scores answers in text in place of the training environments, such as a pool of Ray actors."""

    def step(
        self, task: int, indices: Sequence[int], answers: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Compute rewards float64 (B,) and their named terms, float64 (B,) each."""
        ...

    def cost(self) -> dict[str, float]:
        """Collect further scalars to log with the current update."""
        ...

    def expect(self, task: int, index: int, answer: str) -> None:
        """Receive an answer that `step` will ask for, so that scoring can start early."""
        ...


class Agent(ABC):
    """Training algorithm that owns a policy and reads data only through environments.

    A subclass is constructed with ``policy``, ``env`` (for its spaces), ``seed``, ``output`` (folder of checkpoints),
    what it lists in `takes`, and its own settings.

    Attributes:
        tasks: Tasks whose environments the agent supports (keys of ``gym_ids`` in `experiments/conf/env`).
        scales: Supported values of ``scale``: ``local`` (one process) and ``ray`` (several workers).
        learns: Whether `train` changes anything. An agent that never learns needs no policy.
        starts_workers: Whether the agent starts its worker processes itself under ``scale=ray``.
        autoreset_mode: Autoreset mode of the training environments that the agent requires.
        takes: Further arguments that a run passes: ``segmenter``, ``make_env`` and ``workers`` (of ``data.workers``) to
            the constructor, ``supervised`` and ``scorer`` to `train`.
        counts_epochs: Whether ``algo.epochs`` may state the length of a training, in passes over the training data;
            a run then computes the number of updates by ``algo.batch_size``.
        members: Members of the policy that the agent uses; a run refuses a policy without one before it starts.
    """

    tasks: ClassVar[tuple[str, ...]]
    scales: ClassVar[tuple[str, ...]] = ("local",)
    learns: ClassVar[bool] = True
    starts_workers: ClassVar[bool] = False
    autoreset_mode: ClassVar[AutoresetMode] = AutoresetMode.DISABLED
    takes: ClassVar[frozenset[str]] = frozenset()
    counts_epochs: ClassVar[bool] = False
    members: ClassVar[tuple[str, ...]] = ()

    def check_data(self, envs: Sequence[VectorEnv], updates: int) -> list[str]:
        """Check the training data, and list what to tell the user before training starts; rank 0 calls it.

        Args:
            envs: Environments of `train`.
            updates: Total number of updates.

        Raises:
            UserError: If nothing can be learned from the data.
        """
        return []

    def check_training(self, tasks: int = 1) -> None:
        """Check the settings of training that are not checked on construction; called before the first evaluation.

        Args:
            tasks: Number of the environments that `train` will be given.

        Raises:
            UserError: If one is unknown or out of range.
        """
        return

    @abstractmethod
    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: OnLog, resume: bool = False) -> None:
        """Train for a number of updates.

        Args:
            envs: Training environments, one per task, with the agent's `autoreset_mode`.
            updates: Total number of updates, including those before a resumed checkpoint.
            on_log: Receiver of each update's scalars.
            resume: Whether to continue from the last whole checkpoint in ``output``.
        """

    @abstractmethod
    def act(self, observations: Sequence[Observation], greedy: bool = True) -> Sequence[Action] | np.ndarray:
        """Compute one action per observation, the most probable or a sampled one."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write the weights to a folder."""

    @abstractmethod
    def load(self, path: str | Path) -> None:
        """Load the weights that `save` wrote."""

    def frozen(self) -> dict[str, Weights]:
        """Describe the networks that training leaves as they are or begins from, by part; see ``provenance.TITLES``."""
        return {}

    def begin(self, env: VectorEnv, count: int) -> Chooser:
        """Build the greedy policy for the episodes that an environment was reset to.

        Args:
            env: Vector environment with autoreset disabled, in its initial states.
            count: Number of sub-environments that count; the others are padding and are not shown to `act`.
        """
        return lambda step, observations: self.act(
            [{name: value[i] for name, value in observations.items()} for i in range(count)], greedy=True
        )


class FrozenAgent(Agent):
    """Agent without training: a baseline, an upper bound, or a model that is only asked."""

    learns: ClassVar[bool] = False

    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: OnLog, resume: bool = False) -> None:
        """Do nothing, because nothing is learned."""

    def save(self, path: str | Path) -> None:
        """Write nothing, because no weights change."""

    def load(self, path: str | Path) -> None:
        """Read nothing, because no weights were written."""
