"""Coordinates of answers: round trips in every kind, and the ideal answer to a mask."""

from __future__ import annotations

import numpy as np
import pytest

from maskgym.envs.letterbox import fitted_size
from maskgym.envs.text.located import COORDINATES, Frame, check_coordinates
from maskgym.errors import UserError
from maskgym.rewards import Located
from maskgym.rewards.truth import true_objects

CORNER = Located((380.0, 330.0, 434.0, 368.0), ((433.5, 367.5),), (1,))  # of a photo of 368 x 434 pixels


def frame(coordinates: str, side: int | None) -> Frame:
    photo = (368, 434)
    if side is None:
        return Frame(photo, (364, 448), (364, 448), coordinates)  # multiples of 28
    return Frame(photo, fitted_size(photo, side), (side, side), coordinates)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("side", [None, 840, 448])
def test_a_corner_box_returns_within_a_pixel(coordinates: str, side: int | None) -> None:
    own = frame(coordinates, side)
    back = own.to_image(own.to_answer(CORNER))
    assert back.box is not None and back.labels == (1,)
    np.testing.assert_allclose(back.box, CORNER.box, atol=1)
    np.testing.assert_allclose(back.points, CORNER.points, atol=1)


def test_answers_are_in_their_units() -> None:
    # The photo fills 448 x 380 pixels of a square of 448; its right edge is the square's.
    found = {name: frame(name, 448).to_answer(CORNER).box for name in COORDINATES}
    assert found["pixels"] == (392, 341, 448, 380)
    assert found["thousandths"] == (876, 761, 1000, 848)
    assert found["shares"] == (0.876, 0.761, 1.0, 0.848)


def test_what_lies_outside_stays_outside() -> None:
    found = frame("thousandths", None).to_image(Located(box=(-1000, 0, 2000, 1000)))
    assert found.box == pytest.approx((-434, 0, 868, 368))


def test_the_ideal_answer_of_a_mask() -> None:
    masks = np.zeros((3, 10, 20), bool)
    masks[0, 2:7, 4:9] = True  # a square of 5 pixels, whose middle pixel is (6, 4)
    masks[2, 0, 0] = True
    found = true_objects(masks, ("a", "hidden", "c"))
    assert found == (
        Located((4, 2, 9, 7), ((6.5, 4.5),), (1,), "a"),
        Located((0, 0, 1, 1), ((0.5, 0.5),), (1,), "c"),
    )
    assert true_objects(masks[:0]) == ()


def test_the_deepest_point_is_on_the_mask() -> None:
    ring = np.hypot(*(np.mgrid[:40, :40] - 19.5))
    masks = ((ring < 18) & (ring > 9))[None]
    ((x, y),) = true_objects(masks)[0].points
    assert masks[0, int(y), int(x)]


def test_unknown_coordinates_are_refused() -> None:
    with pytest.raises(UserError, match=r"coordinates='cm': expected one of pixels, thousandths, shares"):
        check_coordinates("cm")
