"""Reasoning to mask: spaces, autoreset, scalar against vector, no leak of the truth."""

from __future__ import annotations

import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import maskgym  # noqa: F401
from maskgym.envs.reasoning import ReasoningEnv, ReasoningVectorEnv, letterbox
from maskgym.errors import UserError

IDS = {"sod": "maskgym/SOD-v0", "sis": "maskgym/SIS-v0", "cosod": "maskgym/CoSOD-v0"}
LEFT = {
    "sod": "<think>x</think><answer><rg>left</rg></answer>",
    "sis": "<think>x</think><answer><ins>left</ins></answer>",
    "cosod": "<think>x</think><answer><rg>[semantic] left</rg></answer>",
}


@pytest.mark.parametrize("task", IDS)
def test_gymnasium_finds_no_fault(task: str, halves) -> None:
    env = gym.make(IDS[task], segmenter=halves, render_mode="rgb_array")
    check_env(env.unwrapped)


@pytest.mark.parametrize("task", IDS)
def test_rewards_by_hand(task: str, halves, photos) -> None:
    env = gym.make(IDS[task], segmenter=halves, dataset=photos(task))
    _, info = env.reset(options={"index": 1})
    assert info["index"] == 1 and info["sample_key"].endswith(("1", "2"))
    _, reward, terminated, truncated, info = env.step(LEFT[task])
    assert reward == pytest.approx(1) and (terminated, truncated) == (True, False)
    assert info["iou"] == 1.0 and info["reward_terms"] == pytest.approx({"correctness": 1, "format": 1})
    env.reset(options={"index": 1})
    _, reward, _, _, info = env.step("left")
    assert reward == 0.0 and info["masks"][0].shape[0] == 0 and info["expressions"] == ()


def test_masks_have_the_samples_own_size(halves, photos) -> None:
    env = gym.make(IDS["sis"], segmenter=halves, dataset=photos(), image_size=16)
    observation, _ = env.reset(options={"index": 1})
    assert observation["image"].shape == (16, 16, 3)
    *_, info = env.step(LEFT["sis"])
    assert info["masks"][0].shape == (1, 40, 24)


@pytest.mark.parametrize("task", IDS)
def test_the_vector_env_equals_scalar_ones(task: str, halves, photos) -> None:
    vector = gym.make_vec(
        IDS[task], num_envs=3, vectorization_mode="vector_entry_point", segmenter=halves, dataset=photos(task)
    )
    assert vector.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    scalars = [gym.make(IDS[task], segmenter=halves, dataset=photos(task)) for _ in range(3)]
    batch, infos = vector.reset(seed=11)
    singles = [env.reset(seed=11 + i) for i, env in enumerate(scalars)]
    answers = (LEFT[task], "", LEFT[task].replace("left", "right"))
    for _ in range(4):
        assert vector.observation_space.contains(batch)
        for i, (observation, info) in enumerate(singles):
            assert infos["sample_key"][i] == info["sample_key"]
            for name, value in observation.items():
                np.testing.assert_array_equal(batch[name][i], value)
        batch, rewards, terminated, _, infos = vector.step(answers)
        assert terminated.all()
        for i, env in enumerate(scalars):
            _, reward, _, _, info = env.step(answers[i])
            assert rewards[i] == reward
            assert infos["final_info"]["iou"][i] == info["iou"]
        singles = [env.reset() for env in scalars]


def test_one_call_of_the_segmenter_serves_all(halves, photos) -> None:
    env = ReasoningVectorEnv(3, dataset=photos(), segmenter=halves)
    env.reset(seed=0)
    env.step((LEFT["sis"],) * 3)
    assert halves.calls == 1


def test_next_step_autoreset_spends_a_step_on_the_reset(halves, photos) -> None:
    env = ReasoningVectorEnv(2, dataset=photos(), segmenter=halves, autoreset_mode=AutoresetMode.NEXT_STEP)
    env.reset(seed=0)
    _, rewards, terminated, _, _ = env.step((LEFT["sis"],) * 2)
    assert terminated.all() and np.allclose(rewards, 1)
    _, rewards, terminated, _, infos = env.step((LEFT["sis"],) * 2)
    assert not terminated.any() and (rewards == 0).all() and "target" in infos


def test_disabled_autoreset_wants_a_reset(halves, photos) -> None:
    env = ReasoningVectorEnv(2, dataset=photos(), segmenter=halves, autoreset_mode="Disabled")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(("", ""))
    env.reset(options={"index": [2, 0]})
    *_, infos = env.step((LEFT["sis"], ""))
    assert list(infos["sample_key"]) == ["photo2", "photo0"]
    env.reset(options={"index": 1, "reset_mask": np.array([True, False])})
    with pytest.raises(gym.error.ResetNeeded):
        env.step(("", ""))


