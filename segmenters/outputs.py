"""Describe segmenters, and check what they and encoders return: shape, kind of numbers, NaN and range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from maskgym.errors import UserError, brief

if TYPE_CHECKING:
    from torch import Tensor

    from maskgym.segmenters.contracts import AttentionSegmenter, ReferringSegmenter, TextEncoder
    from maskgym.segmenters.points.promptable import PromptableSegmenter


class Weights(TypedDict):
    """Identity of a network in results.

    Attributes:
        name: Registered name.
        fingerprint: Hash of the weights; None if the part has none.
        random: Whether any of the weights were only initialised.
        dtype: Precision used, of a segmenter of ours.
    """

    name: str
    fingerprint: str | None
    random: bool
    dtype: NotRequired[str]


def describe(part: ReferringSegmenter | PromptableSegmenter | AttentionSegmenter | TextEncoder, name: str) -> Weights:
    """Describe a frozen network in the results of a run; parts of others may have no fingerprint."""
    from maskgym.segmenters.frozen import FrozenNetwork  # environments without a network import this module too

    found: Weights = {"name": name, "fingerprint": getattr(part, "fingerprint", None), "random": False}
    return {**found, "dtype": str(part.dtype).removeprefix("torch.")} if isinstance(part, FrozenNetwork) else found


def check_probabilities(values: np.ndarray, shape: Sequence[int], name: str) -> None:
    """Check an array of probabilities.

    Args:
        values: What a part returned.
        shape: Expected shape.
        name: Name of the part and of what it was asked, for messages.

    Raises:
        UserError: If it is no array of floats or bools of this shape, or has NaN or values outside [0, 1].
    """
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fb" or values.shape != tuple(shape):
        raise UserError(f"{name}: {brief(values)}: expected a float array of shape {tuple(shape)}")
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # This refuses NaN too.
        raise UserError(f"{name}: values from {values.min():g} to {values.max():g}: expected probabilities in [0, 1]")


def check_finite(values: Tensor, shape: Sequence[int | None], name: str) -> None:
    """Check a tensor of finite numbers.

    Args:
        values: What a part returned.
        shape: Expected shape; None stands for any number.
        name: Name of the part and of what it was asked, for messages.

    Raises:
        UserError: If it is no tensor of floats of this shape, or has NaN or infinite values.
    """
    from torch import Tensor  # Environments without a network import this module too.

    expected = f"({', '.join('…' if side is None else str(side) for side in shape)})"
    fits = isinstance(values, Tensor) and values.is_floating_point() and values.ndim == len(shape)
    if not fits or any(side not in (None, own) for side, own in zip(shape, values.shape, strict=True)):
        raise UserError(f"{name}: {brief(values)}: expected a float tensor of shape {expected}")
    wrong = (~values.isfinite()).flatten(1).any(dim=1).nonzero() if values.numel() else values.new_empty(0)
    if len(wrong):
        raise UserError(f"{name}: row {int(wrong[0])} has NaN or infinite values: expected finite ones")
