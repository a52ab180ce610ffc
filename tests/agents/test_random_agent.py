"""Random boxes: legal, different from picture to picture and seed to seed, the same when asked again."""

from __future__ import annotations

import numpy as np

from maskgym.agents.random_agent import RandomAgent
from maskgym.envs.need import UserNeedVectorEnv


def test_random_boxes():
    env = UserNeedVectorEnv(8, image_size=32)
    observations, _ = env.reset(options={"index": np.arange(8)})
    rows = [{name: value[i] for name, value in observations.items()} for i in range(8)]
    masks = RandomAgent(env=env).act(rows)
    assert all(mask in env.single_action_space for mask in masks)
    assert all(0 < (mask > 0.5).sum() and len(np.unique(mask)) <= 2 for mask in masks)
    assert len({mask.tobytes() for mask in masks}) == 8
    for one, other in zip(masks, RandomAgent(env=env).act(rows[::-1])[::-1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert any((one != other).any() for one, other in zip(masks, RandomAgent(env=env, seed=1).act(rows), strict=True))
