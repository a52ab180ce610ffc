"""PPO through the adaptor: the published objective, learning, resuming, and other algorithms of Stable-Baselines3."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN

from maskgym.agents.clicks.ppo import PPOAgent
from maskgym.agents.clicks.sb3 import SampleVecEnv
from maskgym.agents.random_agent import RandomAgent
from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic
from maskgym.policies.clicks.recalibration import SemanticRecalibration


def make_agent(env, output, **settings):
    return PPOAgent(PointActorCritic(channels=16, layers=1), env, output=output, **{"save_every": 1, **settings})


def train(agent, env, updates, resume=False):
    rows = {}
    agent.train([env], updates, lambda step, values: rows.update({step: dict(values)}), resume=resume)
    return rows


def test_the_settings_are_the_papers(make_env, tmp_path):
    model = make_agent(make_env(), tmp_path).model
    assert (model.gamma, model.gae_lambda, model.n_epochs) == (0.99, 1.0, 20)
    assert model.clip_range(1) == 0.2 and not model.normalize_advantage and model.ent_coef == 0


@pytest.mark.parametrize("label", ["positive", "policy"])
def test_the_first_ratio_is_one(make_env, tmp_path, label):
    rows = train(make_agent(make_env(label_source=label), tmp_path, epochs=1, minibatch_size=16), make_env(), 1)
    assert abs(rows[1]["train/approx_kl"]) < 1e-6 and rows[1]["train/clip_fraction"] == 0


def test_clicks_on_the_foreground_are_learned(make_env, tmp_path):
    env = make_env(16)
    agent = make_agent(env, tmp_path, learning_rate=3e-3, minibatch_size=32, epochs=5, save_every=100)
    rows = train(agent, env, 25)
    first, last = (np.mean([rows[step]["reward"] for step in steps]) for steps in (range(1, 4), range(23, 26)))
    assert last > first + 2  # of 8: four clicks of -1 or 1


@pytest.mark.parametrize("label", ["positive", "policy"])
def test_no_patch_twice_where_repeats_are_not_wanted(make_env, tmp_path, label):
    env = make_env(label_source=label, allow_repeated_clicks=False, horizon=20)
    agents = [make_agent(env, tmp_path), RandomAgent(env=env)]
    for agent in agents:
        observations, _ = env.reset(seed=0)
        for step in range(20):
            rows = [{name: value[i] for name, value in observations.items()} for i in range(4)]
            observations, _, _, _, infos = env.step(np.array(agent.act(rows, greedy=step % 2 == 0)))
            assert not infos["repeated"].any()
    rows = train(agents[0], env, 1)
    assert rows[1]["repeated"] == 0 and np.isfinite(rows[1]["train/loss"])


def test_a_resumed_training_is_the_uninterrupted_one(make_env, tmp_path):
    whole = make_agent(make_env(), tmp_path / "whole")
    rows = train(whole, whole.model.env.env, 3)
    first = make_agent(make_env(), tmp_path / "parts")
    train(first, first.model.env.env, 1)
    second = make_agent(make_env(), tmp_path / "parts")
    again = train(second, second.model.env.env, 3, resume=True)
    assert list(again) == [2, 3]
    assert again == {step: rows[step] for step in (2, 3)}  # every logged number
    for name, value in whole.model.policy.state_dict().items():
        torch.testing.assert_close(value, second.model.policy.state_dict()[name], atol=0, rtol=0)


def test_the_recalibration_module_learns_along_and_resumes(make_env, tmp_path):
    def start(output):
        module = SemanticRecalibration("implicit", 128, channels=16, learning_rate=1e-3)
        return make_agent(make_env(label_source="srm", recalibration=module), output)

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


def test_saved_weights_act_alike(make_env, tmp_path):
    env = make_env()
    agent = make_agent(env, tmp_path)
    train(agent, env, 1)
    agent.save(tmp_path / "policy")
    other = make_agent(make_env(), tmp_path, seed=1)
    other.load(tmp_path / "policy")
    observations, _ = env.reset(seed=0)
    rows = [{name: value[i] for name, value in observations.items()} for i in range(4)]
    assert agent.act(rows).tolist() == other.act(rows).tolist()
    with pytest.raises(UserError, match="no such file of weights"):
        other.load(tmp_path / "nowhere")


def test_the_adaptor_hands_on_what_an_episode_ended_with(make_env):
    env = SampleVecEnv(make_env(horizon=2, autoreset_mode="SameStep"))
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


def test_the_adaptor_without_restarts_ends_on_the_last_observation(make_env):
    env = SampleVecEnv(make_env(horizon=2), restarts=False)
    env.seed(0)
    env.reset()
    started = env.targets.copy()
    env.step(np.zeros(4, int))
    observations, _, over, infos = env.step(np.ones(4, int))
    assert over.all() and env.targets == started
    for i, info in enumerate(infos):
        assert info["TimeLimit.truncated"] and 0 <= info["iou"] <= 1
        np.testing.assert_array_equal(info["terminal_observation"]["state"], observations["state"][i])


@pytest.mark.parametrize(("restarts", "mode"), [(True, "Disabled"), (False, "SameStep"), (True, "NextStep")])
def test_the_adaptor_refuses_another_mode(make_env, restarts, mode):
    env = SampleVecEnv(make_env(autoreset_mode=mode), restarts=restarts)
    env.reset()
    with pytest.raises(UserError, match=f"expected {'SAME_STEP' if restarts else 'DISABLED'} here"):
        env.step(np.zeros(4, int))


def test_another_algorithm_of_stable_baselines_plays(make_env):
    model = DQN(
        "MultiInputPolicy", SampleVecEnv(make_env(autoreset_mode="SameStep")), learning_starts=8, buffer_size=64, seed=0
    )
    model.learn(40)
    assert model.num_timesteps >= 40 and model.logger.name_to_value is not None


@pytest.mark.parametrize("setting", ["epochs", "minibatch_size", "save_every"])
def test_numbers_out_of_range(make_env, tmp_path, setting):
    with pytest.raises(UserError, match=f"algo.{setting}=0: expected at least 1"):
        make_agent(make_env(), tmp_path, **{setting: 0})


def test_sizes_of_the_network():
    with pytest.raises(UserError, match="channels=12"):
        PointActorCritic(channels=12)
