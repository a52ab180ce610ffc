"""What users hand in, checked at the edge: samples, rewards, segmenters, actions and options, each by one line."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

import maskgym
from maskgym.data import Sample
from maskgym.envs import base
from maskgym.envs.checks import check_sample
from maskgym.envs.need import UserNeedVectorEnv
from maskgym.envs.reasoning import ReasoningVectorEnv
from maskgym.errors import UserError
from maskgym.rewards import IoU, Reward, Term

SIDE = 32
LEFT = "<think>x</think><answer><ins>left</ins></answer>"
ZEROS = np.zeros((2, SIDE, SIDE), np.float32)


def told(act, *words: str) -> str:
    """Check that an act raises a UserError of one line with these words."""
    with pytest.raises(UserError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


def needs(**settings) -> UserNeedVectorEnv:
    env = UserNeedVectorEnv(2, image_size=SIDE, **settings)
    env.reset(seed=0)
    return env


class Returned(Reward):
    """Returns what a function of the number of transitions makes."""

    range = (0.0, 1.0)

    def __init__(self, make) -> None:
        self.make = make

    def __call__(self, transitions):
        return self.make(len(transitions))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda n: (np.array([0.5, np.nan]), {}),
            "sub-environment 1: reward Returned: total nan on sample 'need-train-",
        ),
        (lambda n: (np.array([0.5, 1.1]), {}), "total 1.1 on sample 'need-train-"),
        (lambda n: (np.array([-np.inf, 0]), {}), "sub-environment 0: reward Returned: total -inf"),
        (lambda n: (np.zeros(n + 1), {}), "total: ndarray float64 (3,): expected 2 numbers, one per transition"),
        (lambda n: (np.zeros((n, 1)), {}), "total: ndarray float64 (2, 1): expected 2 numbers"),
        (lambda n: (0.5, {}), "total: float 0.5: expected 2 numbers"),
        (lambda n: (["a"] * n, {}), "total: list ['a', 'a']: expected 2 numbers"),
        (lambda n: np.zeros(n), "returned ndarray float64 (2,): expected totals (B,) and a dictionary of terms (B,)"),
        (lambda n: (np.zeros(n), {"own": np.zeros(n + 2)}), "term 'own': ndarray float64 (4,): expected 2 numbers"),
        (
            lambda n: (np.zeros(n), {"own": [0.0, np.nan]}),
            "sub-environment 1: reward Returned: term 'own' nan on sample",
        ),
    ],
)
def test_what_a_reward_must_not_return_is_told_with_sample_and_place(make, words) -> None:
    env = needs(reward=Returned(make))
    told(lambda: env.step(ZEROS), words)


def test_the_place_is_that_of_the_sub_environment_and_not_of_the_batch() -> None:
    env = UserNeedVectorEnv(3, image_size=SIDE, autoreset_mode="NextStep")
    env.reset(seed=0)
    actions = np.zeros((3, SIDE, SIDE), np.float32)
    env.step(actions)
    env.reset(options={"reset_mask": np.array([False, False, True])})
    env.reward = Returned(lambda n: (np.full(n, np.nan), {}))
    told(lambda: env.step(actions), "sub-environment 2: reward Returned")


class Half(Term):
    """A term of the user's."""

    name = "half"

    def __call__(self, transition):
        return 0.5


def test_a_term_or_a_function_is_a_reward() -> None:
    for given, name in ((Half(), "half"), (lambda transition: np.float32(0.5), "lambda"), (IoU(), "iou")):
        *_, infos = needs(reward=given).step(ZEROS)
        assert list(infos["final_info"]["reward_terms"]["_" + name]) == [True, True]
        assert infos["final_info"]["reward_terms"][name].tolist() == ([0, 0] if name == "iou" else [0.5, 0.5])
    wide = lambda transition: -3.0  # noqa: E731 (it carries an attribute)
    wide.range = (-5.0, 0.0)
    assert needs(reward=wide).reward.range == (-5.0, 0.0) and needs(reward=wide).step(ZEROS)[1].tolist() == [-3, -3]


@pytest.mark.parametrize("value", ["x", None, b"1", float("nan"), 7, [0.5, 0.5], 1j])
def test_a_term_that_gives_no_number_in_its_range_is_told(value) -> None:
    env = needs(reward=lambda transition: value)
    told(lambda: env.step(ZEROS), "sub-environment 0: term 'lambda' gave", "on sample 'need-train-", "in [0, 1]")


