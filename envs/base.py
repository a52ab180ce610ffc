"""Base classes: each environment is written once, as a vector environment whose sub-environments show samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from maskgym import data, rewards
from maskgym.aliases import Infos, Observation, Observations, Settings
from maskgym.data import Dataset, Sample
from maskgym.envs.checks import check_count, check_sample, check_seeds, reset_rows
from maskgym.envs.infos import batch_infos, info_of, with_scalars
from maskgym.envs.statistics import refuse_wrong_statistics
from maskgym.errors import UserError
from maskgym.rewards import AnyReward, Transition

SAMPLE_BYTES = 2**29  # decoded samples that are kept for later episodes


class Outcome(NamedTuple):
    """Effect of one action on one episode.

    Attributes:
        transition: Transition that the reward scores.
        terminated: Whether the task is over.
        truncated: Whether the steps ran out.
        info: Info of the step, without the terms of the reward.
    """

    transition: Transition
    terminated: bool
    truncated: bool
    info: Infos


class _Specified:
    """Environment whose Gymnasium spec states the most steps per episode."""

    horizon: int
    _spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """Gymnasium's specification; its ``max_episode_steps`` is the horizon."""
        return self._spec

    @spec.setter
    def spec(self, value: EnvSpec | None) -> None:
        self._spec = None if value is None else replace(value, max_episode_steps=self.horizon)


