from __future__ import annotations

import pickle

import numpy as np
import pytest

import maskgym.rewards
from maskgym.data import Sample
from maskgym.errors import UserError
from maskgym.rewards import (
    Format,
    IoU,
    Reward,
    Term,
    Transition,
    WeightedSum,
    make,
    parse,
    saliency_r1,
    saliency_strict,
)

TOP, HALF, BLANK = np.zeros((3, 1, 4, 4), bool)
TOP[:, 0] = True
HALF[:, 0, :2] = True
TEXT = "<think>a</think><answer><ins>a</ins></answer>"


def step(masks: np.ndarray, text: str = TEXT, task: str = "sis") -> Transition:
    sample = Sample("a-key", (np.zeros((4, 4, 3), np.uint8),), (TOP,))
    return Transition(task, sample, text, (masks,), answer=parse(text, task))


class Constant(Term):
    """A user's own term."""

    def __init__(self, name: str = "constant", value: float = 0.0, range: tuple[float, float] = (-1.0, 3.0)) -> None:
        self.name, self.value, self.range = name, value, range

    def __call__(self, transition: Transition) -> float:
        return self.value


def test_totals_are_weighted_and_terms_are_not() -> None:
    reward = WeightedSum([IoU(), Format()], [2.0, -1.0])
    totals, terms = reward([step(TOP), step(HALF, TEXT.removeprefix("<think>")), step(BLANK)])
    np.testing.assert_allclose(totals, [1.0, 0.5, -1.0])
    np.testing.assert_allclose(terms["iou"], [1.0, 0.5, 0.0])
    np.testing.assert_allclose(terms["format"], [1.0, 0.5, 1.0])
    assert totals.dtype == terms["iou"].dtype == np.float64
    assert list(terms) == ["iou", "format"]


def test_an_empty_batch() -> None:
    totals, terms = make("saliency_strict")([])
    assert totals.shape == terms["format"].shape == (0,)


@pytest.mark.parametrize(("weight", "expected"), [(0.5, (-0.5, 1.5)), (-2.0, (-6.0, 2.0)), (0.0, (0.0, 0.0))])
def test_the_range_follows_weights_of_either_sign(weight: float, expected: tuple[float, float]) -> None:
    assert WeightedSum([Constant()], [weight]).range == expected
    low, high = expected
    assert WeightedSum([Constant(), IoU()], [weight, 1.0]).range == (low, high + 1)


@pytest.mark.parametrize("value", [float("nan"), 3.1, -1.1, "1", None])
def test_a_term_that_leaves_its_range_is_told_with_the_sample(value: float) -> None:
    with pytest.raises(UserError, match=r"term 'constant' gave .* on sample 'a-key': expected a number in \[-1, 3\]"):
        WeightedSum([Constant(value=value)], [1.0])([step(TOP)])


@pytest.mark.parametrize(
    ("terms", "weights"),
    [
        ([], []),
        ([IoU()], []),
        ([IoU()], [1.0, 1.0]),
        ([IoU(), IoU()], [1.0, 1.0]),
        ([IoU()], [float("nan")]),
        ([IoU()], [float("inf")]),
    ],
)
def test_a_sum_that_makes_no_sense_is_refused(terms: list[Term], weights: list[float]) -> None:
    with pytest.raises(UserError, match="weighted sum"):
        WeightedSum(terms, weights)


PADDED = np.concatenate([TOP, BLANK])  # right, and one phrase whose mask is empty


@pytest.mark.parametrize(
    ("name", "masks", "task", "text", "expected"),
    [
        ("saliency_r1", TOP, "sis", TEXT, 1.0),
        ("saliency_strict", TOP, "sis", TEXT, 1.0),
        ("saliency_r1", PADDED, "sis", TEXT, 1.0),
        ("saliency_strict", PADDED, "sis", TEXT, 0.75),
        ("saliency_strict", PADDED, "sod", TEXT.replace("ins", "rg"), 1.0),
        ("saliency_strict", TOP, "cosod", "<think></think><answer><rg>[semantic]a</rg></answer>", 1.0),
        ("saliency_r1", TOP, "sis", TEXT.replace("ins", "rg"), 0.25),
        ("saliency_r1", TOP, "sis", TEXT.removeprefix("<think>"), 0.75),
        ("saliency_r1", TOP, "sis", "a", 0.0),
    ],
)
def test_presets(name: str, masks: np.ndarray, task: str, text: str, expected: float) -> None:
    reward = make(name)
    totals, terms = reward([step(masks, text, task)])
    assert totals.tolist() == [expected]
    assert list(terms) == ["correctness", "format"]
    assert reward.range == (0, 1)