def test_what_is_no_reward_is_told_when_the_environment_is_made() -> None:
    class Endless(Returned):
        range = (0.0, float("inf"))

    class Without(Reward):
        def __call__(self, transitions):
            return np.zeros(len(transitions)), {}

    told(lambda: needs(reward=IoU), "expected a name, or an object")
    told(lambda: needs(reward=3), "reward=3: expected a name")
    told(lambda: needs(reward=Endless(None)), "reward Endless: range (0.0, inf)")
    told(lambda: needs(reward=Without()), "reward Without: range (): expected the lowest and the highest value")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"index": 2.7}, "options: index: float 2.7: expected a whole number, or 2, one per sub-environment"),
        ({"index": True}, "index: bool True"),
        ({"index": "1"}, "index: str '1'"),
        ({"index": [1]}, "index: list [1]"),
        ({"index": [1, [2, 3]]}, "expected a whole number"),
        ({"index": np.array([1.0, 2.0])}, "expected a whole number"),
        ({"index": np.array([[1, 2]])}, "expected a whole number"),
        ({"reset_mask": [2]}, "reset_mask: list [2]: expected 2 values of type bool"),
        ({"reset_mask": [[True], [True, False]]}, "expected 2 values of type bool"),
        ({"reset_mask": np.array([1, 0])}, "expected 2 values of type bool"),
        ({"reset_mask": np.array([True] * 2000)}, "ndarray bool (2000,): expected 2 values of type bool"),
        ({"reset_mask": None}, "expected 2 values of type bool"),
        ({"idx": 3}, "options: str 'idx' is unknown: expected index or reset_mask"),
    ],
)
def test_options_of_another_type_are_told_and_change_nothing(options, words) -> None:
    env = needs(autoreset_mode="Disabled")
    before = env._indices.copy()
    told(lambda: env.reset(options=options), words)
    assert (env._indices == before).all() and not env._done.any()


def test_options_that_are_legal() -> None:
    env = needs(autoreset_mode="Disabled")
    for index, expected in ((3, [3, 3]), (np.int64(4), [4, 4]), ((5, 6), [5, 6]), (np.array([7, 8]), [7, 8])):
        assert env.reset(options={"index": index})[1]["index"].tolist() == expected
    assert env.reset(options={"index": [9, None], "reset_mask": [True, False]})[1]["index"].tolist() == [9, 0]
    assert env._indices.tolist() == [9, 8]
    for seed in ([1], "1", 1.5, [1, 2.5]):
        told(lambda seed=seed: env.reset(seed=seed), "seed: ", "one per sub-environment")


@pytest.mark.parametrize(
    ("kind", "actions", "words"),
    [
        ("text", "abc", "SIS-v0: actions: str 'abc': expected a sequence of 2, one per sub-environment"),
        ("text", b"ab", "actions: bytes"),
        ("text", None, "actions: NoneType None"),
        ("text", {0: LEFT, 1: LEFT}, "actions: dict"),
        ("text", [LEFT], "1 actions: expected 2, one per sub-environment"),
        ("text", [LEFT] * 3, "3 actions: expected 2"),
        ("text", [LEFT, b"x"], "action of sub-environment 1: bytes b'x': expected a text"),
        ("text", [LEFT, None], "action of sub-environment 1: NoneType None: expected a text"),
        ("text", [3, LEFT], "action of sub-environment 0: int 3: expected a text"),
        ("text", [LEFT, [LEFT]], "action of sub-environment 1: list"),
        ("mask", ZEROS[:1], "1 actions: expected 2"),
        ("mask", np.zeros((3, SIDE, SIDE)), "3 actions: expected 2"),
        ("mask", np.float32(0), "actions: float32"),
        ("mask", [ZEROS[0], None], "action of sub-environment 1: NoneType None: expected a mask of shape (32, 32)"),
        ("mask", [ZEROS[0], "x"], "action of sub-environment 1: str 'x'"),
        ("mask", [ZEROS[0], [[0, 1], [0]]], "action of sub-environment 1: list"),
        ("mask", [ZEROS[0], ZEROS[0] * 1j], "action of sub-environment 1: ndarray complex64 (32, 32)"),
        (
            "mask",
            ZEROS[:, 1:],
            "action of sub-environment 0: ndarray float32 (31, 32): expected a mask of shape (32, 32)",
        ),
        ("mask", [ZEROS[0], ZEROS[0] + np.nan], "action of sub-environment 1: values from nan to nan"),
        ("mask", [ZEROS[0], ZEROS[0] + 255], "action of sub-environment 1: values from 255 to 255"),
    ],
)
def test_wrong_actions_are_told_and_change_no_episode(kind, actions, words, halves, photos) -> None:
    if kind == "text":
        arguments = {"segmenter": halves, "dataset": photos()}
        env = gym.make_vec("maskgym/SIS-v0", num_envs=2, vectorization_mode="vector_entry_point", **arguments)
    else:
        env = UserNeedVectorEnv(2, image_size=SIDE)
    env.reset(seed=0)
    before = env.unwrapped._indices.copy()
    told(lambda: env.step(actions), words)
    assert (env.unwrapped._indices == before).all() and not env.unwrapped._done.any()
    assert env.step([LEFT] * 2 if kind == "text" else ZEROS)[2].all()


