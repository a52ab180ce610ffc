"""The oracle: better than chance, a beam no worse than greed, and branching that leaves the environment alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from maskgym.agents.clicks.oracle import OracleAgent
from maskgym.agents.random_agent import RandomAgent
from maskgym.errors import UserError
from maskgym.experiments.evaluation import evaluation


@pytest.fixture
def make_held_out(make_env):
    """Build a function from settings to the environment of held-out scenes, of five clicks with labels."""
    return partial(make_env, split="test", label_source="policy", horizon=5)


def test_the_oracle_is_the_ceiling(make_held_out):
    env, indices = make_held_out(), list(range(6))  # six: the second chunk is filled up
    oracle = evaluation.evaluate(OracleAgent(), env, indices)
    chance = evaluation.evaluate(RandomAgent(env=env), env, indices)
    assert oracle.scores["iou"] > 0.8 > chance.scores["iou"] + 0.2  # five clicks, and no prompt before them
    beam = evaluation.evaluate(OracleAgent(width=3), env, indices)
    assert beam.scores["iou"] >= oracle.scores["iou"] - 0.01
    assert len(oracle.answers) == 6 and all(len(text.split()) == 5 for text in oracle.answers)


def test_what_is_searched_is_what_is_played(make_held_out):
    env = make_held_out()
    env.reset(options={"index": np.arange(4)})
    before = env.unwrapped.get_state()
    found = OracleAgent(candidates=3).search(env)
    after = env.unwrapped.get_state()
    assert [state.patches for state in after] == [state.patches for state in before] == [()] * 4
    for step in range(5):
        actions = [(state.patches[step], state.labels[step]) for state in found]
        infos = env.step(np.array(actions))[-1]
    played = env.unwrapped.get_state()
    for one, other, iou in zip(found, played, infos["iou"], strict=True):
        assert one.patches == other.patches and iou > 0
        np.testing.assert_allclose(one.logits.numpy(), other.logits.numpy(), atol=1e-4)


def test_a_click_goes_into_the_largest_error(make_held_out):
    env = make_held_out(image_size=128, patch_size=16)
    env.reset(options={"index": np.arange(4)})
    truth = np.zeros((128, 128), bool)
    truth[0:20, 0:20] = True  # holds the centre of patch 0
    truth[64:112, 64:112] = True  # is larger: patches 36 to 54
    state = env.unwrapped.get_state()[0]
    ((patch, label),) = OracleAgent(candidates=1)._clicks(env.unwrapped, state, np.zeros_like(truth), truth)
    assert (patch, label) == (45, 1)  # its middle


def test_repeats_are_left_out_where_they_are_not_wanted(make_held_out):
    env = make_held_out(allow_repeated_clicks=False, horizon=12)
    env.reset(options={"index": np.arange(4)})
    for state in OracleAgent(candidates=2).search(env):
        assert len(set(state.patches)) == 12


@pytest.mark.parametrize("setting", ["width", "candidates"])
def test_numbers_out_of_range(setting):
    with pytest.raises(UserError, match=f"algo.{setting}=0: expected at least 1"):
        OracleAgent(**{setting: 0})
