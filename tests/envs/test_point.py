"""Point prompting: spaces, autoreset, scalar against vector, branching, no leak of the truth."""

from __future__ import annotations

import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as check_for_sb3

from maskgym import data, segmenters
from maskgym.envs.clicks.attention_maps import AttentionMaps
from maskgym.envs.clicks.patches import stretch
from maskgym.envs.point import PointPromptEnv, PointPromptVectorEnv
from maskgym.errors import UserError
from maskgym.experiments.wiring import composition
from maskgym.policies.clicks.recalibration import SemanticRecalibration
from maskgym.segmenters.points.sam import sam_tiny

ID = "maskgym/PointPrompt-v0"


@pytest.fixture(scope="module")
def sam():
    return sam_tiny(device="cpu")


def vector(sam, count=3, **settings) -> PointPromptVectorEnv:
    return gym.make_vec(ID, num_envs=count, vectorization_mode="vector_entry_point", segmenter=sam, **settings)


def recalibration(branch="implicit") -> SemanticRecalibration:
    return SemanticRecalibration(branch, 128, channels=16)


class Corner:
    """Attends to the top left quarter, whatever the text; notes what it is asked."""

    def __init__(self):
        self.asked = []

    def attend(self, images, texts, size):
        self.asked += texts
        maps = np.zeros((len(images), *size), np.float32)
        maps[:, : size[0] // 2, : size[1] // 2] = 1
        return maps


@pytest.mark.filterwarnings("ignore:.*A Box observation space")
@pytest.mark.parametrize("label", ["policy", "positive", "srm", "oracle"])
def test_gymnasium_and_stable_baselines_find_no_fault(sam, label):
    settings = {"segmenter": sam, "label_source": label, "horizon": 3, "render_mode": "rgb_array"}
    settings |= {"recalibration": recalibration()} if label == "srm" else {}
    check_env(gym.make(ID, **settings).unwrapped)
    check_for_sb3(PointPromptEnv(**settings, allow_repeated_clicks=False))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_the_vector_env_equals_scalar_ones(sam, mode):
    batch = vector(sam, horizon=2, autoreset_mode=mode)
    scalars = [gym.make(ID, segmenter=sam, horizon=2) for _ in range(3)]
    actions = np.random.default_rng(0).integers([64, 2], size=(5, 3, 2))
    observations, infos = batch.reset(seed=5)
    each = [env.reset(seed=5 + i) for i, env in enumerate(scalars)]
    resting = False
    for step in range(5):
        for i in range(3):
            for name, value in each[i][0].items():
                np.testing.assert_allclose(observations[name][i], value, atol=1e-5)
            assert infos["sample_key"][i] == each[i][-1]["sample_key"]
            assert infos["iou"][i] == pytest.approx(each[i][-1]["iou"], abs=0.02)
        observations, values, terminated, truncated, infos = batch.step(actions[step])
        assert not terminated.any()
        if resting:
            each, resting = [env.reset() for env in scalars], False
            assert not values.any() and not truncated.any()
            continue
        each = [env.step(actions[step, i]) for i, env in enumerate(scalars)]
        assert values.tolist() == [one[1] for one in each] and truncated.tolist() == [one[3] for one in each]
        if truncated.all():
            resting = mode is AutoresetMode.NEXT_STEP
            if not resting:
                for i in range(3):
                    np.testing.assert_allclose(infos["final_obs"][i]["mask"], each[i][0]["mask"], atol=1e-5)
                    assert infos["final_info"]["point"][i].tolist() == each[i][4]["point"].tolist()
                    assert infos["final_info"]["reward_terms"]["foreground_hit"][i] == each[i][1]
                each = [env.reset() for env in scalars]


class Blind:
    """Scenes without their truth."""

    def __init__(self, split: str) -> None:
        self.scenes = data.make("scenes", task="sod", split=split)
        self.task, self.split = "sod", split

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        sample = self.scenes[index]
        return replace(sample, masks=tuple(np.zeros_like(mask) for mask in sample.masks))


@pytest.mark.parametrize("label", ["policy", "positive", "srm"])
def test_nothing_at_test_time_comes_from_the_truth(sam, label):
    settings = {"label_source": label} | ({"recalibration": recalibration()} if label == "srm" else {})
    seeing, blind = vector(sam, split="test", **settings), vector(sam, dataset=Blind("test"), **settings)
    sizes = [64, 2] if label == "policy" else 64
    rng = np.random.default_rng(1)
    shown = [env.reset(options={"index": [0, 1, 2]}) for env in (seeing, blind)]
    for _ in range(4):
        for name in shown[0][0]:
            np.testing.assert_array_equal(shown[0][0][name], shown[1][0][name])
        actions = rng.integers(sizes, size=(3, 2) if label == "policy" else 3)
        shown = [env.step(actions) for env in (seeing, blind)]
        for one, other in zip(shown[0][4]["masks"], shown[1][4]["masks"], strict=True):
            np.testing.assert_array_equal(one[0], other[0])
    assert "target" not in seeing.reset(seed=0)[1] and "target" in vector(sam).reset(seed=0)[1]


class OneSample(data.Dataset):
    """Data set of one sample."""

    task, split = "sod", "train"

    def __init__(self, sample):
        self.sample = sample

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.sample


def test_first_prompts_are_never_on_void(sam):
    """The background is one column of pixels; what is neither it nor the object is void, as is a part of the mask."""
    mask, void = np.zeros((20, 30), bool), np.ones((20, 30), bool)
    mask[5:9, 4:12], void[5:9, 4:8], void[:, 29] = True, False, False
    sample = data.Sample("a", (np.zeros((20, 30, 3), np.uint8),), (mask[None],), void=(void,))
    settings = {"segmenter": sam, "initial_prompts": "truth", "image_size": 120, "patch_size": 20}
    env = PointPromptVectorEnv(16, OneSample(sample), **settings)
    env.reset(seed=0)
    for state in env.get_state():
        (left, up), (right, _) = state.points / 120 * (30, 20)
        assert state.labels.tolist() == [1, 0] and 4 <= left < 8 and 5 <= up < 9 and int(right) == 29
    nothing = OneSample(replace(sample, void=(np.ones((20, 30), bool),)))
    with pytest.raises(UserError, match="sample 'a': is all void: expected a pixel to prompt at"):
        PointPromptVectorEnv(1, nothing, **settings).reset(seed=0)


def test_an_oracle_makes_no_prompt_of_a_click_on_void(sam):
    """Four patches: foreground, void, void that the mask covers, background."""
    mask, void = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    mask[:20, :20] = mask[20:, :20] = True
    void[:20, 20:] = void[20:, :20] = True
    sample = data.Sample("a", (np.zeros((40, 40, 3), np.uint8),), (mask[None],), void=(void,))
    settings = {"segmenter": sam, "label_source": "oracle", "image_size": 40, "patch_size": 20, "horizon": 4}
    env = PointPromptVectorEnv(1, OneSample(sample), autoreset_mode="Disabled", **settings)
    env.reset(seed=0)
    masks = []
    for patch, label in ((1, -1), (0, 1), (2, -1), (3, 0)):
        _, _, _, truncated, info = env.step(np.array([patch]))
        assert info["label"][0] == label
        masks.append(info["masks"][0][0])
    assert truncated[0] and env.get_state()[0].labels.tolist() == [-1, 1, -1, 0]
    assert (masks[2] == masks[1]).all() and not (masks[3] == masks[1]).all()


def test_attention_maps_are_kept_within_their_bound():
    asked = []

    class Attends:
        def attend(self, images, texts, size):
            asked.extend(texts)
            return np.full((len(images), *size), 0.25, np.float32)

    image, size = np.zeros((8, 8, 3), np.uint8), (4, 4)  # 64 bytes per map
    for most, again in ((64 * 100, []), (0, ["0", "1", "2"])):
        maps = AttentionMaps(Attends(), most)
        for _ in range(2):
            asked.clear()
            found = maps([0, 1, 2, 1], [image] * 4, ["0", "1", "2", "1"], size)
            assert found.shape == (4, 4, 4) and (found == 0.25).all()
        assert asked == again and maps.kept.bytes <= most
    maps = AttentionMaps(Attends(), 64 * 20)
    for index in range(100):
        maps([index], [image], [str(index)], size)
    assert 0 < maps.kept.bytes <= 64 * 20
    with pytest.raises(UserError, match="expected at least 0"):
        AttentionMaps(Attends(), -1)


def test_clicks_earn_by_the_truth_and_repeats_are_shown(sam):
    env = vector(sam, 1, label_source="oracle", horizon=3, initial_prompts="none", autoreset_mode="Disabled")
    observation, info = env.reset(options={"index": 0})
    assert (observation["mask"] == 1).all() and info["iou"][0] == 0
    truth = data.make("scenes", task="sod", split="train")[0].union()
    centres = env.unwrapped.centres()
    inside = truth[centres[:, 1].astype(int), centres[:, 0].astype(int)]
    hit, miss = int(np.flatnonzero(inside)[0]), int(np.flatnonzero(~inside)[0])
    for action, reward, label, repeated in ((hit, 1, 1, False), (miss, -1, 0, False), (hit, 1, 1, True)):
        _, values, _, truncated, info = env.step(np.array([action]))
        assert (values[0], info["label"][0], info["repeated"][0]) == (reward, label, repeated)
        assert info["point"][0].tolist() == centres[action].tolist()
        assert info["reward_terms"]["foreground_hit"][0] == reward
    assert truncated[0] and info["masks"][0][0].shape == (1, 128, 128)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.array([0]))