class Hostile:
    """Every way to look at it fails."""

    def fail(self, *arguments):
        raise KeyError("no")

    __array__ = __len__ = __getitem__ = __repr__ = __getattr__ = fail


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        Hostile(),
        nested(50_000),
        10**5000,  # Python refuses to print it
        type("Shaped", (), {"shape": 3})(),
        type("a\n\x1b[31m" + "b" * 5000, (), {})(),
        np.zeros((), [(f"name {number}", int) for number in range(500)]),
    ],
    ids=["hostile", "nested", "long number", "shaped", "odd type", "odd fields"],
)
@pytest.mark.parametrize("env_id", ["SIS", "UserNeed", "PointPrompt"])
def test_an_action_that_is_hard_to_describe_is_told_in_a_short_line(env_id, value, halves, photos) -> None:
    arguments = {"segmenter": halves, "dataset": photos()} if env_id == "SIS" else {"image_size": SIDE}
    arguments |= {"patch_size": 4} if env_id == "PointPrompt" else {}
    env = gym.make_vec(f"maskgym/{env_id}-v0", num_envs=2, vectorization_mode="vector_entry_point", **arguments)
    env.reset(seed=0)
    right = ["x", ZEROS[0], (0, 1)][["SIS", "UserNeed", "PointPrompt"].index(env_id)]
    for actions, words in (([right, value], "sub-environment 1"), (value, "one per sub-environment")):
        message = told(lambda actions=actions: env.step(actions), f"maskgym/{env_id}-v0", words)
        assert message.isprintable() and len(message) < 400


def test_a_mask_of_huge_values_is_told_without_a_warning() -> None:
    env = needs()
    told(lambda: env.step([ZEROS[0], np.full((SIDE, SIDE), 1e300)]), "sub-environment 1: values from 1e+300 to 1e+300")
    env.step([ZEROS[0], np.full((SIDE, SIDE), 1 + 1e-12)])  # 1 in the space's float32


def test_a_scalar_environment_names_its_id() -> None:
    env = gym.make("maskgym/UserNeed-v0", image_size=SIDE)
    env.reset(seed=0)
    told(lambda: env.step("x"), "maskgym/UserNeed-v0: action of sub-environment 0: str 'x'")


IMAGE, MASKS = np.zeros((8, 6, 3), np.uint8), np.ones((2, 8, 6), bool)
SOUND = Sample("a-key", (IMAGE,), (MASKS,), (~MASKS[0],), (("a", "b"),), "cat", "a cat", (np.array([2.0, 1.0]),), "x")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": ()}, "images: tuple (): expected one or more images"),
        ({"images": (IMAGE.astype(np.float32),)}, "image 0: ndarray float32 (8, 6, 3): expected uint8 (H, W, 3)"),
        ({"images": (IMAGE[..., 0],)}, "image 0: ndarray uint8 (8, 6)"),
        ({"images": (IMAGE[..., :2],)}, "image 0: ndarray uint8 (8, 6, 2)"),
        ({"images": (IMAGE.tolist(),)}, "image 0: list"),
        ({"masks": (MASKS[0],)}, "masks of image 0: ndarray bool (8, 6): expected bool (n, 8, 6)"),
        ({"masks": (MASKS.astype(np.uint8),)}, "masks of image 0: ndarray uint8 (2, 8, 6)"),
        ({"masks": (MASKS[:, :, :5],)}, "masks of image 0: ndarray bool (2, 8, 5): expected bool (n, 8, 6)"),
        ({"masks": (MASKS, MASKS)}, "masks: tuple"),
        ({"masks": None}, "masks: NoneType None: expected one entry per image"),
        ({"void": (MASKS,)}, "void of image 0: ndarray bool (2, 8, 6): expected bool (8, 6)"),
        ({"phrases": (("a",),)}, "phrases of image 0: tuple ('a',): expected 2 texts, one per mask"),
        ({"phrases": (("a", 3),)}, "phrases of image 0"),
        ({"phrases": ("ab",)}, "phrases of image 0: str 'ab'"),
        ({"ranks": (np.array([1.0]),)}, "ranks of image 0: ndarray float64 (1,): expected 2 finite numbers"),
        ({"ranks": (np.array([1.0, np.nan]),)}, "ranks of image 0"),
        ({"need": 3}, "need: int 3: expected a text or None"),
        ({"rationale": b"x"}, "rationale: bytes"),
    ],
)
def test_a_sample_that_breaks_its_contract_is_told_by_key(changes, words) -> None:
    assert check_sample(SOUND, 0) is SOUND
    told(lambda: check_sample(replace(SOUND, **changes), 0), "sample 'a-key'", words)


