"""Queries about scenes: for one object, several or none, some of which need a step of reasoning; and their answers.

Simulated annotators write the answers to imitate. Some draw loose boxes, some stop after the first of several objects,
some name the most similar object where nothing fits. Imitation is therefore not optimal; reinforcement learning can
find the answers with a higher reward.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from maskgym.data.scenes.graphs import choice, draw_object
from maskgym.data.scenes.language import likeness
from maskgym.data.scenes.objects import COLOURS, FULL, SHAPES, SIZES, SceneObject

# Attributes that a query names, "every red disc".
NAMED = (("shape",), ("colour",), ("colour", "shape"), ("texture", "colour", "shape"), ("shape", "place"), FULL)
# Kinds of queries, and their share. The last three need a step of reasoning.
KINDS = {"named": 0.5, "absent": 0.2, "odd": 0.1, "biggest": 0.1, "smallest": 0.1}
LOOSE = 0.35  # share of annotators with loose boxes
LOOSENESS = (0.25, 0.5)  # by how much of its side a loose box is larger, on each side
HASTY = 0.5  # share of annotators who stop after the first of several objects
EAGER = 0.5  # share of annotators who name the most similar object where nothing fits


@dataclass(frozen=True)
class Query:
    """A query about objects.

    Attributes:
        text: The query in words.
        objects: Objects of its scene, in drawing order.
        referents: Indices of those that it refers to, in reading order; none if nothing fits.
        closest: Index of the most similar object, if nothing fits.
    """

    text: str
    objects: tuple[SceneObject, ...]
    referents: tuple[int, ...]
    closest: int | None = None


def words() -> set[str]:
    """List the words of queries beside those of phrases, and of the reasoning of answers."""
    return {"every", "the", "odd", "one", "out", "biggest", "smallest", "wanted", "found", "find", "thing"}


def draw_query(rng: np.random.Generator) -> Query:
    """Draw objects and a query about them; every attribute that it names is visible in the picture."""
    kind = list(KINDS)[rng.choice(len(KINDS), p=list(KINDS.values()))]
    if kind in ("named", "absent"):
        return _attributes(rng, absent=kind == "absent")
    return _odd(rng) if kind == "odd" else _extreme(rng, kind)


def _attributes(rng: np.random.Generator, absent: bool) -> Query:
    """Draw a query that names attributes: of an object, with every object that has them; or of none."""
    objects = _draw(rng, int(rng.integers(2, 6)), alike=0.6)
    wanted = objects[rng.integers(len(objects))]
    attributes = NAMED[rng.integers(len(NAMED))]
    if absent:  # Shape or colour decide, since a place or a texture alone is hard to see.
        attributes = ("colour", "shape")
        taken = {(item.colour, item.shape) for item in objects}
        free = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in taken]
        colour, shape = free[rng.integers(len(free))]
        wanted = replace(wanted, colour=colour, shape=shape)
    found = [i for i, item in enumerate(objects) if wanted.matches(item, attributes)]
    text = f"every {wanted.describe(attributes).removeprefix('a ')}"
    nearest = max(range(len(objects)), key=lambda i: likeness(wanted, objects[i]))
    return Query(text, objects, _in_order(objects, found), None if found else nearest)


def _odd(rng: np.random.Generator) -> Query:
    """Draw three to five objects, of which all except one have the same shape."""
    objects = _draw(rng, int(rng.integers(3, 6)), alike=0.0)
    shape, other = (SHAPES[i] for i in rng.permutation(len(SHAPES))[:2])
    single = int(rng.integers(len(objects)))
    shaped = tuple(replace(item, shape=other if i == single else shape) for i, item in enumerate(objects))
    return Query("the odd one out", shaped, (single,))


def _extreme(rng: np.random.Generator, kind: str) -> Query:
    """Draw two to three objects of a shape, one of another size than the rest, and up to two of other shapes."""
    count = int(rng.integers(2, 4))
    objects = _draw(rng, count + int(rng.integers(0, 3)), alike=0.0)
    shape = choice(rng, SHAPES)
    others = [name for name in SHAPES if name != shape]
    single = int(rng.integers(count))
    own, rest = ("big", "small") if kind == "biggest" else ("small", "big")
    sized = [
        _sized(rng, replace(item, shape=shape if i < count else choice(rng, others)), own if i == single else rest)
        for i, item in enumerate(objects)
    ]
    return Query(f"the {kind} {shape}", tuple(sized), (single,))


def _sized(rng: np.random.Generator, item: SceneObject, size: str) -> SceneObject:
    """Copy an object with another size; its place moves so that it stays in the picture."""
    radius = float(rng.uniform(*SIZES[size]))
    x, y = (float(np.clip(value, radius + 1, 127 - radius)) for value in (item.x, item.y))
    return replace(item, size=size, radius=radius, x=x, y=y)


def _draw(rng: np.random.Generator, count: int, alike: float) -> tuple[SceneObject, ...]:
    """Draw objects in different cells; with the probability ``alike`` one repeats shape or colour of another."""
    objects: list[SceneObject] = []
    for cell in rng.permutation(9)[:count]:
        item = draw_object(rng, int(cell), pale=False)
        if objects and rng.random() < alike:
            model = objects[rng.integers(len(objects))]
            item = replace(item, shape=model.shape, colour=model.colour if rng.random() < 0.5 else item.colour)
        objects.append(item)
    return tuple(objects)


def _in_order(objects: Sequence[SceneObject], found: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(found, key=lambda i: objects[i].cell))


def annotate(query: Query, masks: np.ndarray, rng: np.random.Generator, careful: bool = False) -> str:
    """Write an answer to imitate: the objects of the scene, how many fit, and the objects as JSON.

    Args:
        query: The query.
        masks: bool (n, H, W), the visible pixels of each object.
        rng: Generator of the annotator's habits.
        careful: Whether the annotator has none of the bad ones.

    Returns:
        ``<think>…</think><answer>[…]</answer>``, with box, point and phrase per object, in pixels of the picture.
    """
    found, loose = list(query.referents), not careful and rng.random() < LOOSE
    if not careful and len(found) > 1 and rng.random() < HASTY:
        found = found[:1]
    elif not careful and query.closest is not None and rng.random() < EAGER:
        found = [query.closest]
    order = _in_order(query.objects, range(len(query.objects)))
    seen = " , ".join(_seen(query.objects[i]) for i in order)
    entries = [_entry(query.objects[i], masks[i], rng, loose) for i in found]
    return f"<think>scene : {seen} . wanted : {query.text} . found : {len(found)}</think>" + (
        f"<answer>{json.dumps(entries)}</answer>"
    )


def _seen(item: SceneObject) -> str:
    return f"{item.place} {item.size} {item.texture} {item.colour} {item.shape}"


def _entry(item: SceneObject, mask: np.ndarray, rng: np.random.Generator, loose: bool) -> dict[str, object]:
    """Describe one object; a loose box is larger on each side, within the picture."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box: np.ndarray = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
    if loose:
        more = rng.uniform(*LOOSENESS, size=4) * np.tile(box[2:] - box[:2], 2) * (-1, -1, 1, 1)
        box = np.clip(box + more, 0, mask.shape[0]).round()
    side = mask.shape[0] / 128
    return {
        "bbox_2d": box.tolist(),
        "point_2d": [round(item.x * side, 1), round(item.y * side, 1)],
        "phrase": item.describe(FULL),
    }