def test_what_was_clicked_is_shown_where_repeats_are_not_wanted(sam):
    env = vector(sam, 2, label_source="positive", allow_repeated_clicks=False, horizon=3)
    assert env.reset(seed=0)[0]["clicked"].sum() == 0
    observations, _, _, _, _ = env.step(np.array([0, 9]))
    shown = observations["clicked"].reshape(2, 64)
    assert np.flatnonzero(shown[0]).tolist() == [0] and np.flatnonzero(shown[1]).tolist() == [9]
    assert env.observation_space.contains(observations)


def test_the_paper_trains_from_a_point_of_each_kind(sam):
    env = vector(sam, 4, label_source="srm", recalibration=recalibration())
    _, info = env.reset(seed=0)
    for i, state in enumerate(env.unwrapped.get_state()):
        assert state.labels.tolist() == [1, 0]
        where = [info["target"][i][0].any(axis=0)[int(y), int(x)] for x, y in state.points]
        assert where == [True, False]


@pytest.mark.parametrize("label", ["policy", "positive"])
def test_without_a_module_training_begins_as_tests_do(sam, label):
    for split in ("train", "test"):
        observations, _ = vector(sam, 2, split=split, label_source=label).reset(seed=0)
        assert (observations["mask"] == 1).all()  # no prompt yet


