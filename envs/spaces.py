"""Spaces that Gymnasium lacks: free text, images of any size, and groups of any number of images."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Text
from gymnasium.spaces.utils import flatten, flatten_space, unflatten
from gymnasium.vector.utils import create_shared_memory, read_from_shared_memory, write_to_shared_memory

from maskgym.errors import UserError

NO_CHARACTER = -1  # fills up the code points of a text that is shorter than its space allows
SAMPLE_ALPHABET = "abcdefghijklmnopqrstuvwxyz <>/[]"


class FreeText(Text):
    """Text of any script up to a length; it may be empty.

    Gymnasium's ``Text`` checks each character against a set, which takes a second and half a gigabyte for all of
    Unicode. This ``contains`` checks type and length only. Samples come from a small alphabet. Flattened, and in the
    shared memory of `gymnasium.vector.AsyncVectorEnv`, a text is its code points, int32 (max_length,), filled up by -1.

    Args:
        max_length: Maximum number of characters.
        seed: Seed of the samples.

    Example:
        >>> "" in FreeText(10), "日本" in FreeText(10), "x" * 11 in FreeText(10)
        (True, True, False)
    """

    def __init__(self, max_length: int, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length, min_length=0, charset=SAMPLE_ALPHABET, seed=seed)

    def contains(self, x: Any) -> bool:
        """Check that ``x`` is a text of at most ``max_length`` characters."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"FreeText({self.max_length})"


class ImageSpace(Space[np.ndarray]):
    """RGB images, uint8 (H, W, 3), of any height and width from 1 pixel.

    Gymnasium batches them as a tuple. Samples are noise with sides of at most 64 pixels.

    Example:
        >>> np.zeros((5, 7, 3), np.uint8) in ImageSpace(), np.zeros((5, 7)) in ImageSpace()
        (True, False)
    """

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(shape=None, dtype=np.uint8, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """Return False, because the images have no common shape."""
        return False

    def sample(self, mask: None = None, probability: None = None) -> np.ndarray:
        """Draw a noise image."""
        height, width = self.np_random.integers(1, 65, size=2)
        return self.np_random.integers(0, 256, size=(height, width, 3), dtype=np.uint8)

    def contains(self, x: Any) -> bool:
        """Check that ``x`` is such an image."""
        return isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] == 3 and x.size > 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageSpace)

    def __repr__(self) -> str:
        return "ImageSpace()"


class ImageGroupSpace(Space[np.ndarray]):
    """Groups of square RGB images, uint8 (k, S, S, 3), of 1 to ``most`` images.

    Gymnasium batches them as a tuple. Samples are noise.

    Args:
        most: Largest number of images.
        side: S, pixels.
        seed: Seed of the samples.

    Example:
        >>> [np.zeros((count, 8, 8, 3), np.uint8) in ImageGroupSpace(3, 8) for count in (0, 2, 4)]
        [False, True, False]
    """

    def __init__(self, most: int, side: int, seed: int | np.random.Generator | None = None) -> None:
        self.most, self.side = most, side
        super().__init__(shape=None, dtype=np.uint8, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """Return False, because the groups have no common shape."""
        return False

    def sample(self, mask: None = None, probability: None = None) -> np.ndarray:
        """Draw a group of noise images."""
        count = int(self.np_random.integers(1, self.most + 1))
        return self.np_random.integers(0, 256, size=(count, self.side, self.side, 3), dtype=np.uint8)

    def contains(self, x: Any) -> bool:
        """Check that ``x`` is such a group."""
        square = (self.side, self.side, 3)
        return isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.shape[1:] == square and 1 <= len(x) <= self.most

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageGroupSpace) and (self.most, self.side) == (other.most, other.side)

    def __repr__(self) -> str:
        return f"ImageGroupSpace({self.most}, {self.side})"


@flatten_space.register(FreeText)
def _flatten_text_space(space: FreeText) -> Box:
    return Box(NO_CHARACTER, 0x10FFFF, (space.max_length,), np.int32)


# Gymnasium's functions have a type variable that nothing binds, so mypy takes no space for one of theirs.
@flatten.register(FreeText)
def _flatten_text(space: FreeText, x: str) -> np.ndarray:  # type: ignore[misc]
    codes = np.full(space.max_length, NO_CHARACTER, np.int32)
    codes[: len(x)] = np.frombuffer(x.encode("utf-32-le", "surrogatepass"), np.int32)
    return codes


@unflatten.register(FreeText)
def _unflatten_text(space: FreeText, x: np.ndarray) -> str:  # type: ignore[misc]  # as above
    return "".join(map(chr, x[x != NO_CHARACTER].tolist()))


@create_shared_memory.register(FreeText)
def _create_text_memory(space: FreeText, n: int = 1, ctx: BaseContext | None = None) -> SynchronizedArray:
    return (ctx or multiprocessing.get_context()).Array("i", n * space.max_length)


@write_to_shared_memory.register(FreeText)
def _write_text(space: FreeText, index: int, value: str, shared_memory: SynchronizedArray) -> None:
    _texts(space, shared_memory)[index] = flatten(space, value)


class SharedTexts(Sequence[str]):
    """View of the texts in shared memory, whose copies are tuples.

    `gymnasium.vector.AsyncVectorEnv` reads its memory once, before any environment has written to it, and copies what
    it read after each step.

    Args:
        space: Space of one text.
        memory: Code points of all texts.
    """

    def __init__(self, space: FreeText, memory: SynchronizedArray) -> None:
        self._space, self._rows = space, _texts(space, memory)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        return _unflatten_text(self._space, self._rows[index])

    def __deepcopy__(self, memo: dict) -> tuple[str, ...]:
        return tuple(self)


@read_from_shared_memory.register(FreeText)
def _read_texts(space: FreeText, shared_memory: SynchronizedArray, n: int = 1) -> SharedTexts:
    return SharedTexts(space, shared_memory)


def _texts(space: FreeText, memory: SynchronizedArray) -> np.ndarray:
    """View the memory as the code points of each sub-environment, int32 (n, max_length)."""
    return np.frombuffer(memoryview(memory.get_obj()), np.int32).reshape(-1, space.max_length)


@create_shared_memory.register(ImageSpace)
@create_shared_memory.register(ImageGroupSpace)
def _refuse_images(space: ImageSpace | ImageGroupSpace, n: int = 1, ctx: BaseContext | None = None) -> None:
    fixed = "image_size=…" if isinstance(space, ImageSpace) else "whole_groups=False"
    raise UserError(f"images of any size or number have no shared memory: expected {fixed}, or shared_memory=False")


@flatten_space.register(ImageSpace)
@flatten_space.register(ImageGroupSpace)
def _refuse_flat_images(space: ImageSpace | ImageGroupSpace) -> None:
    fixed = "image_size=…" if isinstance(space, ImageSpace) else "whole_groups=False"
    raise UserError(f"images of any size or number cannot be flattened: expected {fixed}")
