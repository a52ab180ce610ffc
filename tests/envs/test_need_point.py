"""Needs by clicks: the feature and the words of a need, the need as text, and all else as point prompting has it."""

from __future__ import annotations

import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from maskgym import data, segmenters
from maskgym.envs.need_point import UserNeedPointEnv, UserNeedPointVectorEnv
from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic
from maskgym.policies.clicks.recalibration import SemanticRecalibration
from maskgym.segmenters.points.sam import sam_tiny

ID = "maskgym/UserNeedPoint-v0"


@pytest.fixture(scope="module")
def sam():
    return sam_tiny(device="cpu")


class Lengths:
    """Encodes a need at two depths: its length, and minus its length; counts what it encodes."""

    width, levels = 3, 2

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, needs):
        self.asked += needs
        lengths = torch.tensor([float(len(need)) for need in needs])[:, None]
        return torch.stack([lengths, -lengths], dim=1).expand(-1, -1, 3)


class Corner:
    """Attends to the top left quarter, whatever the text; notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def attend(self, images, texts, size):
        self.asked += texts
        maps = np.zeros((len(images), *size), np.float32)
        maps[:, : size[0] // 2, : size[1] // 2] = 1
        return maps


class Needs:
    """Scenes whose needs are given."""

    task, split = "sod", "test"

    def __init__(self, *needs: str | None) -> None:
        self.scenes, self.needs = data.make("scenes", task="need", split="test"), needs

    def __len__(self) -> int:
        return len(self.needs)

    def __getitem__(self, index: int):
        return replace(self.scenes[index], need=self.needs[index])


def vector(sam, count=2, **settings) -> UserNeedPointVectorEnv:
    return gym.make_vec(ID, num_envs=count, vectorization_mode="vector_entry_point", segmenter=sam, **settings)


@pytest.mark.filterwarnings("ignore:.*A Box observation space")
def test_gymnasium_finds_no_fault(sam) -> None:
    check_env(gym.make(ID, segmenter=sam, horizon=2, render_mode="rgb_array").unwrapped)
    check_env(
        UserNeedPointEnv(
            segmenter=sam, horizon=2, label_source="positive", allow_repeated_clicks=False, encoder=Lengths()
        )
    )


def test_the_deepest_feature_is_shown_and_the_words_are_in_info(sam) -> None:
    encoder = Lengths()
    env = vector(sam, dataset=Needs("find it", "", None), encoder=encoder, horizon=1, label_source="positive")
    observations, infos = env.reset(options={"index": [0, 1]})
    assert env.observation_space.contains(observations)
    assert observations["need"].tolist() == [[-7] * 3, [0] * 3] and list(infos["need"]) == ["find it", ""]
    observations, _, _, truncated, infos = env.step(np.array([0, 1]))
    assert truncated.all() and list(infos["final_info"]["need"]) == ["find it", ""]
    assert [final["need"].tolist() for final in infos["final_obs"]] == [[-7] * 3, [0] * 3]
    env.reset(options={"index": [0, 2]})
    assert sorted(encoder.asked) == ["", "find it"]  # each text once


def test_without_the_need_its_text_is_empty(sam) -> None:
    env = vector(sam, 1, dataset=Needs("find it"), need=False, encoder=Lengths())
    observations, infos = env.reset(seed=0)
    assert not observations["need"].any() and infos["need"][0] == ""


def test_all_else_is_as_point_prompting_has_it(sam) -> None:
    settings = {"segmenter": sam, "task": "need", "split": "test", "label_source": "positive", "horizon": 2}
    plain = gym.make_vec("maskgym/PointPrompt-v0", num_envs=2, vectorization_mode="vector_entry_point", **settings)
    asked = vector(**{"sam": sam, **{k: v for k, v in settings.items() if k != "segmenter"}})
    shown = [env.reset(seed=3) for env in (plain, asked)]
    for actions in ([3, 40], [20, 9], [1, 1]):
        for name in shown[0][0]:
            np.testing.assert_array_equal(shown[0][0][name], shown[1][0][name])
        assert set(shown[1][0]) - set(shown[0][0]) == {"need"}
        shown = [env.step(np.array(actions)) for env in (plain, asked)]
        assert shown[0][1].tolist() == shown[1][1].tolist()


def test_the_explicit_branch_attends_to_each_need(sam) -> None:
    corner = Corner()
    env = vector(
        sam,
        3,
        dataset=Needs("find it", "", "[semantic]"),
        attention=corner,
        text="need",
        encoder=Lengths(),
        label_source="srm",
        recalibration=SemanticRecalibration("explicit", 128, channels=16),
    )
    observations, _ = env.reset(options={"index": [0, 1, 2]})
    assert corner.asked == ["find it"]
    seen = np.abs(observations["semantic"]).sum(axis=1) > 0
    assert not seen[0, 5:].any() and seen[1].all() and seen[2].all()  # an empty need attends everywhere
    hidden = vector(sam, 1, dataset=Needs("find it"), attention=corner, text="need", encoder=Lengths(), need=False)
    hidden.reset(seed=0)
    assert corner.asked == ["find it"]
    fixed = vector(sam, 1, dataset=Needs("find it"), attention=corner, text="shadow", encoder=Lengths())
    fixed.reset(seed=0)
    assert corner.asked == ["find it", "shadow"]


def test_a_state_branches_with_its_need(sam) -> None:
    env = vector(sam, dataset=Needs("find it", "find that one"), encoder=Lengths(), label_source="positive")
    observations, _ = env.reset(options={"index": [0, 1]})
    env.step(np.array([10, 10]))
    trials = env.unwrapped.branch(3)
    first, second = env.unwrapped.get_state()
    shown = trials.set_state([second, first, second])
    assert shown["need"][:, 0].tolist() == [-13, -7, -13] and observations["need"][0, 0] == -7


@pytest.mark.parametrize("text", ["x" * 10_000, "найди красную машину", "寻找红色的车", "\ud800", "[semantic] "])
def test_the_embedded_encoders_read_any_text(sam, text: str) -> None:
    attention = segmenters.make_attention("clip_tiny")
    env = vector(sam, 1, dataset=Needs(text), attention=attention, text="need", label_source="positive")
    observations, infos = env.reset(seed=0)
    assert np.isfinite(observations["need"]).all() and np.isfinite(observations["semantic"]).all()
    assert infos["need"][0] == text and observations["need"].shape == (1, 128)


def test_nothing_at_test_time_comes_from_the_truth(sam) -> None:
    class Blind(Needs):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return replace(sample, masks=tuple(np.zeros_like(mask) for mask in sample.masks))

    seen = []
    for kind in (Needs, Blind):
        env = vector(sam, 1, dataset=kind("find a red star"), label_source="positive")
        observations, infos = env.reset(seed=0)
        assert "target" not in infos
        seen.append([observations, env.step(np.array([7]))[0]])
    for one, other in zip(*seen, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_the_policy_over_the_grid_reads_the_need(sam) -> None:
    env = vector(sam, label_source="positive")
    observations, _ = env.reset(seed=0)
    torch.manual_seed(0)
    trunk = PointActorCritic().trunk(env.single_observation_space)
    tensors = {name: torch.from_numpy(value) for name, value in observations.items()}
    told = trunk(tensors)
    assert told.shape == (2, trunk.features)
    assert not torch.equal(told, trunk(tensors | {"need": -tensors["need"]}))


def test_the_same_seed_is_the_same_episode_and_a_pickle_starts_fresh(sam) -> None:
    env = vector(sam)
    copied = pickle.loads(pickle.dumps(env.unwrapped))
    first, again, other = env.reset(seed=9)[0], env.reset(seed=9)[0], copied.reset(seed=9)[0]
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        np.testing.assert_allclose(first[name], other[name], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"encoder": 3}, "encoder=3: encodes no needs"),
        ({"encoder": "clip_tin"}, "clip_tiny"),
        ({"text": "need"}, "expected both"),
        ({"patch_size": 17}, "patch_size=17: expected a divisor of image_size=128"),
        ({"task": "needs"}, "task='needs' is unknown"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(settings, expected) -> None:
    with pytest.raises(UserError) as caught:
        UserNeedPointVectorEnv(**settings)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
