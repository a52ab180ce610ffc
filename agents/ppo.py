"""PPO on point prompting, by Stable-Baselines3 (AlignSAM, Eq. 5-10 and Algorithm 1).

`SampleVecEnv` is the adaptor through which any algorithm of Stable-Baselines3 for discrete actions plays a native
vector environment. Where the paper is at odds with itself, this is plain PPO: Eq. 8 divides the probabilities of
different steps; the ratio here is that of the new and the old policy at the same step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch.nn import functional as F

from ..errors import UserError
from ..policies.point import PointActorCritic

OnLog = Callable[[int, Mapping[str, float]], None]
CHECKPOINT = "ppo.pt"


class SampleVecEnv(VecEnv):
    """A native vector environment as Stable-Baselines3 wants it.

    Args:
        env: A vector environment; to be stepped, it must restart in SAME_STEP.

    Attributes:
        targets: The true masks of each sub-environment's sample, on the training split.
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
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take the step; what an episode ended with is in its info as ``terminal_observation``.

        Raises:
            UserError: If the environment restarts in another way than SAME_STEP.
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
        """Return an attribute, once a sub-environment: they share it."""
        return [getattr(self.env.unwrapped, attr_name, None) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: sub-environments share their attributes."""
        raise NotImplementedError("the sub-environments of a native vector environment share their attributes")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse, as `set_attr`."""
        raise NotImplementedError("the sub-environments of a native vector environment share their methods")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return False for each."""
        return [False for _ in self._get_indices(indices)]


class GridFeatures(BaseFeaturesExtractor):
    """The shared trunk, as Stable-Baselines3 wants it."""

    def __init__(self, observation_space: spaces.Dict, networks: PointActorCritic) -> None:
        trunk = networks.trunk(observation_space)
        super().__init__(observation_space, trunk.features)
        self.trunk = trunk

    def forward(self, observations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return (B, channels · g²)."""
        return self.trunk(observations)


class GridPolicy(ActorCriticPolicy):
    """Actor and critic over the patch grid; see `maskgym.policies.point`."""

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


class PPOAgent:
    """PPO with AlignSAM's settings: γ 0.99, ε 0.2, K 20 epochs, λ 1 (Eq. 6), advantages as they are (Eq. 7).

    Where a recalibration module labels the clicks, it is trained along, after every action (Eq. 13).

    Args:
        policy: A `maskgym.policies.point.PointActorCritic`.
        env: A vector environment with the spaces that it will act in.
        seed: Seed of the weights, of sampling, and of the samples shown.
        output: Folder of the checkpoints.
        num_envs: Episodes played at a time, of which a rollout has one each.
        learning_rate: Of Adam.
        gamma: Discount.
        gae_lambda: λ of the advantage; 1 is Eq. 6.
        clip_range: ε of Eq. 9.
        epochs: K, passes over a rollout.
        minibatch_size: Steps a gradient.
        entropy_weight: Of the entropy bonus; the paper has none.
        normalize_advantage: Bring a minibatch's advantages to mean 0 and deviation 1; the paper does not.
        save_every: Updates between checkpoints.

    Raises:
        UserError: If a number is out of range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("point_prompt",)
    autoreset_mode: ClassVar[AutoresetMode] = AutoresetMode.SAME_STEP  # of the environment that it trains in

    def __init__(
        self,
        policy: PointActorCritic,
        env: VectorEnv,
        seed: int = 0,
        output: str | Path = "checkpoints",
        learning_rate: float = 3e-4,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        clip_range: float = 0.2,
        epochs: int = 20,
        minibatch_size: int = 240,
        entropy_weight: float = 0.0,
        normalize_advantage: bool = False,
        save_every: int = 10,
    ) -> None:
        for name, value in (("epochs", epochs), ("minibatch_size", minibatch_size), ("save_every", save_every)):
            if value < 1:
                raise UserError(f"algo.{name}={value}: expected at least 1")
        base: Any = env.unwrapped
        self.seed, self.output, self.save_every = seed, Path(output), save_every
        self.recalibration = base.recalibration
        self.model = PPO(
            GridPolicy,
            SampleVecEnv(env),
            n_steps=base.horizon,
            batch_size=minibatch_size,
            learning_rate=learning_rate,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            n_epochs=epochs,
            ent_coef=entropy_weight,
            normalize_advantage=normalize_advantage,
            policy_kwargs={"networks": policy},
            seed=seed,
            device="auto",
        )

    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: OnLog, resume: bool = False) -> None:
        """Train for a number of updates: a rollout of one episode a sub-environment, then K epochs over it.

        Args:
            envs: One, the one that the agent was made with.
            updates: In all, those before a resumed checkpoint included.
            on_log: Called after each with its number, from 1, and named scalars.
            resume: Go on from the checkpoint in ``output``, where there is one.
        """
        first = self._restore() if resume else 0
        if first < updates:
            steps = self.model.n_steps * self.model.n_envs * (updates - first)
            never: Any = None  # to print its own table
            self.model.learn(steps, callback=_Rollouts(self, first, on_log), log_interval=never)

    def act(self, observations: Sequence[Mapping[str, Any]], greedy: bool = True) -> np.ndarray:
        """Return one action an observation, the most probable or sampled."""
        batch = {name: np.stack([row[name] for row in observations]) for name in observations[0]}
        return self.model.predict(batch, deterministic=greedy)[0]

    def save(self, path: str | Path) -> None:
        """Write the weights as a file ``policy.pt`` in a folder, whole or not at all."""
        Path(path).mkdir(parents=True, exist_ok=True)
        state = {"policy": self.model.policy.state_dict()}
        if self.recalibration is not None:
            state["recalibration"] = self.recalibration.state_dict()
        _write(Path(path) / "policy.pt", state)

    def load(self, path: str | Path) -> None:
        """Take the weights that `save` wrote.

        Raises:
            UserError: If there are none.
        """
        self._load(_read(Path(path) / "policy.pt"))

    def checkpoint(self, update: int) -> None:
        """Write all that a later update depends on: chance is seeded by the update's number."""
        policy = self.model.policy
        self.output.mkdir(parents=True, exist_ok=True)
        state = {"policy": policy.state_dict(), "optimizer": policy.optimizer.state_dict(), "update": update}
        if self.recalibration is not None:
            state["recalibration"] = self.recalibration.state_dict()
            state["recalibration_optimizer"] = self.recalibration.optimizer.state_dict()
        _write(self.output / CHECKPOINT, state)

    def _load(self, state: dict[str, Any]) -> None:
        self.model.policy.load_state_dict(state["policy"])
        if self.recalibration is not None:
            self.recalibration.load_state_dict(state["recalibration"])

    def _restore(self) -> int:
        file = self.output / CHECKPOINT
        if not file.exists():
            return 0
        state = _read(file)
        self._load(state)
        self.model.policy.optimizer.load_state_dict(state["optimizer"])
        if self.recalibration is not None:
            self.recalibration.optimizer.load_state_dict(state["recalibration_optimizer"])
        return state["update"]


class _Rollouts(BaseCallback):
    """Begin every rollout with fresh episodes and chance of its own, and log what came of the last one."""

    def __init__(self, agent: PPOAgent, first: int, on_log: OnLog) -> None:
        super().__init__()
        self.agent, self.update, self.on_log = agent, first, on_log
        self.totals: list[float] = []
        self.ious: list[float] = []
        self.repeats: list[float] = []
        self.losses: list[float] = []
        self.truth = torch.empty(0)  # (num_envs, g, g), of the episodes of this rollout

    def _on_rollout_start(self) -> None:
        self._finish()
        seed = [self.agent.seed, self.update]
        numbers = np.random.SeedSequence(seed).generate_state(3)
        torch.manual_seed(int(numbers[0]))
        np.random.seed(int(numbers[1]))  # Stable-Baselines3 shuffles minibatches with it
        environment: Any = self.model.env
        environment.seed(int(numbers[2] % 2**31))
        self.model._last_obs = environment.reset()
        self.model._last_episode_starts = np.ones(environment.num_envs, bool)
        self.totals, self.ious, self.repeats, self.losses = [], [], [], []
        if self.agent.recalibration is not None:
            grid = environment.env.unwrapped.grid
            self.truth = torch.stack([_patch_shares(target[0].any(axis=0), grid) for target in environment.targets])
            # The paper's module chooses the first prompts too, so it must know the state before them.
            self._recalibrate(environment.env.unwrapped.unprompted())

    def _recalibrate(self, observation: Mapping[str, np.ndarray]) -> None:
        """Train the recalibration module on what was seen, q times (Section 4.1)."""
        tensors = {name: torch.as_tensor(value) for name, value in observation.items()}
        self.losses.append(self.agent.recalibration.learn(tensors, self.truth))

    def _on_step(self) -> bool:
        if self.agent.recalibration is not None:  # the observation that the action answered
            seen: Any = self.model._last_obs
            self._recalibrate(seen)
        self.totals.append(float(np.mean(self.locals["rewards"])))
        self.ious.append(float(np.mean([info["iou"] for info in self.locals["infos"]])))
        self.repeats.append(float(np.mean([info["repeated"] for info in self.locals["infos"]])))
        return True

    def _on_training_end(self) -> None:
        self._finish()

    def _finish(self) -> None:
        """Log the rollout that is behind, and the update that followed it."""
        if not self.totals:
            return
        self.update += 1
        losses = {name: float(v) for name, v in self.logger.name_to_value.items() if name.startswith("train/")}
        rollout = {"reward": sum(self.totals), "iou": self.ious[-1], "repeated": float(np.mean(self.repeats))}
        rollout |= {"recalibration/loss": float(np.mean(self.losses))} if self.losses else {}
        self.on_log(self.update, rollout | losses)
        if self.update % self.agent.save_every == 0:
            self.agent.checkpoint(self.update)


def _patch_shares(mask: np.ndarray, grid: int) -> torch.Tensor:
    """Return float (g, g): the share of each patch that a mask bool (H, W) covers (y' of Eq. 13)."""
    return F.adaptive_avg_pool2d(torch.from_numpy(mask)[None].float(), grid)[0]


def _write(file: Path, state: dict[str, Any]) -> None:
    temporary = file.with_name(f"{file.name}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, file)


def _read(file: Path) -> dict[str, Any]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file of weights") from error
