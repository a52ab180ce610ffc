"""PPO on RLlib: separate processes play the episodes, and one or more GPUs learn.

Networks, settings and checkpoints are those of `maskgym.agents.clicks.ppo`. Three things differ. RLlib normalises the
advantages per rollout, not per minibatch. Its Adam has ε 1e-8 instead of 1e-5. With a jointly trained recalibration
module, each process trains a copy on its own episodes, and the copies are averaged after each rollout (local SGD:
Stich, arXiv 1805.09767).
"""

from __future__ import annotations

import io
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from torch import Tensor, nn

from maskgym.agents.base import OnLog
from maskgym.agents.clicks.acting import ClickAgent, RecalibrationTrainer, RolloutStatistics
from maskgym.agents.clicks.sb3 import GridPolicy
from maskgym.agents.common.checkpoints import TrainingState, check_at_least
from maskgym.aliases import Infos, Observations, Settings
from maskgym.envs.base import unwrap
from maskgym.envs.point import PointPromptVectorEnv
from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic

try:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical
    from ray.rllib.core.rl_module.apis import ValueFunctionAPI
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.rllib.core.rl_module.torch import TorchRLModule
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
    from ray.tune.registry import register_env
except ImportError as error:
    raise UserError("PPO on RLlib needs Ray: pip install 'maskgym[ray]'") from error

ENV = "maskgym-clicks"  # name in RLlib's registry
ATTEMPTS = 3  # at an update whose players go away
RESTART_S = 300.0  # of a process that imports torch on a busy machine
# RLlib's metric names are mapped to those of Stable-Baselines3, so that both backends log alike.
LOGGED = {"policy_loss": "train/policy_gradient_loss", "vf_loss": "train/value_loss", "total_loss": "train/loss"}
LOGGED |= {"entropy": "train/entropy", "vf_explained_var": "train/explained_variance"}


