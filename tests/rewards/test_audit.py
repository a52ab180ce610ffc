from __future__ import annotations

import numpy as np
import pytest

from maskgym.data import Sample, make
from maskgym.errors import UserError
from maskgym.rewards.audit import HONEST, REWARDS, Table, audit


def samples(task: str, count: int = 3) -> list[Sample]:
    scenes = make("scenes", task=task, split="test", size=count)
    return [scenes[index] for index in range(count)]


def value(table: Table, strategy: str, reward: str) -> float:
    return table.values[table.strategies.index(strategy), table.rewards.index(reward)]


@pytest.mark.parametrize("task", ["sod", "sis", "cosod"])
def test_the_truth_earns_everything_and_malformed_text_no_correctness(task: str) -> None:
    table = audit(samples(task), task)
    assert (table.task, table.samples, table.rewards) == (task, 3, REWARDS[task])
    for name in table.rewards:
        assert value(table, "the truth", name) == pytest.approx(1)
        # Without tags, the blocks still earn half of the format; without a text, nothing.
        untagged = {"format": 0.5, "saliency_r1": 0.25, "saliency_strict": 0.25}.get(name, 0)
        assert value(table, "the truth, without tags", name) == untagged
        assert value(table, "the truth, without a text", name) == 0
    assert value(table, "nothing (one empty mask)", "format") == 1
    assert any("specks" in strategy for strategy in table.strategies) == (task != "cosod")


def test_the_published_form_pays_for_degenerate_answers_and_the_strict_form_does_not() -> None:
    table = audit(samples("sis"), "sis")
    honest = {name: value(table, HONEST, name) for name in table.rewards}
    for strategy in ("imprecise and 20 specks", "20 specks alone", "10 empty masks", "a grid of 4 × 4 cells"):
        assert value(table, strategy, "iasm_published") > honest["iasm_published"] + 0.1
        assert value(table, strategy, "iasm") < honest["iasm"] / 2
        assert value(table, strategy, "saliency_r1") > honest["saliency_r1"]
        assert value(table, strategy, "saliency_strict") < honest["saliency_strict"]
    assert value(table, "the truth, dilated", "iasm") > honest["iasm"]


def one_square() -> Sample:
    masks = np.zeros((1, 8, 8), bool)
    masks[0, :4, :4] = True
    return Sample("square", (np.zeros((8, 8, 3), np.uint8),), (masks,))


def test_strategies_by_hand() -> None:
    table = audit([one_square()], "sod", ["iou"])
    expected = {
        "the truth, dilated": 16 / 24,  # one pixel to the right and below, without the corner
        HONEST: 9 / 23,  # one pixel down and right: 3 × 3 shared
        "nothing (one empty mask)": 0,
        "everything": 16 / 64,
        "one box around the truth": 1,
        "one box in the centre": 4 / 28,
        "the union, 8 times": 1,
        "a grid of 4 × 4 cells": 16 / 64,
        "10 empty masks": 0,
    }
    for strategy, score in expected.items():
        assert value(table, strategy, "iou") == pytest.approx(score), strategy


def test_an_image_without_truth() -> None:
    absent = Sample("absent", (np.zeros((8, 8, 3), np.uint8),), (np.zeros((0, 8, 8), bool),))
    assert value(audit([absent], "sod"), "everything", "s_measure") == 0
    with pytest.raises(UserError, match="absent"):
        audit([absent], "sis")


def test_chance_comes_from_the_seed_and_from_nothing_else() -> None:
    first, again, other = (audit(samples("sod"), "sod", seed=seed).values for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_table_is_aligned_and_stars_what_pays() -> None:
    lines = str(audit([one_square()], "sod", ["iou"])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].startswith("| sod, 1 samples")
    assert set(lines[1]) <= set("|- :")
    starred = {line.split("|")[1].strip() for line in lines if "*" in line}
    assert starred == {"one box around the truth", "the union, 8 times"}


def test_bad_requests_are_named() -> None:
    with pytest.raises(UserError, match="unknown task 'ins'"):
        audit([one_square()], "ins")
    with pytest.raises(UserError, match="unknown reward 'iuo'"):
        audit([one_square()], "sod", ["iuo"])
    with pytest.raises(UserError, match="no sample"):
        audit([], "sod")


def test_refer_shows_what_each_reward_pays_without_a_target() -> None:
    table = audit(samples("refer", 8), "refer")
    assert (table.task, table.samples, table.rewards) == ("refer", 8, REWARDS["refer"])
    best = {"visionreasoner": 7, "seg_r1": pytest.approx(1.98, abs=0.02)}
    for name in table.rewards:
        assert value(table, "the truth", name) == pytest.approx(best.get(name, 1))
        text = {"visionreasoner": 1}.get(name, 0)  # an empty text does not repeat itself
        assert value(table, "the truth, without a text", name) == text
    empty, junk = "no target: an empty answer", "no target: a junk box"
    assert (value(table, empty, "visionreasoner"), value(table, junk, "visionreasoner")) == (2, 4)
    assert value(table, empty, "seg_r1") == 0
    assert value(table, junk, "seg_r1") == pytest.approx(1 + 0.3 * 15 / 16, abs=0.01)
    for name in ("refer_strict", "visionreasoner_strict", "seg_r1_strict"):
        assert value(table, empty, name) == 1
        assert value(table, junk, name) < 0.7
        assert value(table, "imprecise and a junk box", name) < value(table, HONEST, name)
        assert value(table, "each object 3 times", name) < value(table, "the truth, dilated", name)
    assert "4.000*" in str(table)
    assert (audit(samples("refer", 8), "refer", seed=1).values != table.values).any()


def test_refer_needs_a_target() -> None:
    absent = Sample("absent", (np.zeros((8, 8, 3), np.uint8),), (np.zeros((0, 8, 8), bool),))
    with pytest.raises(UserError, match="no sample with a target"):
        audit([absent], "refer")
    assert audit([absent, one_square()], "refer").samples == 2
