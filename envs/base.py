"""What the environments share: each is written once, as a vector environment whose sub-environments show samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv

from maskgym import rewards
from maskgym.data import Dataset, Sample
from maskgym.errors import UserError
from maskgym.rewards import Reward

CACHED_SAMPLES = 256  # decoded samples kept: what one update shows is scored again a moment later


class SampleVectorEnv(VectorEnv, ABC):
    """Sub-environments that show samples of one data set.

    A subclass sets its spaces, draws frames with `_frame`, and starts episodes with `_draw`.

    Args:
        num_envs: Number of sub-environments.
        dataset: What they show.
        reward: A name in `maskgym.rewards`, or a reward.
        render_mode: ``rgb_array``, ``human`` or None.
        autoreset_mode: SAME_STEP, NEXT_STEP or DISABLED.

    Raises:
        UserError: If an argument cannot be used.
    """

    action_kind: ClassVar[Literal["text", "clicks", "masks"]]  # kind of its actions
    takes: ClassVar[frozenset[str]] = frozenset({"reward"})  # components that a run passes to the constructor
    horizon: int = 1  # most steps per episode

    metadata: dict[str, Any] = {  # noqa: RUF012 (as Gymnasium declares it: instances have their own)
        "render_modes": ["rgb_array", "human"],
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        dataset: Dataset,
        reward: str | Reward,
        render_mode: str | None,
        autoreset_mode: AutoresetMode | str,
    ) -> None:
        modes = self.metadata["render_modes"]
        if render_mode is not None and render_mode not in modes:
            raise UserError(f"render_mode={render_mode!r}: expected one of {', '.join(modes)}")
        if num_envs < 1:
            raise UserError(f"num_envs={num_envs}: expected at least 1")
        self.num_envs, self.dataset, self.render_mode = num_envs, dataset, render_mode
        self.reward = rewards.make(reward) if isinstance(reward, str) else reward
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.generators: list[np.random.Generator] = []
        self._indices = np.full(num_envs, -1)
        self._done = np.ones(num_envs, dtype=bool)
        self._cache: OrderedDict[int, Sample] = OrderedDict()

    @property
    def num_samples(self) -> int:
        """Number of samples that ``options={"index": i}`` can name."""
        return len(self.dataset)

    # In Gymnasium's signatures the frame is a type variable that nothing binds: no type overrides it.
    def render(self) -> tuple[np.ndarray, ...] | None:  # type: ignore[override]
        """Return one uint8 (H, W, 3) picture a sub-environment."""
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

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cached samples behind."""
        return {**self.__dict__, "_cache": OrderedDict()}

    @abstractmethod
    def _frame(self, i: int) -> np.ndarray:
        """Return the picture of sub-environment ``i``."""

    def _begin_reset(
        self, seed: int | Sequence[int | None] | None, options: dict[str, Any] | None
    ) -> tuple[np.ndarray, list[int | None]]:
        """Seed, and return which sub-environments to start and the sample that each of all is asked to show.

        Sub-environment i is seeded with ``seed + i``, or ``seed[i]``, as the scalar environment would be.
        """
        options = options or {}
        count = self.num_envs
        seeds = seed if isinstance(seed, Sequence) else [None if seed is None else seed + i for i in range(count)]
        if not self.generators:
            self.generators = [seeding.np_random(value)[0] for value in seeds]
        for i, value in enumerate(seeds):
            if value is not None:
                self.generators[i] = seeding.np_random(value)[0]
        mask = np.asarray(options.get("reset_mask", np.ones(count, dtype=bool)))
        wanted = options.get("index")
        return np.flatnonzero(mask), [None] * count if wanted is None else list(np.broadcast_to(wanted, count))

    def _draw(self, i: int, index: int | None) -> Sample:
        """Begin an episode of sub-environment ``i`` with the sample asked for, or one at random; return it.

        Raises:
            UserError: If the index is not one of the data set's.
        """
        if index is None:
            index = int(self.generators[i].integers(self.num_samples))
        elif not 0 <= index < self.num_samples:
            raise UserError(f"index {index}: the {self.dataset.split} split has samples 0 to {self.num_samples - 1}")
        self._indices[i], self._done[i] = index, False
        return self._sample(int(index))

    def _start_info(self, i: int, sample: Sample) -> dict[str, Any]:
        """Return the info of an episode that begins; what only supervised parts may see is there in training alone."""
        info = {"sample_key": sample.key, "index": int(self._indices[i])}
        if self.dataset.split == "train":
            # Copies: Gymnasium promises that what a user keeps of an info is the user's.
            info |= {"target": tuple(mask.copy() for mask in sample.masks), "rationale": sample.rationale}
        return info

    def _sample(self, index: int) -> Sample:
        if index not in self._cache:
            self._cache[index] = self.dataset[index]
            if len(self._cache) > CACHED_SAMPLES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(index)
        return self._cache[index]

    def _live(self) -> np.ndarray:
        """Return the sub-environments that a step is for; those that are over are restarted by it in NEXT_STEP only."""
        live = np.flatnonzero(~self._done)
        if len(live) < self.num_envs and self.autoreset_mode is not AutoresetMode.NEXT_STEP:
            raise gym.error.ResetNeeded("step was called on an episode that is over: call reset first")
        return live


def info_of(infos: dict[str, Any], i: int) -> dict[str, Any]:
    """Extract the info of one sub-environment from batched infos, nested dictionaries included."""
    return {
        name: info_of(value, i) if isinstance(value, dict) else value[i]
        for name, value in infos.items()
        if not name.startswith("_") and infos[f"_{name}"][i]
    }


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


class ScalarEnv(gym.Env):
    """One episode at a time: the vector environment of one, whose arguments, spaces and infos it has."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 1}  # noqa: RUF012 (see above)
    vector_class: ClassVar[type[SampleVectorEnv]]

    def __init__(self, render_mode: str | None = None, **arguments: Any) -> None:
        self.vector = self.vector_class(
            num_envs=1, render_mode=render_mode, autoreset_mode=AutoresetMode.DISABLED, **arguments
        )
        self.render_mode = render_mode
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    @property
    def num_samples(self) -> int:
        """Number of samples that ``options={"index": i}`` can name."""
        return self.vector.num_samples

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; ``options={"index": i}`` names the sample."""
        super().reset(seed=seed)
        self.vector.generators = [self.np_random]
        observations, infos = self.vector.reset(options=options)
        return _first(observations), _first_info(infos)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take one action; see the class of the vector environment for what comes back."""
        observations, values, terminated, truncated, infos = self.vector.step([action])
        return _first(observations), float(values[0]), bool(terminated[0]), bool(truncated[0]), _first_info(infos)

    def render(self) -> np.ndarray | None:  # type: ignore[override]  # as above
        """Return the picture of the episode, uint8 (H, W, 3)."""
        frames = self.vector.render()
        return None if frames is None else frames[0]


def _first(observations: dict[str, Any]) -> dict[str, Any]:
    return {name: value[0] for name, value in observations.items()}


def _first_info(infos: dict[str, Any]) -> dict[str, Any]:
    """Undo the batching of infos of one sub-environment, nested dictionaries included."""
    kept = {name: value for name, value in infos.items() if f"_{name}" in infos}
    return {name: _first_info(value) if isinstance(value, dict) else _scalar(value[0]) for name, value in kept.items()}


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
