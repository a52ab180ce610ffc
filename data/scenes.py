"""Scenes: a procedural data set with exact ground truth for salience, language and instances.

A scene is a short list of flat objects on a 3 × 3 grid over a cluttered background. Bright objects are salient; pale
ones are distractors, often look-alikes of a bright one. The background carries soft saturated blobs and vivid specks,
so that colour contrast alone does not find the objects (`benchmarks/scenes.py` measures this). One scene
graph yields every task: the salient union, instances with unique descriptions, co-salient groups, needs, ranks, blur,
shadow, glass and semantic classes, and the reasoning text for supervised fine-tuning.

The text comes from simulated annotators of different styles: they name the shape alone, its family, colour and shape,
or the place. A phrase refers to every object that fits it, so terse phrases merge look-alikes. Imitation of the
annotators is therefore not optimal; reinforcement learning can find the phrases with higher reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from maskgym.data.sample import CATEGORIES, SPLITS, Sample
from maskgym.errors import UserError

COLOURS = {
    "red": (215, 45, 45),
    "green": (50, 170, 65),
    "blue": (50, 85, 215),
    "yellow": (235, 205, 50),
    "purple": (150, 60, 185),
    "cyan": (60, 200, 215),
}
FAMILIES = {"round": ("disc", "ring"), "blocky": ("square", "triangle"), "spiky": ("star", "cross")}
SHAPES = tuple(shape for shapes in FAMILIES.values() for shape in shapes)
TEXTURES = ("plain", "striped", "dotted")
SIZES = {"small": (15.5, 17.5), "big": (20.0, 23.0)}  # radius in pixels of a 128-pixel scene
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
PALE_OPACITY = 0.45
TASKS = (
    *("sod", "sis", "cosod", "need", "semantic", "blur", "shadow", "glass"),
    *("need_fine", "ranking", "ranking_need"),
)
_REGION_TASKS = ("need", "need_fine", "semantic", "blur", "shadow", "glass")  # one region per image, as in SOD
_RANKING_TASKS = ("ranking", "ranking_need")
_SIZE = {"train": 2000, "validation": 256, "test": 512}
_WORLD_SEED = 20260

# Styles of annotators: the attributes that a style names, and its frequency.
STYLES = {
    "family": (("family",), 0.15),
    "shape": (("shape",), 0.20),
    "colour": (("colour", "shape"), 0.30),
    "place": (("shape", "place"), 0.15),
    "full": (("colour", "shape", "place"), 0.20),
}
MISSES = 0.10  # share of annotators who overlook one salient object
ADDS = 0.10  # share of annotators who also name a pale distractor
BROAD = 0.6  # share of a group's annotators who name the family instead of the shape
# A fine-grained need always names the appearance, and sometimes the shape.
FINE = (("texture", "colour", "shape"), ("texture", "colour"))


@dataclass(frozen=True)
class SceneObject:
    """One object with its attributes and position; lengths in pixels of the scene, the angle in radians."""

    shape: str
    colour: str
    texture: str
    size: str
    row: int
    column: int
    x: float
    y: float
    radius: float
    angle: float
    pale: bool = False

    @property
    def family(self) -> str:
        """Family of the shape."""
        return next(name for name, shapes in FAMILIES.items() if self.shape in shapes)

    @property
    def place(self) -> str:
        """Row and column of the grid, as in ``top left``."""
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"

    def matches(self, other: SceneObject, attributes: Sequence[str]) -> bool:
        """Check whether ``other`` fits a phrase that names these attributes of this object."""
        return all(getattr(self, name) == getattr(other, name) for name in attributes)

    def describe(self, attributes: Sequence[str]) -> str:
        """Build the phrase that names these attributes, as in ``a striped red star at top left``."""
        words = ["a"]
        if "pale" in attributes and self.pale:
            words.append("pale")
        words += [getattr(self, name) for name in ("size", "texture", "colour") if name in attributes]
        if "family" in attributes:
            words += [self.family, "thing"]
        else:
            words.append(self.shape if "shape" in attributes else "thing")
        if "place" in attributes:
            words += ["at", self.place]
        return " ".join(words)


FULL = STYLES["full"][0]


@dataclass(frozen=True)
class Scene:
    """A scene graph with its picture.

    Attributes:
        objects: Objects in drawing order; later ones occlude earlier ones.
        image: uint8 (H, W, 3).
        masks: bool (n, H, W), the visible pixels of each object.
        effect: bool (H, W), the region of blur, shadow or glass, if the task has one.
    """

    objects: tuple[SceneObject, ...]
    image: np.ndarray
    masks: np.ndarray
    effect: np.ndarray | None = field(default=None)

    @property
    def salient(self) -> list[int]:
        """Indices of the salient objects in reading order."""
        bright = [i for i, item in enumerate(self.objects) if not item.pale]
        return sorted(bright, key=lambda i: _reading_order(self.objects[i]))

    def fitting(self, wanted: Callable[[SceneObject], bool]) -> np.ndarray:
        """Compute the union of the fitting objects, bool (H, W)."""
        rows = [i for i, item in enumerate(self.objects) if wanted(item)]
        return np.logical_or.reduce(self.masks[rows], axis=0)


class Scenes:
    """The procedural data set.

    A pair (split, index) always gives the same scene, in every task; splits never overlap.

    Args:
        task: ``sod``, ``sis``, ``cosod``, ``semantic``, ``blur``, ``shadow``, ``glass``; ``need``: what is asked for,
            or the closest thing to it; ``need_fine``: a need that appearance decides, among objects of one shape;
            ``ranking``: salient instances with ranks, and a need that names the first of them; ``ranking_need``: the
            same where the need names any of them, which comes first then.
        split: ``train``, ``validation`` or ``test``.
        size: Number of samples; default 2,000, 256 and 512.
        image_size: Side of the square image in pixels, at least 32.
        group_size: Images in a co-salient group, at least 2.
        annotator: Style of the rationales: ``varied`` draws one per sample; a `STYLES` name fixes it, without misses.

    Raises:
        UserError: If an argument is invalid.
    """

    def __init__(
        self,
        task: str = "sis",
        split: str = "train",
        size: int | None = None,
        image_size: int = 128,
        group_size: int = 4,
        annotator: str = "varied",
    ) -> None:
        _require("task", task, TASKS)
        _require("split", split, SPLITS)
        _require("annotator", annotator, ("varied", *STYLES))
        for name, value, least in (("size", size, 1), ("image_size", image_size, 32), ("group_size", group_size, 2)):
            if value is not None and value < least:
                raise UserError(f"scenes: {name}={value} is too small: expected at least {least}")
        self.scene_task, self.split, self.annotator = task, split, annotator
        self.image_size, self.group_size = image_size, group_size
        self.size = _SIZE[split] if size is None else size

    @property
    def task(self) -> str:
        """Meaning of the masks: tasks with one region are ``sod``, ranked instances are ``sis``."""
        if self.scene_task in _RANKING_TASKS:
            return "sis"
        return "sod" if self.scene_task in _REGION_TASKS else self.scene_task

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f"scenes has {self.size} samples; index {index} is out of range")
        return getattr(self, f"_{self.scene_task}")(index)

    def scene(self, index: int) -> Scene:
        """Build the scene graph and picture of a sample of any task except ``cosod``."""
        if self.scene_task == "need_fine":
            rng = self._rng(index, 6)
            return _render(_draw_look_alikes(rng)[0], rng, self.image_size)
        rng = self._rng(index)
        return _render(_draw_objects(rng), rng, self.image_size)

    def refer(self, index: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Draw an image uint8 (H, W, 3), ``count`` random phrases and their masks bool (count, H, W).

        The phrases name any attributes of any object, pale ones included; about one in twenty fits nothing.
        """
        scene = self.scene(index)
        pairs = [random_reference(scene.objects, rng) for _ in range(count)]
        masks = np.stack([scene.masks[fitting].any(axis=0) for _, fitting in pairs])
        return scene.image, [phrase for phrase, _ in pairs], masks

    def _rng(self, index: int, stream: int = 0) -> np.random.Generator:
        return np.random.default_rng([_WORLD_SEED, SPLITS.index(self.split), index, stream])

    def _key(self, index: int) -> str:
        return f"{self.scene_task}-{self.split}-{index:05d}"

    def _sis(self, index: int) -> Sample:
        scene = self.scene(index)
        chosen = scene.salient
        phrases = tuple(scene.objects[i].describe(FULL) for i in chosen)
        return Sample(
            key=self._key(index),
            images=(scene.image,),
            masks=(scene.masks[chosen],),
            phrases=(phrases,),
            category=CATEGORIES.get(self.scene_task),
            ranks=(_ranks(scene, chosen),),
            rationale=_instances_answer(scene, self._rng(index, 1), self.annotator, self.scene_task),
        )

    _sod = _sis  # the environment takes the union; the annotators describe regions

    def _cosod(self, index: int) -> Sample:
        rng = self._rng(index, 2)
        category = SHAPES[rng.integers(len(SHAPES))]
        absent = int(rng.integers(self.group_size)) if self.group_size > 2 and rng.random() < 0.25 else -1
        scenes = []
        for image in range(self.group_size):
            objects = _draw_group_objects(rng, category, common=image != absent)
            scenes.append(_render(objects, rng, self.image_size))
        rows = [[i for i, item in enumerate(scene.objects) if item.shape == category] for scene in scenes]
        return Sample(
            key=self._key(index),
            images=tuple(scene.image for scene in scenes),
            masks=tuple(scene.masks[row] for scene, row in zip(scenes, rows, strict=True)),
            phrases=tuple((f"[semantic] {category}",) * len(row) for row in rows),
            category=category,
            rationale=_group_answer(scenes, category, self._rng(index, 1), self.annotator),
        )

    def _need(self, index: int) -> Sample:
        """Find the requested object; if nothing fits, the closest object (UserSOD §3)."""
        scene, rng = self.scene(index), self._rng(index, 3)
        wanted = scene.objects[rng.integers(len(scene.objects))]
        attributes = [("shape",), ("colour", "shape"), ("texture", "colour", "shape"), FULL][rng.integers(4)]
        if rng.random() < 0.2:  # request an absent object
            wanted = replace(wanted, shape=SHAPES[rng.integers(len(SHAPES))], colour=_choice(rng, COLOURS))
            attributes = ("colour", "shape")
        mask = scene.fitting(lambda item: wanted.matches(item, attributes))
        if not mask.any():
            closest = max(scene.objects, key=lambda item: _likeness(wanted, item))
            mask = scene.fitting(lambda item: item is closest)
        return self._region(index, scene, mask, need=f"find {wanted.describe(attributes)}")

    def _need_fine(self, index: int) -> Sample:
        """Find the only object of that texture and colour among others of its shape."""
        _, wanted, attributes = _draw_look_alikes(self._rng(index, 6))
        scene = self.scene(index)
        mask = scene.fitting(lambda item: wanted.matches(item, attributes))
        need = f"find {wanted.describe(attributes)}"
        return self._region(index, scene, mask, category=wanted.shape, need=need)

    def _ranking(self, index: int) -> Sample:
        scene = self.scene(index)
        chosen = scene.salient
        ranks = _ranks(scene, chosen)
        if self.scene_task == "ranking_need":
            ranks[self._rng(index, 7).integers(len(chosen))] = ranks.max() + 1
        phrases = tuple(scene.objects[i].describe(FULL) for i in chosen)
        return Sample(
            key=self._key(index),
            images=(scene.image,),
            masks=(scene.masks[chosen],),
            phrases=(phrases,),
            need=f"find {phrases[ranks.argmax()]}",
            ranks=(ranks,),
        )

    _ranking_need = _ranking

    def _semantic(self, index: int) -> Sample:
        scene, rng = self.scene(index), self._rng(index, 4)
        category = scene.objects[rng.integers(len(scene.objects))].shape
        return self._region(index, scene, scene.fitting(lambda item: item.shape == category), category=category)

    def _blur(self, index: int) -> Sample:
        return self._effect(index, _blur_effect)

    def _shadow(self, index: int) -> Sample:
        return self._effect(index, _shadow_effect)

    def _glass(self, index: int) -> Sample:
        return self._effect(index, _glass_effect)

    def _effect(self, index: int, effect: Callable[[Scene, np.random.Generator], Scene]) -> Sample:
        scene = effect(self.scene(index), self._rng(index, 5))
        assert scene.effect is not None
        return self._region(index, scene, scene.effect, category=CATEGORIES[self.scene_task])

    def _region(
        self, index: int, scene: Scene, mask: np.ndarray, category: str | None = None, need: str | None = None
    ) -> Sample:
        return Sample(key=self._key(index), images=(scene.image,), masks=(mask[None],), category=category, need=need)