class SampleVectorEnv(_Specified, VectorEnv, ABC):
    """Vector environment whose sub-environments show samples of one data set.

    A subclass sets its single spaces, calls `_allocate`, and implements `_start` (with `_draw`),
    `_read`, `_respond`, `_observe` and `_frame`.

    Args:
        num_envs: Number of sub-environments.
        dataset: Data set that they show.
        reward: Name in `maskgym.rewards`, a reward, a term, or a function of one transition.
        render_mode: ``rgb_array``, ``human`` or None.
        autoreset_mode: SAME_STEP, NEXT_STEP or DISABLED.

    Raises:
        UserError: If an argument is invalid. Samples, rewards, actions and options are checked when they arrive.
    """

    action_kind: ClassVar[Literal["text", "clicks", "masks"]]  # kind of its actions
    takes: ClassVar[frozenset[str]] = frozenset({"reward"})  # components that a run passes to the constructor
    horizon: int = 1  # most steps per episode
    actions_scored: int = 0  # actions of all sub-environments since it was made

    metadata: dict[str, Any] = {  # noqa: RUF012 (as Gymnasium declares it: instances have their own)
        "render_modes": ["rgb_array", "human"],
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        dataset: Dataset,
        reward: AnyReward,
        render_mode: str | None,
        autoreset_mode: AutoresetMode | str,
    ) -> None:
        modes = self.metadata["render_modes"]
        if render_mode is not None and render_mode not in modes:
            raise UserError(f"render_mode={render_mode!r}: expected one of {', '.join(modes)}")
        if num_envs < 1:
            raise UserError(f"num_envs={num_envs}: expected at least 1")
        self.num_envs, self.dataset, self.render_mode = num_envs, dataset, render_mode
        self.reward = rewards.resolve(reward)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.generators: list[np.random.Generator] = []
        self._cache: OrderedDict[int, Sample] = OrderedDict()
        self._cached_bytes = 0

    def _allocate(self, num_envs: int) -> None:
        """Allocate the state of the episodes of ``num_envs`` sub-environments; the single spaces must be set."""
        self.num_envs = num_envs
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._indices, self._done = np.full(num_envs, -1), np.ones(num_envs, dtype=bool)
        self._samples: list[Sample | None] = [None] * num_envs  # those shown; None after unpickling

    @property
    def num_samples(self) -> int:
        """Number of samples that ``options={"index": i}`` can name."""
        return len(self.dataset)

    def resized(self, num_envs: int) -> Self:
        """Build the same environment with another number of sub-environments, before their first reset."""
        env = copy(self)  # without the decoded samples, as a pickle
        env.generators = []
        env._allocate(num_envs)
        return env

    @property
    def name(self) -> str:
        """Gymnasium id, or the name of the class."""
        return self.spec.id if self.spec else type(self).__name__

    # Gymnasium's signature returns a type variable that nothing binds, so no type can override it.
    def render(self) -> tuple[np.ndarray, ...] | None:  # type: ignore[override]
        """Draw one picture per sub-environment, uint8 (H, W, 3)."""
        if self.render_mode is None:
            return None
        frames = tuple(self._frame(i) for i in range(self.num_envs))
        if self.render_mode == "rgb_array":
            return frames
        import matplotlib.pyplot as plt

        plt.figure(self.spec.id if self.spec else "maskgym").clear()
        plt.imshow(np.concatenate(frames) if len({f.shape[1] for f in frames}) == 1 else frames[0])
        plt.axis("off")
        plt.pause(1 / self.metadata["render_fps"])
        return None

    def __getstate__(self) -> Settings:
        """Drop the decoded samples from a pickle."""
        dropped = {"_cache": OrderedDict(), "_cached_bytes": 0, "_samples": [None] * self.num_envs}
        return {**self.__dict__, **dropped}

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Settings | None = None
    ) -> tuple[Observations, Infos]:
        """Begin episodes, all or those of ``options["reset_mask"]`` (bool (num_envs,)).

        Raises:
            UserError: If an option is unknown or of a wrong type, the data set has no such index, or a sample is wrong.
        """
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            refuse_wrong_statistics()
        rows, wanted = self._begin_reset(seed, options)
        infos = batch_infos(self.num_envs, self._start(rows, [wanted[i] for i in rows]))
        return self._observe(), infos

    def step(
        self, actions: Sequence[Any] | np.ndarray
    ) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, Infos]:
        """Apply one action per sub-environment; the class describes the results.

        Raises:
            UserError: If an action is invalid; no episode has changed then. Also if the reward or the segmenter returns
                what it must not.
        """
        live, resting = self._live(), np.flatnonzero(self._done)
        values = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        infos: dict[int, Infos] = {}
        read = self._read_all(live, actions)
        if len(live):
            outcomes = self._respond(live, read)
            self.actions_scored += len(live)
            values[live], terms = rewards.score(self.reward, [outcome.transition for outcome in outcomes], live)
            for row, (i, outcome) in enumerate(zip(live, outcomes, strict=True)):
                terminated[i], truncated[i] = outcome.terminated, outcome.truncated
                infos[i] = {**outcome.info, "reward_terms": {name: float(term[row]) for name, term in terms.items()}}
        ended = np.flatnonzero(terminated | truncated)
        self._done[ended] = True
        if len(resting):  # In NEXT_STEP, this step only begins their episodes.
            infos |= self._start(resting, [None] * len(resting))
        elif len(ended) and self.autoreset_mode is AutoresetMode.SAME_STEP:
            last = self._observe()
            finals = {i: {name: value[i] for name, value in last.items()} for i in ended}
            started = self._start(ended, [None] * len(ended))
            infos |= {i: {"final_obs": finals[i], "final_info": infos[i], **started[i]} for i in ended}
        if self.render_mode == "human":
            self.render()
        return self._observe(), values, terminated, truncated, batch_infos(self.num_envs, infos)

    def _read_all(self, live: np.ndarray, actions: Sequence[Any] | np.ndarray) -> list[Any]:
        """Check the actions of all live sub-environments, before an episode changes; return the results of `_read`."""
        given, found = check_count(self.name, actions, self.num_envs), []
        for i in live:
            try:
                found.append(self._read(i, given[i]))
            except UserError as error:
                raise UserError(f"{self.name}: action of sub-environment {i}: {error}") from None
        return found

    @abstractmethod
    def _read(self, i: int, action: Any) -> Any:
        """Check an action of sub-environment ``i`` and convert it for `_respond`, without changing the episode.

        Raises:
            UserError: If the action is invalid; it says what came and what was expected.
        """

    @abstractmethod
    def _respond(self, live: np.ndarray, actions: Sequence[Any]) -> list[Outcome]:
        """Apply the actions of the live sub-environments.

        Args:
            live: int (n,), the sub-environments.
            actions: Their n actions, as `_read` returned them.

        Returns:
            n outcomes.
        """

    @abstractmethod
    def _start(self, rows: np.ndarray, indices: Sequence[int | None]) -> dict[int, Infos]:
        """Begin the episodes of sub-environments with the samples of indices, or random ones; return their infos."""

    @abstractmethod
    def _observe(self) -> Observations:
        """Build the observations of all sub-environments."""

    @abstractmethod
    def _frame(self, i: int) -> np.ndarray:
        """Draw the picture of sub-environment ``i``, uint8 (H, W, 3)."""

    def _begin_reset(
        self, seed: int | Sequence[int | None] | None, options: Settings | None
    ) -> tuple[np.ndarray, list[int | None]]:
        """Seed the generators and read the options of a reset.

        Sub-environment i is seeded with ``seed + i``, or ``seed[i]``, as the scalar environment would be.

        Returns:
            The sub-environments to reset, and the requested index of each of all sub-environments.
        """
        rows, wanted = reset_rows(options or {}, self.num_envs)
        seeds = check_seeds(seed, self.num_envs)
        if not self.generators:
            self.generators = [seeding.np_random(value)[0] for value in seeds]
        for i, value in enumerate(seeds):
            if value is not None:
                self.generators[i] = seeding.np_random(value)[0]
        return rows, wanted

    def _draw(self, i: int, index: int | None) -> Sample:
        """Begin an episode of sub-environment ``i`` with the sample of an index, or a random one; return the sample.

        Raises:
            UserError: If the data set has no such index.
        """
        if index is None:
            index = int(self.generators[i].integers(self.num_samples))
        elif not 0 <= index < self.num_samples:
            raise UserError(f"index {index}: the {self.dataset.split} split has samples 0 to {self.num_samples - 1}")
        sample = self._load(index)
        self._indices[i], self._done[i], self._samples[i] = index, False, sample
        return sample

    def _load(self, index: int) -> Sample:
        """Read a sample, or find it among those that are kept."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        sample = self._cache[index] = check_sample(self.dataset[index], index)
        self._cached_bytes += _bytes(sample)
        while self._cached_bytes > SAMPLE_BYTES:
            self._cached_bytes -= _bytes(self._cache.popitem(last=False)[1])
        return sample

    def _shown(self, i: int) -> Sample:
        """Return the sample that sub-environment ``i`` shows."""
        sample = self._samples[i]
        if sample is None:
            sample = self._samples[i] = self._load(int(self._indices[i]))
        return sample

    def _start_info(self, i: int, sample: Sample) -> Infos:
        """Build the info of an episode's start; the targets of supervised learning are in it in training only."""
        info: Infos = {"sample_key": sample.key, "index": int(self._indices[i])}
        if self.dataset.split == "train":
            # Gymnasium promises that infos belong to the user, so the masks are copied.
            info |= {"target": tuple(mask.copy() for mask in sample.masks), "rationale": sample.rationale}
        return info

    def _live(self) -> np.ndarray:
        """List the sub-environments whose episode goes on; the others may rest in NEXT_STEP only."""
        live = np.flatnonzero(~self._done)
        if len(live) < self.num_envs and self.autoreset_mode is not AutoresetMode.NEXT_STEP:
            raise gym.error.ResetNeeded("step was called on an episode that is over: call reset first")
        return live


