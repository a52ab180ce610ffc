"""Refer: rewards by hand, every form, scalar against vector, hostile answers, and no leak of the truth."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from maskgym import segmenters
from maskgym.agents.text.oracle import OracleTextAgent
from maskgym.data import Dataset, Sample
from maskgym.data.scenes import Scenes
from maskgym.envs.instructions import ENTRIES
from maskgym.envs.text.refer import ReferEnv, ReferVectorEnv
from maskgym.errors import UserError
from maskgym.experiments.evaluation import rollout
from maskgym.rewards import FORMS

ID = "maskgym/Refer-v0"
HOSTILE = (
    *("", "<think></think><answer></answer>", "<answer>[]", "<think>\ud800 \0</think><answer>[1]</answer>"),
    '<think></think><answer>[{"bbox_2d": [-1e9, -1e9, 1e9, 1e9]}]</answer>',
    '<think></think><answer>[{"bbox_2d": [500, 500, 400, 400]}]</answer>',
    '<think></think><answer>[{"bbox_2d": [0, 0, 0.001, 0.001]}]</answer>',
    "<think></think><answer>" + "[" * 9999 + "</answer>",
)


@pytest.fixture(scope="module")
def sam():
    return segmenters.make("sam_tiny", device="cpu")


@pytest.fixture(scope="module")
def evf():
    return segmenters.make("evf_sam_tiny", device="cpu")


class One(Dataset):
    """The samples given."""

    task, split = "refer", "train"

    def __init__(self, *samples: Sample) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def scenes(split: str = "train") -> Scenes:
    return Scenes("refer", split, size=24)


def one_box(*boxes: tuple[float, ...]) -> str:
    return f"<think>x</think><answer>{json.dumps([{'bbox_2d': list(box)} for box in boxes])}</answer>"


def index_of(count: int) -> int:
    return next(i for i in range(24) if len(scenes()[i].masks[0]) == count)


def test_gymnasium_finds_no_fault(sam) -> None:
    check_env(gym.make(ID, segmenter=sam, dataset=scenes(), render_mode="rgb_array").unwrapped)


def test_rewards_by_hand(sam) -> None:
    env = ReferEnv(segmenter=sam, dataset=scenes(), reward="iou", image_size=128)
    none, one = index_of(0), index_of(1)
    observation, info = env.reset(options={"index": one})
    assert observation["query"] == scenes()[one].need and observation["query"] in observation["instruction"]
    rows, columns = (info["target"][0][0].any(axis=axis).nonzero()[0] for axis in (1, 0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    _, reward, terminated, truncated, info = env.step(one_box([int(value) for value in box]))
    assert reward > 0.8 and info["iou"] == pytest.approx(reward) and (terminated, truncated) == (True, False)
    assert info["objects"][0].box == box and info["masks"][0].shape == (1, 128, 128)
    env.reset(options={"index": one})
    assert env.step(one_box())[1] == 0
    env.reset(options={"index": none})
    _, reward, _, _, info = env.step(one_box())
    assert reward == 1 and info["iou"] == 1 and info["masks"][0].shape == (0, 128, 128)
    env.reset(options={"index": none})
    assert env.step(one_box((10, 10, 60, 60)))[1] == 0
    env.reset(options={"index": none})
    assert env.step("[]")[1] == 0  # right, but malformed


@pytest.mark.parametrize("form", FORMS)
def test_the_oracle_and_the_rationale_of_each_form(form: str, sam, evf) -> None:
    env = ReferVectorEnv(
        8, scenes(), form=form, segmenter=evf if form == "phrases" else sam, reward="iou", autoreset_mode="Disabled"
    )
    played = list(rollout.play(env, range(24), rollout.greedy(OracleTextAgent(), env)))
    assert np.mean([episode.reward for episode in played]) > 0.75
    careful = ReferVectorEnv(
        24, Scenes("refer", "train", size=24, annotator="full"), form=form, segmenter=env.segmenter, reward="iou"
    )
    _, infos = careful.reset(options={"index": np.arange(24)})
    _, values, *_ = careful.step(list(infos["rationale"]))
    assert values.mean() > 0.75


@pytest.mark.parametrize("coordinates, side", [("pixels", 126), ("thousandths", 64), ("shares", None)])
def test_coordinates_are_those_of_the_observation(coordinates: str, side: int | None, sam) -> None:
    env = ReferVectorEnv(
        24, scenes(), segmenter=sam, reward="iou", coordinates=coordinates, image_size=side, autoreset_mode="Disabled"
    )
    observations, _ = env.reset(options={"index": np.arange(24)})
    assert observations["image"][0].shape == (side or 128, side or 128, 3)
    _, values, *_ = env.step(env.true_answers())
    assert values.mean() > 0.8


def test_the_vector_env_equals_scalar_ones(sam) -> None:
    vector = ReferVectorEnv(3, scenes(), segmenter=sam, reward="iou")
    assert vector.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    scalars = [ReferEnv(segmenter=sam, dataset=scenes(), reward="iou") for _ in range(3)]
    batch, infos = vector.reset(seed=11)
    singles = [env.reset(seed=11 + i) for i, env in enumerate(scalars)]
    answers = (one_box((10, 10, 60, 60)), one_box(), "x")
    for _ in range(3):
        assert vector.observation_space.contains(batch)
        for i, (observation, info) in enumerate(singles):
            assert infos["sample_key"][i] == info["sample_key"]
            for name, value in observation.items():
                np.testing.assert_array_equal(batch[name][i], value)
        batch, values, terminated, _, infos = vector.step(answers)
        assert terminated.all()
        for i, env in enumerate(scalars):
            _, reward, _, _, info = env.step(answers[i])
            assert values[i] == pytest.approx(reward, abs=0.01)  # rounding depends on the batch
        singles = [env.reset() for env in scalars]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_answers_are_scored(text: str, sam) -> None:
    env = ReferEnv(segmenter=sam, dataset=scenes(), reward="iou", render_mode="rgb_array")
    env.reset(options={"index": index_of(1)})
    before = env.render()
    _, reward, _, _, info = env.step(text)
    assert 0 <= reward <= 1 and len(info["objects"]) == len(info["masks"][0])
    assert env.render().shape == before.shape


def test_observations_hold_nothing_of_the_truth(sam) -> None:
    sample = scenes()[index_of(1)]
    blank = replace(sample, masks=(np.zeros_like(sample.masks[0]),), phrases=None, rationale=None)
    seen = [ReferEnv(segmenter=sam, dataset=One(one), reward="iou").reset(seed=3)[0] for one in (sample, blank)]
    for name, value in seen[0].items():
        np.testing.assert_array_equal(value, seen[1][name])
    held_out = ReferEnv(segmenter=sam, dataset=scenes("test"), reward="iou").reset(seed=3)[1]
    assert not {"target", "rationale"} & set(held_out)


def test_void_counts_neither_way(sam) -> None:
    sample = scenes()[index_of(1)]
    void = np.zeros((128, 128), bool)
    void[:, 64:] = True
    env = ReferEnv(segmenter=sam, dataset=One(replace(sample, void=(void,))), reward="iou")
    env.reset(options={"index": 0})
    answer = env.vector.true_answers()[0]
    assert env.step(answer)[-1]["iou"] > 0.7


def test_it_is_pickled(sam) -> None:
    env = pickle.loads(pickle.dumps(ReferVectorEnv(2, scenes(), segmenter="sam_tiny", reward="iou")))
    env.reset(seed=0)
    assert env.step(["", one_box()])[1].shape == (2,)


def test_native_sizes_are_multiples(sam) -> None:
    photo = np.zeros((60, 99, 3), np.uint8)
    shown = Sample("a", (photo,), (np.zeros((0, 60, 99), bool),), need=" every cat ")
    env = ReferEnv(segmenter=sam, dataset=One(shown), reward="iou", image_size=None, multiple=28)
    observation, info = env.reset(seed=0)
    assert observation["image"].shape == (56, 112, 3) and observation["query"] == "every cat"
    assert info["rationale"] is None
    assert env.step(one_box((0, 0, 112, 56)))[-1]["objects"][0].box == pytest.approx((0, 0, 99, 60))


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"form": "masks"}, "form='masks': expected one of boxes, points, boxes_points, phrases"),
        ({"coordinates": "cm"}, "coordinates='cm': expected one of pixels, thousandths, shares"),
        ({"segmenter": "evf_sam_tiny"}, "form=boxes: segmenter=evf_sam_tiny takes no boxes or points: expected"),
        ({"form": "phrases"}, "form=phrases: segmenter=sam_tiny takes no phrases: expected a referring one"),
        ({"image_size": 27}, "image_size=27: expected at least 28, or None for native sizes"),
        ({"multiple": 28}, "multiple=28: expected at least 1, and 1 beside image_size=126"),
        ({"max_episode_steps": 0}, "max_episode_steps=0: expected at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ReferVectorEnv(1, scenes(), reward="iou", **arguments)


def test_wrong_samples_are_refused(sam) -> None:
    sample = scenes()[index_of(1)]
    tiny = Sample("small", (np.zeros((20, 40, 3), np.uint8),), (np.zeros((1, 20, 40), bool),), need="x")
    two = replace(sample, images=sample.images * 2, masks=sample.masks * 2, phrases=None)
    bare = replace(sample, phrases=None)
    for one, said in (
        (tiny, "sample 'small': 40 x 20 pixels: expected sides of at least 28"),
        (two, "has 2 images: expected one"),
        (replace(sample, rationale="no answer"), "its rationale is no <think>"),
    ):
        with pytest.raises(UserError, match=said):
            ReferEnv(segmenter=sam, dataset=One(one), reward="iou").reset(seed=0)
    env = ReferVectorEnv(1, One(bare), form="phrases", segmenter="evf_sam_tiny", reward="iou")
    env.reset(seed=0)
    with pytest.raises(UserError, match="has no phrases: expected another form, or data with phrases"):
        env.true_answers()


@pytest.mark.parametrize("form", FORMS)
def test_a_hint_at_the_form_follows_the_instruction(form):
    segmenter = "evf_sam_tiny" if form == "phrases" else "sam_tiny"
    plain, told = (ReferVectorEnv(form=form, segmenter=segmenter, hint=hint) for hint in (False, True))
    (short,), (long,) = (env.reset(options={"index": 3})[0]["instruction"] for env in (plain, told))
    assert long.startswith(short) and "no Markdown" in long[len(short) :] and ENTRIES[form] in long[len(short) :]
    assert told.single_observation_space["instruction"].contains(long)