def vocabulary() -> tuple[str, ...]:
    """List every word that phrases of scenes can hold, sorted."""
    words = {"a", "at", "thing", "pale", "[semantic]", *SHAPES, *COLOURS, *TEXTURES, *SIZES, *FAMILIES, *ROWS, *COLUMNS}
    return tuple(sorted(words))


# --- drawing a scene graph --------------------------------------------------------------------------------------------


def _require(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"scenes: {name}={value!r} is unknown: expected one of {', '.join(allowed)}")


def _choice(rng: np.random.Generator, options: Sequence[str] | dict) -> str:
    names = list(options)
    return names[rng.integers(len(names))]


def _draw_objects(rng: np.random.Generator) -> tuple[SceneObject, ...]:
    """Draw 1–4 bright objects and 0–2 pale ones, with look-alikes more often than chance would have them."""
    bright = int(rng.choice([1, 2, 3, 4], p=[0.2, 0.35, 0.3, 0.15]))
    pale = int(rng.choice([0, 1, 2], p=[0.25, 0.45, 0.3]))
    cells = rng.permutation(9)[: bright + pale]
    objects: list[SceneObject] = []
    for number, cell in enumerate(cells):
        item = _draw_object(rng, int(cell), pale=number >= bright)
        if objects and rng.random() < 0.45:
            model = objects[rng.integers(len(objects))]
            item = replace(item, shape=model.shape, colour=model.colour if rng.random() < 0.4 else item.colour)
        objects.append(item)
    return tuple(objects[i] for i in rng.permutation(len(objects)))


