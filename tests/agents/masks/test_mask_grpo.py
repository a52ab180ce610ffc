"""GRPO and CGPO on masks: what is drawn and how it becomes an action, the losses by hand, learning, resuming."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from maskgym import agents
from maskgym.agents.masks.mask_grpo import CGPOAgent, GRPOAgent, Masks, log_probability, shown_cells
from maskgym.agents.masks.supervised import UserSalAgent
from maskgym.errors import UserError
from maskgym.policies.needs.usersal import UserSal

KINDS = {"grpo": (GRPOAgent, {"group_size": 4}), "cgpo": (CGPOAgent, {"center_advantage": True})}


@pytest.fixture
def make_agent(detector, need_encoder, squares_env, tmp_path):
    def make(kind="cgpo", env=None, output=None, **settings):
        agent, own = KINDS[kind]
        torch.manual_seed(0)
        policy = UserSal(detector, need_encoder, hidden=16)
        given = {"save_every": 1000, "grid": 4, **own} | settings
        return agent(policy, env or squares_env(8), output=output or tmp_path, **given)

    return make


def train(agent, env, updates, resume=False):
    rows = {}
    agent.train([env], updates, lambda step, values: rows.update({step: dict(values)}), resume=resume)
    return rows


def observations(env):
    found, _ = env.reset(options={"index": np.arange(env.num_envs)})
    return [{"image": found["image"][i], "need": found["need"][i]} for i in range(env.num_envs)]


def masks(returns, chances, shown=None, cells=None):
    """Return masks of which only returns (B,) and probabilities of the cells (B, g, g) matter."""
    chances = torch.tensor(chances)
    shown = torch.ones(chances.shape, dtype=torch.bool) if shown is None else torch.tensor(shown)
    cells = torch.ones(chances.shape, dtype=torch.bool) if cells is None else cells
    return Masks(torch.empty(0), [], cells, chances.log(), shown, np.array(returns), np.zeros(len(returns)), 0.0)


def test_a_drawn_mask_changes_what_it_must_and_no_more(make_agent):
    agent = make_agent(grid=2, margin=1.5)
    logits = torch.zeros(1, 1, 32, 32)
    logits[0, 0, :16, :16], logits[0, 0, :16, 16:] = 3, -4
    logits[0, 0, 16:, :16], logits[0, 0, 16:, 16:] = 0.5, -0.5
    logits += torch.linspace(-0.1, 0.1, 16).repeat(2)  # a fine structure within each cell, of mean zero
    agreed = torch.tensor([[[True, False], [True, False]]])
    torch.testing.assert_close(agent.mask(logits, agreed), logits[:, 0].sigmoid(), atol=0, rtol=0)
    changed = agent.mask(logits, ~agreed).logit()
    means = changed.reshape(2, 16, 2, 16).mean((1, 3))
    torch.testing.assert_close(means, torch.tensor([[-3.0, 4.0], [-1.5, 1.5]]), atol=1e-4, rtol=0)
    within = changed[0] - means.repeat_interleave(16, 0).repeat_interleave(16, 1)
    torch.testing.assert_close(within, torch.linspace(-0.1, 0.1, 16).repeat(32, 2), atol=1e-4, rtol=0)


def test_greedy_is_the_detectors_own_map_and_draws_follow_the_temperature(make_agent, squares_env, tmp_path):
    env = squares_env(8)
    cold, hot = make_agent(env=env, temperature=1e-3), make_agent(env=env, temperature=50.0)
    plain = UserSalAgent(cold.policy, env, output=tmp_path).act(observations(env))
    np.testing.assert_array_equal(cold.act(observations(env)), plain)
    torch.manual_seed(0)
    np.testing.assert_allclose(cold.act(observations(env), greedy=False), plain, atol=1e-6)
    drawn = hot.act(observations(env), greedy=False)
    assert drawn.shape == plain.shape and drawn.dtype == np.float32 and drawn[0] in env.single_action_space
    assert 0.3 < ((drawn > 0.5) != (plain > 0.5)).mean() < 0.7  # nearly a coin a cell


def test_probabilities_are_those_of_the_draws(make_agent):
    agent, of_cells = make_agent(), torch.tensor([[[math.log(3), 0.0], [-math.log(3), -20.0]]])
    torch.manual_seed(0)
    drawn = torch.stack([agent.draw(of_cells)[0] for _ in range(4000)]).float().mean(0)
    torch.testing.assert_close(drawn, torch.tensor([[0.75, 0.5], [0.25, 0.0]]), atol=0.03, rtol=0)
    cells = torch.tensor([[[True, True], [True, False]]])
    chances = log_probability(of_cells, cells).exp()
    torch.testing.assert_close(chances, torch.tensor([[[0.75, 0.5], [0.25, 1.0]]]))


def test_cells_of_the_black_beside_a_picture_take_no_part(make_agent, squares_env):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:17, :8] = 9  # three rows of cells, the third by one pixel; one column
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:3, 0] = True
    assert torch.equal(shown_cells(image, 4), expected)
    found = masks([0.5], [[[0.2, 0.9], [0.4, 0.9]]], shown=[[[True, False], [True, False]]])
    agent = make_agent(center_advantage=False)
    torch.testing.assert_close(agent.advantages(found), torch.tensor([0.5 - 0.3]))
    of_cells = found.log_probabilities.exp().logit()
    moved = of_cells + torch.tensor([[0.0, 5.0], [0.0, 5.0]])
    loss, out = agent.loss(moved, found, torch.tensor([0]), torch.tensor([2.0]))
    assert loss.item() == pytest.approx(-2.0, abs=1e-5) and out == 0


def test_grpo_compares_the_masks_of_a_group(make_agent):
    agent = make_agent("grpo", group_size=2)
    found = agent.advantages(masks([0.1, 0.3, 0.2, 0.2], [[[0.5]]] * 4))
    expected = 0.1 / (0.1 + 1e-4)
    torch.testing.assert_close(found, torch.tensor([-expected, expected, 0.0, 0.0]), atol=1e-5, rtol=0)


def test_cgpo_takes_the_confidence_from_the_reward_in_the_unit_interval(make_agent):
    agent = make_agent(center_advantage=False)
    agent.return_range = (-1.0, 1.0)
    given = masks([0.0, 1.0], [[[0.2, 0.4], [0.6, 0.8]], [[1.0, 1.0], [0.5, 0.5]]])
    torch.testing.assert_close(agent.advantages(given), torch.tensor([0.5 - 0.5, 1.0 - 0.75]))
    agent.center_advantage = True
    torch.testing.assert_close(agent.advantages(given), torch.tensor([-0.125, 0.125]))


def test_the_loss_is_the_clipped_one_of_each_cell(make_agent):
    agent = make_agent(clip_range=0.2)
    old = masks([0.0] * 2, [[[0.5, 0.3]], [[0.2, 0.8]]])
    new = torch.tensor([[[0.55, 0.6]], [[0.1, 0.8]]]).logit()  # ratios 1.1, 2, 0.5 and 1
    loss, out = agent.loss(new, old, torch.tensor([0, 1]), torch.tensor([1.0, -1.0]))
    assert loss.item() == pytest.approx(-(1.1 + 1.2 - 0.8 - 1.0) / 4, abs=1e-6) and out == pytest.approx(0.5)
    wider = make_agent(clip_range=1.5).loss(new, old, torch.tensor([0, 1]), torch.tensor([1.0, -1.0]))[0]
    assert wider.item() == pytest.approx(-(1.1 + 2.0 - 0.5 - 1.0) / 4, abs=1e-6)


def test_a_group_shows_one_sample_and_the_first_ratio_is_one(make_agent, squares_env):
    env = squares_env(8)
    agent = make_agent("grpo", env, epochs=1, temperature=5.0)
    played = agent.play(env, seed=3)
    assert len(set(env.shown[:4])) == len(set(env.shown[4:])) == 1 and played.needs[0] == env.dataset[env.shown[0]].need
    assert played.cells.shape == (8, 4, 4) and not torch.equal(played.cells[0], played.cells[1])
    assert played.returns.tolist() == played.ious.tolist() and 0 < played.changed < 1
    of_cells = agent.cell_logits(agent.policy(played.pixels, played.needs)).repeat_interleave(4, dim=0)
    torch.testing.assert_close(log_probability(of_cells, played.cells), played.log_probabilities, atol=1e-4, rtol=1e-4)
    advantages = agent.advantages(played)
    loss, out = agent.loss(of_cells, played, torch.arange(8), advantages)
    assert out == 0 and loss.item() == pytest.approx(-advantages.mean().item(), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_reinforcement_goes_on_from_supervision(make_agent, squares_env, detector, need_encoder, kind, tmp_path):
    env, every = squares_env(64), squares_env(16)
    torch.manual_seed(0)
    taught = UserSalAgent(UserSal(detector, need_encoder, hidden=16), env, output=tmp_path, learning_rate=3e-3)
    train(taught, env, 9)
    taught.save(tmp_path / "supervised")
    agent = make_agent(kind, env, learning_rate=1e-3, epochs=2)
    agent.load(tmp_path / "supervised")
    shown = observations(every)
    before = every.step(agent.act(shown))[1].mean()
    train(agent, env, 25 if kind == "grpo" else 15)
    shown = observations(every)
    after = every.step(agent.act(shown))[1].mean()
    assert after > before + 0.1, (before, after)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_is_the_uninterrupted_one(make_agent, squares_env, kind, tmp_path):
    env = squares_env(8)
    settings = {"save_every": 1, "epochs": 2, "minibatch_size": 1, "temperature": 4.0}
    whole = make_agent(kind, env, tmp_path / "whole", **settings)
    rows = train(whole, env, 3)
    assert rows[1]["reward_calls"] == 8 and rows[1]["train/entropy"] > 0
    train(make_agent(kind, env, tmp_path / "parts", **settings), env, 2)
    second = make_agent(kind, env, tmp_path / "parts", **settings)
    again = train(second, env, 3, resume=True)
    assert list(again) == [3] and again[3] == rows[3]
    for name, value in whole.policy.trained_state().items():
        torch.testing.assert_close(second.policy.trained_state()[name], value, atol=0, rtol=0)


def test_without_a_need_nothing_is_learned(make_agent, squares_env):
    env = squares_env(8, need="")
    agent = make_agent(env=env)
    before = {name: value.clone() for name, value in agent.policy.trained_state().items()}
    assert np.isfinite(train(agent, env, 1)[1]["train/loss"])
    assert all(torch.equal(value, before[name]) for name, value in agent.policy.trained_state().items())


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("grpo", {"group_size": 1}, "algo.group_size=1: expected at least 2"),
        ("grpo", {"group_size": 3}, "algo.group_size=3: expected a divisor of env.num_envs=8"),
        ("cgpo", {"grid": 5}, "algo.grid=5: expected a divisor of env.image_size=32"),
        ("cgpo", {"temperature": 0.0}, "algo.temperature=0.0, algo.margin=2.0: expected more than 0"),
        ("cgpo", {"epochs": 0}, "algo.epochs=0: expected at least 1"),
    ],
)
def test_settings_out_of_range(make_agent, kind, settings, expected):
    assert agents.get("grpo_masks") is GRPOAgent and agents.get("cgpo_masks") is CGPOAgent
    with pytest.raises(UserError, match=expected):
        make_agent(kind, **settings)
