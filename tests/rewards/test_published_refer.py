"""VisionReasoner's and Seg-R1's rewards, whose values were also computed by the published code, and their twins."""

from __future__ import annotations

import json
import pickle
import time
from dataclasses import replace

import numpy as np
import pytest

from maskgym.data import Sample
from maskgym.errors import UserError
from maskgym.rewards import Located, Transition, make, parse_objects

SIDE = 800
ONE, TWO, FAR, LOOSE = (100, 100, 200, 200), (300, 100, 400, 200), (600, 600, 700, 700), (100, 100, 230, 230)
TWINS = ("visionreasoner", "visionreasoner_strict", "seg_r1", "seg_r1_strict")


def masks(boxes) -> np.ndarray:
    found = np.zeros((len(boxes), SIDE, SIDE), bool)
    for row, (left, top, right, bottom) in zip(found, boxes, strict=True):
        row[top:bottom, left:right] = True
    return found


def text(boxes, think: str = "x") -> str:
    entries = [{"bbox_2d": list(box), "point_2d": [(box[0] + box[2]) // 2, (box[1] + box[3]) // 2]} for box in boxes]
    return f"<think>{think}</think><answer>{json.dumps(entries)}</answer>"


def step(boxes, truth, written: str | None = None, found: np.ndarray | None = None) -> Transition:
    """Build an answer of boxes, whose masks fill them."""
    sample = Sample("a-key", (np.zeros((SIDE, SIDE, 3), np.uint8),), (masks(truth),))
    action = text(boxes) if written is None else written
    answer = parse_objects(action, "boxes_points")
    made = masks(boxes) if found is None else found
    made = made if answer.objects else made[:0]
    return Transition("refer", sample, action, (made,), answer=answer, objects=answer.objects, shown=(SIDE, SIDE))


def total(name: str, transition: Transition, **arguments: float) -> float:
    return make(name, **arguments)([transition])[0][0]


# Each value of VisionReasoner's is that of its own file on the same boxes.
@pytest.mark.parametrize(
    ("boxes", "truth", "expected"),
    [
        ((FAR,), (ONE,), 4.0),
        ((ONE,), (ONE,), 7.0),
        ((ONE, FAR), (ONE,), 5.5),
        ((ONE, TWO, FAR), (ONE, TWO), 6.0),
        ((TWO, ONE), (ONE, TWO), 7.0),
        ((LOOSE,), (ONE,), 6.0),  # IoU 0.59, sides 15 pixels apart on the mean
        ((), (), 2.0),
        ((FAR,), (), 4.0),
        ((), (ONE,), 2.0),
        ((ONE, ONE), (ONE,), 5.5),
    ],
)
def test_visionreasoner(boxes, truth, expected: float) -> None:
    assert total("visionreasoner", step(boxes, truth)) == pytest.approx(expected)


# Without masks of the boxes' sizes the published reward is the same, and the twin's is not.
def test_masks_count_in_the_twin_alone() -> None:
    right, wrong = step((ONE,), (ONE,)), step((ONE,), (ONE,), found=masks((FAR,)))
    assert total("visionreasoner", wrong) == total("visionreasoner", right) == 7
    assert total("visionreasoner_strict", right) == pytest.approx(1)
    assert total("visionreasoner_strict", wrong) == pytest.approx(1 - 3 / 28)


BOX, POINT = '"bbox_2d": [100, 100, 200, 200]', '"point_2d": [150, 150]'


@pytest.mark.parametrize(
    ("written", "thinking", "keys"),
    [
        (text((ONE,)), 1, 2),
        (text((ONE,)).replace("</think>", "</think> \n "), 1, 2),
        (" " + text((ONE,)), 0, 2),
        (text((ONE,)) + "\n", 0, 2),
        (f"<answer>[{{{BOX}, {POINT}}}]</answer>", 0, 2),
        (f"<think></think>.<answer>[{{{BOX}}}]</answer>", 0, 1),
        (f"<think></think><answer>[{{{BOX}}}, {{}}]</answer>", 1, 0.5),
        (f"<think></think><answer>[{{{BOX}}}, 5, {{{BOX}}}]</answer>", 1, 1 / 3),  # the published loop stops at 5
        (f'<think></think><answer>[{{{BOX}}}, "a", {{{BOX}}}]</answer>', 1, 2 / 3),
        ('<think></think><answer>[{"bbox_2d": ["a", {}, null, 1]}]</answer>', 1, 1),
        ("<think></think><answer>[]</answer>", 1, 0),
        (f"<think></think><answer>{{{BOX}}}</answer>", 1, 0),
        ("<think></think><answer>not JSON</answer>", 1, 0),
        ("<think></think><answer>5</answer></answer>", 1, 0),
        ("<think></answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_the_published_format(written: str, thinking: float, keys: float) -> None:
    _, terms = make("visionreasoner")([step((ONE,), (ONE,), written)])
    assert terms["visionreasoner_thinking"][0] == thinking
    assert terms["visionreasoner_objects"][0] == pytest.approx(keys)


def test_distances_are_those_of_the_image_as_shown() -> None:
    moved = step(((112, 112, 212, 212),), (ONE,))  # sides 12 pixels apart
    assert total("visionreasoner", moved) == 6
    assert total("visionreasoner", replace(moved, shown=(SIDE // 2, SIDE // 2))) == 7
    assert total("visionreasoner", replace(moved, shown=None)) == 6


def test_points_must_be_near_and_in_their_own_box() -> None:
    def value(x: float, y: float) -> float:
        base = step((ONE,), (ONE,))
        return total("visionreasoner", replace(base, objects=(Located(ONE, ((x, y),), (1,)),)))

    assert value(170, 150) == 7
    assert value(181, 150) == 6  # 31 pixels from (150, 150)
    flat = (100, 100, 200, 140)  # IoU 0.4, sides 15 pixels apart, point 30 pixels away
    assert total("visionreasoner", step((flat,), (ONE,))) == 4
    for y, expected in ((135, 5), (145, 4)):  # near and inside; nearer, but outside its own box
        moved = replace(step((flat,), (ONE,)), objects=(Located(flat, ((150, y),), (1,)),))
        assert total("visionreasoner", moved) == expected


def test_seg_r1_pays_for_small_masks() -> None:
    area = 100 * 100 / SIDE**2
    assert total("seg_r1", step((ONE,), (ONE,))) == pytest.approx(0.7 + 0.3 * (1 - area) + 1)
    assert total("seg_r1", step((FAR,), (ONE,))) == pytest.approx(0.3 * (1 - area) + 1)
    assert total("seg_r1", step((FAR,), ())) == pytest.approx(0.3 * (1 - area) + 1)
    assert total("seg_r1", step((), ())) == total("seg_r1", step((), (ONE,))) == 0
    assert total("seg_r1", step((ONE, ONE), (ONE,))) == pytest.approx(
        0.7 + 0.3 * (1 - area) + 1
    )  # a repetition is free
    unthought = text((ONE,)).replace("<think>", "")
    assert total("seg_r1", step((ONE,), (ONE,), unthought)) == pytest.approx(0.7 + 0.3 * (1 - area))


@pytest.mark.parametrize("name", ["visionreasoner_strict", "seg_r1_strict", "refer_strict"])
def test_the_twins_pay_most_for_what_is_right(name: str) -> None:
    assert make(name).range == (0, 1)
    for truth in ((), (ONE,), (ONE, TWO)):
        best = total(name, step(truth, truth))
        assert best == pytest.approx(1)
        for boxes in ((), (ONE,), (FAR,), (*truth, FAR), (*truth, *truth, ONE), (LOOSE,), truth[:1] * 2):
            if boxes != truth:
                assert total(name, step(boxes, truth)) < best - 0.05
    assert total(name, step((ONE,), (ONE,), "")) == 0
    assert total("seg_r1_strict", step((), ()), format_weight=0.1) == pytest.approx(1)
    half = total("seg_r1_strict", step((FAR,), (ONE,)))
    assert total("seg_r1_strict", step((FAR,), (ONE,)), format_weight=0.1) < half


HOSTILE = [
    "<think>" * 3000,
    "</think><answer>" * 3000,
    "<think>" + "</think> " * 3000,
    "<answer>" + " " * 20000,
    "<think></think><answer>" + "[" * 20000 + "]" * 20000 + "</answer>",
    "<think></think><answer>[" + "9" * 20000 + "]</answer>",
    '<think></think><answer>[{"bbox_2d": [NaN, 1e999, -1e999, 1], "point_2d": [1, 2]}]</answer>',
    '<think></think><answer>[{"bbox_2d": [1, 2, 3, 4], "point_2d": {"0": 1}}]</answer>',
    '<think></think><answer>[{"bbox_2d": [1000000000, -1000000000, -5, 1e9], "point_2d": [-1e9, 1e9]}]</answer>',
    '<think></think><answer>[{"bbox_2d": [5, 5, 4, 4], "point_2d": [5, 5]}]</answer>',
    "<think>\ud800\0</think><answer>null</answer>",
    text((ONE,) * 101),
]


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("written", HOSTILE)
def test_hostile_answers_have_a_score(name: str, written: str) -> None:
    objects = parse_objects(written, "boxes_points").objects
    reward = make(name)
    blank = np.zeros((len(objects), SIDE, SIDE), bool)
    value = reward([step((), (ONE,), written, blank)])[0][0]
    assert reward.range[0] <= value <= reward.range[1]


def test_ten_times_the_text_takes_about_ten_times_as_long() -> None:
    reward = make("visionreasoner")

    def seconds(piece: str, count: int) -> float:
        played = [step((), (ONE,), "<think>" + piece * count)]
        start = time.process_time()
        reward(played)
        return time.process_time() - start

    for piece in ("</think><answer>", "</think> ", "<answer> ", "<answer></answer>", "a. "):
        small = min(seconds(piece, 2000) for _ in range(3))
        assert min(seconds(piece, 20000) for _ in range(3)) < 15 * small + 0.05, piece


def test_what_cannot_be_scored_is_told() -> None:
    base = step((ONE,), (ONE,))
    boxes = replace(base, objects=(Located(ONE),))
    with pytest.raises(UserError, match="form=boxes_points"):
        total("visionreasoner", boxes)
    for name in ("visionreasoner", "seg_r1"):
        with pytest.raises(UserError, match="a-key"):
            total(name, replace(base, answer=None))
    with pytest.raises(UserError, match="env=refer"):
        total("visionreasoner", replace(base, task="sis"))


@pytest.mark.parametrize("name", TWINS)
def test_they_survive_pickling(name: str) -> None:
    batch = [step((LOOSE,), (ONE,)), step((), ())]
    reward = make(name)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reward))(batch)[0], reward(batch)[0])