def _draw_look_alikes(rng: np.random.Generator) -> tuple[tuple[SceneObject, ...], SceneObject, tuple[str, ...]]:
    """Draw 2–6 objects, one of which is wanted, and the attributes that name it.

    One to three others differ from it in exactly one of these, the first of them in texture or colour, so that its
    shape does not tell; nothing but the one wanted has them all.
    """
    attributes = FINE[rng.integers(len(FINE))]
    cells = iter(rng.permutation(9))
    wanted = _draw_object(rng, int(next(cells)), pale=False)
    objects = [wanted]
    differing = [("texture", "colour")[i] for i in rng.permutation(2)]
    differing += ["shape"] if "shape" in attributes else []
    for attribute in differing[: rng.integers(1, len(differing) + 1)]:
        other = _draw_object(rng, int(next(cells)), pale=False)
        alike = {name: getattr(wanted, name) for name in ("shape", "texture", "colour") if name != attribute}
        objects.append(_differing(rng, replace(other, **alike), wanted, attribute))
    for _ in range(rng.integers(0, 3)):
        other = _draw_object(rng, int(next(cells)), pale=rng.random() < 0.5)
        objects.append(_differing(rng, other, wanted, "colour") if wanted.matches(other, attributes) else other)
    return tuple(objects[i] for i in rng.permutation(len(objects))), wanted, attributes


