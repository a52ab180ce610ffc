"""PPO on RLlib: episodes are played in processes of their own, and learned from on as many GPUs as there are.

Networks, settings and checkpoints are those of `maskgym.agents.clicks.ppo`. Three things differ:
RLlib brings the advantages of a whole rollout to mean 0 and deviation 1, not those of a minibatch; its Adam has ε 1e-8
for 1e-5; and where a recalibration module is trained along, each process trains a copy on its own episodes, and the
copies are averaged after each rollout (local SGD: Stich, arXiv 1805.09767). With one process they are one.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from torch import Tensor

from maskgym.agents.clicks.acting import ClickAgent, TrainedAlong
from maskgym.agents.clicks.sb3 import GridPolicy
from maskgym.agents.common.checkpoints import OnLog, check_at_least
from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic

try:
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

ENV = "maskgym-clicks"  # as RLlib's registry knows it
# RLlib's names of what it logs, and those of Stable-Baselines3.
LOGGED = {"policy_loss": "train/policy_gradient_loss", "vf_loss": "train/value_loss", "total_loss": "train/loss"}
LOGGED |= {"entropy": "train/entropy", "vf_explained_var": "train/explained_variance"}


class RLlibPPOAgent(ClickAgent):
    """PPO with AlignSAM's settings, as `maskgym.agents.clicks.ppo.PPOAgent`, on RLlib's new API stack.

    Args:
        policy: A `maskgym.policies.clicks.point.PointActorCritic`.
        env: A vector environment with the spaces that it will act in.
        make_env: Makes one like it for another process, with the number of sub-environments that it is given.
        seed: Seed of the weights, of sampling, and of the samples shown.
        output: Folder of the checkpoints.
        num_workers: Processes that play; each has its share of the sub-environments.
        cpus_per_worker: CPUs that each is given.
        use_gpu: Give each a GPU, and have as many learners with a GPU each; one alone shares its own. False: this
            process learns, on the CPU.
        learning_rate: Of Adam.
        gamma: Discount.
        gae_lambda: λ of the advantage; 1 is Eq. 6.
        clip_range: ε of Eq. 9.
        epochs: K, passes over a rollout.
        minibatch_size: Steps a gradient, over all learners.
        value_weight: Of the critic's loss (Eq. 10) beside the actor's (Eq. 9); the paper gives none.
        entropy_weight: Of the entropy bonus; the paper has none.
        save_every: Updates between checkpoints.

    Raises:
        UserError: If a number is out of range, or the sub-environments cannot be dealt out evenly.
    """

    autoreset_mode: ClassVar[AutoresetMode] = AutoresetMode.NEXT_STEP  # which RLlib expects
    scales: ClassVar[tuple[str, ...]] = ("ray",)
    starts_workers: ClassVar[bool] = True  # by itself, where others are started as workers

    def __init__(
        self,
        policy: PointActorCritic,
        env: VectorEnv,
        make_env: Callable[[int], VectorEnv],
        seed: int = 0,
        output: str | Path = "checkpoints",
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
        base: Any = env.unwrapped
        steps, learners = base.horizon * env.num_envs, num_workers if use_gpu and num_workers > 1 else 0
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
        """Train for a number of updates: a rollout of one episode a sub-environment, then K epochs over it.

        Args:
            envs: Not used: episodes are played in other processes.
            updates: In all, those before a resumed checkpoint included.
            on_log: Called after each with its number, from 1, and named scalars.
            resume: Go on from the checkpoint in ``output``, where there is one.

        Raises:
            RuntimeError: If no process is left that plays.
        """
        first = self.restore() if resume else 0
        if first >= updates:
            return
        with _quiet():
            algorithm = self.config.build_algo()
        try:
            self._send(algorithm)
            for update in range(first, updates):
                values = self._improve(algorithm, update)
                on_log(update + 1, values)
                if (update + 1) % self.save_every == 0:
                    self.checkpoint(update + 1)
        finally:
            algorithm.stop()
            shutil.rmtree(algorithm.logdir, ignore_errors=True)  # which RLlib makes, for logs that nothing reads

    def _improve(self, algorithm: Any, update: int) -> dict[str, float]:
        """Make one update, and bring what was learned here; return named scalars."""
        algorithm.learner_group.foreach_learner(partial(SeededLearner.begin, numbers=(self.seed, update)))
        # RLlib sends weights too, but leaves that out where an answer is late.
        module = None if self.recalibration is None else _state(self.recalibration)
        begin = partial(
            RolloutRunner.begin, numbers=(self.seed, update), weights=_by_part(self.policy), recalibration=module
        )
        runners = algorithm.env_runner_group
        runners.foreach_env_runner(begin, local_env_runner=False)
        results = algorithm.train()
        ended = runners.foreach_env_runner(RolloutRunner.end, local_env_runner=False)
        played = [found for found in ended if found is not None]
        if not played or "learners" not in results:
            raise RuntimeError("no process is left that plays episodes")
        values = {name: float(np.mean([own[name] for own, _ in played])) for name in played[0][0]}
        if self.recalibration is not None:
            _restore(self.recalibration, _mean([state for _, state in played]))
        self._take(algorithm)
        learned = results["learners"][DEFAULT_MODULE_ID]
        return values | {ours: float(learned[theirs]) for theirs, ours in LOGGED.items()}

    def _send(self, algorithm: Any) -> None:
        """Give the learners the weights and the optimiser's state."""
        state = {"policy": _by_part(self.policy), "optimizer": self.policy.optimizer.state_dict()}
        algorithm.learner_group.foreach_learner(partial(_set_learner, state=state))

    def _take(self, algorithm: Any) -> None:
        """Take the weights and the optimiser's state from a learner."""
        state = next(iter(algorithm.learner_group.foreach_learner(_get_learner))).get()
        _load_parts(self.policy, state["policy"])
        self.policy.optimizer.load_state_dict(state["optimizer"])