def test_the_module_labels_clicks_and_chooses_the_first_prompts(sam):
    module = recalibration()
    env = vector(sam, 2, split="test", label_source="srm", recalibration=module)
    observations, _ = env.reset(seed=0)
    before = module.probabilities({name: torch.tensor(v) for name, v in env.unwrapped.unprompted().items()})
    for state, probable in zip(env.unwrapped.get_state(), before.flatten(1), strict=True):
        ends = env.unwrapped.centres()[[int(probable.argmax()), int(probable.argmin())]]
        assert state.labels.tolist() == [1, 0] and state.points.tolist() == ends.tolist()
    now = module.probabilities({name: torch.tensor(value) for name, value in observations.items()}).flatten(1)
    for action in (3, 60):
        _, _, _, _, infos = env.step(np.array([action, action]))
        assert infos["label"].tolist() == (now[:, action] > 0.5).int().tolist()
        now = module.probabilities(
            {name: torch.tensor(value) for name, value in env.unwrapped._observation.items()}
        ).flatten(1)


def test_a_text_shows_where_to_look(sam):
    corner = Corner()
    dataset = data.make("scenes", task="semantic", split="test", size=2)
    env = vector(sam, 2, dataset=dataset, label_source="positive", attention=corner, text="category")
    for _ in range(2):  # each sample is looked at once
        observations, _ = env.reset(options={"index": [0, 1]})
    assert corner.asked == [dataset[0].category, dataset[1].category]
    seen = np.abs(observations["semantic"]).sum(axis=1) > 0
    assert seen[:, :4, :4].all() and not seen[:, 5:].any() and not seen[:, :, 5:].any()
    assert env.observation_space.contains(observations)
    fixed = vector(sam, 1, attention=corner, text="shadow")
    fixed.reset(seed=0)
    assert corner.asked[-1] == "shadow"
    with pytest.raises(UserError, match="has no category"):
        vector(sam, 1, dataset="scenes", task="need", attention=corner, text="category").reset(seed=0)