class RLlibPPOAgent(ClickAgent):
    """Train by PPO with AlignSAM's settings on RLlib's new API stack; see `maskgym.agents.clicks.ppo.PPOAgent`.

    Args:
        policy: Sizes of the networks.
        env: Vector environment with the spaces of the policy.
        make_env: Function that builds such an environment in another process, for a number of sub-environments.
        seed: Seed of the weights, of sampling, and of the samples shown.
        output: Folder of the checkpoints.
        num_workers: Number of processes that play; the sub-environments are divided evenly among them.
        cpus_per_worker: CPUs per worker.
        use_gpu: Whether each worker gets a GPU, with as many learners on a GPU each; a single worker shares its GPU
            with the learner. If False, this process learns on the CPU.
        learning_rate: Learning rate for Adam.
        gamma: Discount factor γ.
        gae_lambda: λ of generalised advantage estimation; 1 is Eq. 6.
        clip_range: Clip range ε of Eq. 9.
        epochs: Passes over a rollout, K.
        minibatch_size: Steps per gradient, over all learners.
        value_weight: Weight of the critic's loss (Eq. 10) beside the actor's (Eq. 9); the paper states none.
        entropy_weight: Weight of the entropy bonus; the paper has none.
        save_every: Updates between checkpoints.

    Raises:
        UserError: If a number is out of range, or the sub-environments cannot be divided evenly.
    """

    autoreset_mode: ClassVar[AutoresetMode] = AutoresetMode.NEXT_STEP
    scales: ClassVar[tuple[str, ...]] = ("ray",)
    starts_workers: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset({"make_env"})

    def __init__(
        self,
        policy: PointActorCritic,
        env: VectorEnv,
        make_env: Callable[[int], VectorEnv],
        seed: int = 0,
        *,
        output: str | Path,
        num_workers: int = 1,
        cpus_per_worker: int = 1,
        use_gpu: bool = False,
        learning_rate: float = 3e-4,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        clip_range: float = 0.2,
        epochs: int = 20,
        minibatch_size: int = 240,
        value_weight: float = 0.5,
        entropy_weight: float = 0.0,
        save_every: int = 10,
    ) -> None:
        check_at_least(1, epochs=epochs, minibatch_size=minibatch_size)
        if env.num_envs % num_workers:
            raise UserError(f"env.num_envs={env.num_envs}: expected a multiple of the {num_workers} workers")
        self.spaces = env.single_observation_space, env.single_action_space
        torch.manual_seed(seed)
        made = GridPolicy(*self.spaces, lambda _: learning_rate, networks=policy)
        super().__init__(made, env, seed, output, save_every)
        steps = unwrap(env, PointPromptVectorEnv).horizon * env.num_envs
        learners = num_workers if use_gpu and num_workers > 1 else 0
        register_env(ENV, lambda context: RolloutEnv(make_env(context["num_envs"])))
        self.config = (
            PPOConfig()
            .environment(ENV, observation_space=self.spaces[0], action_space=self.spaces[1])
            .env_runners(
                env_runner_cls=RolloutRunner,
                num_env_runners=num_workers,
                num_envs_per_env_runner=env.num_envs // num_workers,
                gym_env_vectorize_mode="vector_entry_point",
                batch_mode="complete_episodes",
                sample_timeout_s=None,  # RLlib would leave out the episodes of a player that takes longer
                num_cpus_per_env_runner=cpus_per_worker,
                num_gpus_per_env_runner=0 if not use_gpu else 1 if learners else 0.5,
            )
            .learners(learner_class=SeededLearner, num_learners=learners, num_gpus_per_learner=int(use_gpu))
            .rl_module(rl_module_spec=RLModuleSpec(module_class=GridModule, model_config={"networks": asdict(policy)}))
            .training(
                lr=learning_rate,
                gamma=gamma,
                lambda_=gae_lambda,
                clip_param=clip_range,
                num_epochs=epochs,
                train_batch_size_per_learner=steps // max(1, learners),
                minibatch_size=min(minibatch_size, steps) // max(1, learners),
                vf_loss_coeff=value_weight,
                vf_clip_param=float("inf"),
                entropy_coeff=entropy_weight,
                use_kl_loss=False,
                grad_clip=0.5,
                grad_clip_by="global_norm",
            )
            .debugging(log_level="ERROR", seed=seed)
        )

    def train(self, envs: Sequence[VectorEnv], updates: int, on_log: OnLog, resume: bool = False) -> None:
        """Train for a number of updates: a rollout of one episode per sub-environment, then K epochs over it.

        Args:
            envs: Unused, because other processes play the episodes.
            updates: Total number of updates, including those before a resumed checkpoint.
            on_log: Receiver of each update's number, from 1, and its named scalars.
            resume: Whether to continue from the checkpoint in ``output``, if any.

        Raises:
            UserError: If the processes that play keep going away.
        """
        first = self.restore() if resume else 0
        if first >= updates:
            return
        with _quiet():
            algorithm = self.config.build_algo()
        try:
            for update in range(first, updates):
                self.finish_update(update + 1, self._improve(algorithm, update), on_log)
        finally:
            algorithm.stop()
            shutil.rmtree(algorithm.logdir, ignore_errors=True)  # Nothing reads these logs.

    def _improve(self, algorithm: Algorithm, update: int) -> dict[str, float]:
        """Run one update and copy the learned weights to this process; return named scalars."""
        for _ in range(ATTEMPTS):
            self._send(algorithm)
            self._begin(algorithm, update)
            results = algorithm.train()  # without learning, if every player goes away meanwhile
            ended = algorithm.env_runner_group.foreach_env_runner(RolloutRunner.end, local_env_runner=False)
            if played := [found for found in ended if found is not None]:
                break
        else:
            raise UserError(f"update {update + 1}: every process that plays episodes went away {ATTEMPTS} times")
        values = {name: float(np.mean([own[name] for own, _ in played])) for name in played[0][0]}
        if self.recalibration is not None:
            _restore(self.recalibration, _mean([state for _, state in played]))
        self._take(algorithm)
        learned = results["learners"][DEFAULT_MODULE_ID]
        return values | {ours: float(learned[theirs]) for theirs, ours in LOGGED.items()}

    def _begin(self, algorithm: Algorithm, update: int) -> None:
        """Seed the learners and the players, and send the players the weights; wait for those that are started anew.

        RLlib sends weights too, but neither to one whose reply is late, nor those of the recalibration module.
        """
        numbers, runners = (self.seed, update), algorithm.env_runner_group
        algorithm.learner_group.foreach_learner(partial(SeededLearner.begin, numbers=numbers))
        module = None if self.recalibration is None else _state(self.recalibration)
        begin = partial(RolloutRunner.begin, numbers=numbers, weights=_by_part(self.policy), recalibration=module)
        runners.foreach_env_runner(begin, local_env_runner=False)
        if back := _restarted(algorithm, update):
            runners.foreach_env_runner(begin, local_env_runner=False, remote_worker_ids=back)

    def _send(self, algorithm: Algorithm) -> None:
        """Send the weights and the optimizer's state to the learners."""
        state = {"policy": _by_part(self.policy), "optimizer": self.policy.optimizer.state_dict()}
        algorithm.learner_group.foreach_learner(partial(_set_learner, state=state))

    def _take(self, algorithm: Algorithm) -> None:
        """Copy the weights and the optimizer's state from a learner."""
        state = next(iter(algorithm.learner_group.foreach_learner(_get_learner))).get()
        _load_parts(self.policy, state["policy"])
        self.policy.optimizer.load_state_dict(state["optimizer"])


