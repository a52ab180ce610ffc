"""PPO on RLlib: real players and a real learner, the networks of the other one, learning, resuming."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import asdict
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

from maskgym import data
from maskgym.agents.clicks.ppo import PPOAgent
from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic
from maskgym.policies.clicks.recalibration import SemanticRecalibration
from maskgym.segmenters.points.sam import sam_tiny

ray = pytest.importorskip("ray")
rllib = pytest.importorskip("maskgym.agents.clicks.rllib")

NETWORKS = PointActorCritic(channels=16, layers=1)


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


def make_env(count, mode="NextStep", label="positive"):
    recalibration = SemanticRecalibration("implicit", 128, channels=16, learning_rate=1e-3) if label == "srm" else None
    return gym.make_vec(
        "maskgym/PointPrompt-v0",
        num_envs=count,
        vectorization_mode="vector_entry_point",
        dataset=data.make("scenes", task="sod", size=8),
        label_source=label,
        horizon=4,
        segmenter=sam_tiny(device="cpu"),
        recalibration=recalibration,
        autoreset_mode=mode,
    )


def make_agent(output, count=4, label="positive", **settings):
    settings = {"save_every": 1, "epochs": 2, "minibatch_size": 8} | settings
    make = partial(make_env, label=label)
    return rllib.RLlibPPOAgent(NETWORKS, make_env(count, label=label), make, output=output, **settings)


def train(agent, updates, resume=False):
    rows = {}
    agent.train([], updates, lambda step, values: rows.update({step: dict(values)}), resume=resume)
    return rows


@pytest.mark.parametrize("label", ["positive", "policy"])
def test_both_libraries_play_one_definition_of_the_networks(tmp_path, label):
    agent, env = make_agent(tmp_path, label=label), make_env(4, label=label)
    module = rllib.GridModule(
        observation_space=env.single_observation_space,
        action_space=env.single_action_space,
        model_config={"networks": asdict(NETWORKS)},
    )
    for name, part in rllib._parts(agent.policy).items():
        getattr(module, name).load_state_dict(part.state_dict())
    observation = {name: torch.as_tensor(value) for name, value in env.reset(seed=0)[0].items()}
    actions = torch.as_tensor(env.action_space.sample())
    values, chances, entropy = agent.policy.evaluate_actions(observation, actions)
    found = module.forward_train({"obs": observation})
    distribution = module.get_train_action_dist_cls().from_logits(found["action_dist_inputs"])
    torch.testing.assert_close(distribution.logp(actions), chances)
    torch.testing.assert_close(distribution.entropy(), entropy)
    torch.testing.assert_close(module.compute_values({"obs": observation}), values[:, 0])


@pytest.mark.e2e
def test_clicks_on_the_foreground_are_learned(cluster, tmp_path):
    agent = make_agent(tmp_path, 16, learning_rate=3e-3, minibatch_size=32, epochs=5, save_every=100)
    rows = train(agent, 15)
    first, last = (np.mean([rows[step]["reward"] for step in steps]) for steps in (range(1, 4), range(13, 16)))
    assert last > first + 2  # of 8: four clicks of -1 or 1
    agent.save(tmp_path / "policy")
    other = PPOAgent(NETWORKS, make_env(4, "SameStep"), output=tmp_path, seed=1)
    other.load(tmp_path / "policy")
    for name, value in agent.policy.state_dict().items():
        torch.testing.assert_close(other.policy.state_dict()[name], value, atol=0, rtol=0)


@pytest.mark.e2e(seconds=150)
def test_a_resumed_training_whose_players_are_killed_is_the_uninterrupted_one(cluster, tmp_path, capfd, worker_of):
    """With two players, and the recalibration module trained along by both."""
    rows = {}

    def keep(step, values):
        rows[step] = dict(values)
        if step == 4:  # the checkpoint is still the one of update 3
            shutil.copytree(tmp_path / "whole", tmp_path / "parts")

    whole = make_agent(tmp_path / "whole", label="srm", num_workers=2)
    whole.train([], 5, keep)
    assert rows[5]["recalibration/loss"] < rows[1]["recalibration/loss"]
    second = make_agent(tmp_path / "parts", label="srm", num_workers=2)
    again = {}

    def kill(step, values):
        again[step] = dict(values)
        if step == 4:
            os.kill(worker_of(os.getpid(), "ray::RolloutRunner"), signal.SIGKILL)

    second.train([], 5, kill, resume=True)
    assert list(again) == [4, 5]
    assert "update 5: 1 processes that play episodes went away, and were started anew" in capfd.readouterr().out
    assert again[5] == pytest.approx(rows[5], abs=1e-5)
    for ours, theirs in ((whole.policy, second.policy), (whole.recalibration, second.recalibration)):
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, theirs.state_dict()[name], atol=1e-5, rtol=0)


def test_what_cannot_be_dealt_out_is_told(tmp_path):
    with pytest.raises(UserError, match=r"env.num_envs=4: expected a multiple of the 3 workers"):
        make_agent(tmp_path, num_workers=3)
