"""DQN on point prompting with Stable-Baselines3 (Mnih et al., Nature 2015): values of patches instead of a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from maskgym.agents.clicks.sb3 import GridFeatures, SampleVecEnv
from maskgym.agents.clicks.sb3_agent import SB3Agent
from maskgym.agents.common.checkpoints import TrainingState, check_at_least
from maskgym.aliases import Settings
from maskgym.envs.base import unwrap
from maskgym.envs.point import PointPromptVectorEnv
from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic

KINDS = ("observations", "next_observations")  # arrays of a replay buffer, by entry of the observation


class GridQNetwork(QNetwork):
    """Values of the patches: the trunk and the actor's layer of `maskgym.policies.clicks.point`, without a softmax.

    Args:
        networks: Sizes of the networks.
        settings: Arguments that Stable-Baselines3 passes to its network.
    """

    def __init__(self, networks: PointActorCritic, **settings: Any) -> None:
        super().__init__(**settings)
        assert isinstance(self.observation_space, spaces.Dict)
        self.q_net = networks.actor(self.observation_space, self.action_space)

    def forward(self, obs: PyTorchObs) -> torch.Tensor:
        """Compute values (B, g²); clicked patches have -1e9."""
        return self.q_net(self.extract_features(obs, self.features_extractor))


class GridQPolicy(DQNPolicy):
    """Greedy policy of a `GridQNetwork`, with its target network.

    Args:
        *spaces_and_rate: Spaces and learning rate, as Stable-Baselines3 passes them.
        networks: Sizes of the networks.
        **settings: Further arguments that Stable-Baselines3 passes to its policies.
    """

    def __init__(self, *spaces_and_rate: Any, networks: PointActorCritic, **settings: Any) -> None:
        self.networks = networks
        settings |= {"net_arch": [], "features_extractor_class": GridFeatures}
        settings["features_extractor_kwargs"] = {"networks": networks}
        super().__init__(*spaces_and_rate, **settings)

    def make_q_net(self) -> GridQNetwork:
        """Build a network of values."""
        settings = self._update_features_extractor(self.net_args, features_extractor=None)
        return GridQNetwork(self.networks, **settings).to(self.device)


class DQNAgent(SB3Agent):
    """Train by DQN: a rollout of one episode per sub-environment, then gradient steps on replayed clicks.

    An episode ends after its clicks: nothing is bootstrapped beyond. With probability ε all sub-environments click at
    random in a step, clicked patches included, as Stable-Baselines3 explores. Checkpoints hold the replayed clicks, 65
    KB each with the bundled SAM.

    Args:
        policy: Sizes of the networks; the critic is not used.
        env: Vector environment with ``autoreset_mode=DISABLED`` and the spaces of the policy, whose actions are patches
            alone.
        seed: Seed of the weights, of sampling, and of the samples shown.
        output: Folder of the checkpoints.
        learning_rate: Learning rate for Adam.
        gamma: Discount factor γ.
        gradient_steps: Gradient steps per update.
        minibatch_size: Clicks per gradient step.
        buffer_size: Clicks that are replayed, the last ones.
        exploration_share: Share of the updates in which ε falls from 1 to its end.
        exploration_end: ε at the end.
        save_every: Updates between checkpoints.

    Raises:
        UserError: If a number is out of range, or the policy would label its clicks.
    """

    def __init__(
        self,
        policy: PointActorCritic,
        env: VectorEnv,
        seed: int = 0,
        *,
        output: str | Path,
        learning_rate: float = 1e-3,
        gamma: float = 0.99,
        gradient_steps: int = 300,
        minibatch_size: int = 64,
        buffer_size: int = 4800,
        exploration_share: float = 0.5,
        exploration_end: float = 0.05,
        save_every: int = 10,
    ) -> None:
        check_at_least(1, gradient_steps=gradient_steps, minibatch_size=minibatch_size, buffer_size=buffer_size)
        for name, value in (("exploration_share", exploration_share), ("exploration_end", exploration_end)):
            if not 0 <= value <= 1:
                raise UserError(f"algo.{name}={value}: expected a number in [0, 1]")
        base = unwrap(env, PointPromptVectorEnv)
        if not isinstance(env.single_action_space, spaces.Discrete):
            raise UserError(
                f"algo=dqn env.label_source={base.label_source}: values are those of patches alone: expected srm, "
                "positive or oracle"
            )
        self.exploration_share, self.exploration_end = exploration_share, exploration_end
        clicks = base.horizon * env.num_envs  # of a rollout
        model = DQN(
            GridQPolicy,
            SampleVecEnv(env, restarts=False),
            learning_rate=learning_rate,
            gamma=gamma,
            buffer_size=buffer_size,
            learning_starts=0,
            batch_size=minibatch_size,
            train_freq=(base.horizon, "step"),
            gradient_steps=gradient_steps,
            target_update_interval=clicks,
            replay_buffer_kwargs={"handle_timeout_termination": False},
            policy_kwargs={"networks": policy},
            seed=seed,
            device="auto",
        )
        super().__init__(model, env, seed, output, save_every, gradient_steps)

    def training_state(self) -> TrainingState:
        """Collect weights, optimizer states and the replayed clicks, so that a resumed training is the same."""
        buffer = self._buffer()
        filled = buffer.buffer_size if buffer.full else buffer.pos
        replay = {name: torch.from_numpy(array[:filled]) for name, array in _arrays(buffer).items()}
        return super().training_state() | {"replay": {**replay, "position": buffer.pos, "full": buffer.full}}

    def load_training_state(self, state: Settings, file: Path) -> None:
        """Load what `training_state` returned."""
        super().load_training_state(state, file)
        buffer, replay = self._buffer(), state["replay"]
        for name, array in _arrays(buffer).items():
            array[: len(replay[name])] = replay[name].numpy()
        buffer.pos, buffer.full = replay["position"], replay["full"]

    def _buffer(self) -> DictReplayBuffer:
        assert isinstance(self.model, DQN)
        buffer = self.model.replay_buffer
        assert isinstance(buffer, DictReplayBuffer)
        return buffer

    def begin_rollout(self, update: int, updates: int) -> None:
        """Set ε for the rollout of an update."""
        falling = max(1, round(self.exploration_share * updates))
        rate = 1 - (1 - self.exploration_end) * min(1, update / falling)
        assert isinstance(self.model, DQN)
        self.model.action_space.seed(int(np.random.randint(2**31)))  # of random clicks; NumPy's seed is the rollout's
        self.model.exploration_schedule = lambda remaining: rate
        self.model.exploration_rate = rate


def _arrays(buffer: DictReplayBuffer) -> dict[str, np.ndarray]:
    """List the arrays of a buffer by name, each with one row per step of the sub-environments."""
    arrays = {f"{kind}/{name}": array for kind in KINDS for name, array in getattr(buffer, kind).items()}
    return arrays | {"actions": buffer.actions, "rewards": buffer.rewards, "dones": buffer.dones}