class GridModule(TorchRLModule, ValueFunctionAPI):
    """Actor and critic over the patch grid, as RLlib wants them; see `maskgym.policies.clicks.point`."""

    def setup(self) -> None:
        """Make the networks for the spaces."""
        seen: Any = self.observation_space
        acted: Any = self.action_space
        settings: Any = self.model_config  # RLlib adds its own
        networks = PointActorCritic(**settings["networks"])
        self.trunk, self.actor, self.critic = networks.trunk(seen), networks.actor(seen, acted), networks.critic(seen)
        if isinstance(acted, spaces.MultiDiscrete):
            lengths = [int(count) for count in acted.nvec]
            distribution: Any = TorchMultiCategorical
            self.action_dist_cls = distribution.get_partial_dist_cls(input_lens=lengths)

    def _forward(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        features = self.trunk(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: self.actor(features), Columns.EMBEDDINGS: features}

    def compute_values(self, batch: Mapping[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Return values (B,)."""
        return self.critic(self.trunk(batch[Columns.OBS]) if embeddings is None else embeddings)[:, 0]


class SeededLearner(PPOTorchLearner):
    """RLlib's learner, whose minibatches depend on the run's seed and the update's number alone."""

    numbers: tuple[int, int] = (0, 0)

    def begin(self, numbers: tuple[int, int]) -> None:
        """Note what the next update is seeded by."""
        self.numbers = numbers

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Seed all chance: RLlib shuffles minibatches by NumPy's global generator."""
        super().before_gradient_based_update(timesteps=timesteps)
        drawn = np.random.SeedSequence(self.numbers).generate_state(2)
        torch.manual_seed(int(drawn[0]))
        np.random.seed(int(drawn[1]))


class RolloutEnv(VectorWrapper):
    """An environment that keeps an account of a rollout, and trains the recalibration module along.

    Its info is empty: RLlib would send masks from process to process.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.along, self.next_seed = TrainedAlong(env.unwrapped), 0
        self.rewards: list[float] = []
        self.ious: list[float] = []
        self.repeats: list[float] = []
        self.losses: list[float] = []
        self.seen: Any = None

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin a rollout with the seed that was set for it; RLlib's own is the same every time."""
        observations, infos = self.env.reset(seed=self.next_seed, options=options)
        self.rewards, self.ious, self.repeats, self.seen = [], [], [], observations
        self.losses = self.along.begin(infos["target"])
        return observations, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take a step, and train the module on what was answered."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self.losses += self.along.learn(self.seen)
        self.seen = observations
        self.rewards.append(float(np.mean(rewards)))
        self.ious.append(float(np.mean(infos["iou"])))
        self.repeats.append(float(np.mean(infos["repeated"])))
        return observations, rewards, terminated, truncated, {}

    def account(self) -> dict[str, float]:
        """Return named scalars of the rollout."""
        found = {"reward": sum(self.rewards), "iou": self.ious[-1], "repeated": float(np.mean(self.repeats))}
        return found | ({"recalibration/loss": float(np.mean(self.losses))} if self.losses else {})


class RolloutRunner(SingleAgentEnvRunner):
    """RLlib's player, told before each rollout what it depends on."""

    def begin(
        self, numbers: tuple[int, int], weights: Mapping[str, Any], recalibration: Mapping[str, Any] | None
    ) -> None:
        """Seed all chance by the run's seed and the update's number; take up the policy and the module."""
        drawn = np.random.SeedSequence([*numbers, self.worker_index]).generate_state(2)
        torch.manual_seed(int(drawn[0]))
        self.rollout.next_seed = int(drawn[1] % 2**31)
        _load_parts(self.module, weights)
        if recalibration is not None:
            _restore(self.rollout.unwrapped.recalibration, recalibration)

    def end(self) -> tuple[dict[str, float], dict[str, Any] | None] | None:
        """Return named scalars of the rollout, and the recalibration module; None if none was played since a start."""
        if not self.rollout.ious:
            return None
        module = self.rollout.unwrapped.recalibration
        return self.rollout.account(), None if module is None else _state(module)

    @property
    def rollout(self) -> Any:
        """The environment inside RLlib's own wrapper."""
        wrapper: Any = self.env
        return wrapper.env


def _parts(networks: Any) -> dict[str, torch.nn.Module]:
    """Return what both libraries' policies consist of, by name."""
    if isinstance(networks, GridPolicy):
        return {
            "trunk": networks.features_extractor.trunk,
            "actor": networks.action_net,
            "critic": networks.value_net,
        }
    return {"trunk": networks.trunk, "actor": networks.actor, "critic": networks.critic}


def _by_part(networks: Any) -> dict[str, Any]:
    return {name: _on_cpu(part.state_dict()) for name, part in _parts(networks).items()}


def _load_parts(networks: Any, weights: Mapping[str, Any]) -> None:
    for name, part in _parts(networks).items():
        part.load_state_dict(weights[name])


def _set_learner(learner: Any, state: Mapping[str, Any]) -> None:
    _load_parts(learner.module[DEFAULT_MODULE_ID].unwrapped(), state["policy"])
    if state["optimizer"]["state"]:  # of a run that is resumed
        learner.get_optimizer(DEFAULT_MODULE_ID).load_state_dict(state["optimizer"])


def _get_learner(learner: Any) -> dict[str, Any]:
    networks = learner.module[DEFAULT_MODULE_ID].unwrapped()
    return {"policy": _by_part(networks), "optimizer": _on_cpu(learner.get_optimizer(DEFAULT_MODULE_ID).state_dict())}


def _state(module: Any) -> dict[str, Any]:
    return {"weights": _on_cpu(module.state_dict()), "optimizer": _on_cpu(module.optimizer.state_dict())}


def _restore(module: Any, state: Mapping[str, Any]) -> None:
    module.load_state_dict(state["weights"])
    module.optimizer.load_state_dict(state["optimizer"])


def _on_cpu(values: Any) -> Any:
    """Return nested tensors as copies on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().cpu().clone()
    if isinstance(values, dict):
        return {name: _on_cpu(value) for name, value in values.items()}
    return [_on_cpu(value) for value in values] if isinstance(values, list) else values


def _mean(states: Sequence[Any]) -> Any:
    """Return nested tensors, the mean over several of the same form; what is no tensor is the first's."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.stack([state.double() for state in states]).mean(0).to(first.dtype)
    if isinstance(first, dict):
        return {name: _mean([state[name] for state in states]) for name in first}
    return first


@contextmanager
def _quiet() -> Any:
    """Leave out what RLlib says about its own future."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
