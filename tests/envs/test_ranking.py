"""Ranking: what a step is scored against, erasing, the end, autoreset, and that erasing knows no truth."""

from __future__ import annotations

import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import maskgym  # noqa: F401
from maskgym.data import Sample
from maskgym.envs.ranking import RankingEnv, RankingVectorEnv
from maskgym.errors import UserError
from maskgym.metrics import s_measure

ID = "maskgym/Ranking-v0"
SIDE = 32
ORDER = (1, 2, 0)  # rows of the truth, the most salient first


class Squares:
    """One picture, grey but for three squares of 10 pixels: red, green and blue."""

    task = "sis"

    def __init__(self, split: str = "train", **changes) -> None:
        self.split = split
        image, masks = np.full((SIDE, SIDE, 3), 100, np.uint8), np.zeros((3, SIDE, SIDE), bool)
        for row, left in enumerate((1, 11, 21)):
            masks[row, 5:15, left : left + 10] = True
            image[masks[row]] = np.eye(3)[row] * 250
        sample = Sample("squares", (image,), (masks,), need="find the green one", ranks=(np.array([1.0, 9.0, 4.0]),))
        self.sample = replace(sample, **changes)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return self.sample


def scalar(dataset=None, **settings) -> RankingEnv:
    return RankingEnv(dataset=dataset or Squares(), image_size=SIDE, **settings)


def vector(count: int = 2, **settings) -> RankingVectorEnv:
    return gym.make_vec(ID, num_envs=count, vectorization_mode="vector_entry_point", image_size=SIDE, **settings)


TRUTH = Squares().sample.masks[0].astype(np.float32)
BLANK = np.zeros((SIDE, SIDE), np.float32)
CORNER = BLANK.copy()
CORNER[20:, 20:] = 1


def test_gymnasium_finds_no_fault() -> None:
    check_env(gym.make(ID, render_mode="rgb_array").unwrapped)
    check_env(RankingEnv(task="ranking_need", steps=2, need=False, image_size=48))


def test_a_perfect_episode_erases_what_was_detected_and_ends_when_all_is_found() -> None:
    env = scalar()
    observation, info = env.reset(seed=0)
    assert observation["need"] == "find the green one" and info["ranks"][0].tolist() == [1, 9, 4]
    np.testing.assert_array_equal(observation["image"], Squares().sample.images[0])
    for number, row in enumerate(ORDER, start=1):
        observation, reward, terminated, truncated, info = env.step(TRUTH[row])
        last = number == 3
        assert (terminated, truncated) == (last, False)
        assert reward == pytest.approx(1 + last)  # each step's S-measure, and SA-SOR at the last
        assert (info["iou"], info["found"], info["detected"]) == (1, number, number)
        assert info["reward_terms"] == pytest.approx({"s_measure": 1, "sa_sor": float(last)})
        erased = TRUTH[list(ORDER[:number])].any(axis=0)
        picture = Squares().sample.images[0]
        np.testing.assert_array_equal(observation["image"][~erased], picture[~erased])
        assert (observation["image"][erased] == picture[~erased].mean(axis=0).round()).all()


def test_the_wrong_order_costs_the_correlation_alone() -> None:
    env = scalar()
    env.reset(seed=0)
    rewards = [env.step(TRUTH[row])[1] for row in ORDER[::-1]]
    assert rewards == pytest.approx([1, 1, 1 - 1])


def test_a_step_is_scored_against_the_best_object_that_is_left_and_each_pays_once() -> None:
    env = scalar(reward="s_measure")
    env.reset(seed=0)
    half = TRUTH[2] * (np.arange(SIDE) < 25)  # IoU 0.4 with the blue square
    _, reward, terminated, _, info = env.step(half)
    assert not terminated and (info["iou"], info["found"], info["detected"]) == (0.4, 0, 1)
    assert reward == pytest.approx(s_measure(half > 0, TRUTH[2] > 0))
    # Beside all objects: against the most salient one that is left. Blue again: it has paid, so against red.
    _, reward, _, _, info = env.step(CORNER)
    assert info["iou"] == 0 and reward == pytest.approx(s_measure(CORNER > 0, TRUTH[1] > 0))
    _, reward, _, _, info = env.step(TRUTH[2])
    assert (info["iou"], info["found"]) == (0, 1) and reward == pytest.approx(s_measure(TRUTH[2] > 0, TRUTH[0] > 0))
    _, reward, terminated, truncated, info = env.step(TRUTH[1])  # nothing is left to be scored against
    assert reward == 0 and not (terminated or truncated) and info["found"] == 2
    _, _, terminated, truncated, _ = env.step(CORNER)
    assert (terminated, truncated) == (False, True)


def test_an_empty_mask_ends_the_episode_and_earns_its_ranking_alone() -> None:
    env = scalar()
    env.reset(seed=0)
    env.step(TRUTH[1])
    _, reward, terminated, truncated, info = env.step(np.full_like(BLANK, 0.5))  # nothing is above 0.5
    assert (terminated, truncated) == (True, False) and info["detected"] == 1
    assert info["reward_terms"] == pytest.approx({"s_measure": 0, "sa_sor": 3**0.5 / 2})
    assert reward == pytest.approx(3**0.5 / 2)
    env.reset()
    _, reward, terminated, _, info = env.step(BLANK)
    assert (reward, terminated, info["detected"]) == (0, True, 0)


