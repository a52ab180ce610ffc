"""Interfaces of samples and data sets."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskgym.errors import UserError

SPLITS = ("train", "validation", "test")
# Default need of each task whose samples share one need.
CATEGORIES = {
    **{"sod": "salient object", "blur": "blur", "shadow": "shadow", "glass": "glass"},
    **{"camouflage": "camouflaged object"},
}


@dataclass(frozen=True)
class Sample:
    """One sample: an image, or a group of images, with its ground truth.

    Attributes:
        key: Unique name in its data set.
        images: One uint8 (H_k, W_k, 3) RGB array per image.
        masks: One bool (n_k, H_k, W_k) array per image, one row per instance; n_k may be 0 in a group (an image
            without the common object), and where the need means nothing in the image.
        void: One bool (H_k, W_k) array per image, True where pixels are not scored, or None.
        phrases: For each image, one referring expression per mask row, or None.
        category: Common object of a co-salient group, or the requested class, or None.
        need: Text of what the user is looking for, or None.
        ranks: For each image, float (n_k,), larger is more salient, or None.
        rationale: The whole answer text to imitate (``<think>…</think><answer>…</answer>``), or None.
    """

    key: str
    images: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    void: tuple[np.ndarray, ...] | None = None
    phrases: tuple[tuple[str, ...], ...] | None = None
    category: str | None = None
    need: str | None = None
    ranks: tuple[np.ndarray, ...] | None = None
    rationale: str | None = None

    def union(self, image: int = 0) -> np.ndarray:
        """Compute the union of all masks of one image, bool (H, W)."""
        return np.logical_or.reduce(self.masks[image], axis=0)


@dataclass(frozen=True)
class Pair:
    """A photo and its mask; ``key`` is the photo's path under the root without suffix and images folder."""

    key: str
    image: Path
    mask: Path


class Dataset(ABC):
    """A finite, ordered collection of samples of one split; reading the same index gives the same sample.

    A subclass sets ``task`` and ``split``, and defines ``len`` and indexing. The other members have defaults; a reader
    that knows its files sets them.

    Attributes:
        task: ``sod``, ``sis`` or ``cosod``: meaning of the masks.
        split: ``train``, ``validation``, ``test``, or ``all``.
    """

    task: str
    split: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    @cached_property
    def shown(self) -> str:
        """Task as requested, such as ``blur``, if it says more than ``task``."""
        return self.task

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Key of each sample; by default every sample is read for it."""
        return tuple(self[index].key for index in range(len(self)))

    @cached_property
    def with_rationale(self) -> tuple[int, ...]:
        """Indices of the samples with a rationale; by default every sample is read for it."""
        return tuple(index for index in range(len(self)) if self[index].rationale)

    def category(self, index: int) -> str | None:
        """Look up the category of one sample; a reader does so without the sample."""
        return self[index].category

    @property
    def mask_files(self) -> tuple[tuple[str, Path], ...]:
        """Key and mask file of each photo; empty unless each photo has one mask file."""
        return ()

    @property
    def sets(self) -> tuple[str, ...]:
        """Name of each sample's set, if several named sets were put together; else empty."""
        return ()

    def photos(self, index: int) -> tuple[np.ndarray, ...]:
        """Read the photos of one sample, uint8 (H, W, 3) each; a reader does so without their masks."""
        return self[index].images

    def pairs(self, index: int) -> tuple[Pair, ...]:
        """List the files of one sample that is a group of photos; empty for other samples."""
        return ()

    def describe(self) -> list[str]:
        """List what is unusual about the data, one line each: what is left out, and doubtful masks. It is cheap."""
        return []


class Subset(Dataset):
    """Subset of a data set, in the order of the indices.

    Args:
        dataset: Source data set.
        indices: Indices of the samples in the data set.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, tuple(int(index) for index in indices)
        self.task, self.split = dataset.task, dataset.split

    @cached_property
    def shown(self) -> str:
        """Task as requested."""
        return self.dataset.shown

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Key of each sample."""
        return tuple(self.dataset.keys[index] for index in self.indices)

    @cached_property
    def with_rationale(self) -> tuple[int, ...]:
        """Indices of the samples with a rationale."""
        with_one = frozenset(self.dataset.with_rationale)
        return tuple(place for place, index in enumerate(self.indices) if index in with_one)

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """Name of each sample's set, if the source puts several together."""
        return tuple(self.dataset.sets[index] for index in self.indices) if self.dataset.sets else ()

    def category(self, index: int) -> str | None:
        """Look up the category of one sample."""
        return self.dataset.category(self.indices[index])

    def photos(self, index: int) -> tuple[np.ndarray, ...]:
        """Read the photos of one sample."""
        return self.dataset.photos(self.indices[index])

    def pairs(self, index: int) -> tuple[Pair, ...]:
        """List the files of one sample that is a group of photos."""
        return self.dataset.pairs(self.indices[index])

    def describe(self) -> list[str]:
        """List what is unusual about the source data set."""
        return self.dataset.describe()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]


def few_shot(dataset: Dataset, count: int, seed: int = 0) -> Subset:
    """Draw ``count`` distinct random samples of a data set, deterministic in the seed.

    Raises:
        UserError: If the data set has fewer samples.
    """
    if not 1 <= count <= len(dataset):
        raise UserError(f"{count} samples to train on: expected 1 to {len(dataset)}, all of the {dataset.split} split")
    drawn = np.random.default_rng([seed, count]).permutation(len(dataset))[:count]
    return Subset(dataset, sorted(drawn))


def few_shot_per_category(dataset: Dataset, count: int, seed: int = 0) -> Subset:
    """Draw ``count`` distinct random samples of each category of a data set, deterministic in the seed.

    Raises:
        UserError: If a category has fewer samples, or a sample has no category.
    """
    drawn: list[int] = []
    for category, rows in by_category(dataset).items():
        if len(rows) < count:
            told = f"the {dataset.split} split has {len(rows)} of '{category}'"
            raise UserError(f"{count} samples per category to train on: {told}")
        drawn += (rows[place] for place in few_shot(Subset(dataset, rows), count, seed).indices)
    return Subset(dataset, sorted(drawn))


def by_category(dataset: Dataset) -> dict[str, list[int]]:
    """Group the indices of a data set's samples by their category, sorted by its name.

    Raises:
        UserError: If a sample has no category.
    """
    found: dict[str, list[int]] = {}
    label = f"categories, {dataset.split}"
    for index in tqdm(range(len(dataset)), desc=label, unit="sample", disable=None, leave=False):
        category = dataset.category(index)
        if category is None:
            raise UserError(f"sample '{dataset[index].key}' has no category: expected data of env.task=semantic")
        found.setdefault(category, []).append(index)
    return dict(sorted(found.items()))


def split_of(key: str) -> str:
    """Compute the split of a key from its hash: 80 % train, 10 % validation, 10 % test; permanently stable."""
    bucket = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
    return SPLITS[0] if bucket < 8 else SPLITS[bucket - 7]