def test_a_state_branches_into_other_sub_environments(sam):
    straight, other = vector(sam, 1, label_source="positive"), vector(sam, 2, label_source="positive")
    straight.reset(seed=3)
    straight.step(np.array([10]))
    state = straight.unwrapped.get_state()[0]
    observations = other.unwrapped.set_state([state, state])
    expected, _, _, _, info = straight.step(np.array([20]))
    assert (observations["state"][0] == observations["state"][1]).all()
    observations, _, _, _, infos = other.step(np.array([20, 40]))
    np.testing.assert_allclose(observations["state"][0], expected["state"][0], atol=1e-5)
    assert infos["iou"][0] == pytest.approx(info["iou"][0], abs=0.01)
    with pytest.raises(UserError, match="3 states: expected 2"):
        other.unwrapped.set_state([state] * 3)


def test_real_sizes_are_stretched_and_masks_come_back_at_them(sam):
    class Wide(Blind):
        def __getitem__(self, index):
            image = np.zeros((30, 70, 3), np.uint8)
            truth = np.zeros((1, 30, 70), bool)
            truth[:, :, :35] = True
            return replace(self.scenes[index], images=(image,), masks=(truth,), phrases=None, ranks=None)

    env = vector(sam, 1, dataset=Wide("test"), label_source="positive")
    env.reset(seed=0)
    _, values, _, _, info = env.step(np.array([7]))  # the last patch of the first row
    assert values[0] == -1 and info["masks"][0][0].shape == (1, 30, 70)
    assert info["point"][0].tolist() == [120 / 128 * 70, 8 / 128 * 30]
    assert stretch(np.zeros((30, 70, 3), np.uint8), 16).shape == (16, 16, 3)


