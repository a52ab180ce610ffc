"""The spaces of our own, alone and batched by Gymnasium."""

from __future__ import annotations

from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Dict
from gymnasium.spaces.utils import flatten, flatten_space, unflatten
from gymnasium.vector.utils import (
    batch_space,
    concatenate,
    create_empty_array,
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)
from gymnasium.wrappers import FlattenObservation

import maskgym  # noqa: F401
from maskgym.envs.spaces import FreeText, ImageGroupSpace, ImageSpace
from maskgym.errors import UserError

TEXTS = ("", "\x00", "ünïcödé 日本", "a" * 20, "\ud800", "S")


@pytest.mark.parametrize("space", [FreeText(30), ImageSpace(), ImageGroupSpace(4, 8)])
def test_samples_are_members_and_seeds_repeat(space) -> None:
    space.seed(3)
    first = [space.sample() for _ in range(20)]
    space.seed(3)
    for one, other in zip(first, [space.sample() for _ in range(20)], strict=True):
        assert one in space
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("text", ["", "\x00", "ünïcödé 日本", "<think>", "\ud800"])
def test_any_text_is_legal(text: str) -> None:
    assert text in FreeText(20)


@pytest.mark.parametrize("value", [None, 3, b"bytes", "x" * 21, ["a"]])
def test_what_is_not_a_text(value: object) -> None:
    assert value not in FreeText(20)


@pytest.mark.parametrize("value", [np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2, 3), np.uint8), "x"])
def test_what_is_not_an_image(value: object) -> None:
    assert value not in ImageSpace()


def test_images_are_batched_as_a_tuple() -> None:
    space = Dict({"image": ImageSpace(), "text": FreeText(5)})
    rows = [space.sample() for _ in range(3)]
    batch = concatenate(space, rows, create_empty_array(space, 3))
    assert isinstance(batch["image"], tuple) and batch in batch_space(space, 3)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_from_its_code_points(text: str) -> None:
    space = FreeText(20)
    codes = flatten(space, text)
    assert codes in flatten_space(space) and codes.shape == (20,) and unflatten(space, codes) == text


def test_texts_come_back_from_shared_memory() -> None:
    space = Dict({"text": FreeText(20)})
    memory = create_shared_memory(space, n=len(TEXTS))
    seen = read_from_shared_memory(space, memory, n=len(TEXTS))  # once and before the writing, as AsyncVectorEnv does
    for index, text in enumerate(TEXTS):
        write_to_shared_memory(space, index, {"text": "x" * 20}, memory)
        write_to_shared_memory(space, index, {"text": text}, memory)
    assert tuple(seen["text"]) == deepcopy(seen)["text"] == TEXTS


def test_images_of_any_size_are_refused_where_one_size_is_needed() -> None:
    with pytest.raises(UserError, match="expected image_size=…, or shared_memory=False"):
        create_shared_memory(Dict({"image": ImageSpace()}), n=2)
    with pytest.raises(UserError, match="expected image_size=…"):
        flatten_space(Dict({"image": ImageSpace()}))


def test_an_environment_of_texts_is_flattened(photos) -> None:
    env = FlattenObservation(gym.make("maskgym/UserNeed-v0", dataset=photos(), image_size=16))
    plain = gym.make("maskgym/UserNeed-v0", dataset=photos(), image_size=16)
    flat, _ = env.reset(seed=3)
    observation, _ = plain.reset(seed=3)
    assert flat in env.observation_space
    again = unflatten(plain.observation_space, flat)
    assert again["need"] == observation["need"] and (again["image"] == observation["image"]).all()


@pytest.mark.e2e  # processes
def test_environments_of_texts_run_in_processes() -> None:
    settings = {"image_size": 16, "segmenter": "evf_sam_tiny"}
    many = gym.make_vec("maskgym/SIS-v0", num_envs=2, vectorization_mode="async", **settings)
    one = gym.make_vec("maskgym/SIS-v0", num_envs=2, **settings)
    try:
        seen, expected = many.reset(seed=0)[0], one.reset(seed=0)[0]
        assert seen["instruction"] == expected["instruction"] and (seen["image"] == expected["image"]).all()
        answers = ("<think>x</think><answer><ins>a red disc</ins></answer>", "")
        np.testing.assert_array_equal(many.step(answers)[1], one.step(answers)[1])
    finally:
        many.close()


def test_groups_of_images_have_a_side_and_a_largest_number() -> None:
    space = ImageGroupSpace(3, 8)
    assert [np.zeros((count, 8, 8, 3), np.uint8) in space for count in (0, 1, 3, 4)] == [False, True, True, False]
    for other in (np.zeros((2, 8, 9, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), None):
        assert other not in space
    assert space == ImageGroupSpace(3, 8) != ImageGroupSpace(4, 8)
    nested = Dict({"images": space})
    rows = [nested.sample() for _ in range(3)]
    batch = concatenate(nested, rows, create_empty_array(nested, 3))
    assert isinstance(batch["images"], tuple) and batch in batch_space(nested, 3)
    for refused in (flatten_space, create_shared_memory):
        with pytest.raises(UserError, match="expected whole_groups=False"):
            refused(space)
