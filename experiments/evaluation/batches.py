"""What evaluations share: samples in batches of a vector environment's width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def chunks(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Return the values in their order, ``size`` at a time; the last ones may be fewer."""
    return [values[start : start + size] for start in range(0, len(values), size)]


def filled(indices: Sequence[int], size: int) -> np.ndarray:
    """Return int64 (size,): the indices, and the last one again where they are too few."""
    return np.asarray([*indices, *[indices[-1]] * (size - len(indices))])


def first_rows(observations: Any, count: int) -> list[dict[str, Any]]:
    """Return the first observations of a batch, one by one."""
    return [{name: value[i] for name, value in observations.items()} for i in range(count)]