def test_steps_are_a_budget_and_the_last_one_is_ranked() -> None:
    env = scalar(steps=2)
    env.reset(seed=0)
    assert env.step(TRUTH[1])[2:4] == (False, False)
    _, reward, terminated, truncated, _ = env.step(TRUTH[2])
    # Ranks 1 3 2 against 0 2 1.
    assert (terminated, truncated) == (False, True) and reward == pytest.approx(2)


def test_void_and_objects_in_it_do_not_count() -> None:
    void = np.zeros((SIDE, SIDE), bool)
    void[:, :11] = True  # the red square, the least salient
    env = scalar(Squares(void=(void,)))
    env.reset(seed=0)
    everything = np.maximum(TRUTH[1], void)
    _, _, terminated, _, info = env.step(everything)
    assert info["iou"] == 1 and not terminated
    assert env.step(TRUTH[2])[2]


def test_where_all_is_erased_the_whole_has_one_colour() -> None:
    env = scalar()
    env.reset(seed=0)
    observation, *_ = env.step(np.ones_like(BLANK))
    assert len(np.unique(observation["image"].reshape(-1, 3), axis=0)) == 1


def test_erasing_and_masks_know_no_truth() -> None:
    elsewhere = np.zeros((3, SIDE, SIDE), bool)
    elsewhere[:, 30:, :3] = np.eye(3, dtype=bool)[:, None]
    seen = []
    for shown in (Squares("test"), Squares("test", masks=(elsewhere,), ranks=(np.arange(3.0),))):
        env = scalar(shown)
        observation, info = env.reset(seed=0)
        assert set(info) == {"sample_key", "index"}
        steps = [observation]
        for values in (TRUTH[0], CORNER):
            observation, *_, info = env.step(values)
            steps.append(observation | {"masks": info["masks"][0]})
        seen.append(steps)
    for one, other in zip(*seen, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_the_vector_env_equals_scalar_ones(mode) -> None:
    batch = vector(3, autoreset_mode=mode, steps=3)
    scalars = [gym.make(ID, image_size=SIDE, steps=3) for _ in range(3)]
    observations, infos = batch.reset(seed=4)
    singles = [env.reset(seed=4 + i) for i, env in enumerate(scalars)]
    resting = [False] * 3
    random = np.random.default_rng(0)
    for step in range(9):
        for i, (observation, *_) in enumerate(singles):
            np.testing.assert_array_equal(observations["image"][i], observation["image"])
        actions = (random.random((3, SIDE, SIDE)) < 0.02).astype(np.float32)
        actions[step % 3] = 0 if step < 6 else actions[step % 3]  # episodes end at different times
        observations, values, terminated, truncated, infos = batch.step(actions)
        for i, env in enumerate(scalars):
            if resting[i]:
                assert values[i] == 0 and not terminated[i]
                singles[i], resting[i] = env.reset(), False
                continue
            singles[i] = env.step(actions[i])
            assert (values[i], terminated[i], truncated[i]) == singles[i][1:4]
            if singles[i][2] or singles[i][3]:
                resting[i] = mode is AutoresetMode.NEXT_STEP
                if not resting[i]:
                    np.testing.assert_array_equal(infos["final_obs"][i]["image"], singles[i][0]["image"])
                    assert infos["final_info"]["detected"][i] == singles[i][4]["detected"]
                    singles[i] = env.reset()


def test_the_same_seed_is_the_same_rollout_and_a_pickle_goes_on() -> None:
    actions = (np.random.default_rng(3).random((6, 2, SIDE, SIDE)) < 0.1).astype(np.float32)
    rollouts = []
    for env in (vector(), vector(), pickle.loads(pickle.dumps(vector().unwrapped))):
        rows = [env.reset(seed=5)[1]["sample_key"].tolist()]
        rows += [env.step(action)[1].tolist() for action in actions]
        rollouts.append(rows)
    assert rollouts[0] == rollouts[1] == rollouts[2]


def test_without_the_need_its_text_is_empty() -> None:
    assert scalar(need=False).reset(seed=0)[0]["need"] == ""
    assert scalar(Squares(need=None)).reset(seed=0)[0]["need"] == ""


def test_render_shows_all_that_was_detected() -> None:
    env = scalar(render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(TRUTH[1])
    one = env.render()
    env.step(TRUTH[2])
    assert before.shape == one.shape == env.render().shape
    assert (before != one).any() and (env.render() != one).any()


def test_what_cannot_be_ranked_is_told() -> None:
    with pytest.raises(UserError, match="steps=0: expected at least 1"):
        scalar(steps=0)
    with pytest.raises(UserError, match="sample 'squares' has no ranks: expected ranked objects"):
        scalar(Squares(ranks=None)).reset(seed=0)
    with pytest.raises(UserError, match="sample 'squares' cannot be scored: a mask of image 0 is empty"):
        env = scalar(Squares(masks=(np.zeros((3, SIDE, SIDE), bool),)))
        env.reset(seed=0)
        env.step(CORNER)
