"""Objects of scenes: their attributes, and the scene graph with its picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

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
FULL = ("colour", "shape", "place")


def family_of(shape: str) -> str:
    """Find the family of a shape."""
    return next(name for name, shapes in FAMILIES.items() if shape in shapes)


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
        return family_of(self.shape)

    @property
    def place(self) -> str:
        """Row and column of the grid, as in ``top left``."""
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"

    @property
    def cell(self) -> tuple[int, int]:
        """Row and column, which compare in reading order."""
        return self.row, self.column

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
    effect: np.ndarray | None = None

    @property
    def salient(self) -> list[int]:
        """Indices of the salient objects in reading order."""
        bright = [i for i, item in enumerate(self.objects) if not item.pale]
        return sorted(bright, key=lambda i: self.objects[i].cell)

    def fitting(self, wanted: Callable[[SceneObject], bool]) -> np.ndarray:
        """Compute the union of the fitting objects, bool (H, W)."""
        rows = [i for i, item in enumerate(self.objects) if wanted(item)]
        return np.logical_or.reduce(self.masks[rows], axis=0)
