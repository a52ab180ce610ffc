"""PPO through the adaptor: the published objective, learning, resuming, and other algorithms of Stable-Baselines3."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN

from maskgym import data
from maskgym.agents.clicks.ppo import PPOAgent
from maskgym.agents.clicks.sb3 import SampleVecEnv
from maskgym.agents.random_agent import RandomAgent
from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic
from maskgym.policies.clicks.recalibration import SemanticRecalibration
from maskgym.segmenters.points.sam import sam_tiny


@pytest.fixture(scope="module")
def sam():
    return sam_tiny(device="cpu")


def make_env(sam, count=4, mode="SameStep", **settings):
    settings = {"label_source": "positive", "horizon": 4, "segmenter": sam, "autoreset_mode": mode} | settings
    return gym.make_vec(
        "maskgym/PointPrompt-v0",
        num_envs=count,
        vectorization_mode="vector_entry_point",
        dataset=data.make("scenes", task="sod", size=8),
        **settings,
    )


def make_agent(env, output, **settings):
    return PPOAgent(PointActorCritic(channels=16, layers=1), env, output=output, **{"save_every": 1, **settings})


def train(agent, env, updates, resume=False):
    rows = {}
    agent.train([env], updates, lambda step, values: rows.update({step: dict(values)}), resume=resume)
    return rows


def test_the_settings_are_the_papers(sam, tmp_path):
    model = make_agent(make_env(sam), tmp_path).model
    assert (model.gamma, model.gae_lambda, model.n_epochs) == (0.99, 1.0, 20)
    assert model.clip_range(1) == 0.2 and not model.normalize_advantage and model.ent_coef == 0


@pytest.mark.parametrize("label", ["positive", "policy"])
def test_the_first_ratio_is_one(sam, tmp_path, label):
    rows = train(make_agent(make_env(sam, label_source=label), tmp_path, epochs=1, minibatch_size=16), make_env(sam), 1)
    assert abs(rows[1]["train/approx_kl"]) < 1e-6 and rows[1]["train/clip_fraction"] == 0


def test_clicks_on_the_foreground_are_learned(sam, tmp_path):
    env = make_env(sam, 16)
    agent = make_agent(env, tmp_path, learning_rate=3e-3, minibatch_size=32, epochs=5, save_every=100)
    rows = train(agent, env, 25)
    first, last = (np.mean([rows[step]["reward"] for step in steps]) for steps in (range(1, 4), range(23, 26)))
    assert last > first + 2  # of 8: four clicks of -1 or 1


@pytest.mark.parametrize("label", ["positive", "policy"])
def test_no_patch_twice_where_repeats_are_not_wanted(sam, tmp_path, label):
    env = make_env(sam, label_source=label, allow_repeated_clicks=False, horizon=20)
    agents = [make_agent(env, tmp_path), RandomAgent(env=env)]
    for agent in agents:
        observations, _ = env.reset(seed=0)
        for step in range(20):
            rows = [{name: value[i] for name, value in observations.items()} for i in range(4)]
            observations, _, _, over, infos = env.step(np.array(agent.act(rows, greedy=step % 2 == 0)))
            assert not (infos["final_info"] if over.any() else infos)["repeated"].any()
    rows = train(agents[0], env, 1)
    assert rows[1]["repeated"] == 0 and np.isfinite(rows[1]["train/loss"])


def test_a_resumed_training_is_the_uninterrupted_one(sam, tmp_path):
    whole = make_agent(make_env(sam), tmp_path / "whole")
    rows = train(whole, whole.model.env.env, 3)
    first = make_agent(make_env(sam), tmp_path / "parts")
    train(first, first.model.env.env, 1)
    second = make_agent(make_env(sam), tmp_path / "parts")
    again = train(second, second.model.env.env, 3, resume=True)
    assert list(again) == [2, 3]
    assert again == {step: rows[step] for step in (2, 3)}  # every logged number
    for name, value in whole.model.policy.state_dict().items():
        torch.testing.assert_close(value, second.model.policy.state_dict()[name], atol=0, rtol=0)


def test_the_recalibration_module_learns_along_and_resumes(sam, tmp_path):
    def start(output):
        module = SemanticRecalibration("implicit", 128, channels=16, learning_rate=1e-3)
        return make_agent(make_env(sam, label_source="srm", recalibration=module), output)

    whole = start(tmp_path / "whole")
    rows = train(whole, whole.model.env.env, 6)
    assert rows[6]["recalibration/loss"] < 0.9 * rows[1]["recalibration/loss"]
    first = start(tmp_path / "parts")
    train(first, first.model.env.env, 4)
    second = start(tmp_path / "parts")
    again = train(second, second.model.env.env, 6, resume=True)
    assert again[6]["recalibration/loss"] == pytest.approx(rows[6]["recalibration/loss"], abs=1e-5)
    whole.save(tmp_path / "policy")
    second.load(tmp_path / "policy")
    for name, value in whole.recalibration.state_dict().items():
        torch.testing.assert_close(value, second.recalibration.state_dict()[name])


def test_saved_weights_act_alike(sam, tmp_path):
    env = make_env(sam)
    agent = make_agent(env, tmp_path)
    train(agent, env, 1)
    agent.save(tmp_path / "policy")
    other = make_agent(make_env(sam, mode="Disabled"), tmp_path, seed=1)
    other.load(tmp_path / "policy")
    observations, _ = env.reset(seed=0)
    rows = [{name: value[i] for name, value in observations.items()} for i in range(4)]
    assert agent.act(rows).tolist() == other.act(rows).tolist()
    with pytest.raises(UserError, match="no such file of weights"):
        other.load(tmp_path / "nowhere")


def test_the_adaptor_hands_on_what_an_episode_ended_with(sam):
    env = SampleVecEnv(make_env(sam, horizon=2))
    env.seed(0)
    first = env.reset()
    env.step(np.zeros(4, int))
    observations, values, over, infos = env.step(np.ones(4, int))
    assert over.all() and values.dtype == np.float32
    for i, info in enumerate(infos):
        assert info["TimeLimit.truncated"] and info["terminal_observation"]["mask"].shape == (1, 8, 8)
        assert not np.array_equal(info["terminal_observation"]["state"], observations["state"][i])
    env.seed(0)
    np.testing.assert_array_equal(env.reset()["state"], first["state"])
    with pytest.raises(UserError, match="needs SAME_STEP"):
        disabled = SampleVecEnv(make_env(sam, mode="Disabled"))
        disabled.reset()
        disabled.step(np.zeros(4, int))


def test_another_algorithm_of_stable_baselines_plays(sam):
    model = DQN("MultiInputPolicy", SampleVecEnv(make_env(sam)), learning_starts=8, buffer_size=64, seed=0)
    model.learn(40)
    assert model.num_timesteps >= 40 and model.logger.name_to_value is not None


@pytest.mark.parametrize("setting", ["epochs", "minibatch_size", "save_every"])
def test_numbers_out_of_range(sam, tmp_path, setting):
    with pytest.raises(UserError, match=f"algo.{setting}=0: expected at least 1"):
        make_agent(make_env(sam), tmp_path, **{setting: 0})


def test_sizes_of_the_network():
    with pytest.raises(UserError, match="channels=12"):
        PointActorCritic(channels=12)
