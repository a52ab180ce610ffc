"""Evaluation of masks: scores by hand, episodes that end at different times, and answers that can be played again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maskgym.agents.base import FrozenAgent
from maskgym.data import Sample
from maskgym.envs.need import UserNeedVectorEnv
from maskgym.envs.ranking import RankingVectorEnv
from maskgym.experiments.evaluation import evaluation
from maskgym.experiments.evaluation.rollout import decode_masks, encode_masks, replay
from maskgym.metrics import s_measure, sa_sor

SIDE = 16
COLUMNS = np.arange(SIDE)


def strip(start: int, stop: int, value: float = 1) -> np.ndarray:
    """Return a map whose columns from start to stop have a value."""
    return np.where((start <= COLUMNS) & (stop > COLUMNS), value, 0).astype(np.float32)[None].repeat(SIDE, axis=0)


class Pictures:
    """Grey pictures whose level is their index; the truth of each are some strips, the first the most salient."""

    task, split = "sod", "test"

    def __init__(self, *truths: list[tuple[int, int]], void: tuple[int, int] | None = None) -> None:
        self.truths, self.void = truths, void

    def __len__(self) -> int:
        return len(self.truths)

    def __getitem__(self, index: int) -> Sample:
        masks = np.stack([strip(*ends) > 0 for ends in self.truths[index]])
        return Sample(
            key=f"picture {index}",
            images=(np.full((SIDE, SIDE, 3), index, np.uint8),),
            masks=(masks,),
            void=None if self.void is None else (strip(*self.void) > 0,),
            need="find it",
            ranks=(-np.arange(len(masks), dtype=float),),
        )


class Table(FrozenAgent):
    """Masks what a table says for the grey level, in turn; a blank after that. Notes how many it is asked for."""

    def __init__(self, *masks: list[np.ndarray]) -> None:
        self.masks, self.turn, self.asked = masks, {}, []

    def act(self, observations, greedy):
        assert greedy
        self.asked.append(len(observations))
        return [self._next(int(np.bincount(row["image"].ravel()).argmax())) for row in observations]

    def _next(self, level: int) -> np.ndarray:
        turn = self.turn[level] = self.turn.get(level, -1) + 1
        return self.masks[level][turn] if turn < len(self.masks[level]) else strip(0, 0)


def needs(data: Pictures, num_envs: int = 2, **settings) -> UserNeedVectorEnv:
    return UserNeedVectorEnv(num_envs, data, image_size=SIDE, autoreset_mode="Disabled", **settings)


def rankings(data: Pictures, num_envs: int = 2, **settings) -> RankingVectorEnv:
    return RankingVectorEnv(num_envs, data, image_size=SIDE, autoreset_mode="Disabled", **settings)


def test_scores_of_needs_by_hand():
    data = Pictures([(0, 8)], [(0, 8)], [(0, 4)])
    agent = Table([strip(0, 8, 0.75)], [strip(0, 4)], [strip(8, 16)])
    found = evaluation.evaluate(agent, needs(data), [0, 1, 2])
    assert [row["iou"] for row in found.per_sample] == [1, 0.5, 0]
    assert [row["mae"] for row in found.per_sample] == pytest.approx([0.125, 0.25, 0.75])
    expected = s_measure(strip(0, 8, 0.75), strip(0, 8) > 0)
    assert found.per_sample[0]["s_measure"] == found.per_sample[0]["reward"] == pytest.approx(expected)
    assert found.scores["mae"] == pytest.approx(0.375)
    assert (found.scores["miou"], found.scores["oiou"]) == (0.5, pytest.approx((8 + 4 + 0) / (8 + 8 + 12)))
    assert (found.scores["p@0.5"], found.scores["p@0.6"], found.scores["p@0.9"]) == (pytest.approx(2 / 3), 1 / 3, 1 / 3)
    assert {"f_max", "e_max", "s_measure", "iou", "reward"} <= set(found.scores)
    assert agent.asked == [2, 1]  # what fills the last batch up is not answered
    assert json.loads(json.dumps(found.answers)) == found.answers


def test_perfect_masks_have_perfect_scores_and_void_is_left_out():
    data = Pictures([(0, 8)], void=(8, 16))
    scores = evaluation.evaluate(Table([strip(0, 12)]), needs(data), [0]).scores
    names = ("reward", "s_measure", "iou", "miou", "oiou", "p@0.9", "f_max")
    assert [scores[name] for name in names] == pytest.approx([1] * 7)
    assert scores["mae"] == 0


RANKED = ([(0, 4), (4, 8), (8, 12)], [(0, 4), (4, 8)], [(0, 4)])
MASKS = (
    [strip(4, 8), strip(0, 4), strip(8, 12)],  # the first two change places
    [strip(0, 4)],  # then a blank: the end
    [strip(12, 16), strip(12, 16), strip(0, 4)],
)


@pytest.mark.parametrize("num_envs", [1, 2, 3, 5])
def test_scores_of_ranking_by_hand_whatever_the_width(num_envs):
    data = Pictures(*RANKED)
    found = evaluation.evaluate(Table(*MASKS), rankings(data, num_envs), [0, 1, 2])
    first, second, third = found.per_sample
    assert [row["steps"] for row in found.per_sample] == [3, 2, 3]
    assert [row["found"] for row in found.per_sample] == [3, 1, 1]
    assert first["reward"] == pytest.approx(3 + 0.5) and second["reward"] == pytest.approx(1 + 1)
    assert (first["iou"], second["iou"], third["iou"]) == (1, 0.5, 0)
    # SA-SOR: 3 2 1 against 2 3 1, and 2 1 against 1 0; the third has one object.
    assert found.scores["sa_sor"] == pytest.approx((0.5 + 1) / 2) and found.scores["sa_sor_photos"] == 2
    # SOR: 0.5; and twice one object that is seen: 1.
    assert found.scores["sor"] == pytest.approx((np.mean([0.5, 1, 1]) + 1) / 2) and found.scores["sor_photos"] == 3
    assert found.scores["sor_mean_photos"] == 1
    assert first["mae"] == pytest.approx(2 * 26 / 255 / 4)


def test_what_no_sample_is_used_by_is_left_out_and_void_is_not_ranked():
    data = Pictures([(0, 4), (8, 12)], void=(8, 16))
    scores = evaluation.evaluate(Table([strip(0, 6)]), rankings(data, 1), [0]).scores
    assert "sa_sor" not in scores and scores["sa_sor_photos"] == 0 and scores["found"] == 1
    assert scores["sor"] == 1


@pytest.mark.parametrize("make", [needs, rankings])
def test_answers_played_again_lead_to_the_same_masks(make):
    env = make(Pictures(*RANKED))
    found = evaluation.evaluate(Table(*MASKS), env, [2, 0, 1])
    again = list(evaluation.play(env, [2, 0, 1], found.answers))
    for (transition, numbers), row in zip(again, found.per_sample, strict=True):
        assert transition.sample.key == row["key"]
        assert numbers == pytest.approx({name: row[name] for name in numbers})
    detected = [transition.masks[0] for transition, _ in again]
    count = [3, 3, 1] if make is rankings else [1, 1, 1]
    assert [len(rows) for rows in detected] == count
    np.testing.assert_array_equal(detected[1][0] > 0.5, MASKS[0][0] > 0.5)


def test_the_correlation_is_that_of_the_order_of_detection():
    data = Pictures(*RANKED)
    row = evaluation.evaluate(Table(*MASKS), rankings(data, reward="sa_sor"), [0]).per_sample[0]
    targets = data[0].masks[0]
    assert row["reward"] == pytest.approx(sa_sor(targets[[1, 0, 2]], [3, 2, 1], targets, [3, 2, 1]))


def test_masks_as_text():
    masks = [np.random.default_rng(0).random((9, 5)), np.zeros((9, 5)), np.full((9, 5), 0.5)]
    text = encode_masks(masks)
    assert all(set(code) == {"size", "counts"} for code in json.loads(text))
    for mask, back in zip(masks, decode_masks(text), strict=True):
        np.testing.assert_array_equal(mask > 0.5, back)
    assert decode_masks(encode_masks([])) == []


def test_a_replay_beyond_its_stored_masks_finds_nothing_more():
    stored = encode_masks([strip(0, 4)])
    choose = replay(needs(Pictures([(0, 4)])), [stored])(0, 1)
    (first,), (second,) = choose(0, {}), choose(1, {})
    np.testing.assert_array_equal(first, strip(0, 4))
    assert not second.any()
