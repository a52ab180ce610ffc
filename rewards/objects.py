"""Answers in JSON: boxes, points and phrases that a multimodal model writes for the objects that a query refers to.

The form is that of VisionReasoner: ``<think>reasoning</think><answer>[{"bbox_2d": […], "point_2d": […]}, …]</answer>``,
one JSON object per object of the image, none for a query that refers to nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskgym.errors import UserError
from maskgym.rewards.answers import MAX_EXPRESSIONS, Answer, Located, find_block, normalise_phrase

FORMS = ("boxes", "points", "boxes_points", "phrases")
MAX_POINTS = 100  # of one object
# Required keys of an object in each form; `label`, a text, may stand beside them, as models of Qwen write it.
KEYS = {
    "boxes": ("bbox_2d",),
    "points": ("points_2d", "labels"),
    "boxes_points": ("bbox_2d", "point_2d"),
    "phrases": ("phrase",),
}
NAME = "label"


class _Malformed(Exception):
    """JSON that is no answer."""


@dataclass(frozen=True)
class _Reader:
    """Reader of one form."""

    form: str

    def read(self, content: str) -> tuple[Located, ...]:
        """Read the content of an answer block.

        Raises:
            _Malformed: If it is no JSON list of objects of this form.
        """
        if content.count("{") > MAX_EXPRESSIONS:  # what has too many objects is not read in the first place
            raise _Malformed("too many objects")
        try:
            found = json.loads(content, parse_constant=_refuse, object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:  # a number may have too many digits, a list too many levels
            raise _Malformed(content[:40]) from error
        if not isinstance(found, list):
            raise _Malformed("no list")
        return tuple(map(self._object, found))

    def _object(self, found: Any) -> Located:
        if not isinstance(found, dict) or {*found} - {NAME} != {*KEYS[self.form]}:
            raise _Malformed("keys")
        if not isinstance(found.get(NAME, ""), str):
            raise _Malformed(NAME)
        if self.form == "phrases":
            phrase = normalise_phrase(found["phrase"]) if isinstance(found["phrase"], str) else None
            if phrase is None:
                raise _Malformed("phrase")
            return Located(phrase=phrase)
        box = _numbers(found["bbox_2d"], 4) if "bbox_2d" in found else None
        points, labels = [found["point_2d"]] if "point_2d" in found else [], [1]
        if self.form == "points":
            points, labels = found["points_2d"], found["labels"]
            _check_points(points, labels)
        places = tuple((x, y) for x, y in (_numbers(point, 2) for point in points))
        if box is None:
            return Located(points=places, labels=tuple(labels))
        left, top, right, bottom = box
        return Located((left, top, right, bottom), places, tuple(labels) if places else ())


def parse_objects(text: str, form: str, reasoning: bool = True) -> Answer:
    """Parse an answer in JSON, in time linear in its length; any string is legal.

    The blocks ``<think>`` and ``<answer>`` follow the rules of `maskgym.rewards.answers.parse`, which sets
    ``structured``. The answer is ``tagged``, and has ``objects``, if the content of its answer block is a JSON list of
    objects of the form, and nothing else but whitespace (ours, where VisionReasoner only searches for what
    it can read):

    - ``boxes``: ``{"bbox_2d": [left, top, right, bottom]}``.
    - ``points``: ``{"points_2d": [[x, y], …], "labels": [1, 0, …]}``, 1 to 100 points with a label each: 1 foreground,
      0 background, at least one of them 1.
    - ``boxes_points``: ``{"bbox_2d": […], "point_2d": [x, y]}``; the point is on the object.
    - ``phrases``: ``{"phrase": "…"}``, a description by the rules of ``sis``.
    - An object may also have ``"label"``, a text, which is not read. Any other key, a missing or a repeated one is
      malformed.
    - The block has at most 100 braces that open, so at most 100 objects.
    - Coordinates are numbers from -1e9 to 1e9; what lies outside the image is for the environment to clip.
    - An empty list is an answer: nothing is referred to.

    Args:
        text: Text of the model.
        form: One of `FORMS`.
        reasoning: Whether the answer begins with reasoning.

    Raises:
        UserError: If the form is unknown.

    Example:
        >>> parse_objects('<think>One.</think><answer>[{"bbox_2d": [1, 2, 30, 40]}]</answer>', "boxes").objects[0].box
        (1.0, 2.0, 30.0, 40.0)
        >>> parse_objects("<think>None.</think><answer>[]</answer>", "boxes").tagged
        True
    """
    check_form(form)
    think, block = find_block(text, "think"), find_block(text, "answer")
    objects: tuple[Located, ...] | None = None
    if block is not None:
        try:
            objects = _Reader(form).read(text[block])
        except _Malformed:
            objects = None
    phrases = tuple(each.phrase for each in objects or () if each.phrase is not None)
    return Answer(
        text=text,
        think=text[think] if think else None,
        expressions=phrases,
        structured=block is not None and (not reasoning or (think is not None and think.stop < block.start)),
        tagged=objects is not None,
        objects=objects or (),
    )


def format_objects(think: str | None, objects: Sequence[Located], form: str) -> str:
    """Format an answer, the inverse of `parse_objects`; whole numbers are written without a fraction.

    Args:
        think: Reasoning, without any of the four block tags; None leaves the block out.
        objects: Objects with what the form needs.
        form: One of `FORMS`.

    Raises:
        UserError: If the form is unknown, or the text would not be well-formed.

    Example:
        >>> format_objects("A disc.", [Located(box=(1, 2, 30, 40))], "boxes")
        '<think>A disc.</think><answer>[{"bbox_2d": [1, 2, 30, 40]}]</answer>'
    """
    check_form(form)
    body = json.dumps([_described(each, form) for each in objects], ensure_ascii=False)
    text = f"<answer>{body}</answer>" if think is None else f"<think>{think}</think><answer>{body}</answer>"
    answer = parse_objects(text, form, reasoning=think is not None)
    if not (answer.structured and answer.tagged and len(answer.objects) == len(objects)):
        raise UserError(f"no well-formed answer of form={form} holds {list(objects)} after reasoning {think!r}")
    return text


def read_rationale(text: str, source: str, form: str) -> tuple[str, tuple[Located, ...]]:
    """Read an answer to imitate, which serves every form: each object has a box, in pixels of its image.

    Args:
        text: ``<think>…</think><answer>[{"bbox_2d": […], "point_2d": […], "phrase": "…"}, …]</answer>``; ``point_2d``
            and ``phrase`` may be missing.
        source: Its sample, for errors.
        form: Form that it is read for.

    Returns:
        The reasoning, and the objects; a point that is missing is the middle of the box.

    Raises:
        UserError: If it is no such answer, or lacks a phrase that the form needs.
    """
    think, block = find_block(text, "think"), find_block(text, "answer")
    try:
        found = json.loads(text[block] if block else "", parse_constant=_refuse, object_pairs_hook=_distinct)
        objects = tuple(map(_rationale_object, found)) if isinstance(found, list) else None
    except (_Malformed, ValueError, RecursionError):
        objects = None
    if think is None or objects is None:
        raise UserError(f'{source}: its rationale is no <think>…</think><answer>[{{"bbox_2d": …}}, …]</answer>')
    if form == "phrases" and any(each.phrase is None for each in objects):
        raise UserError(f"{source}: its rationale has no phrase: expected one for form=phrases")
    return text[think], objects


def _rationale_object(found: Any) -> Located:
    if not isinstance(found, dict) or "bbox_2d" not in found or {*found} - {"bbox_2d", "point_2d", "phrase"}:
        raise _Malformed("keys")
    left, top, right, bottom = _numbers(found["bbox_2d"], 4)
    x, y = _numbers(found.get("point_2d", [(left + right) / 2, (top + bottom) / 2]), 2)
    phrase = normalise_phrase(str(found["phrase"])) if "phrase" in found else None
    return Located((left, top, right, bottom), ((x, y),), (1,), phrase)


def check_form(form: str) -> None:
    """Raise a UserError if a form is unknown."""
    if form not in FORMS:
        raise UserError(f"form={form!r}: expected one of {', '.join(FORMS)}")


def _described(found: Located, form: str) -> dict[str, Any]:
    values: dict[str, Any] = {"phrase": found.phrase, "labels": list(found.labels)}
    values["bbox_2d"] = None if found.box is None else list(map(_short, found.box))
    values["points_2d"] = [list(map(_short, point)) for point in found.points]
    values["point_2d"] = values["points_2d"][0] if found.points else None
    return {name: values[name] for name in KEYS[form]}


def _short(value: float) -> float | int:
    return int(value) if float(value).is_integer() else round(float(value), 4)


def _check_points(points: Any, labels: Any) -> None:
    if not (isinstance(points, list) and isinstance(labels, list) and 1 <= len(points) == len(labels) <= MAX_POINTS):
        raise _Malformed("points")
    if not all(type(label) is int and label in (0, 1) for label in labels) or 1 not in labels:
        raise _Malformed("labels")


def _numbers(found: Any, count: int) -> tuple[float, ...]:
    """Read a list of finite numbers."""
    if not isinstance(found, list) or len(found) != count:
        raise _Malformed("numbers")
    numbers = []
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e9 or math.isnan(value):
            raise _Malformed("number")
        numbers.append(float(value))
    return tuple(numbers)


def _refuse(name: str) -> None:
    raise _Malformed(name)


def _distinct(pairs: Sequence[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Malformed("a key twice")
    return found
