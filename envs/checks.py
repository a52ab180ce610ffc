"""Checks of what users hand in: samples, options of a reset, and actions; environments call them at their edge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import suppress
from typing import Any

import numpy as np

from maskgym.aliases import Settings
from maskgym.data import Sample
from maskgym.errors import UserError, brief

OPTIONS = ("index", "reset_mask")  # keys of the options of a reset


def check_sample(sample: Sample, index: int) -> Sample:
    """Check types, shapes and counts of a sample as `maskgym.data.Sample` states them; return it.

    Args:
        sample: What a data set returned.
        index: Its index, for messages.

    Raises:
        UserError: If a part is wrong; it names the key, the part, what came and what was expected.
    """
    if not isinstance(sample, Sample):
        raise UserError(f"sample {index}: {brief(sample)}: expected a maskgym.data.Sample")
    count = len(sample.images) if isinstance(sample.images, Sized) else 0
    if not count:
        _wrong(sample, "images", sample.images, "one or more images")
    for name in ("masks", "void", "phrases", "ranks"):
        part = getattr(sample, name)
        if (part is not None or name == "masks") and not (isinstance(part, Sequence) and len(part) == count):
            _wrong(sample, name, part, f"one entry per image, {count} in all")
    for name in ("category", "need", "rationale"):
        if not isinstance(getattr(sample, name), str | None):
            _wrong(sample, name, getattr(sample, name), "a text or None")
    for k in range(count):
        _check_image(sample, k)
    return sample


def _check_image(sample: Sample, k: int) -> None:
    """Check image ``k`` of a sample, and all that belongs to it."""
    image, masks = sample.images[k], sample.masks[k]
    if not _is_array(image, "u1", 3) or image.shape[2] != 3 or not image.size:
        _wrong(sample, f"image {k}", image, "uint8 (H, W, 3)")
    height, width = image.shape[:2]
    if not _is_array(masks, "?", 3) or masks.shape[1:] != (height, width):
        _wrong(sample, f"masks of image {k}", masks, f"bool (n, {height}, {width})")
    if sample.void is not None and not (_is_array(sample.void[k], "?", 2) and sample.void[k].shape == (height, width)):
        _wrong(sample, f"void of image {k}", sample.void[k], f"bool ({height}, {width})")
    if sample.phrases is not None:
        row = sample.phrases[k]
        if isinstance(row, str) or len(row) != len(masks) or not all(isinstance(phrase, str) for phrase in row):
            _wrong(sample, f"phrases of image {k}", row, f"{len(masks)} texts, one per mask")
    if sample.ranks is not None:
        ranks = sample.ranks[k]
        numbers = isinstance(ranks, np.ndarray) and ranks.dtype.kind in "fiu"
        if not numbers or ranks.shape != (len(masks),) or not np.isfinite(ranks).all():
            _wrong(sample, f"ranks of image {k}", ranks, f"{len(masks)} finite numbers, one per mask")


def _is_array(value: Any, dtype: str, axes: int) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.dtype(dtype) and value.ndim == axes


def _wrong(sample: Sample, part: str, came: Any, expected: str) -> None:
    raise UserError(f"sample '{sample.key}': {part}: {brief(came)}: expected {expected}")


def reset_rows(options: Settings, count: int) -> tuple[np.ndarray, list[int | None]]:
    """Read the options of a reset.

    Args:
        options: ``reset_mask``, bool (count,), and ``index``, a whole number or one per sub-environment (None for a
            random sample).
        count: Number of sub-environments.

    Returns:
        The sub-environments to reset, int (n,), and the requested index of each of all sub-environments.

    Raises:
        UserError: If an option is unknown or of another type or length.
    """
    for key in options:
        if key not in OPTIONS:
            raise UserError(f"options: {brief(key)} is unknown: expected {' or '.join(OPTIONS)}")
    mask = options.get("reset_mask", np.ones(count, dtype=bool))
    if not _is_one_each(mask, count, lambda one: isinstance(one, bool | np.bool_)):
        raise UserError(f"options: reset_mask: {brief(mask)}: expected {count} values of type bool")
    wanted = options.get("index")
    each = [wanted] * count if wanted is None or _is_whole(wanted) else wanted
    if not _is_one_each(each, count, lambda one: one is None or _is_whole(one)):
        raise UserError(
            f"options: index: {brief(wanted)}: expected a whole number, or {count}, one per sub-environment"
        )
    return np.flatnonzero(mask), [None if one is None else int(one) for one in each]


def _is_one_each(values: Any, count: int, fits: Callable[[Any], bool]) -> bool:
    """Check for a sequence of ``count`` values that fit."""
    listed = isinstance(values, Sequence | np.ndarray) and getattr(values, "ndim", 1) == 1 and len(values) == count
    return listed and not isinstance(values, str | bytes) and all(map(fits, values))


def _is_whole(value: Any) -> bool:
    """Check for a whole number, NumPy's included; a bool is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_seeds(seed: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    """Read the seed of each sub-environment: ``seed + i``, or ``seed[i]``.

    Raises:
        UserError: If it is of another type or length.
    """
    if seed is None:
        return [None] * count
    if isinstance(seed, int | np.integer) and _is_whole(seed):
        return [seed + i for i in range(count)]
    if not isinstance(seed, Sequence) or not _is_one_each(seed, count, lambda one: one is None or _is_whole(one)):
        raise UserError(f"seed: {brief(seed)}: expected a whole number, or {count}, one per sub-environment")
    return list(seed)


def check_count(name: str, actions: Any, count: int) -> list[Any]:
    """Check for one action per sub-environment; list them.

    Raises:
        UserError: If there are more or fewer, or it is one text in place of a list of texts.
    """
    there, found = None, []
    with suppress(Exception):  # An object of the user's may raise anything.
        listed = isinstance(actions, Sized) and hasattr(actions, "__getitem__") and getattr(actions, "ndim", 1) > 0
        if listed and not isinstance(actions, str | bytes | Mapping):
            found = [actions[i] for i in range(min(count, len(actions)))]
            there = len(actions)
    if there is None:
        raise UserError(f"{name}: actions: {brief(actions)}: expected a sequence of {count}, one per sub-environment")
    if there != count:
        raise UserError(f"{name}: {there} actions: expected {count}, one per sub-environment")
    return found
