from __future__ import annotations

import numpy as np
import pytest

from maskgym.data import Sample
from maskgym.rewards import Transition

SAMPLE = Sample("pair", images=(np.zeros((4, 6, 3), np.uint8),) * 2, masks=(np.ones((1, 4, 6), bool),) * 2)
EMPTY = np.zeros((0, 4, 6), bool)


def test_any_number_of_masks_fits() -> None:
    masks = (EMPTY, np.ones((5, 4, 6), bool))
    assert Transition("cosod", SAMPLE, "text", masks).masks is masks


@pytest.mark.parametrize(
    "masks",
    [(), (EMPTY,), (EMPTY, EMPTY, EMPTY), (EMPTY, np.zeros((1, 6, 4), bool)), (EMPTY, np.zeros((4, 6), bool))],
    ids=["none", "too few", "too many", "another size", "no rows"],
)
def test_masks_that_do_not_fit_are_a_fault(masks: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(ValueError, match=r"^masks of sample 'pair'"):
        Transition("cosod", SAMPLE, "text", masks)
    with pytest.raises(ValueError, match=r"^previous_masks of sample 'pair'"):
        Transition("cosod", SAMPLE, "text", (EMPTY, EMPTY), previous_masks=masks)
