"""Batched infos: Gymnasium's format, and back."""

from __future__ import annotations

import numpy as np
from gymnasium.vector import VectorEnv

from maskgym.envs.infos import batch_infos, info_of, with_scalars

ROWS = {
    2: {"index": 3, "iou": 0.5, "point": np.array([1.0, 2.0]), "reward_terms": {"iou": 0.5}, "masks": (np.eye(2),)},
    0: {"index": 1, "final_info": {"iou": 0.25, "reward_terms": {"iou": 0.25}}, "final_obs": {"mask": np.eye(2)}},
}


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, np.ndarray) and one.dtype != object:
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, np.ndarray | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_infos_are_batched_as_by_gymnasium():
    env, expected = VectorEnv(), {}
    env.num_envs = 4
    for i, info in ROWS.items():
        expected = env._add_info(expected, info, i)
    assert same(batch_infos(4, ROWS), expected) and batch_infos(4, {}) == {}


def test_the_info_of_a_sub_environment_is_what_was_batched():
    batch = batch_infos(4, ROWS)
    assert info_of(batch, 1) == {}
    for i in (0, 2):
        assert same(with_scalars(info_of(batch, i)), ROWS[i])
