"""DQN on clicks: its targets, its exploration, learning, and resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskgym.agents.clicks.dqn import DQNAgent
from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic
from maskgym.policies.clicks.recalibration import SemanticRecalibration


def make_agent(env, output, **settings):
    settings = {"save_every": 1, "gradient_steps": 4, "minibatch_size": 16, **settings}
    return DQNAgent(PointActorCritic(channels=16, layers=1), env, output=output, **settings)


def train(agent, env, updates, resume=False):
    rows = {}
    agent.train([env], updates, lambda step, values: rows.update({step: dict(values)}), resume=resume)
    return rows


def test_clicks_on_the_foreground_are_learned(make_env, tmp_path):
    env = make_env(16)
    quick = {"gradient_steps": 80, "minibatch_size": 32, "gamma": 0.0, "exploration_share": 0.3, "exploration_end": 0.0}
    rows = train(make_agent(env, tmp_path, **quick, save_every=100), env, 12)
    first, last = (np.mean([rows[step]["reward"] for step in steps]) for steps in (range(1, 4), range(10, 13)))
    assert last > first + 2  # of 8: four clicks of -1 or 1


def test_random_clicks_give_way_and_the_last_click_has_no_future(make_env, tmp_path):
    env, rates = make_env(), []
    agent = make_agent(env, tmp_path, exploration_share=0.5, exploration_end=0.2)
    begin = agent.begin_rollout
    agent.begin_rollout = lambda *given: (begin(*given), rates.append(agent.model.exploration_rate))
    train(agent, env, 6)
    assert rates == pytest.approx([1, 1 - 0.8 / 3, 1 - 1.6 / 3, 0.2, 0.2, 0.2])
    buffer = agent.model.replay_buffer
    assert buffer.dones[:24].tolist() == [[0] * 4] * 3 + [[1] * 4] + ([[0] * 4] * 3 + [[1] * 4]) * 5
    assert not buffer.timeouts.any()


def test_patches_are_not_clicked_again(make_env, tmp_path):
    env = make_env(horizon=6)
    agent = make_agent(env, tmp_path)
    observations, _ = env.reset(seed=0)
    for _ in range(5):
        rows = [{name: value[i] for name, value in observations.items()} for i in range(4)]
        observations, _, _, _, infos = env.step(np.array(agent.act(rows)))
        assert not infos["repeated"].any()


@pytest.mark.parametrize("size", [8, 400])
def test_a_resumed_training_is_the_uninterrupted_one(make_env, tmp_path, size):
    """Also where the buffer is full, and where random clicks are drawn."""

    def start(name):
        module = SemanticRecalibration("implicit", 128, channels=8)
        env = make_env(label_source="srm", recalibration=module)
        return make_agent(env, tmp_path / name, buffer_size=size, exploration_share=0.0, exploration_end=0.5), env

    whole, env = start("whole")
    rows = train(whole, env, 4)
    assert np.isfinite(rows[4]["recalibration/loss"])
    first, env = start("parts")
    assert train(first, env, 2) == {step: rows[step] for step in (1, 2)}
    second, env = start("parts")
    assert train(second, env, 4, resume=True) == {step: rows[step] for step in (3, 4)}
    for name, value in whole.policy.state_dict().items():
        torch.testing.assert_close(value, second.policy.state_dict()[name], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"gradient_steps": 0}, "gradient_steps=0"),
        ({"exploration_end": 1.5}, r"algo.exploration_end=1.5: expected a number in \[0, 1\]"),
    ],
)
def test_numbers_out_of_range(make_env, tmp_path, settings, expected):
    with pytest.raises(UserError, match=expected):
        make_agent(make_env(), tmp_path, **settings)


def test_labels_are_no_actions_of_it(make_env, tmp_path):
    with pytest.raises(UserError, match=r"algo=dqn env.label_source=policy: values are those of patches alone"):
        make_agent(make_env(label_source="policy"), tmp_path)
