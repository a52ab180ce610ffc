"""Answers in JSON: what is read, what is malformed, and that hostile text costs linear time."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskgym.errors import UserError
from maskgym.rewards import FORMS, Located, format_objects, parse_objects
from maskgym.rewards.objects import read_rationale

OBJECTS = {
    "boxes": Located(box=(1, 2, 30.5, 40)),
    "points": Located(points=((3, 4), (5.25, 6)), labels=(1, 0)),
    "boxes_points": Located((1, 2, 30, 40), ((10, 20),), (1,)),
    "phrases": Located(phrase="a red disc"),
}
ENTRIES = {
    "boxes": '{"bbox_2d": [1, 2, 30.5, 40]}',
    "points": '{"points_2d": [[3, 4], [5.25, 6]], "labels": [1, 0]}',
    "boxes_points": '{"bbox_2d": [1, 2, 30, 40], "point_2d": [10, 20]}',
    "phrases": '{"phrase": "a red disc"}',
}


def answer(content: str) -> str:
    return f"<think>x</think><answer>{content}</answer>"


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_written_and_read(form: str) -> None:
    text = format_objects("x", [OBJECTS[form]] * 2, form)
    assert text == answer(f"[{ENTRIES[form]}, {ENTRIES[form]}]")
    found = parse_objects(text, form)
    assert found.objects == (OBJECTS[form],) * 2 and found.tagged and found.structured and found.think == "x"
    assert found.expressions == (("a red disc",) * 2 if form == "phrases" else ())


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_list_is_an_answer(form: str) -> None:
    found = parse_objects(answer(" [ ] "), form)
    assert found.tagged and found.structured and found.objects == ()


@pytest.mark.parametrize("form", FORMS)
def test_the_entries_of_another_form_are_malformed(form: str) -> None:
    for other in FORMS:
        assert parse_objects(answer(f"[{ENTRIES[other]}]"), form).tagged == (other == form)


def test_a_label_may_stand_beside() -> None:
    found = parse_objects(answer('[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]'), "boxes")
    assert found.objects == (Located(box=(1, 2, 3, 4)),)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{}", "null", "nothing", '{"bbox_2d": [1, 2, 3, 4]}', "[[1, 2, 3, 4]]", '["bbox_2d"]', "[{}]"),
        *('[{"bbox_2d": [1, 2, 3]}]', '[{"bbox_2d": [1, 2, 3, 4, 5]}]', '[{"bbox_2d": "1, 2, 3, 4"}]'),
        *('[{"bbox_2d": [1, 2, 3, "4"]}]', '[{"bbox_2d": [1, 2, 3, true]}]', '[{"bbox_2d": [1, 2, 3, null]}]'),
        *('[{"bbox_2d": [1, 2, 3, NaN]}]', '[{"bbox_2d": [1, 2, 3, -Infinity]}]', '[{"bbox_2d": [1, 2, 3, 1e999]}]'),
        *('[{"bbox_2d": [1, 2, 3, 4], "box": 1}]', '[{"bbox_2d": [1, 2, 3, 4], "label": 3}]'),
        *('[{"bbox_2d": [1, 2, 3, 4], "bbox_2d": [1, 2, 3, 4]}]', '[{"bbox_2d": [1, 2, 3, 4]},]'),
        *('[{"bbox_2d": [1, 2, 3, 4]}] and more', '```json\n[{"bbox_2d": [1, 2, 3, 4]}]\n```'),
        *("[" * 100_000, "[" * 50_000 + "]" * 50_000, '[{"bbox_2d": [1, 2, 3, ' + "9" * 5_000 + "]}]"),
        "[" + ", ".join(['{"bbox_2d": [1, 2, 3, 4]}'] * 101) + "]",
    ],
)
def test_what_is_no_list_of_boxes_is_malformed(content: str) -> None:
    found = parse_objects(answer(content), "boxes")
    assert found.structured and not found.tagged and found.objects == ()


@pytest.mark.parametrize(
    "entry",
    [
        *('{"points_2d": [], "labels": []}', '{"points_2d": [[1, 2]], "labels": [0]}'),
        *('{"points_2d": [[1, 2]], "labels": [1, 1]}', '{"points_2d": [[1, 2]], "labels": [2]}'),
        *('{"points_2d": [[1, 2]], "labels": [true]}', '{"points_2d": [1, 2], "labels": [1, 1]}'),
        *('{"points_2d": [[1, 2, 3]], "labels": [1]}', '{"points_2d": [[1, 2]]}'),
    ],
)
def test_points_need_a_label_each_and_one_on_the_object(entry: str) -> None:
    assert not parse_objects(answer(f"[{entry}]"), "points").tagged


@pytest.mark.parametrize("phrase", ["", "  ", "a < b", "a [b]", "a\\u0000b", "\\ud800", "[semantic] disc"])
def test_a_phrase_follows_the_rules_of_instances(phrase: str) -> None:
    assert not parse_objects(answer(f'[{{"phrase": "{phrase}"}}]'), "phrases").tagged


def test_blocks_follow_the_rules_of_other_answers() -> None:
    inside = f"<answer>[{ENTRIES['boxes']}]</answer>"
    assert not parse_objects(inside, "boxes").structured and parse_objects(inside, "boxes").tagged
    assert parse_objects(inside, "boxes", reasoning=False).structured
    assert not parse_objects(inside * 2, "boxes", reasoning=False).tagged
    assert format_objects(None, [OBJECTS["boxes"]], "boxes") == inside
    with pytest.raises(UserError, match=r"form='masks': expected one of boxes, points, boxes_points, phrases"):
        parse_objects("", "masks")


@settings(max_examples=200, deadline=None)
@given(st.text(), st.sampled_from(FORMS))
def test_any_text_is_legal(text: str, form: str) -> None:
    for content in (text, f"[{text}]", json.dumps([{"bbox_2d": text, "phrase": text}])):
        assert isinstance(parse_objects(answer(content), form).tagged, bool)


@pytest.mark.parametrize(
    "piece", ["[", '{"bbox_2d":[', '{"bbox_2d": [1, 2, 3, 4]}, ', "<answer>", '"\\\\', "1", '{"a":1,', "{[", "-"]
)
def test_the_cost_of_a_text_is_linear(piece: str) -> None:
    # Two megabytes: a quadratic search would take minutes.
    start = time.perf_counter()
    parse_objects(answer("[" + piece * (2_000_000 // len(piece))), "boxes")
    assert time.perf_counter() - start < 10


def test_a_rationale_serves_every_form() -> None:
    text = answer('[{"bbox_2d": [10, 20, 30, 50], "phrase": "a red disc"}]')
    think, (found,) = read_rationale(text, "sample 'a'", "phrases")
    assert think == "x" and found == Located((10, 20, 30, 50), ((20, 35),), (1,), "a red disc")
    with pytest.raises(UserError, match=r"sample 'a': its rationale has no phrase: expected one for form=phrases"):
        read_rationale(answer('[{"bbox_2d": [10, 20, 30, 50]}]'), "sample 'a'", "phrases")
    for wrong in ("", answer("[1]"), answer('{"bbox_2d": [1, 2, 3, 4]}'), "<answer>[]</answer>"):
        with pytest.raises(UserError, match="sample 'a': its rationale is no <think>"):
            read_rationale(wrong, "sample 'a'", "boxes")