def test_samples_are_checked_when_they_are_drawn(photos) -> None:
    source = photos()
    source.samples[1] = replace(source.samples[1], masks=(source.samples[1].masks[0][0],))
    env = UserNeedVectorEnv(1, dataset=source)
    env.reset(options={"index": 0})
    told(lambda: env.reset(options={"index": 1}), "masks of image 0", "expected bool (n, ")
    source.samples[2] = None
    told(lambda: env.reset(options={"index": 2}), "sample 2: NoneType None: expected a maskgym.data.Sample")


def tensors(shapes):
    import torch

    return [torch.zeros(shape) for shape in shapes]


class Says:
    """Segmenter that returns what a function makes of the expected shapes."""

    fingerprint = "says"

    def __init__(self, make) -> None:
        self.make = make

    def segment(self, images, expressions):
        return self.make([(len(row), *image.shape[:2]) for image, row in zip(images, expressions, strict=True)])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda shapes: [np.zeros((n + 1, h, w), "f4") for n, h, w in shapes], "expected a float array of shape (1, "),
        (lambda shapes: [np.full(shape, np.nan, "f4") for shape in shapes], "values from nan to nan: expected prob"),
        (lambda shapes: [np.full(shape, -4.2, "f4") for shape in shapes], "values from -4.2 to -4.2"),
        (lambda shapes: [np.zeros(shape[1:], "f4") for shape in shapes], "expected a float array of shape"),
        (lambda shapes: [np.zeros(shape, np.uint8) for shape in shapes], "ndarray uint8"),
        (tensors, "Tensor torch.float32"),
        (lambda shapes: [np.zeros(shape, "f4") for shape in shapes][1:], "expected a list of 2 arrays, one per image"),
        (lambda shapes: None, "segmenter Says: NoneType None: expected a list"),
    ],
)
def test_what_a_segmenter_must_not_return_is_told_with_the_key(make, words, photos) -> None:
    env = ReasoningVectorEnv(2, dataset=photos(), segmenter=Says(make))
    env.reset(options={"index": [0, 1]})
    message = told(lambda: env.step([LEFT] * 2), "segmenter Says", words)
    assert "one per image" in message or "sample 'photo" in message or "sample '" in message


def test_decoded_samples_are_kept_by_bytes(monkeypatch, photos) -> None:
    source, read = photos(), []
    original = type(source).__getitem__
    monkeypatch.setattr(type(source), "__getitem__", lambda self, index: read.append(index) or original(self, index))
    env = UserNeedVectorEnv(1, dataset=source, autoreset_mode="Disabled")
    for _ in range(2):
        for index in range(3):
            env.reset(options={"index": index})
    assert read == [0, 1, 2]
    monkeypatch.setattr(base, "SAMPLE_BYTES", source[0].images[0].nbytes)  # less than any sample with its masks
    read.clear()
    env = UserNeedVectorEnv(1, dataset=source, autoreset_mode="Disabled")
    for index in (0, 0, 1):
        env.reset(options={"index": index})
        env.step(np.zeros((1, *env.single_action_space.shape), np.float32))  # The sample shown is not read again.
    assert read == [0, 0, 1] and env._cached_bytes == 0 and not env._cache


def test_the_registry_makes_a_reward_of_a_function(monkeypatch) -> None:
    registry = maskgym.rewards.register.__self__
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))
    maskgym.rewards.register("quarter", lambda: lambda transition: 0.25)
    assert needs(reward="quarter").step(ZEROS)[1].tolist() == [0.25, 0.25]
