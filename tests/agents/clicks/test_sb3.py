"""Algorithms of sb3-contrib through the adaptor."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from maskgym import data
from maskgym.agents.clicks.sb3 import SampleVecEnv
from maskgym.errors import UserError
from maskgym.segmenters.points.sam import sam_tiny

contrib = pytest.importorskip("sb3_contrib")


def make_env(**settings):
    return SampleVecEnv(
        gym.make_vec(
            "maskgym/PointPrompt-v0",
            num_envs=4,
            vectorization_mode="vector_entry_point",
            dataset=data.make("scenes", task="sod", size=4),
            segmenter=sam_tiny(device="cpu"),
            autoreset_mode="SameStep",
            **{"horizon": 8, **settings},
        )
    )


@pytest.mark.parametrize("label", ["positive", "policy"])
def test_maskable_ppo_never_clicks_a_patch_twice(label):
    env = make_env(label_source=label, allow_repeated_clicks=False)
    model = contrib.MaskablePPO("MultiInputPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0)
    model.learn(32)
    observations = env.reset()
    for _ in range(8):
        masks = np.stack(env.env_method("action_masks"))
        actions, _ = model.predict(observations, action_masks=masks, deterministic=False)
        observations, _, _, infos = env.step(actions)
        assert not any(info["repeated"] for info in infos)


def test_without_masks_everything_may_be_clicked():
    env = make_env(label_source="positive", allow_repeated_clicks=True)
    env.reset()
    assert np.stack(env.env_method("action_masks")).all()
    with pytest.raises(NotImplementedError):
        env.env_method("render")


def test_recurrent_ppo_plays():
    small = {"n_steps": 8, "batch_size": 16, "n_epochs": 1, "policy_kwargs": {"lstm_hidden_size": 8}}
    model = contrib.RecurrentPPO("MultiInputLstmPolicy", make_env(label_source="positive"), seed=0, **small)
    model.learn(32)
    assert model.num_timesteps == 32


def test_options_and_infos_of_a_reset_are_each_sub_environments_own():
    env = make_env(label_source="positive", horizon=2)
    env.set_options([{"index": 3}, {"index": 1}, {}, {"index": 2}])
    env.seed(5)
    env.reset()
    shown = [info["index"] for info in env.reset_infos]
    assert shown[:2] + shown[3:] == [3, 1, 2] and all(len(env.targets[i]) for i in range(4))
    assert env.reset_infos[0]["sample_key"] == data.make("scenes", task="sod", size=4)[3].key
    for _ in range(2):
        over = env.step(np.zeros(4, int))[2]
    assert over.all() and "final_info" not in env.reset_infos[0] and "iou" in env.reset_infos[0]
    assert [info["index"] for info in env.reset_infos] != [3, 1, shown[2], 2]  # Options are those of one reset alone.
    env.set_options({"index": 0})
    env.reset()
    assert [info["index"] for info in env.reset_infos] == [0] * 4
    for wrong, words in (
        ([{"index": 3}], "1 dictionaries: expected 4"),
        ({"reset_mask": [True]}, "expected index alone"),
    ):
        env.set_options(wrong)
        with pytest.raises(UserError, match=words):
            env.reset()
