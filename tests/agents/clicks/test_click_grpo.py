"""GRPO and CGPO on clicks: their advantages worked out by hand, learning, and resuming."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from maskgym.agents.clicks.click_grpo import CGPOAgent, Episodes, GRPOAgent
from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic
from maskgym.policies.clicks.recalibration import SemanticRecalibration

KINDS = {"grpo": (GRPOAgent, {"group_size": 4}), "cgpo": (CGPOAgent, {})}


def make_agent(kind, env, output, **settings):
    agent, own = KINDS[kind]
    networks = PointActorCritic(channels=16, layers=1)
    return agent(networks, env, output=output, **{"save_every": 1, "minibatch_size": 16, **own, **settings})


def train(agent, env, updates, resume=False):
    rows = {}
    agent.train([env], updates, lambda step, values: rows.update({step: dict(values)}), resume=resume)
    return rows


def episodes(returns, probabilities):
    """Return episodes of which only returns (B,) and probabilities (T, B) matter."""
    chances = torch.tensor(probabilities).log()
    return Episodes({}, torch.zeros(chances.shape), chances, np.array(returns), np.zeros(len(returns)), 0.0, [])


def test_grpo_compares_the_episodes_of_a_group(make_env, tmp_path):
    agent = make_agent("grpo", make_env(count=8), tmp_path, group_size=2)
    found = agent.advantages(episodes([1.0, 3.0, 2.0, 2.0], [[0.5] * 4]))
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0, 0.0, 0.0]), atol=2e-4, rtol=0)


def test_cgpo_takes_the_confidence_from_the_return_in_the_unit_interval(make_env, tmp_path):
    env = make_env(2)
    given = episodes([-4.0, 2.0], [[0.2, 1.0], [0.4, 0.5]])  # four steps of -1 to 1: the range is [-4, 4]
    found = make_agent("cgpo", env, tmp_path).advantages(given)
    torch.testing.assert_close(found, torch.tensor([0.0 - 0.3, 0.75 - 0.75]))
    centred = make_agent("cgpo", env, tmp_path, center_advantage=True).advantages(given)
    torch.testing.assert_close(centred, torch.tensor([-0.15, 0.15]))


def test_cgpo_scales_returns_that_cancel_by_their_own_range(make_env, tmp_path):
    """Returns -0.3 and 0.6 of an increase of IoU in [-1, 1], whatever the horizon."""
    agent = make_agent("cgpo", make_env(2, reward="delta_iou", horizon=15), tmp_path)
    found = agent.advantages(episodes([-0.3, 0.6], [[0.1, 0.1]]))
    torch.testing.assert_close(found, torch.tensor([0.35 - 0.1, 0.8 - 0.1]))


def test_an_update_sees_as_many_samples_as_asked(make_env, tmp_path):
    env = make_env(count=8)
    agent = make_agent("grpo", env, tmp_path, images=6)
    played = agent.play(env, seed=3)
    assert played.actions.shape == played.log_probabilities.shape == (4, 24) and len(played.returns) == 24
    first = played.observations["state"][0].flatten(1)
    for group in first.split(4):
        torch.testing.assert_close(group, group[:1].expand_as(group), atol=0, rtol=0)
    assert len({group[0].sum().item() for group in first.split(4)}) > 3  # of six draws of eight samples
    one = make_agent("grpo", env, tmp_path, images=2).play(env, seed=3)
    torch.testing.assert_close(one.observations["state"], played.observations["state"][:, :8], atol=0, rtol=0)
    assert all(math.isfinite(value) for value in agent.improve(played).values())


@pytest.mark.parametrize("label", ["positive", "policy"])
def test_a_group_begins_alike_and_the_first_ratio_is_one(make_env, tmp_path, label):
    env = make_env(count=8, label_source=label)
    agent = make_agent("grpo", env, tmp_path, epochs=1, minibatch_size=64)
    played = agent.play(env, seed=3)
    for name, first in played.observations.items():
        for group in first[0].split(4):
            torch.testing.assert_close(group, group[:1].expand_as(group), atol=0, rtol=0, msg=name)
    assert not torch.equal(played.observations["state"][0, 0], played.observations["state"][0, 4])
    assert played.actions.shape == ((4, 8) if label == "positive" else (4, 8, 2))
    observations = {name: value.flatten(0, 1) for name, value in played.observations.items()}
    again = agent.policy.get_distribution(observations).log_prob(played.actions.flatten(0, 1))
    torch.testing.assert_close(again, played.log_probabilities.flatten(), atol=1e-5, rtol=0)


def test_the_loss_is_the_clipped_one(make_env, tmp_path):
    env = make_env(count=8)
    agent = make_agent("cgpo", env, tmp_path)
    played = agent.play(env, seed=3)
    rows, wanted = torch.tensor([9, 17, 25]), [1.1, 2.0, 0.5]  # ratios of three steps, all of the second episode
    played.log_probabilities.view(-1)[rows] -= torch.tensor(wanted).log()
    advantages = torch.full((8,), math.nan)
    advantages[1] = 1.0
    loss, out, entropy = agent.minibatch_loss(played, rows, advantages)
    assert loss.item() == pytest.approx(-(1.1 + 1.2 + 0.5) / 3, abs=1e-5) and out == pytest.approx(2 / 3)
    assert 0 < entropy <= math.log(64)
    loss, out, _ = agent.minibatch_loss(played, rows, -advantages)
    assert loss.item() == pytest.approx((1.1 + 2.0 + 0.8) / 3, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_clicks_on_the_foreground_are_learned(make_env, tmp_path, kind):
    env = make_env(16)
    # Over eight samples a few updates show it; every step of an episode shares its advantage, so more are needed.
    agent = make_agent(kind, env, tmp_path, learning_rate=3e-3, epochs=5, minibatch_size=32, save_every=100)
    if kind == "cgpo":
        agent.center_advantage = True
    rows = train(agent, env, 30)
    first, last = (np.mean([rows[step]["reward"] for step in steps]) for steps in (range(1, 4), range(28, 31)))
    assert last > first + 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_is_the_uninterrupted_one(make_env, tmp_path, kind):
    def start(output):
        module = SemanticRecalibration("implicit", 128, channels=16, learning_rate=1e-3)
        env = make_env(count=8, label_source="srm", recalibration=module, allow_repeated_clicks=False)
        return make_agent(kind, env, output, epochs=2), env

    whole, env = start(tmp_path / "whole")
    rows = train(whole, env, 3)
    assert rows[1]["repeated"] == 0 and rows[1]["recalibration/loss"] > 0
    train(*start(tmp_path / "parts"), 1)
    second, env = start(tmp_path / "parts")
    again = train(second, env, 3, resume=True)
    assert list(again) == [2, 3] and again[3] == rows[3]
    for name, value in whole.policy.state_dict().items():
        torch.testing.assert_close(value, second.policy.state_dict()[name], atol=0, rtol=0)
    whole.save(tmp_path / "policy")
    second.load(tmp_path / "policy")


def test_settings_out_of_range(make_env, tmp_path):
    env = make_env(count=8)
    with pytest.raises(UserError, match=r"algo.group_size=1: expected at least 2"):
        make_agent("grpo", env, tmp_path, group_size=1)
    with pytest.raises(UserError, match=r"algo.group_size=3: expected a divisor of env.num_envs=8"):
        make_agent("grpo", env, tmp_path, group_size=3)
    with pytest.raises(UserError, match=r"algo.images=3: expected a multiple of env.num_envs / algo.group_size = 2"):
        make_agent("grpo", env, tmp_path, images=3)
    with pytest.raises(UserError, match=r"algo.epochs=0"):
        make_agent("cgpo", env, tmp_path, epochs=0)


def test_the_checkpoint_of_another_algorithm_is_refused(make_env, tmp_path):
    env = make_env(count=8)
    train(make_agent("grpo", env, tmp_path), env, 1)
    with pytest.raises(UserError, match=r"clicks\.pt: a checkpoint of GRPOAgent: expected one of CGPOAgent"):
        train(make_agent("cgpo", env, tmp_path), env, 2, resume=True)


def test_weights_that_are_no_numbers_stop_training_though_the_loss_is_one(make_env, tmp_path):
    env = make_env(count=8)
    agent = make_agent("cgpo", env, tmp_path, save_every=2)
    weights = next(agent.policy.action_net.parameters())

    def damage(step, values):
        assert math.isfinite(values["train/loss"])
        if step == 2:
            weights.data[0] = math.nan  # as a gradient that is not finite leaves it

    with pytest.raises(UserError, match=r"^update 2: policy.* is not finite: stopped before a checkpoint of it$"):
        agent.train([env], 3, damage)
    assert not list(tmp_path.iterdir())
