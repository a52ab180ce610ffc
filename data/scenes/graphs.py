"""Random scene graphs: which objects stand where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from maskgym.data.scenes.levels import Level
from maskgym.data.scenes.objects import COLOURS, FAMILIES, SHAPES, SIZES, TEXTURES, SceneObject, family_of

# A fine-grained need always names the appearance, and sometimes the shape.
FINE = (("texture", "colour", "shape"), ("texture", "colour"))


def choice(rng: np.random.Generator, options: Iterable[str]) -> str:
    """Draw one of the options."""
    names = list(options)
    return names[rng.integers(len(names))]


def draw_objects(rng: np.random.Generator, level: Level) -> tuple[SceneObject, ...]:
    """Draw bright objects and pale ones, with look-alikes more often than chance would have them."""
    bright = int(rng.choice(len(level.bright), p=level.bright)) + 1
    pale = int(rng.choice(len(level.pale), p=level.pale))
    cells = rng.permutation(9)[: bright + pale]
    objects: list[SceneObject] = []
    for number, cell in enumerate(cells):
        item = draw_object(rng, int(cell), pale=number >= bright)
        if objects and rng.random() < level.alike:
            model = objects[rng.integers(len(objects))]
            item = replace(item, shape=model.shape, colour=model.colour if rng.random() < level.twins else item.colour)
        objects.append(item)
    return tuple(objects[i] for i in rng.permutation(len(objects)))


def draw_look_alikes(rng: np.random.Generator) -> tuple[tuple[SceneObject, ...], SceneObject, tuple[str, ...]]:
    """Draw 2–6 objects, one of which is wanted, and the attributes that name it.

    One to three others differ from it in exactly one of these, the first of them in texture or colour, so that its
    shape does not tell; nothing but the one wanted has them all.
    """
    attributes = FINE[rng.integers(len(FINE))]
    cells = iter(rng.permutation(9))
    wanted = draw_object(rng, int(next(cells)), pale=False)
    objects = [wanted]
    differing = [("texture", "colour")[i] for i in rng.permutation(2)]
    differing += ["shape"] if "shape" in attributes else []
    for attribute in differing[: rng.integers(1, len(differing) + 1)]:
        other = draw_object(rng, int(next(cells)), pale=False)
        alike = replace(other, shape=wanted.shape, texture=wanted.texture, colour=wanted.colour)
        objects.append(_differing(rng, alike, wanted, attribute))
    for _ in range(rng.integers(0, 3)):
        other = draw_object(rng, int(next(cells)), pale=rng.random() < 0.5)
        objects.append(_differing(rng, other, wanted, "colour") if wanted.matches(other, attributes) else other)
    return tuple(objects[i] for i in rng.permutation(len(objects))), wanted, attributes


def _differing(rng: np.random.Generator, item: SceneObject, wanted: SceneObject, attribute: str) -> SceneObject:
    """Copy the object with another texture, colour or shape than the wanted one."""
    if attribute == "texture":
        return replace(item, texture=choice(rng, (name for name in TEXTURES if name != wanted.texture)))
    if attribute == "colour":
        return replace(item, colour=choice(rng, (name for name in COLOURS if name != wanted.colour)))
    return replace(item, shape=choice(rng, (name for name in SHAPES if name != wanted.shape)))


def draw_group_objects(rng: np.random.Generator, category: str, common: bool) -> tuple[SceneObject, ...]:
    """Draw one image of a co-salient group.

    The image shows the common shape once or twice, unless it is absent; then, with probability 0.6, another shape of
    its family; and up to two further shapes. It never stays empty.
    """
    cells = rng.permutation(9)
    others = [shape for shape in SHAPES if shape != category]
    kin = [shape for shape in FAMILIES[family_of(category)] if shape != category]
    shapes = [category] * int(rng.integers(1, 3)) if common else []
    if rng.random() < 0.6:
        shapes.append(choice(rng, kin))
    shapes += [choice(rng, others) for _ in range(rng.integers(0, 3))]
    if not shapes:
        shapes.append(choice(rng, others))
    return tuple(
        replace(draw_object(rng, int(cell), pale=False), shape=shape)
        for cell, shape in zip(cells, shapes, strict=False)
    )


def draw_object(rng: np.random.Generator, cell: int, pale: bool) -> SceneObject:
    """Draw one object in a cell of the grid; lengths are for a scene of 128 pixels."""
    size = choice(rng, SIZES)
    radius = float(rng.uniform(*SIZES[size]))
    row, column = divmod(cell, 3)
    jitter = rng.uniform(-4.5, 4.5, size=2)
    # Clipped so that no object leaves the picture; the cell's own third still holds the centre.
    x, y = np.clip(np.array([column, row]) * 42.7 + 21.3 + jitter, radius + 1, 127 - radius)
    return SceneObject(
        shape=choice(rng, SHAPES),
        colour=choice(rng, COLOURS),
        texture=TEXTURES[int(rng.choice(3, p=[0.5, 0.3, 0.2]))],
        size=size,
        row=row,
        column=column,
        x=float(x),
        y=float(y),
        radius=radius,
        angle=float(rng.uniform(-0.25, 0.25)),
        pale=pale,
    )
