"""Objects of answers between the coordinates that an agent writes and pixels of the sample's image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maskgym.errors import UserError
from maskgym.rewards import Located

# Coordinates: pixels of the observed image; thousandths of its sides, whole numbers; shares of its sides.
COORDINATES = ("pixels", "thousandths", "shares")
_UNITS = {"thousandths": 1000, "shares": 1}  # of a whole side
_DECIMALS = {"pixels": 0, "thousandths": 0, "shares": 3}


@dataclass(frozen=True)
class Frame:
    """Place of an image in its observation, and the numbers that name places in it.

    A place (x, y) is continuous: pixel (0, 0) covers 0 to 1 on both axes, and a box ends where its last pixel ends.

    Attributes:
        image: (height, width) of the sample's image.
        shown: (height, width) of the image in the observation, without padding.
        observed: (height, width) of the observation.
        coordinates: One of `COORDINATES`, of the observation.
    """

    image: tuple[int, int]
    shown: tuple[int, int]
    observed: tuple[int, int]
    coordinates: str

    @property
    def _pixels(self) -> tuple[float, float]:
        """Pixels of the image per unit of the coordinates, along x and along y."""
        along_y, along_x = (
            whole * (side / _UNITS[self.coordinates] if self.coordinates in _UNITS else 1) / shown
            for whole, side, shown in zip(self.image, self.observed, self.shown, strict=True)
        )
        return along_x, along_y

    def to_image(self, found: Located) -> Located:
        """Convert an object of an answer to pixels of the image; what lies outside stays outside."""
        return self._scaled(found, *self._pixels, None)

    def to_answer(self, found: Located) -> Located:
        """Convert an object in pixels of the image to the rounded coordinates of an answer."""
        x, y = self._pixels
        return self._scaled(found, 1 / x, 1 / y, _DECIMALS[self.coordinates])

    @staticmethod
    def _scaled(found: Located, x: float, y: float, decimals: int | None) -> Located:
        def scale(values: Sequence[float]) -> tuple[float, ...]:
            scaled = [value * (y if place % 2 else x) for place, value in enumerate(values)]
            return tuple(scaled if decimals is None else [round(value, decimals) for value in scaled])

        points = tuple((scaled[0], scaled[1]) for scaled in map(scale, found.points))
        if found.box is None:
            return Located(None, points, found.labels, found.phrase)
        left, top, right, bottom = scale(found.box)
        return Located((left, top, right, bottom), points, found.labels, found.phrase)


def check_coordinates(name: str) -> None:
    """Raise a UserError if the coordinates are unknown."""
    if name not in COORDINATES:
        raise UserError(f"coordinates={name!r}: expected one of {', '.join(COORDINATES)}")
