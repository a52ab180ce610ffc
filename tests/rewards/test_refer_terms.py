"""Terms of Refer by hand: matched boxes, points, instances, numbers, and reasoning."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from maskgym.data import Sample
from maskgym.errors import UserError
from maskgym.rewards import (
    BoxIoU,
    BoxL1,
    Count,
    Format,
    InstanceIoU,
    Located,
    NonRepetition,
    NoTarget,
    PointInMask,
    Solved,
    Term,
    Transition,
    Unscored,
    format_objects,
    make,
    parse_objects,
)

SIDE = 20
MATCHED = (BoxIoU(), BoxIoU("hard"), BoxIoU("squared"), BoxL1(), PointInMask(), InstanceIoU())
FIRST, SECOND = (0, 0, 10, 10), (12, 12, 20, 20)
POINTS = {FIRST: (5.0, 5.0), SECOND: (16.0, 16.0)}


def mask(box: tuple[int, int, int, int]) -> np.ndarray:
    found = np.zeros((SIDE, SIDE), bool)
    left, top, right, bottom = box
    found[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
    return found


def masks(boxes) -> np.ndarray:
    return np.array([mask(box) for box in boxes], bool).reshape(-1, SIDE, SIDE)


def step(boxes, truth, form: str = "boxes_points", void: np.ndarray | None = None, think: str = "a") -> Transition:
    """Build the answer of some boxes, whose masks fill them, to a truth of boxes."""
    objects = tuple(
        Located(box, (POINTS.get(box, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)),), (1,), "x") for box in boxes
    )
    sample = Sample("a-key", (np.zeros((SIDE, SIDE, 3), np.uint8),), (masks(truth),), None if void is None else (void,))
    text = format_objects(think, objects, form)
    answer = parse_objects(text, form)
    found = answer.objects
    return Transition("refer", sample, text, (masks(boxes),), answer=answer, objects=found, shown=(SIDE, SIDE))


def malformed(text: str, truth=(FIRST,)) -> Transition:
    base = step((), truth)
    return replace(base, action=text, answer=parse_objects(text, "boxes_points"))


@pytest.mark.parametrize("term", [*MATCHED, Count(), NoTarget()])
def test_empty_and_malformed_answers(term: Term) -> None:
    assert term(step((), ())) == 1
    assert term(step((FIRST, SECOND), (SECOND, FIRST))) == 1  # the order does not matter
    assert term(step((FIRST,), ())) == 0
    assert term(step((), (FIRST,))) == 0
    assert term(malformed("")) == 0
    assert term(malformed("<think></think><answer>{}</answer>", ())) == 0
    assert term(replace(step((), ()), action=Unscored(), answer=None)) == 0


@pytest.mark.parametrize("term", MATCHED)
def test_a_spurious_object_costs_as_much_as_a_missing_one(term: Term) -> None:
    for found, truth in (((FIRST, SECOND), (FIRST,)), ((FIRST,), (FIRST, SECOND)), ((FIRST, FIRST), (FIRST,))):
        assert term(step(found, truth)) == 0.5


def test_box_iou_by_hand() -> None:
    half = step(((0, 0, 10, 5),), (FIRST,))  # 50 of 100 pixels
    assert BoxIoU()(half) == 0.5
    assert BoxIoU("squared")(half) == 0.25
    assert BoxIoU("hard")(half) == 0  # not above the threshold
    assert BoxIoU("hard", threshold=0.4)(half) == 1
    assert InstanceIoU()(half) == 0.5
    # The best pairs: 0.5 with the first and 1 with the second.
    assert BoxIoU()(step((SECOND, (0, 0, 10, 5)), (FIRST, SECOND))) == 0.75


def test_box_l1_by_hand() -> None:
    moved = step(((1, 0, 10, 10),), (FIRST,))  # one side of four by 1 of 20 pixels: 0.0125 of the image
    assert BoxL1()(moved) == pytest.approx(1 - 0.0125 / 0.1)
    assert BoxL1(tolerance=0.025)(moved) == pytest.approx(0.5)
    assert BoxL1(tolerance=0.0125)(moved) == pytest.approx(0)


def test_boxes_are_clipped_and_what_remains_nothing_scores_nothing() -> None:
    base = step((FIRST,), (FIRST,))
    outside = replace(base, objects=(Located((-50.0, -50.0, 10.0, 10.0), ((5.0, 5.0),), (1,)),))
    assert BoxIoU()(outside) == BoxL1()(outside) == 1
    for box in ((30.0, 30.0, 40.0, 40.0), (10.0, 10.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0), (1e9, -1e9, -1e9, 1e9)):
        blank = replace(base, objects=(Located(box, ((50.0, -3.0),), (1,)),))
        assert [term(blank) for term in (*MATCHED[:5],)] == [0] * 5


def test_objects_without_boxes_or_points_are_judged_by_their_masks() -> None:
    phrases = step(((0, 0, 10, 5),), (FIRST,), form="phrases")
    assert phrases.objects[0].box is None
    assert BoxIoU()(phrases) == 0.5
    assert BoxL1()(phrases) == pytest.approx(1 - 5 / 4 / 20 / 0.1)
    assert PointInMask()(phrases) == 1  # the deepest point of the mask
    assert PointInMask()(step((SECOND,), (FIRST,), form="boxes")) == 0
    blank = replace(phrases, masks=(masks(()),), objects=())
    assert BoxIoU()(blank) == 0
    empty = replace(phrases, masks=(np.zeros((1, SIDE, SIDE), bool),))
    assert [term(empty) for term in MATCHED] == [0] * 6
    assert Count()(empty) == NoTarget()(empty) == 1  # an object is there


def test_points_by_hand() -> None:
    base = step((FIRST,), (FIRST,))

    def value(*points: tuple[float, float, int]) -> float:
        found = Located(points=tuple((x, y) for x, y, _ in points), labels=tuple(label for *_, label in points))
        return PointInMask()(replace(base, objects=(found,)))

    assert value((9.9, 0, 1)) == 1
    assert value((10, 0, 1)) == value((-0.1, 0, 1)) == value((1e9, 5, 1)) == 0
    assert value((5, 5, 1), (15, 5, 1)) == 0.5
    assert value((5, 5, 1), (15, 5, 0)) == 1
    assert value((5, 5, 1), (6, 5, 0), (15, 5, 0)) == 0.5  # half of the background points are off the mask
    assert value((15, 5, 1), *[(15, 15, 0)] * 50) == 0  # background points alone earn nothing


def test_void_leaves_out_what_lies_in_it() -> None:
    void = mask(SECOND)
    for found, truth in (((FIRST, SECOND), (FIRST,)), ((SECOND, FIRST), (FIRST,)), ((FIRST,), (FIRST, SECOND))):
        for term in (*MATCHED, Count(), NoTarget()):
            assert term(step(found, truth, void=void)) == 1
    assert NoTarget()(step((SECOND,), (), void=void)) == 1
    assert InstanceIoU()(step((FIRST,), (FIRST,), void=mask((0, 0, 20, 5)))) == 1


def test_numbers_of_objects() -> None:
    assert Count()(step((FIRST,), (SECOND,))) == 1
    assert Count()(step((FIRST, SECOND), (SECOND,))) == 0
    assert NoTarget()(step((FIRST, SECOND), (SECOND,))) == 1


@pytest.mark.parametrize(
    ("think", "expected"),
    [
        ("", 1),
        ("a. b. c", 1),
        ("a. b. a. c", 1),  # once is allowed
        ("a. b. a. b", 0),
        (" a .a. a", 0),
        ("A. a. ... . .", 1),
    ],
)
def test_repetition(think: str, expected: float) -> None:
    assert NonRepetition()(step((), (), think=think)) == expected


def test_repetition_as_published_reads_the_whole_text() -> None:
    text = '<think>x</think><answer>[{"bbox_2d": [0.5, 1.5, 2.5, 3.5], "point_2d": [1, 1]}]</answer>'
    decimals = text.replace("1.5", "0.5, 0.5, 0.5, 0.5")
    assert NonRepetition(published=True)(malformed(text)) == 1
    assert NonRepetition(published=True)(malformed(decimals)) == 0  # "5, 0" repeats
    assert NonRepetition()(malformed(text)) == 1
    assert NonRepetition()(malformed("a. a. b")) == 0  # malformed
    assert NonRepetition(published=True)(malformed("a. b")) == 1
    assert NonRepetition()(replace(malformed(text), answer=parse_objects(text[16:], "boxes_points", False))) == 1
    with pytest.raises(UserError, match="a-key"):
        NonRepetition()(replace(malformed(""), answer=None))


def test_format_and_the_default_of_refer() -> None:
    reward = make("refer_strict")
    batch = [
        step((), ()),
        step((FIRST,), ()),
        step((FIRST,), (FIRST,)),
        malformed(""),
        malformed("<answer>[]</answer>"),
    ]
    totals, terms = reward(batch)
    np.testing.assert_allclose(totals, [1, 0.5, 1, 0, 0.25])
    np.testing.assert_allclose(terms["format"], [1, 1, 1, 0, 0.5])
    assert make("refer_strict", format_weight=0.2)(batch)[0][1] == pytest.approx(0.2)
    assert Format()(malformed("<think></think><answer>x</answer>")) == 0.5
    for name in ("refer_strict", "seg_r1_strict"):
        with pytest.raises(UserError, match="format_weight"):
            make(name, format_weight=1.5)


def test_solved_is_all_or_nothing() -> None:
    half = (0, 0, 10, 5)  # IoU 0.5 with FIRST
    assert (
        Solved()(step((SECOND, FIRST), (FIRST, SECOND)))
        == Solved()(step((), ()))
        == Solved()(step((half,), (FIRST,)))
        == 1
    )
    for wrong in ((FIRST,), (FIRST, FIRST), (FIRST, SECOND, (0, 12, 5, 20)), ()):
        assert Solved()(step(wrong, (FIRST, SECOND))) == 0
    assert Solved(0.6)(step((half,), (FIRST,))) == Solved()(malformed("<answer>[]</answer>")) == 0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(UserError, match="solved: threshold=1.1"):
        Solved(1.1)
    for wrong in ({"kind": "soft"}, {"threshold": 1.0}, {"threshold": -0.1}, {"threshold": float("nan")}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            BoxIoU(**wrong)
    with pytest.raises(UserError, match="tolerance"):
        BoxL1(tolerance=0)
    with pytest.raises(ValueError, match="one per mask"):
        BoxIoU()(replace(step((FIRST,), (FIRST,)), objects=(Located(),) * 2))


def test_images_without_objects_use_their_masks() -> None:
    """An answer in phrases has no `Located`; the terms of boxes then score the boxes of its masks."""
    plain = replace(step((FIRST,), (FIRST,)), task="sis", objects=())
    assert BoxIoU()(plain) == PointInMask()(plain) == Count()(plain) == 1


def test_ten_times_the_objects_and_points_take_about_ten_times_as_long() -> None:
    def seconds(count: int) -> float:
        entry = {"points_2d": [[k, k] for k in range(10)], "labels": [1] * 10}
        text = f"<think>{'a. b' * count}</think><answer>{json.dumps([entry] * count)}</answer>"
        answer = parse_objects(text, "points")
        found = replace(
            step((FIRST,), (FIRST,)),
            masks=(np.repeat(masks((FIRST,)), count, axis=0),),
            answer=answer,
            objects=answer.objects,
        )
        start = time.process_time()
        for term in (*MATCHED, Count(), NonRepetition()):
            assert 0 <= term(found) <= 1
        return time.process_time() - start

    assert len(parse_objects("<answer>[]</answer>", "points").objects) == 0
    small = min(seconds(10) for _ in range(3))
    assert min(seconds(100) for _ in range(3)) < 15 * small + 0.05
