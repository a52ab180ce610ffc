"""Adapt native vector environments and the patch-grid policy to Stable-Baselines3.

Any algorithm of Stable-Baselines3 for discrete actions can play the environments through `SampleVecEnv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from gymnasium import Wrapper, spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from maskgym.aliases import Infos, JsonObject
from maskgym.envs.base import unwrap
from maskgym.envs.infos import info_of
from maskgym.envs.point import PointPromptVectorEnv
from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic


class SampleVecEnv(VecEnv):
    """Adapt a native vector environment to the interface of Stable-Baselines3.

    Args:
        env: Vector environment. Algorithms of Stable-Baselines3 need ``autoreset_mode=SAME_STEP`` to step it.
        restarts: Whether episodes restart by themselves, as these algorithms expect. If not, stepping needs
            ``autoreset_mode=DISABLED``, and whoever steps calls `reset` after each episode.

    Attributes:
        targets: Ground-truth masks of each sub-environment's sample, on the training split.
        reset_infos: Info of each sub-environment's last start.
    """

    def __init__(self, env: VectorEnv, restarts: bool = True) -> None:
        self.env, self.mode = env, AutoresetMode.SAME_STEP if restarts else AutoresetMode.DISABLED
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.targets: list[tuple[np.ndarray, ...]] = [()] * env.num_envs
        self._actions: np.ndarray = np.empty(0)

    def reset(self) -> dict[str, np.ndarray]:
        """Start every episode with the seeds and options that were set for this reset; return the observations.

        Raises:
            UserError: If an option is not ``index``, or there is not one dictionary per sub-environment.
        """
        if len(self._options) != self.num_envs:
            raise UserError(f"set_options: {len(self._options)} dictionaries: expected {self.num_envs}, one each")
        for i, options in enumerate(self._options):
            if set(options) - {"index"}:
                raise UserError(f"set_options: {options} for sub-environment {i}: expected index alone")
        wanted = [options.get("index") for options in self._options]
        observations, infos = self.env.reset(seed=self._seeds[0], options={"index": wanted})
        self._reset_seeds()
        self._reset_options()
        self._store_starts(infos)
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Store the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict]]:
        """Take the step; the last observation of an episode is in its info as ``terminal_observation``.

        Raises:
            UserError: If the autoreset mode is another one than expected.
        """
        if self.env.metadata["autoreset_mode"] is not self.mode:
            raise UserError(f"autoreset_mode={self.env.metadata['autoreset_mode']}: expected {self.mode.name} here")
        restarts = self.mode is AutoresetMode.SAME_STEP
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        over = terminated | truncated
        each: list[JsonObject] = [{} for _ in range(self.num_envs)]
        for i, info in enumerate(each):
            source = infos["final_info"] if over[i] and restarts else infos
            info["iou"], info["repeated"] = float(source["iou"][i]), bool(source["repeated"][i])
            if over[i]:
                last = {name: value[i] for name, value in observations.items()}
                info["terminal_observation"] = infos["final_obs"][i] if restarts else last
                info["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        if restarts:
            self._store_starts(infos, over)
        return observations, rewards.astype(np.float32), over, each

    def _store_starts(self, infos: Infos, started: np.ndarray | None = None) -> None:
        """Store the infos of the sub-environments that began an episode; None for all."""
        for i in np.flatnonzero(np.ones(self.num_envs, bool) if started is None else started):
            own = info_of(infos, i)
            self.reset_infos[i] = {name: value for name, value in own.items() if not name.startswith("final_")}
            self.targets[i] = own.get("target", ())

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list:
        """Return an attribute, which all sub-environments share, once per sub-environment."""
        return [getattr(self.env.unwrapped, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> NoReturn:
        """Raise an error, because sub-environments share their attributes."""
        raise NotImplementedError("the sub-environments of a native vector environment share their attributes")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list:
        """Return ``action_masks()`` for MaskablePPO, bool (actions,) per sub-environment; refuse other methods."""
        if method_name != "action_masks":
            raise NotImplementedError("the sub-environments of a native vector environment share their methods")
        masks = unwrap(self.env, PointPromptVectorEnv).action_masks()
        return [masks[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Return False per sub-environment."""
        return [False for _ in self._get_indices(indices)]


class GridFeatures(BaseFeaturesExtractor):
    """Shared trunk as a feature extractor of Stable-Baselines3."""

    def __init__(self, observation_space: spaces.Dict, networks: PointActorCritic) -> None:
        trunk = networks.trunk(observation_space)
        super().__init__(observation_space, trunk.features)
        self.trunk = trunk

    def forward(self, observations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the features (B, channels · g²)."""
        return self.trunk(observations)


class GridPolicy(ActorCriticPolicy):
    """Actor and critic over the patch grid; see `maskgym.policies.clicks.point`.

    Args:
        observation_space: Space with the patch grid.
        action_space: Patches, or patches and labels.
        lr_schedule: Function from the remaining share of training to the learning rate.
        networks: Sizes of the networks.
        **settings: Further arguments that Stable-Baselines3 passes to its policies.
    """

    observation_space: spaces.Dict

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        networks: PointActorCritic,
        **settings: Any,
    ) -> None:
        self.networks = networks
        settings |= {"net_arch": [], "features_extractor_class": GridFeatures}
        settings["features_extractor_kwargs"] = {"networks": networks}
        super().__init__(observation_space, action_space, lr_schedule, **settings)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_net = self.networks.actor(self.observation_space, self.action_space)
        self.value_net = self.networks.critic(self.observation_space)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)