class RowwiseVectorEnv(SampleVectorEnv):
    """Vector environment that begins and observes episodes one by one.

    A subclass implements `_read`, `_respond` and `_observe_row`, and extends `_begin` and `_start_info`.
    """

    def _allocate(self, num_envs: int) -> None:
        super()._allocate(num_envs)
        self._observations: list[Observation] = [{}] * num_envs
        self._last: list[Transition | None] = [None] * num_envs

    @abstractmethod
    def _observe_row(self, i: int) -> Observation:
        """Build the observation of sub-environment ``i``."""

    def _begin(self, i: int, sample: Sample) -> None:
        """Set up the state of an episode, before its first observation."""

    def _start(self, rows: np.ndarray, indices: Sequence[int | None]) -> dict[int, Infos]:
        infos = {}
        for i, index in zip(rows, indices, strict=True):
            sample = self._draw(i, index)
            self._last[i] = None
            self._begin(i, sample)
            self._observations[i] = self._observe_row(i)
            infos[i] = self._start_info(i, sample)
        return infos

    def _observe(self) -> Observations:
        space = self.single_observation_space
        batch: Any = concatenate(space, self._observations, create_empty_array(space, self.num_envs))
        return batch


def limited(steps: int, max_episode_steps: int | None) -> int:
    """Compute the most steps per episode from an environment's own number and the one that Gymnasium passes.

    Raises:
        UserError: If the latter is below 1.
    """
    if max_episode_steps is None:
        return steps
    if max_episode_steps < 1:
        raise UserError(f"max_episode_steps={max_episode_steps}: expected at least 1")
    return min(steps, max_episode_steps)


