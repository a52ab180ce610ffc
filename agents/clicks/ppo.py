"""PPO on point prompting with Stable-Baselines3 (AlignSAM, Eq. 5-10 and Algorithm 1).

Eq. 8 of the paper divides the probabilities of different steps. The ratio here is that of plain PPO: the new over the
old policy at the same step.
"""

from __future__ import annotations

from pathlib import Path

from gymnasium.vector import VectorEnv
from stable_baselines3 import PPO

from maskgym.agents.clicks.sb3 import GridPolicy, SampleVecEnv
from maskgym.agents.clicks.sb3_agent import SB3Agent
from maskgym.agents.common.checkpoints import check_at_least
from maskgym.envs.base import unwrap
from maskgym.envs.point import PointPromptVectorEnv
from maskgym.policies.clicks.point import PointActorCritic


class PPOAgent(SB3Agent):
    """Train by PPO with AlignSAM's settings: γ 0.99, ε 0.2, K 20 epochs, λ 1 (Eq. 6), raw advantages (Eq. 7).

    Stable-Baselines3 adds what the paper does not state: gradients are clipped to the norm 0.5, and Adam's ε is 1e-5.

    Args:
        policy: Sizes of the networks.
        env: Vector environment with ``autoreset_mode=DISABLED`` and the spaces of the policy.
        seed: Seed of the weights, of sampling, and of the samples shown.
        output: Folder of the checkpoints.
        learning_rate: Learning rate for Adam.
        gamma: Discount factor γ.
        gae_lambda: λ of generalised advantage estimation; 1 is Eq. 6.
        clip_range: Clip range ε of Eq. 9.
        epochs: Passes over a rollout, K.
        minibatch_size: Steps per gradient.
        value_weight: Weight of the critic's loss (Eq. 10) beside the actor's (Eq. 9); the paper states none.
        entropy_weight: Weight of the entropy bonus; the paper has none.
        normalize_advantage: Whether to scale a minibatch's advantages to mean 0 and standard deviation 1; the paper
            does not.
        save_every: Updates between checkpoints.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        policy: PointActorCritic,
        env: VectorEnv,
        seed: int = 0,
        *,
        output: str | Path,
        learning_rate: float = 3e-4,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        clip_range: float = 0.2,
        epochs: int = 20,
        minibatch_size: int = 240,
        value_weight: float = 0.5,
        entropy_weight: float = 0.0,
        normalize_advantage: bool = False,
        save_every: int = 10,
    ) -> None:
        check_at_least(1, epochs=epochs, minibatch_size=minibatch_size)
        model = PPO(
            GridPolicy,
            SampleVecEnv(env, restarts=False),
            n_steps=unwrap(env, PointPromptVectorEnv).horizon,
            batch_size=minibatch_size,
            learning_rate=learning_rate,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            n_epochs=epochs,
            vf_coef=value_weight,
            ent_coef=entropy_weight,
            normalize_advantage=normalize_advantage,
            policy_kwargs={"networks": policy},
            seed=seed,
            device="auto",
        )
        super().__init__(model, env, seed, output, save_every, gradient_steps=epochs)