@pytest.mark.parametrize("preset", [saliency_r1, saliency_strict])
def test_preset_arguments(preset: object) -> None:
    right_words = step(BLANK, task="sod", text=TEXT.replace("ins", "rg"))
    for weight in (0.0, 0.2, 1.0):
        totals, terms = preset(format_weight=weight)([right_words])
        assert totals[0] == pytest.approx((1 - weight) * terms["correctness"][0] + weight)
    half = step(HALF)  # IoU 0.5
    assert preset(threshold=0.5)([half])[0] != preset(threshold=0.6)([half])[0]
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="format_weight"):
            preset(format_weight=weight)


OF_STEPS = ("foreground_hit", "delta_iou", "sa_sor", "ranking")  # see test_terms.py
OF_REFER = (
    "visionreasoner",
    "seg_r1",
    "visionreasoner_strict",
    "seg_r1_strict",
    "no_target",
    "non_repetition_published",
)  # see test_published_refer.py and test_refer_terms.py
ALL = [
    (name, {"terms": {"iou": 1.0}} if name == "weighted" else {})
    for name in maskgym.rewards.names()
    if name not in (*OF_STEPS, *OF_REFER)
]


@pytest.mark.parametrize(("name", "arguments"), ALL)
def test_every_name_makes_a_reward_that_survives_pickling(name: str, arguments: dict) -> None:
    reward = make(name, **arguments)
    assert isinstance(reward, Reward)
    batch = [step(TOP), step(HALF), step(BLANK, "a")]
    totals, terms = reward(batch)
    again, _ = pickle.loads(pickle.dumps(reward))(batch)
    np.testing.assert_array_equal(totals, again)
    low, high = reward.range
    assert ((low <= totals) & (totals <= high)).all()
    assert totals[0] == high == 1
    assert totals[2] == low == 0
    if len(terms) == 1 and name != "weighted":
        assert list(terms) == [name]


def test_make_passes_arguments_on() -> None:
    assert make("iasm", threshold=0.6)([step(HALF)])[0] == 0
    assert make("iasm_published", threshold=0.6)([step(HALF)])[0] > 0


def test_weighted_composes_names_and_sums() -> None:
    totals, terms = make("weighted", terms={"saliency_strict": 2.0, "iou": 0.5})([step(HALF)])
    assert list(terms) == ["correctness", "format", "iou"]
    assert totals[0] == pytest.approx(terms["correctness"][0] + 1 + 0.5 * 0.5)


def test_weighted_refuses_what_does_not_add_up() -> None:
    with pytest.raises(UserError, match="unknown reward 'iuo'.*iou"):
        make("weighted", terms={"iuo": 1.0})
    with pytest.raises(UserError, match="different names"):
        make("weighted", terms={"saliency_strict": 1.0, "format": 1.0})


def test_a_users_term_and_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = maskgym.rewards.register.__self__
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))

    @maskgym.rewards.register("mine")
    class Mine(Constant):
        def __init__(self, value: float = 2.0) -> None:
            super().__init__("mine", value)

    @maskgym.rewards.register("batched")
    class Batched(Reward):
        range = (0.0, 1.0)

        def __call__(self, transitions: list[Transition]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            return np.linspace(0, 1, len(transitions)), {}

    assert "mine" in maskgym.rewards.names()
    assert make("mine", value=1.5)([step(TOP)])[0] == 1.5
    assert make("weighted", terms={"mine": 0.5, "iou": 1.0})([step(TOP)])[0] == 2
    assert make("batched")([step(TOP)] * 2)[0].tolist() == [0, 1]
    with pytest.raises(UserError, match="'batched' is not a term"):
        make("weighted", terms={"batched": 1.0})
    with pytest.raises(ValueError, match="registered already"):
        maskgym.rewards.register("iou", Mine)