class GridModule(TorchRLModule, ValueFunctionAPI):
    """Actor and critic over the patch grid as an RLlib module; see `maskgym.policies.clicks.point`."""

    def setup(self) -> None:
        """Build the networks for the spaces."""
        seen, acted = self.observation_space, self.action_space
        networks = PointActorCritic(**self.model_config["networks"])
        self.trunk, self.actor, self.critic = networks.trunk(seen), networks.actor(seen, acted), networks.critic(seen)
        if isinstance(acted, spaces.MultiDiscrete):
            lengths = [int(count) for count in acted.nvec]
            self.action_dist_cls = TorchMultiCategorical.get_partial_dist_cls(input_lens=lengths)

    def _forward(self, batch: Settings, **_: bool) -> dict[str, Tensor]:
        features = self.trunk(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: self.actor(features), Columns.EMBEDDINGS: features}

    def compute_values(self, batch: Settings, embeddings: Tensor | None = None) -> Tensor:
        """Compute the state values (B,)."""
        return self.critic(self.trunk(batch[Columns.OBS]) if embeddings is None else embeddings)[:, 0]


class SeededLearner(PPOTorchLearner):
    """RLlib learner whose minibatches depend only on the run's seed and the update's number."""

    numbers: tuple[int, int] = (0, 0)

    def begin(self, numbers: tuple[int, int]) -> None:
        """Store the seed of the next update."""
        self.numbers = numbers

    def before_gradient_based_update(self, *, timesteps: dict[str, int]) -> None:
        """Seed all generators, because RLlib shuffles minibatches with NumPy's global one."""
        super().before_gradient_based_update(timesteps=timesteps)
        drawn = np.random.SeedSequence(self.numbers).generate_state(2)
        torch.manual_seed(int(drawn[0]))
        np.random.seed(int(drawn[1]))


class RolloutEnv(VectorWrapper):
    """Environment that records statistics of a rollout and trains the recalibration module jointly.

    Its info is empty, because RLlib would send the masks between processes.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.base = unwrap(env, PointPromptVectorEnv)
        self.recalibration_trainer, self.next_seed = RecalibrationTrainer(self.base), 0
        self.statistics = RolloutStatistics()
        self.shown: Observations = {}

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, Infos]:
        """Start a rollout with the seed that was set for it; RLlib's own seed never changes."""
        observations, infos = self.env.reset(seed=self.next_seed, options=options)
        self.shown, self.statistics = observations, RolloutStatistics()
        self.statistics.losses = self.recalibration_trainer.begin(infos["target"])
        return observations, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Infos]:
        """Take a step and train the module on it."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self.statistics.losses += self.recalibration_trainer.learn(self.shown)
        self.shown = observations
        self.statistics.add(rewards, infos["iou"], infos["repeated"])
        return observations, rewards, terminated, truncated, {}


class RolloutRunner(SingleAgentEnvRunner):
    """RLlib environment runner that is seeded before each rollout."""

    def begin(
        self, numbers: tuple[int, int], weights: Mapping[str, TrainingState], recalibration: TrainingState | None
    ) -> None:
        """Seed all generators by the run's seed and the update's number; load the policy and the module."""
        drawn = np.random.SeedSequence([*numbers, self.worker_index]).generate_state(2)
        torch.manual_seed(int(drawn[0]))
        self.rollout.next_seed = int(drawn[1] % 2**31)
        _load_parts(self.module, weights)
        if recalibration is not None:
            _restore(self.rollout.base.recalibration, recalibration)

    def end(self) -> tuple[dict[str, float], TrainingState | None] | None:
        """Collect named scalars of the rollout and the recalibration module; None before the first rollout."""
        if not self.rollout.statistics.rewards:
            return None
        module = self.rollout.base.recalibration
        return self.rollout.statistics.scalars(), None if module is None else _state(module)

    @property
    def rollout(self) -> RolloutEnv:
        """The environment inside RLlib's own wrapper."""
        return self.env.env


