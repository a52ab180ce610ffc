"""What a data set yields, and what a data set is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from maskgym.errors import UserError

SPLITS = ("train", "validation", "test")
# What is asked for, in words, by tasks whose samples all ask for the same.
CATEGORIES = {"sod": "salient object", "blur": "blur", "shadow": "shadow", "glass": "glass"}


@dataclass(frozen=True)
class Sample:
    """One thing to segment: an image, or a group of images, with its truth.

    Attributes:
        key: Unique name in its data set.
        images: One uint8 (H_k, W_k, 3) RGB array an image.
        masks: One bool (n_k, H_k, W_k) array an image, one row an instance; n_k may be 0 in a group (an image
            without the common object).
        void: One bool (H_k, W_k) array an image, True where pixels are not scored, or None.
        phrases: For each image, one referring expression a mask row, or None where the data has no words.
        category: What a co-salient group has in common, or the class asked for, or None.
        need: What the user is looking for, in words, or None.
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
        """Return bool (H, W): the union of all masks of one image."""
        return np.logical_or.reduce(self.masks[image], axis=0)


@runtime_checkable
class Dataset(Protocol):
    """A finite, ordered collection of samples of one split; reading the same index gives the same sample.

    Attributes:
        task: ``sod``, ``sis`` or ``cosod``: how the masks are meant.
        split: ``train``, ``validation`` or ``test``.
    """

    task: str
    split: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Subset:
    """Some samples of a data set, in their order.

    Args:
        dataset: Where they are from.
        indices: Theirs there.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, tuple(int(index) for index in indices)
        self.task, self.split = dataset.task, dataset.split

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]


def few_shot(dataset: Dataset, count: int, seed: int = 0) -> Subset:
    """Return ``count`` different samples of a data set, drawn at random; the same seed draws the same ones.

    Raises:
        UserError: If the data set has fewer.
    """
    if not 1 <= count <= len(dataset):
        raise UserError(f"{count} samples to train on: expected 1 to {len(dataset)}, all of the {dataset.split} split")
    drawn = np.random.default_rng([seed, count]).permutation(len(dataset))[:count]
    return Subset(dataset, sorted(drawn))


def split_of(key: str) -> str:
    """Return the split of a key by its hash: 80 % train, 10 % validation, 10 % test, stable for ever."""
    bucket = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
    return SPLITS[0] if bucket < 8 else SPLITS[bucket - 7]
