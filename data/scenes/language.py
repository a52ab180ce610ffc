"""Language about scenes: phrases, and the answers of simulated annotators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from maskgym.data.scenes.graphs import choice
from maskgym.data.scenes.objects import (
    COLOURS,
    COLUMNS,
    FAMILIES,
    FULL,
    ROWS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    family_of,
)

# Styles of annotators: the attributes that a style names. A level has the share of each.
STYLES: dict[str, tuple[str, ...]] = {
    "family": ("family",),
    "shape": ("shape",),
    "colour": ("colour", "shape"),
    "place": ("shape", "place"),
    "full": FULL,
}
MISSES = 0.10  # share of annotators who overlook one salient object
ADDS = 0.10  # share of annotators who also name a pale distractor
BROAD = 0.6  # share of a group's annotators who name the family instead of the shape


def vocabulary() -> tuple[str, ...]:
    """List every word that phrases of scenes can hold, sorted."""
    words = {"a", "at", "thing", "pale", "[semantic]", *SHAPES, *COLOURS, *TEXTURES, *SIZES, *FAMILIES, *ROWS, *COLUMNS}
    return tuple(sorted(words))


def likeness(wanted: SceneObject, item: SceneObject) -> float:
    """Compute the similarity of an object to the requested one; shape counts most, then colour, then texture."""
    return (
        4 * (wanted.shape == item.shape)
        + 2 * (wanted.colour == item.colour)
        + (wanted.texture == item.texture)
        - 0.5 * item.pale
    )


def random_reference(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[str, list[int]]:
    """Draw a random phrase about these objects and the indices of all that fit (in about one in twenty cases none).

    The phrase names attributes of one object, pale ones included, in the annotators' styles and a few others.
    """
    item = objects[int(rng.integers(len(objects)))]
    if rng.random() < 0.08:
        item = replace(item, shape=choice(rng, SHAPES), colour=choice(rng, COLOURS))
    styles = [*STYLES, "full", "full"]
    attributes = STYLES[styles[rng.integers(len(styles))]]
    semantic = attributes in (("shape",), ("family",)) and rng.random() < 0.6
    if not semantic:
        attributes += tuple(name for name in ("size", "texture") if rng.random() < 0.1)
        attributes += ("pale",) if item.pale and rng.random() < 0.5 else ()
    phrase = item.describe(attributes)
    fitting = [i for i, other in enumerate(objects) if item.matches(other, attributes)]
    return ("[semantic]" + phrase[1:] if semantic else phrase), fitting


def _annotate(
    scene: Scene, rng: np.random.Generator, annotator: str, shares: Sequence[float]
) -> tuple[Sequence[str], list[int]]:
    """Draw the attributes that this annotator names and the objects found, in reading order."""
    found = scene.salient
    if annotator != "varied":
        return STYLES[annotator], found
    attributes = list(STYLES.values())[rng.choice(len(STYLES), p=shares)]
    pale = [i for i, item in enumerate(scene.objects) if item.pale]
    if rng.random() < MISSES and len(found) > 1:
        found.pop(rng.integers(len(found)))
    elif rng.random() < ADDS and pale:
        found.append(pale[rng.integers(len(pale))])
    return attributes, found


def instances_answer(scene: Scene, rng: np.random.Generator, annotator: str, task: str, shares: Sequence[float]) -> str:
    """Write an answer in three steps: the objects, the pale ones, and the conclusion (Saliency-R1 Eq. 1–2).

    The place precedes colour and shape, so that the model knows where to look for them.
    """
    attributes, found = _annotate(scene, rng, annotator, shares)
    pale = sorted((item for item in scene.objects if item.pale), key=lambda item: item.cell)
    seen = " , ".join(
        f"{item.place} {item.colour} {item.shape}" for item in map(scene.objects.__getitem__, scene.salient)
    )
    ignored = " , ".join(f"{item.place} {item.shape}" for item in pale) or "nothing"
    think = f"scene : {seen} . pale : {ignored} . salient : {len(found)}"
    phrases = [scene.objects[i].describe(attributes) for i in found]
    if task == "sod":  # a region is named once, and a bare category carries the semantic mark
        phrases = list(dict.fromkeys(phrases))
        if attributes in (("shape",), ("family",)):
            phrases = ["[semantic]" + phrase[1:] for phrase in phrases]
    return _answer(think, phrases, "ins" if task == "sis" else "rg")


def _answer(think: str, phrases: Sequence[str], tag: str) -> str:
    expressions = "".join(f"<{tag}>{phrase}</{tag}>" for phrase in phrases)
    return f"<think>{think}</think><answer>{expressions}</answer>"


def group_answer(scenes: Sequence[Scene], category: str, rng: np.random.Generator, annotator: str) -> str:
    """Write an answer for a co-salient group: the objects of each image, and the common category."""
    seen = " ; ".join(
        " , ".join(f"{item.place} {item.shape}" for item in sorted(scene.objects, key=lambda item: item.cell))
        for scene in scenes
    )
    broad = annotator == "family" or (annotator == "varied" and rng.random() < BROAD)
    name = f"{family_of(category)} thing" if broad else category
    return _answer(f"scene : {seen} . common : {category}", [f"[semantic] {name}"], "rg")
