"""User needs: spaces, autoreset, scalar against vector, soft maps at the sample's own size, texts, no leak."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import maskgym  # noqa: F401
from maskgym import data, rewards
from maskgym.envs.need import UserNeedEnv, UserNeedVectorEnv
from maskgym.errors import UserError
from maskgym.metrics import s_measure
from maskgym.rewards import Term, WeightedSum

ID = "maskgym/UserNeed-v0"
SIDE = 32


class Coverage(Term):
    """The share that is predicted: asks nothing of the truth."""

    name = "coverage"

    def __call__(self, transition):
        return float(transition.masks[0].mean())


COVERAGE = WeightedSum([Coverage()], [1.0])


def vector(count: int = 3, **settings) -> UserNeedVectorEnv:
    return gym.make_vec(ID, num_envs=count, vectorization_mode="vector_entry_point", image_size=SIDE, **settings)


@pytest.fixture
def wanted(photos):
    """Photos of three sizes whose left half is wanted."""

    def make(split: str = "train", needs=("find the left", "linke Hälfte", "左")):
        shown = photos("sod", split=split)
        shown.samples = [replace(sample, need=need) for sample, need in zip(shown.samples, needs, strict=True)]
        return shown

    return make


def test_gymnasium_finds_no_fault() -> None:
    check_env(gym.make(ID, render_mode="rgb_array").unwrapped)
    check_env(UserNeedEnv(task="need_fine", need=False, image_size=48))


def test_what_is_shown_and_paid(wanted) -> None:
    env = vector(3, dataset=wanted(), autoreset_mode="Disabled")
    observations, infos = env.reset(options={"index": [0, 1, 2]})
    assert env.observation_space.contains(observations)
    assert observations["need"] == ("find the left", "linke Hälfte", "左")
    assert list(infos["sample_key"]) == ["photo0", "photo1", "photo2"] and infos["target"][1][0].shape == (1, 40, 24)
    # 20 x 30 fills 21 rows of the square, 40 x 24 fills 19 columns.
    assert not observations["image"][0, 21:].any() and not observations["image"][1, :, 19:].any()
    actions = np.zeros((3, SIDE, SIDE), np.float32)
    actions[0, :, :16], actions[1, :, :9], actions[2, :, 16:] = 1, 1, 1
    _, values, terminated, truncated, infos = env.step(actions)
    assert terminated.all() and not truncated.any()
    assert values[2] < 0.1 < 0.85 < values[:2].min() and infos["iou"][2] == 0 and (infos["iou"][:2] > 0.85).all()
    for masks, soft, size in zip(infos["masks"], infos["soft"], [(20, 30), (40, 24), (32, 32)], strict=True):
        assert masks[0].shape == soft[0].shape == (1, *size)
        assert masks[0].dtype == bool and soft[0].dtype == np.float32
        np.testing.assert_array_equal(masks[0], soft[0] > 0.5)
    assert infos["reward_terms"]["s_measure"].tolist() == values.tolist()


def test_the_map_is_scored_as_a_soft_one_and_iou_above_a_half(wanted) -> None:
    terms = dict.fromkeys(("s_measure", "iou", "one_minus_mae"), 1.0)
    env = vector(1, dataset=wanted(), reward=rewards.make("weighted", terms=terms), autoreset_mode="Disabled")
    env.reset(options={"index": 2})
    values = np.full((1, SIDE, SIDE), 0.25, np.float32)
    values[0, :, :16] = 0.75
    _, _, _, _, infos = env.step(values)
    truth = wanted()[2].union()
    found = {name: infos["reward_terms"][name][0] for name in terms}
    assert found == pytest.approx({"s_measure": s_measure(values[0], truth), "iou": 1, "one_minus_mae": 0.75})
    assert 0.5 < found["s_measure"] < 1


def test_void_is_left_out(wanted) -> None:
    shown = wanted()
    void = np.zeros((32, 32), bool)
    void[:, 16:] = True
    shown.samples[2] = replace(shown.samples[2], void=(void,))
    env = vector(1, dataset=shown, autoreset_mode="Disabled")
    env.reset(options={"index": 2})
    _, values, _, _, infos = env.step(np.ones((1, SIDE, SIDE), np.float32))
    assert infos["iou"][0] == 1 and values[0] == pytest.approx(1)


def test_the_vector_env_equals_scalar_ones() -> None:
    batch = vector()
    assert batch.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    scalars = [gym.make(ID, image_size=SIDE) for _ in range(3)]
    observations, infos = batch.reset(seed=11)
    singles = [env.reset(seed=11 + i) for i, env in enumerate(scalars)]
    random = np.random.default_rng(0)
    for _ in range(3):
        for i, (observation, info) in enumerate(singles):
            assert infos["sample_key"][i] == info["sample_key"] and observations["need"][i] == observation["need"]
            np.testing.assert_array_equal(observations["image"][i], observation["image"])
        actions = random.random((3, SIDE, SIDE), dtype=np.float32)
        observations, values, terminated, _, infos = batch.step(actions)
        assert terminated.all()
        for i, env in enumerate(scalars):
            observation, reward, _, _, info = env.step(actions[i])
            assert values[i] == reward and infos["final_info"]["iou"][i] == info["iou"]
            assert infos["final_obs"][i]["need"] == observation["need"]
        singles = [env.reset() for env in scalars]


def test_the_same_seed_is_the_same_rollout_and_a_pickle_goes_on() -> None:
    random = np.random.default_rng(3)
    actions = random.random((3, 2, SIDE, SIDE), dtype=np.float32)
    rollouts = []
    for env in (vector(2), vector(2), pickle.loads(pickle.dumps(vector(2).unwrapped))):
        rows = [env.reset(seed=5)[1]["sample_key"].tolist()]
        rows += [env.step(action)[1].tolist() for action in actions]
        rollouts.append(rows)
    assert rollouts[0] == rollouts[1] == rollouts[2]


def test_next_step_autoreset_spends_a_step_on_the_reset() -> None:
    env = vector(2, autoreset_mode=AutoresetMode.NEXT_STEP)
    env.reset(seed=0)
    blank = np.zeros((2, SIDE, SIDE), np.float32)
    _, values, terminated, _, _ = env.step(blank)
    assert terminated.all() and (values > 0).all()
    observations, values, terminated, _, infos = env.step(blank)
    assert not terminated.any() and (values == 0).all() and "target" in infos
    assert observations["need"] == tuple(data.make("scenes", task="need")[i].need for i in infos["index"])


def test_disabled_autoreset_wants_a_reset_which_may_be_of_some() -> None:
    env = vector(2, autoreset_mode="Disabled")
    blank = np.zeros((2, SIDE, SIDE), np.float32)
    env.reset(options={"index": [2, 0]})
    *_, infos = env.step(blank)
    assert list(infos["index"]) == [2, 0]
    env.reset(options={"index": 1, "reset_mask": np.array([True, False])})
    with pytest.raises(gym.error.ResetNeeded):
        env.step(blank)


def test_the_truth_leaks_into_nothing(wanted) -> None:
    seeing, blind = wanted("test"), wanted("test")
    blind.samples = [replace(s, masks=tuple(np.zeros_like(m) for m in s.masks)) for s in seeing.samples]
    seen = []
    for source in (seeing, blind):
        env = vector(1, dataset=source, reward=COVERAGE)
        observation, info = env.reset(seed=1)
        assert {name for name in info if name[0] != "_"} == {"sample_key", "index"}
        *_, infos = env.step(np.random.default_rng(0).random((1, SIDE, SIDE), dtype=np.float32))
        seen.append((observation, infos["final_info"]["masks"][0]))
    np.testing.assert_array_equal(seen[0][0]["image"], seen[1][0]["image"])
    assert seen[0][0]["need"] == seen[1][0]["need"]
    np.testing.assert_array_equal(seen[0][1][0], seen[1][1][0])


def test_without_the_need_its_text_is_empty_as_where_there_is_none(wanted) -> None:
    for env in (vector(1, dataset=wanted(), need=False), vector(1, task="sod")):
        assert env.reset(seed=0)[0]["need"] == ("",)


@pytest.mark.parametrize("text", ["x" * 10_000, "найди красную машину", "寻找红色的车", "\ud800", "", "x" * 70_000])
def test_any_need_is_shown_and_drawn(wanted, text: str) -> None:
    env = UserNeedEnv(dataset=wanted(needs=(text,) * 3), render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    assert observation["need"] == text[:65536] and observation in env.observation_space
    assert len(text) > 1000 or env.render().ndim == 3


def test_render_shows_the_answer() -> None:
    env = gym.make(ID, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(np.ones((128, 128), np.float32))
    after = env.render()
    assert before.dtype == np.uint8 and after.shape == before.shape
    assert (after[:, :460] == before[:, :460]).all() and (after[:, 466:] != before[:, 466:]).any()


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (np.zeros((SIDE, SIDE + 1)), r"ndarray float64 \(32, 33\): expected a mask of shape \(32, 32\)"),
        (np.full((SIDE, SIDE), np.nan), "UserNeedVectorEnv: action of sub-environment 0: values from nan to nan"),
        (np.full((SIDE, SIDE), 1.5), r"values from 1.5 to 1.5: expected a mask in \[0, 1\]"),
    ],
)
def test_what_is_no_mask_is_told_and_changes_nothing(action, words) -> None:
    env = UserNeedEnv(image_size=SIDE)
    env.reset(seed=0)
    with pytest.raises(UserError, match=words):
        env.step(action)
    assert env.step(np.zeros((SIDE, SIDE), bool))[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_envs": 0}, "num_envs=0"),
        ({"image_size": 0}, "image_size=0: expected at least 1"),
        ({"render_mode": "ansi"}, "render_mode='ansi'"),
        ({"dataset": "scene"}, "unknown data set 'scene': expected one of scenes"),
        ({"task": "needs"}, "task='needs' is unknown"),
        ({"reward": "s_measur"}, "s_measure"),
    ],
)
def test_bad_arguments_are_named_in_one_line(arguments: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        UserNeedVectorEnv(**arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_data_sets_that_do_not_fit(wanted, photos) -> None:
    with pytest.raises(UserError, match="split='test': the data set given is of split 'train'"):
        UserNeedVectorEnv(dataset=wanted(), split="test")
    with pytest.raises(UserError, match="has 3 images: expected one to mask"):
        UserNeedVectorEnv(dataset=photos("cosod")).reset(options={"index": 2})
    with pytest.raises(UserError, match="0 to 2"):
        UserNeedVectorEnv(dataset=wanted()).reset(options={"index": 3})


def test_making_one_loads_no_network() -> None:
    code = (
        "import gymnasium, maskgym, sys; gymnasium.make('maskgym/UserNeed-v0').reset(); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
