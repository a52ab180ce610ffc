"""Batching of samples to the width of a vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def chunks(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Split the values into consecutive chunks of ``size``; the last chunk may be shorter."""
    return [values[start : start + size] for start in range(0, len(values), size)]


def filled(indices: Sequence[int], size: int) -> np.ndarray:
    """Pad the indices to int64 (size,) by repeating the last one."""
    return np.asarray([*indices, *[indices[-1]] * (size - len(indices))])


def first_rows(observations: Any, count: int) -> list[dict[str, Any]]:
    """Return the first ``count`` observations of a batch, one dictionary per sample."""
    return [{name: value[i] for name, value in observations.items()} for i in range(count)]