def make_dataset(dataset: str | Settings | Dataset, task: str, split: str | None, **settings: int) -> Dataset:
    """Make the data set of a name, or check the split of one that exists.

    Args:
        dataset: Name in `maskgym.data`, a dictionary of ``name`` and further arguments, or a data set.
        task: Task of a data set that is made.
        split: ``train``, ``validation`` or ``test``; None selects ``train``, or the split of the data set.
        settings: Further arguments of a data set that is made.

    Raises:
        UserError: If the data set cannot be made, or is of another split.
    """
    if isinstance(dataset, Mapping):
        name, settings = dataset["name"], {**dataset, **settings}
        del settings["name"]
        return make_dataset(name, task, split, **settings)
    if isinstance(dataset, str):
        return data.make(dataset, task=task, split=split or "train", **settings)
    if split not in (None, dataset.split):
        raise UserError(f"split={split!r}: the data set given is of split '{dataset.split}'")
    return dataset


_Env = TypeVar("_Env", bound=SampleVectorEnv)


def unwrap(env: VectorEnv, kind: type[_Env]) -> _Env:
    """Return the environment below all wrappers, typed.

    Args:
        env: Vector environment, wrapped or not.
        kind: Expected class, such as `SampleVectorEnv`.

    Raises:
        UserError: If the environment is of another class.
    """
    base = env.unwrapped
    if not isinstance(base, kind):
        raise UserError(f"env={type(base).__name__}: expected a {kind.__module__}.{kind.__qualname__}")
    return base


class ScalarEnv(_Specified, gym.Env):
    """Scalar environment: a vector environment of one, with its arguments, spaces and infos."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 1}  # noqa: RUF012 (see above)
    vector_class: ClassVar[type[SampleVectorEnv]]

    def __init__(self, render_mode: str | None = None, **arguments: Any) -> None:
        self.vector = self.vector_class(
            num_envs=1, render_mode=render_mode, autoreset_mode=AutoresetMode.DISABLED, **arguments
        )
        self.render_mode = render_mode
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space
        self.horizon = self.vector.horizon

    @property
    def num_samples(self) -> int:
        """Number of samples that ``options={"index": i}`` can name."""
        return self.vector.num_samples

    def reset(self, *, seed: int | None = None, options: Settings | None = None) -> tuple[Observations, Infos]:
        """Begin an episode; ``options={"index": i}`` selects the sample."""
        refuse_wrong_statistics()
        super().reset(seed=seed)
        self.vector.spec = self.spec  # for errors that name the id
        self.vector.generators = [self.np_random]
        observations, infos = self.vector.reset(options=options)
        return _first(observations), with_scalars(info_of(infos, 0))

    def step(self, action: Any) -> tuple[Observations, float, bool, bool, Infos]:
        """Apply one action; the class of the vector environment describes the results."""
        observations, values, terminated, truncated, infos = self.vector.step([action])
        info = with_scalars(info_of(infos, 0))
        return _first(observations), float(values[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:  # type: ignore[override]  # as above
        """Draw the picture of the episode, uint8 (H, W, 3)."""
        frames = self.vector.render()
        return None if frames is None else frames[0]


def _bytes(sample: Sample) -> int:
    """Count the bytes of the arrays of a sample."""
    return sum(array.nbytes for array in (*sample.images, *sample.masks, *(sample.void or ())))


def _first(observations: Observations) -> Observations:
    return {name: value[0] for name, value in observations.items()}
