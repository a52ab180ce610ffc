"""Several data sets of one task as one, each under its name."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from maskgym.data.sample import Dataset, Pair, Sample


class Concatenated(Dataset):
    """Data sets of one task and one split, one after another.

    The order is that of the mapping, and within a set that of the set, so the same split and index always give the same
    sample. Every key begins with the name of its set and a slash.

    Args:
        parts: At least one data set, by name.

    Attributes:
        parts: The data sets by name.
        keys: The key of each sample, ``name/key``.
        sets: The name of each sample's set.
    """

    def __init__(self, parts: Mapping[str, Dataset]) -> None:
        self.parts = dict(parts)
        first = next(iter(self.parts.values()))
        self.task, self.split = first.task, first.split
        self._names = tuple(self.parts)
        self._ends = tuple(accumulate(len(part) for part in self.parts.values()))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Key of each sample, which begins with the name of its set."""
        return tuple(f"{name}/{key}" for name, part in self.parts.items() for key in part.keys)

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """Name of each sample's set."""
        return tuple(name for name, part in self.parts.items() for _ in range(len(part)))

    @cached_property
    def with_rationale(self) -> tuple[int, ...]:
        """Indices of the samples with a rationale."""
        starts = (0, *self._ends)
        parts = zip(starts, self.parts.values(), strict=False)
        return tuple(start + index for start, part in parts for index in part.with_rationale)

    @property
    def mask_files(self) -> tuple[tuple[str, Path], ...]:
        """Key and mask file of each photo; empty unless each photo of every set has one mask file."""
        files = {name: part.mask_files for name, part in self.parts.items()}
        if not all(files.values()):
            return ()
        return tuple((f"{name}/{key}", file) for name, pairs in files.items() for key, file in pairs)

    def pairs(self, index: int) -> tuple[Pair, ...]:
        """List the files of one sample that is a group of photos."""
        name, part, own = self._find(index)
        return tuple(replace(pair, key=f"{name}/{pair.key}") for pair in part.pairs(own))

    def photos(self, index: int) -> tuple[np.ndarray, ...]:
        """Read the photos of one sample."""
        _, part, own = self._find(index)
        return part.photos(own)

    def describe(self) -> list[str]:
        """List what is unusual about each set, by its name."""
        return [f"{name}: {note}" for name, part in self.parts.items() for note in part.describe()]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        name, part, own = self._find(index)
        sample = part[own]
        return replace(sample, key=f"{name}/{sample.key}")

    def _find(self, index: int) -> tuple[str, Dataset, int]:
        """Find the name of an index's set, the set, and the index in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = bisect_right(self._ends, index)
        name = self._names[place]
        return name, self.parts[name], index - (self._ends[place - 1] if place else 0)