def _differing(rng: np.random.Generator, item: SceneObject, wanted: SceneObject, attribute: str) -> SceneObject:
    """Copy the object with another texture, colour or shape than the wanted one."""
    options = {"texture": TEXTURES, "colour": tuple(COLOURS), "shape": SHAPES}[attribute]
    changed: dict[str, Any] = {
        attribute: _choice(rng, [name for name in options if name != getattr(wanted, attribute)])
    }
    return replace(item, **changed)


def _draw_group_objects(rng: np.random.Generator, category: str, common: bool) -> tuple[SceneObject, ...]:
    """Draw one image of a co-salient group: the common shape, unless absent, among its kin and other shapes."""
    cells = iter(rng.permutation(9))
    others = [shape for shape in SHAPES if shape != category]
    kin = [shape for shape in next(shapes for shapes in FAMILIES.values() if category in shapes) if shape != category]
    shapes = [category] * (int(rng.integers(1, 3)) if common else 0)
    shapes += [_choice(rng, kin)] if rng.random() < 0.6 else []
    shapes += [_choice(rng, others) for _ in range(rng.integers(0, 3))] or ([] if shapes else [_choice(rng, others)])
    return tuple(replace(_draw_object(rng, int(next(cells)), pale=False), shape=shape) for shape in shapes)