def _restarted(algorithm: Algorithm, update: int) -> list[int]:
    """Wait until Ray has started anew the players that went away; return their numbers.

    Raises:
        UserError: If one does not come back.
    """
    runners, back, limit = algorithm.env_runner_group, [], time.monotonic() + RESTART_S
    while lost := runners.num_remote_env_runners() - runners.num_healthy_remote_env_runners():
        if time.monotonic() > limit:
            raise UserError(f"update {update + 1}: {lost} of the processes that play episodes went away for good")
        time.sleep(1)
        back += algorithm.restore_env_runners(runners)  # those that answer already
    if back:
        print(f"update {update + 1}: {len(back)} processes that play episodes went away, and were started anew")
    return back


def _parts(networks: nn.Module) -> dict[str, nn.Module]:
    """Map names to the modules that the policies of both libraries share."""
    if isinstance(networks, GridPolicy):
        return {
            "trunk": networks.features_extractor.trunk,
            "actor": networks.action_net,
            "critic": networks.value_net,
        }
    return {"trunk": networks.trunk, "actor": networks.actor, "critic": networks.critic}


def _by_part(networks: nn.Module) -> dict[str, TrainingState]:
    return {name: _on_cpu(part.state_dict()) for name, part in _parts(networks).items()}


def _load_parts(networks: nn.Module, weights: Mapping[str, TrainingState]) -> None:
    for name, part in _parts(networks).items():
        part.load_state_dict(weights[name])


def _set_learner(learner: PPOTorchLearner, state: Settings) -> None:
    _load_parts(learner.module[DEFAULT_MODULE_ID].unwrapped(), state["policy"])
    if state["optimizer"]["state"]:  # The state is empty except in a resumed run.
        learner.get_optimizer(DEFAULT_MODULE_ID).load_state_dict(state["optimizer"])


def _get_learner(learner: PPOTorchLearner) -> TrainingState:
    networks = learner.module[DEFAULT_MODULE_ID].unwrapped()
    return {"policy": _by_part(networks), "optimizer": _on_cpu(learner.get_optimizer(DEFAULT_MODULE_ID).state_dict())}


def _state(module: nn.Module) -> TrainingState:
    return _on_cpu({"weights": module.state_dict(), "optimizer": module.optimizer.state_dict()})


def _restore(module: nn.Module, state: TrainingState) -> None:
    module.load_state_dict(state["weights"])
    module.optimizer.load_state_dict(state["optimizer"])


def _on_cpu(state: TrainingState) -> TrainingState:
    """Copy nested tensors to the CPU."""
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, map_location="cpu", weights_only=True)


def _mean(states: Sequence[dict]) -> dict:
    """Average nested dictionaries of tensors; other values come from the first one."""
    found = {}
    for name, first in states[0].items():
        values = [state[name] for state in states]
        if isinstance(first, Tensor):
            found[name] = torch.stack([value.double() for value in values]).mean(0).to(first.dtype)
        else:
            found[name] = _mean(values) if isinstance(first, dict) else first
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress log messages up to warnings, because RLlib warns about its own future versions."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