@pytest.mark.parametrize("task", IDS)
def test_the_truth_leaks_into_nothing(task: str, halves, photos) -> None:
    data, blank = photos(task, split="test"), photos(task, split="test")
    blank.samples = [replace(s, masks=tuple(np.zeros_like(m) for m in s.masks), rationale=None) for s in data.samples]
    seen = []
    for source in (data, blank):
        env = gym.make(IDS[task], dataset=source, segmenter=halves, reward="format")
        observation, info = env.reset(seed=1)
        assert set(info) == {"sample_key", "index"}
        seen.append((observation, env.step(LEFT[task])[4]["masks"]))
    for name, value in seen[0][0].items():
        np.testing.assert_array_equal(value, seen[1][0][name])
    for one, other in zip(seen[0][1], seen[1][1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_supervised_parts_see_the_truth_on_the_training_split_only(halves, photos) -> None:
    _, info = ReasoningEnv(dataset=photos(), segmenter=halves).reset(seed=0)
    assert info["rationale"] == "why" and info["target"][0].dtype == bool


@pytest.mark.parametrize("task", IDS)
def test_without_reasoning_the_answer_alone_is_asked_for_shown_and_paid(task: str, halves, photos) -> None:
    data, direct = photos(task), LEFT[task].removeprefix("<think>x</think>")
    data.samples = [replace(sample, rationale=LEFT[task]) for sample in data.samples]
    thinking = gym.make(IDS[task], dataset=data, segmenter=halves)
    env = gym.make(IDS[task], dataset=data, segmenter=halves, reasoning=False)
    observation, info = env.reset(options={"index": 1})
    asked, _ = thinking.reset(options={"index": 1})
    assert "<think>" in asked["instruction"] and "<think>" not in observation["instruction"]
    assert asked["instruction"].split(". ")[0] == observation["instruction"].split(". ")[0]  # the task is the same
    assert asked["instruction"].split(". ")[2] == observation["instruction"].split(". ")[2]  # and the form of phrases
    assert info["rationale"] == direct
    _, reward, _, _, info = env.step(direct)
    _, full_reward, _, _, full_info = thinking.step(LEFT[task])
    assert reward == full_reward and info["reward_terms"] == full_info["reward_terms"]
    assert reward == pytest.approx(1)
    env.reset(options={"index": 1})
    assert env.step("left")[1] == 0
    thinking.reset(options={"index": 1})
    assert thinking.step(direct)[1] == pytest.approx(0.75)  # the blocks' half of the format is lost


@pytest.mark.parametrize("task", IDS)
def test_gymnasium_finds_no_fault_without_reasoning(task: str, halves) -> None:
    check_env(gym.make(IDS[task], segmenter=halves, render_mode="rgb_array", reasoning=False).unwrapped)


def test_without_reasoning_a_missing_or_free_rationale_stays_as_it_is(halves, photos) -> None:
    assert ReasoningEnv(dataset=photos(), segmenter=halves, reasoning=False).reset(seed=0)[1]["rationale"] == "why"
    groups = ReasoningEnv(task="cosod", dataset=photos("cosod"), segmenter=halves, reasoning=False)
    assert groups.reset(seed=0)[1]["rationale"] is None


def test_a_short_group_is_filled_with_repeats_that_are_not_scored(halves, photos) -> None:
    env = ReasoningEnv(task="cosod", dataset=photos("cosod"), segmenter=halves, group_size=3)
    observation, _ = env.reset(options={"index": 1})
    assert observation["images"].shape == (3, 128, 128, 3)
    np.testing.assert_array_equal(observation["images"][0], observation["images"][2])
    *_, info = env.step(LEFT["cosod"])
    assert len(info["masks"]) == 2


def test_native_sizes(halves, photos) -> None:
    env = ReasoningVectorEnv(2, dataset=photos(), segmenter=halves, image_size=None)
    observations, _ = env.reset(options={"index": [0, 1]})
    assert [image.shape for image in observations["image"]] == [(20, 30, 3), (40, 24, 3)]
    assert env.observation_space.contains(observations)


def test_render_shows_the_answer(halves, photos) -> None:
    env = gym.make(IDS["sis"], dataset=photos(), segmenter=halves, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(LEFT["sis"])
    after = env.render()
    assert before.dtype == np.uint8 and after.shape == before.shape
    assert (after[:, :460] != before[:, :460]).any() and (after[:, 466:] != before[:, 466:]).any()  # text and masks


def test_letterbox_keeps_the_aspect_ratio() -> None:
    image = np.full((10, 20, 3), 7, np.uint8)
    boxed = letterbox(image, 40)
    assert (boxed[:20] == 7).all() and (boxed[20:] == 0).all()


def test_pickling_keeps_the_env(halves, photos) -> None:
    env = pickle.loads(pickle.dumps(ReasoningVectorEnv(2, segmenter="evf_sam_tiny")))
    assert env.reset(seed=0)[1]["index"].shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "cats"}, "task"),
        ({"num_envs": 0}, "num_envs"),
        ({"image_size": 0}, "image_size"),
        ({"task": "cosod", "image_size": None}, "image_size"),
        ({"render_mode": "ansi"}, "render_mode"),
        ({"dataset": "scene"}, "scenes"),
        ({"segmenter": "evfsam"}, "evf_sam"),
        ({"reward": "iou2"}, "iou"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ReasoningVectorEnv(**{"segmenter": "evf_sam_tiny", **arguments})


def test_a_data_set_of_another_task_or_split(photos) -> None:
    with pytest.raises(UserError, match="sis"):
        ReasoningVectorEnv(task="sod", dataset=photos("sis"))
    with pytest.raises(UserError, match="split"):
        ReasoningVectorEnv(dataset=photos("sis"), split="test")


def test_an_index_out_of_range(halves, photos) -> None:
    with pytest.raises(UserError, match="0 to 2"):
        ReasoningVectorEnv(dataset=photos(), segmenter=halves).reset(options={"index": 3})


def test_an_id_may_name_the_module_that_registers_it(halves, photos):
    env = gym.make("maskgym:maskgym/SIS-v0", segmenter=halves, dataset=photos("sis"))
    assert env.spec.id == "maskgym/SIS-v0"


def test_a_whole_group_is_shown_without_repeats_and_scored_whole(halves, photos) -> None:
    env = ReasoningVectorEnv(
        3, "cosod", photos("cosod"), segmenter=halves, group_size=4, image_size=16, whole_groups=True
    )
    observation, _ = env.reset(options={"index": [0, 1, 2]})
    assert [images.shape for images in observation["images"]] == [(count, 16, 16, 3) for count in (1, 2, 3)]
    assert env.observation_space.contains(observation)
    *_, infos = env.step((LEFT["cosod"],) * 3)
    assert [len(masks) for masks in infos["final_info"]["masks"]] == [1, 2, 3]
    repeated = ReasoningVectorEnv(3, "cosod", photos("cosod"), segmenter=halves, group_size=4, image_size=16)
    shown, _ = repeated.reset(options={"index": [0, 1, 2]})
    assert shown["images"].shape == (3, 4, 16, 16, 3)
    np.testing.assert_array_equal(shown["images"][1][:2], observation["images"][1])


@pytest.mark.parametrize("task", IDS)
def test_the_papers_instruction_is_asked_in_its_own_words(task: str, halves, photos) -> None:
    shown = {}
    for name in ("maskgym", "paper"):
        env = ReasoningVectorEnv(1, task, photos(task), segmenter=halves, instruction=name)
        observation, _ = env.reset(seed=0)
        assert env.observation_space.contains(observation)
        shown[name] = observation["instruction"][0]
    assert shown["maskgym"] == ReasoningVectorEnv(1, task, photos(task), segmenter=halves).instruction
    words = {"sod": "visually prominent regions", "sis": "all prominent instances", "cosod": "common across a group"}
    assert words[task] in shown["paper"] and "step-by-step Chain-of-Thought (CoT) reasoning" in shown["paper"]
    tag = "<ins> </ins>" if task == "sis" else "<rg> </rg>"
    assert tag in shown["paper"] and shown["paper"] != shown["maskgym"]
    with pytest.raises(UserError, match="instruction=paper: the paper prints none without reasoning"):
        ReasoningVectorEnv(1, task, photos(task), segmenter=halves, instruction="paper", reasoning=False)
    with pytest.raises(UserError, match="instruction=theirs: expected one of maskgym, paper"):
        ReasoningVectorEnv(1, task, photos(task), segmenter=halves, instruction="theirs")


@pytest.mark.parametrize("task", ["sod", "sis", "cosod"])
def test_the_true_phrases_reach_the_ceiling(task: str) -> None:
    env = ReasoningVectorEnv(4, task, split="test", reward="iou", autoreset_mode="Disabled")
    env.reset(options={"index": np.arange(4)})
    answers = env.true_answers()
    assert all((parsed := env.parser(answer)).structured and parsed.tagged for answer in answers)
    assert env.step(answers)[1].mean() > 0.75


def test_data_without_phrases_has_no_true_answer(halves, photos) -> None:
    env = ReasoningVectorEnv(1, "sis", photos("sis"), segmenter=halves)
    env.reset(seed=0)
    with pytest.raises(UserError, match="has no phrases: expected data with phrases"):
        env.true_answers()


def test_a_level_is_an_id(halves) -> None:
    hard, named, easy = (
        gym.make(name, segmenter=halves, **more).unwrapped
        for name, more in (
            ("maskgym/SIS-hard-v0", {}),
            ("maskgym/SIS-v0", {"dataset": {"name": "scenes", "level": "hard"}}),
            ("maskgym/SIS-easy-v0", {}),
        )
    )
    images = [env.reset(options={"index": 3})[0]["image"] for env in (hard, named, easy)]
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0] != images[2]).any()


def test_a_data_set_may_be_named_with_its_arguments(halves) -> None:
    env = gym.make("maskgym/SIS-v0", segmenter=halves, dataset={"name": "scenes", "image_size": 64}).unwrapped
    env.reset(options={"index": 3})
    assert env.vector.dataset[3].images[0].shape == (64, 64, 3)
    with pytest.raises(UserError, match="unknown key 'hue': data set 'scenes' does not take it"):
        gym.make("maskgym/SIS-v0", dataset={"name": "scenes", "hue": 3})