def _draw_object(rng: np.random.Generator, cell: int, pale: bool) -> SceneObject:
    """Draw one object in a cell of the grid; lengths are for a scene of 128 pixels."""
    size = _choice(rng, SIZES)
    radius = float(rng.uniform(*SIZES[size]))
    row, column = divmod(cell, 3)
    jitter = rng.uniform(-4.5, 4.5, size=2)
    # Clipped so that no object leaves the picture; the cell's own third still holds the centre.
    x, y = np.clip(np.array([column, row]) * 42.7 + 21.3 + jitter, radius + 1, 127 - radius)
    return SceneObject(
        shape=_choice(rng, SHAPES),
        colour=_choice(rng, COLOURS),
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


# --- rendering --------------------------------------------------------------------------------------------------------


def _render(objects: tuple[SceneObject, ...], rng: np.random.Generator, side: int) -> Scene:
    canvas = _background(rng, side)
    masks = np.zeros((len(objects), side, side), dtype=bool)
    for number, item in enumerate(objects):
        depth, window = _depth(item, side)
        inside = depth <= 0
        masks[(slice(None), *window)] &= ~inside
        masks[(number, *window)] = inside
        _paint(canvas[window], depth, item, rng)
    return Scene(objects, np.clip(canvas, 0, 255).astype(np.uint8), masks)


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Render float32 (side, side, 3): muted clouds, saturated soft blobs, stripes, grain and vivid specks."""
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    canvas = _clouds(rng, side, cells=5) * 30 + rng.uniform(80, 170, size=3).astype(np.float32)
    along = np.arange(side, dtype=np.float32) / side
    for _ in range(3):
        (row, column), width = rng.uniform(0, 1, size=2), rng.uniform(0.12, 0.3)
        profile = np.exp(-((along - np.array([[row], [column]])) ** 2) / (2 * width**2)).astype(np.float32)
        weight = 0.75 * np.outer(profile[0], profile[1])[..., None]
        canvas += weight * (palette[rng.integers(len(palette))] - canvas)
    turn, waves = rng.uniform(0, np.pi), rng.uniform(40, 90)
    phase = np.add.outer(along * np.sin(turn), along * np.cos(turn)) * waves
    texture = 8 * np.sin(phase, dtype=np.float32) + 6 * rng.standard_normal((side, side), dtype=np.float32)
    canvas += texture[..., None]
    for row, column in rng.integers(1, side - 3, size=(30, 2)):
        reach = 1 + int(row + column) % 3
        canvas[row : row + reach, column : column + reach] = palette[rng.integers(len(palette))]
    return canvas


def _clouds(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Interpolate a coarse random grid bilinearly to float32 (side, side, 3) in [-1, 1]."""
    grid = rng.uniform(-1, 1, size=(cells + 1, cells + 1, 3)).astype(np.float32)
    at = np.arange(side, dtype=np.float32) * cells / side
    low, share = at.astype(int), at % 1
    weights = np.zeros((side, cells + 1), dtype=np.float32)
    weights[np.arange(side), low], weights[np.arange(side), low + 1] = 1 - share, share
    return np.einsum("ra,abk,cb->rck", weights, grid, weights, optimize=True)


def _depth(item: SceneObject, side: int) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Compute the signed shape function over the object's window, and the window."""
    scale = side / 128
    x, y, radius = item.x * scale, item.y * scale, item.radius * scale
    rows = slice(max(0, int(y - radius) - 1), min(side, int(y + radius) + 3))
    columns = slice(max(0, int(x - radius) - 1), min(side, int(x + radius) + 3))
    v, u = np.mgrid[rows, columns]
    u, v = (u - x) / radius, (v - y) / radius
    cos, sin = np.cos(item.angle), np.sin(item.angle)
    return _signed(item, u * cos + v * sin, v * cos - u * sin), (rows, columns)


def _paint(window: np.ndarray, depth: np.ndarray, item: SceneObject, rng: np.random.Generator) -> None:
    """Paint the object into its window of the canvas, in place: jittered colour, shading, texture and a dark rim."""
    height, width = depth.shape
    y, x = np.mgrid[0:height, 0:width]
    colour = np.array(COLOURS[item.colour]) + rng.uniform(-14, 14, size=3)
    light = 1 + 0.18 * (x / width - 0.5) * rng.choice([-1, 1]) - 0.18 * (y / height - 0.5)
    period = max(height / 6, 3)
    if item.texture == "striped":
        light = light * np.where((x + y) % period < period * 0.42, 0.62, 1)
    elif item.texture == "dotted":
        light = light * np.where(np.hypot(x % period - period / 2, y % period - period / 2) < period * 0.3, 0.55, 1)
    light = light * np.where(depth > -0.1, 0.6, 1)
    opacity = PALE_OPACITY if item.pale else 1.0
    inside = depth <= 0
    window[inside] += opacity * ((light[..., None] * colour)[inside] - window[inside])


def _signed(item: SceneObject, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Compute the signed shape function of local coordinates (radius 1); it is ≤ 0 inside the shape."""
    distance = np.hypot(u, v)
    if item.shape == "disc":
        return distance - 0.95
    if item.shape == "ring":
        return np.maximum(distance - 1.0, 0.46 - distance)
    if item.shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.82
    if item.shape == "triangle":
        return np.maximum(np.maximum(0.87 * u - 0.5 * v, -0.87 * u - 0.5 * v), v) - 0.58
    if item.shape == "cross":
        return np.minimum(np.maximum(np.abs(u) - 1, np.abs(v) - 0.38), np.maximum(np.abs(u) - 0.38, np.abs(v) - 1))
    turn = np.arctan2(u, -v) * 5 / (2 * np.pi)
    return distance - (1.08 - 0.96 * np.abs(turn - np.round(turn)))  # star of five points


# --- effects: tasks whose region is not an object ---------------------------------------------------------------------


def _blur_effect(scene: Scene, rng: np.random.Generator) -> Scene:
    """Defocus everything except one bright object; the region is the blurred part."""
    sharp = scene.masks[scene.salient[rng.integers(len(scene.salient))]]
    picture = scene.image.astype(np.float32)
    for axis in (0, 1, 0, 1, 0, 1):  # three box blurs are close to a Gaussian
        picture = np.sum([np.roll(picture, shift, axis) for shift in range(-2, 3)], axis=0) / 5
    image = np.where(sharp[..., None], scene.image, picture.astype(np.uint8))
    return replace(scene, image=image, effect=~sharp)


def _shadow_effect(scene: Scene, rng: np.random.Generator) -> Scene:
    """Let every bright object cast a shadow to one side; the region is the shadow."""
    side = scene.image.shape[0]
    shift = (side // 9, int(rng.choice([-1, 1])) * side // 9)
    cast = np.zeros_like(scene.masks[0])
    for i in scene.salient:
        down, right = shift
        moved = np.zeros_like(cast)
        moved[down:, max(right, 0) : side + min(right, 0)] = scene.masks[i][
            : side - down, max(-right, 0) : side - max(right, 0)
        ]
        cast |= moved
    cast &= ~scene.masks.any(axis=0)
    image = np.where(cast[..., None], scene.image * 0.42, scene.image).astype(np.uint8)
    return replace(scene, image=image, effect=cast)


def _glass_effect(scene: Scene, rng: np.random.Generator) -> Scene:
    """Hang a tinted pane that displaces what is behind it; the region is the pane."""
    side = scene.image.shape[0]
    height, width = rng.integers(side // 3, side // 2, size=2)
    top, left = rng.integers(2, side - height - 2), rng.integers(2, side - width - 2)
    pane = np.zeros((side, side), dtype=bool)
    pane[top : top + height, left : left + width] = True
    edge = pane.copy()
    edge[top + 2 : top + height - 2, left + 2 : left + width - 2] = False
    behind = np.roll(scene.image, (side // 25, side // 20), axis=(0, 1)) * 0.8 + np.array([25, 45, 45])
    image = np.where(pane[..., None], np.where(edge[..., None], 225, behind), scene.image).astype(np.uint8)
    return replace(scene, image=image, effect=pane)


# --- language ---------------------------------------------------------------------------------------------------------


def _likeness(wanted: SceneObject, item: SceneObject) -> float:
    """Compute the similarity of an object to the requested one; shape counts most, then colour, then texture."""
    return (
        4 * (wanted.shape == item.shape)
        + 2 * (wanted.colour == item.colour)
        + (wanted.texture == item.texture)
        - 0.5 * item.pale
    )


def _ranks(scene: Scene, chosen: Sequence[int]) -> np.ndarray:
    """Compute salience, float (n,): visible area times closeness to the centre, larger is more salient."""
    areas = scene.masks[list(chosen)].sum(axis=(1, 2))
    away = [np.hypot(scene.objects[i].x - 64, scene.objects[i].y - 64) / 90 for i in chosen]
    return areas * (1.3 - np.array(away))


def random_reference(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[str, list[int]]:
    """Draw a random phrase about these objects and the indices of all that fit (in about one in twenty cases none).

    The phrase names attributes of one object, pale ones included, in the annotators' styles and a few others.
    """
    item = objects[int(rng.integers(len(objects)))]
    if rng.random() < 0.08:
        item = replace(item, shape=_choice(rng, SHAPES), colour=_choice(rng, COLOURS))
    styles = [*STYLES, "full", "full"]
    attributes = STYLES[styles[rng.integers(len(styles))]][0]
    semantic = attributes in (("shape",), ("family",)) and rng.random() < 0.6
    if not semantic:
        attributes += tuple(name for name in ("size", "texture") if rng.random() < 0.1)
        attributes += ("pale",) if item.pale and rng.random() < 0.5 else ()
    phrase = item.describe(attributes)
    fitting = [i for i, other in enumerate(objects) if item.matches(other, attributes)]
    return ("[semantic]" + phrase[1:] if semantic else phrase), fitting


def _annotate(scene: Scene, rng: np.random.Generator, annotator: str) -> tuple[Sequence[str], list[int]]:
    """Draw the attributes that this annotator names and the objects found, in reading order."""
    found = scene.salient
    if annotator != "varied":
        return STYLES[annotator][0], found
    names, shares = list(STYLES), [share for _, share in STYLES.values()]
    attributes = STYLES[names[rng.choice(len(names), p=shares)]][0]
    pale = [i for i, item in enumerate(scene.objects) if item.pale]
    if rng.random() < MISSES and len(found) > 1:
        found.pop(rng.integers(len(found)))
    elif rng.random() < ADDS and pale:
        found.append(pale[rng.integers(len(pale))])
    return attributes, found


def _instances_answer(scene: Scene, rng: np.random.Generator, annotator: str, task: str) -> str:
    """Write an answer in three steps: what is where, what stands out, and the conclusion (Saliency-R1 Eq. 1–2).

    Places come first, so that the reader knows where to find colour and shape.
    """
    attributes, found = _annotate(scene, rng, annotator)
    pale = sorted((item for item in scene.objects if item.pale), key=_reading_order)
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


def _reading_order(item: SceneObject) -> tuple[int, int]:
    return item.row, item.column


def _group_answer(scenes: Sequence[Scene], category: str, rng: np.random.Generator, annotator: str) -> str:
    seen = " ; ".join(
        " , ".join(f"{item.place} {item.shape}" for item in sorted(scene.objects, key=_reading_order))
        for scene in scenes
    )
    family = next(name for name, shapes in FAMILIES.items() if category in shapes)
    broad = annotator == "family" or (annotator == "varied" and rng.random() < BROAD)
    name = f"{family} thing" if broad else category
    return _answer(f"scene : {seen} . common : {category}", [f"[semantic] {name}"], "rg")