def test_images_of_several_sizes_end_together(sam):
    class Mixed(Blind):
        def __getitem__(self, index):
            height, width = ((30, 70), (70, 30))[index % 2]
            truth = np.zeros((1, height, width), bool)
            truth[:, :, : width // 2] = True
            image = np.zeros((height, width, 3), np.uint8)
            return replace(self.scenes[index], images=(image,), masks=(truth,), phrases=None, ranks=None)

    env = vector(sam, 2, dataset=Mixed("train"), label_source="positive", horizon=1)
    _, info = env.reset(options={"index": [0, 1]})
    assert [target[0].shape for target in info["target"]] == [(1, 30, 70), (1, 70, 30)]
    _, _, _, truncated, info = env.step(np.array([0, 0]))
    assert truncated.all()
    assert [masks[0].shape for masks in info["final_info"]["masks"]] == [(1, 30, 70), (1, 70, 30)]


def test_the_same_seed_is_the_same_episode_and_a_pickle_starts_fresh(sam):
    env = vector(sam, 2)
    copy = pickle.loads(pickle.dumps(env.unwrapped))
    first, again, copied = env.reset(seed=9)[0], env.reset(seed=9)[0], copy.reset(seed=9)[0]
    np.testing.assert_array_equal(first["state"], again["state"])
    np.testing.assert_allclose(first["state"], copied["state"], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"patch_size": 17}, "patch_size=17: expected a divisor of image_size=128"),
        ({"horizon": 0}, "horizon=0: expected at least 1"),
        ({"label_source": "x"}, "label_source='x': expected one of policy, positive, srm, oracle"),
        (
            {"horizon": 65, "allow_repeated_clicks": False},
            "horizon=65, allow_repeated_clicks=False: expected at most one click per patch",
        ),
        ({"label_source": "srm"}, "expected a recalibration module"),
        ({"text": "shadow"}, "text='shadow', attention=None: expected both"),
        (
            {"label_source": "oracle", "split": "test"},
            "label_source=oracle: uses the ground truth: expected the split train, not test",
        ),
        (
            {"initial_prompts": "truth", "split": "test"},
            "initial_prompts=truth: uses the ground truth: expected the split train, not test",
        ),
        ({"initial_prompts": "x"}, "initial_prompts='x': expected one of"),
        ({"render_mode": "x"}, "render_mode='x'"),
        ({"segmenter": "evf_sam_tiny"}, "segmenter=evf_sam_tiny: takes no points"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(settings, expected):
    with pytest.raises(UserError) as caught:
        PointPromptVectorEnv(**settings)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_phrases_are_not_for_a_segmenter_of_points():
    with pytest.raises(UserError, match="takes no phrases"):
        gym.make("maskgym/SIS-v0", segmenter=segmenters.make("sam_tiny"))


@pytest.mark.parametrize("action", [64, -1])
def test_an_action_that_names_no_patch_changes_no_episode(sam, action):
    env = vector(sam, 2, label_source="positive")
    env.reset(seed=0)
    before = env.unwrapped.get_state()
    with pytest.raises(UserError, match=rf"{ID}: action of sub-environment 1: {action}: expected a patch from 0 to 63"):
        env.step(np.array([5, action]))
    assert [state.patches for state in env.unwrapped.get_state()] == [state.patches for state in before] == [(), ()]


def test_a_group_of_images_cannot_be_clicked_in(sam):
    env = vector(sam, 1, dataset=data.make("scenes", task="cosod"))
    with pytest.raises(UserError, match="has 4 images"):
        env.reset(seed=0)


def test_the_registered_default_is_that_of_runs():
    plain, published = (gym.make("maskgym/PointPrompt-v0", **given) for given in ({}, {"allow_repeated_clicks": True}))
    assert "clicked" in plain.observation_space.spaces and "clicked" not in published.observation_space.spaces
    assert composition.compose(["env=point_prompt", "algo=ppo"])["env"]["allow_repeated_clicks"] is False


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_the_most_steps_are_known_to_the_spec(make):
    env = make("maskgym/PointPrompt-v0", max_episode_steps=3, label_source="positive")
    assert env.spec.max_episode_steps == 3
    env.reset(seed=0)
    ends = [env.step(np.array([patch]) if make is gym.make_vec else patch)[3] for patch in range(3)]
    assert [bool(np.all(end)) for end in ends] == [False, False, True]


@pytest.mark.parametrize("action", [[1.5], [[1, 2, 3]], ["a"], [None], [np.nan], 3, np.int64(3), [3, 4], [True]])
def test_clicks_of_other_types_and_shapes_are_told(sam, action):
    env = vector(sam, 1, label_source="positive")
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"^maskgym/PointPrompt-v0: .*: expected [w1a]"):
        env.step(action)
    assert env.step([3])[4]["point"].shape == (1, 2)
