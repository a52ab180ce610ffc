"""Adapt native vector environments and the patch-grid policy to Stable-Baselines3.

Any algorithm of Stable-Baselines3 for discrete actions can play the environments through `SampleVecEnv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv

from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic


class SampleVecEnv(VecEnv):
    """Adapt a native vector environment to the interface of Stable-Baselines3.

    Args:
        env: A vector environment; stepping needs ``autoreset_mode=SAME_STEP``.

    Attributes:
        targets: Ground-truth masks of each sub-environment's sample, on the training split.
    """

    def __init__(self, env: VectorEnv) -> None:
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.targets: list[Any] = [None] * env.num_envs
        self._actions: np.ndarray = np.empty(0)

    def reset(self) -> Any:
        """Start every episode; return the observations."""
        observations, infos = self.env.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._note_targets(infos)
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Store the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take the step; the last observation of an episode is in its info as ``terminal_observation``.

        Raises:
            UserError: If the autoreset mode is not SAME_STEP.
        """
        if self.env.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
            raise UserError(f"autoreset_mode={self.env.metadata['autoreset_mode']}: Stable-Baselines3 needs SAME_STEP")
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        over = terminated | truncated
        each: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i, info in enumerate(each):
            source = infos["final_info"] if over[i] else infos
            info["iou"], info["repeated"] = float(source["iou"][i]), bool(source["repeated"][i])
            if over[i]:
                info["terminal_observation"] = infos["final_obs"][i]
                info["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        self._note_targets(infos)
        return observations, rewards.astype(np.float32), over, each

    def _note_targets(self, infos: dict[str, Any]) -> None:
        for i in np.flatnonzero(infos.get("_target", ())):
            self.targets[i] = infos["target"][i]

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return a shared attribute, repeated per sub-environment."""
        return [getattr(self.env.unwrapped, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Raise an error, because sub-environments share their attributes."""
        raise NotImplementedError("the sub-environments of a native vector environment share their attributes")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Return ``action_masks()`` for MaskablePPO, bool (actions,) per sub-environment; refuse other methods."""
        if method_name != "action_masks":
            raise NotImplementedError("the sub-environments of a native vector environment share their methods")
        base: Any = self.env.unwrapped
        masks = base.action_masks()
        return [masks[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
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
    """Actor and critic over the patch grid; see `maskgym.policies.clicks.point`."""

    def __init__(self, observation_space: Any, action_space: Any, *args: Any, networks: Any, **kwargs: Any) -> None:
        self.networks = networks
        settings = {"networks": networks}
        super().__init__(
            observation_space,
            action_space,
            *args,
            **{
                **kwargs,
                "net_arch": [],
                "features_extractor_class": GridFeatures,
                "features_extractor_kwargs": settings,
            },
        )

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = self.networks.actor(self.observation_space, self.action_space)
        self.value_net = self.networks.critic(self.observation_space)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)
