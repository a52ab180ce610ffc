from __future__ import annotations

import numpy as np
import pytest

from maskgym import data
from maskgym.agents.base import FrozenAgent
from maskgym.data import Dataset, Sample
from maskgym.data.sample import Subset
from maskgym.envs.reasoning import ReasoningVectorEnv
from maskgym.envs.text.refer import ReferVectorEnv
from maskgym.experiments.evaluation import evaluation

SIDE = 16
HALVES = {"left": np.s_[:, : SIDE // 2], "right": np.s_[:, SIDE // 2 :], "top": np.s_[: SIDE // 2]}


def half(name: str) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[HALVES[name]] = True
    return mask


class Halves:
    """Segments the half that a phrase names; anything else is empty."""

    def segment(self, images, expressions):
        empty = np.zeros((SIDE, SIDE), bool)
        return [
            np.array([half(e) if e in HALVES else empty for e in row], np.float32).reshape(-1, SIDE, SIDE)
            for row in expressions
        ]


class Pictures(Dataset):
    """Three pictures; the truth is the left half, twice, and then both halves."""

    task, split = "sis", "test"
    truth = (("left",), ("left",), ("left", "right"))

    def __len__(self):
        return len(self.truth)

    def __getitem__(self, index):
        masks = np.stack([half(name) for name in self.truth[index]])
        image = np.full((SIDE, SIDE, 3), index, np.uint8)
        return Sample(key=f"picture {index}", images=(image,), masks=(masks,))


class Fixed(FrozenAgent):
    """Answers what a table says for the grey level of the picture."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = answers, []

    def act(self, observations, greedy):
        assert greedy
        self.asked.append(len(observations))
        return [self.answers[observation["image"].flat[0]] for observation in observations]


class Same(FrozenAgent):
    """Gives one answer to everything."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def act(self, observations, greedy):
        return [self.answer] * len(observations)


def say(*phrases: str) -> str:
    return f"<think></think><answer>{''.join(f'<ins>{phrase}</ins>' for phrase in phrases)}</answer>"


def environment(num_envs: int = 2, **arguments: object) -> ReasoningVectorEnv:
    return ReasoningVectorEnv(
        num_envs, "sis", Pictures(), segmenter=Halves(), image_size=SIDE, autoreset_mode="Disabled", **arguments
    )


def test_perfect_answers_have_perfect_scores():
    found = evaluation.evaluate(Fixed(say("left"), say("left"), say("left", "right")), environment(), [0, 1, 2])
    for name in ("reward", "s_measure", "iasm", "iasm_published", "iou", "format", "ap50", "ap70", "f_max"):
        assert found.scores[name] == pytest.approx(1), name
    assert found.scores["mae"] == 0
    assert found.scores["expressions"] == pytest.approx(4 / 3)
    assert [row["key"] for row in found.per_sample] == ["picture 0", "picture 1", "picture 2"]
    assert found.answers[2] == say("left", "right")


def test_without_reasoning_a_direct_answer_is_in_full_form():
    agent = Fixed(*(text.removeprefix("<think></think>") for text in (say("left"), say("left"), say("left", "right"))))
    for reasoning, form in ((False, 1.0), (True, 0.5)):
        scores = evaluation.evaluate(agent, environment(reasoning=reasoning), [0, 1, 2]).scores
        assert (scores["format"], scores["iasm"]) == pytest.approx((form, 1))


def test_scores_worked_out_by_hand():
    found = evaluation.evaluate(Fixed(say("left"), "no", say("left")), environment(), [0, 1, 2])
    per_sample = found.per_sample
    assert [row["iou"] for row in per_sample] == [1, 0, 0.5]
    assert [row["format"] for row in per_sample] == [1, 0, 1]
    assert [row["iasm"] for row in per_sample] == pytest.approx([1, 0, 0.5])  # one of two instances found, exactly
    assert [row["reward"] for row in per_sample] == pytest.approx([1, 0, 0.75])
    assert [row["expressions"] for row in per_sample] == [1, 0, 1]
    assert [row["characters"] for row in per_sample] == [len(say("left")), 2, len(say("left"))]
    assert found.scores["iou"] == 0.5
    assert found.scores["mae"] == pytest.approx((0 + 0.5 + 0.5) / 3)
    # Two hits in two predictions, of four instances: precision 1 up to recall 0.5, which is 51 of 101 points.
    assert found.scores["ap50"] == pytest.approx(51 / 101)


@pytest.mark.parametrize(
    ("answer", "accuracy", "miou"),
    [("<think></think><answer>[]</answer>", 1, 1), ("<answer>[]</answer>", 1, 1), ("<answer>[", 0, 0), ("", 0, 0)],
)
def test_an_answer_that_cannot_be_read_does_not_say_that_nothing_is_meant(answer, accuracy, miou):
    scenes = data.make("scenes", task="refer", split="test", size=40)
    chosen = [index for index in range(40) if not len(scenes[index].masks[0])][:2]
    env = ReferVectorEnv(2, Subset(scenes, chosen), autoreset_mode="Disabled")
    scores = evaluation.evaluate(Same(answer), env, [0, 1]).scores
    assert (scores["n_acc"], scores["miou"], scores["iou"]) == (accuracy, miou, miou)


@pytest.mark.parametrize("num_envs", [1, 3, 5])
def test_the_width_of_the_environment_changes_nothing(num_envs):
    agent = Fixed(say("left"), say("top"), say("right", "top"))
    expected = evaluation.evaluate(agent, environment(2), [2, 0, 1])
    agent.asked.clear()
    assert evaluation.evaluate(agent, environment(num_envs), [2, 0, 1]) == expected
    assert sum(agent.asked) == 3  # what fills the last batch up is not answered
    assert [row["key"] for row in expected.per_sample] == ["picture 2", "picture 0", "picture 1"]


def test_answers_played_again_lead_to_the_same_masks():
    (transition, numbers), *_ = evaluation.play(environment(), [2], [say("right", "left")])
    np.testing.assert_array_equal(transition.masks[0], np.stack([half("right"), half("left")]))
    assert numbers["reward"] == pytest.approx(1)
    assert numbers["correctness"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("size", "samples", "expected"), [(10, 5, [0, 2, 4, 6, 8]), (3, 5, [0, 1, 2]), (7, 3, [0, 2, 4]), (4, 1, [0])]
)
def test_held_out_samples_are_spread_evenly(size, samples, expected):
    assert evaluation.held_out(size, samples) == expected


def test_compare_puts_both_sides_beside_each_other():
    before = evaluation.evaluate(Fixed(say("top"), "", ""), environment(), [0])
    after = evaluation.evaluate(Fixed(say("left"), "", ""), environment(), [0])
    (row,) = evaluation.compare("sis", [0], before, after)
    assert (row["task"], row["index"], row["key"]) == ("sis", 0, "picture 0")
    assert row["before"]["answer"] == say("top") and row["after"]["answer"] == say("left")
    assert row["before"]["iou"] == pytest.approx(1 / 3) and row["after"]["iou"] == 1
