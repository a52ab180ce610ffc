"""Parts of the training samples: some to imitate, others for reinforcement learning, none that is held out.

Saliency-R1 (section 4.2) imitates 2,640, 2,467 and 1,262 samples of the three tasks, and continues with 3,000 per task:
1,800 that were held out from the first, and 1,200 of the first again for the interleaved supervised steps. Its Table 4
counts the training images as 2,640 + 1,800, 2,467 + 1,800 and 8 x (1,262 + 1,800), which confirms this reading.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

import numpy as np
from tqdm import tqdm

from maskgym.aliases import JsonObject
from maskgym.data.published import PUBLISHED
from maskgym.data.sample import Dataset
from maskgym.errors import UserError

TOGETHER = 256  # samples whose photos are read in one go


@dataclass(frozen=True)
class Counts:
    """Sizes of the parts of one task.

    Attributes:
        sft: Samples to imitate in supervised training; None for all that have a rationale.
        rl: Samples of reinforcement learning, none of which is in ``sft``; None for all others.
        isr: Samples of ``sft`` for interleaved supervised steps; None for all of them.
    """

    sft: int | None = None
    rl: int | None = None
    isr: int | None = None

    @property
    def asked(self) -> bool:
        """Whether there are parts at all; if not, the whole training split serves everything."""
        return self != Counts()


@dataclass(frozen=True)
class Shared:
    """A training sample with a photo of a held-out sample.

    Attributes:
        key: Key of the training sample.
        held_out: Task and key of the held-out sample, or the set that the photo was taken from.
        why: ``pixels`` if the photos are equal, ``origin`` if the photo's name states where it is from.
    """

    key: str
    held_out: str
    why: str


@dataclass(frozen=True)
class Parts:
    """Indices of the samples of each part in the training split of a task, in ascending order.

    Attributes:
        rl: Samples of reinforcement learning.
        sft: Samples to imitate in supervised training.
        isr: Samples of ``sft`` for interleaved supervised steps.
        shared: Samples that are in no part, because they show a held-out photo.
    """

    rl: tuple[int, ...]
    sft: tuple[int, ...]
    isr: tuple[int, ...]
    shared: tuple[Shared, ...]


class HeldOut:
    """Photos of held-out samples, which no training sample may show.

    Photos are compared by the hash of their decoded pixels, so a copy in another file or format is found, and one that
    was resized or compressed again is not. Photos whose name states that they are from a held-out set are found too.

    Args:
        datasets: Held-out data sets, with the name of their task.
    """

    def __init__(self, datasets: Iterable[tuple[str, Dataset]]) -> None:
        self._keys: dict[bytes, str] = {}
        self._sets: set[str] = set()
        for task, dataset in datasets:
            self._sets |= set(dataset.sets)
            for index, photos in digests(dataset, range(len(dataset)), f"held out, {task}"):
                for photo in photos:
                    self._keys.setdefault(photo, f"{task}: {dataset.keys[index]}")

    def find(self, key: str, photos: Collection[bytes]) -> Shared | None:
        """Find what a training sample has in common with a held-out one.

        Args:
            key: Key of the training sample, which begins with the name of its set.
            photos: Hashes of its photos.
        """
        for photo in photos:
            if photo in self._keys:
                return Shared(key, self._keys[photo], "pixels")
        name = key.partition("/")[0]
        for start, origin in (PUBLISHED[name].origins if name in PUBLISHED else {}).items():
            if origin in self._sets and PurePosixPath(key).name.startswith(start):
                return Shared(key, origin, "origin")
        return None


def draw(
    task: str, dataset: Dataset, held_out: HeldOut, counts: Counts, seed: int, imitable: Collection[int] | None
) -> Parts:
    """Draw the parts of a task's training split, deterministic in the seed.

    Samples are taken in a random order: the first that can be imitated are ``sft``, the first others ``rl``, and the
    first of ``sft`` are ``isr``. Without counts, every sample is ``rl`` and every one that can be imitated ``sft``.
    Photos are read in that order, and no more than needed.

    Args:
        task: Name of the task.
        dataset: Its training split.
        held_out: Photos that no part may show.
        counts: Sizes of the parts.
        seed: Seed of the order.
        imitable: Indices of the samples with a rationale; None if the rationales are still to be written, for any.

    Raises:
        UserError: If there are fewer samples than the parts take.
    """
    order = (
        np.random.default_rng([seed, len(dataset)]).permutation(len(dataset)) if counts.asked else range(len(dataset))
    )
    can = range(len(dataset)) if imitable is None else frozenset(imitable)
    shared: dict[int, Shared] = {}

    def usable(indices: Iterable[int]) -> Iterator[int]:
        """Yield the indices of samples without a held-out photo; remember the others."""
        fresh = [int(index) for index in indices if int(index) not in shared]
        for index, photos in digests(dataset, fresh, f"photos of {task}"):
            found = held_out.find(dataset.keys[index], photos)
            if found is None:
                yield index
            else:
                shared[index] = found

    if not counts.asked:
        every = tuple(usable(order))
        imitated = tuple(index for index in every if index in can) if imitable is not None else ()
        return Parts(every, imitated, imitated, tuple(shared.values()))
    first = 0 if counts.sft is None and imitable is None else counts.sft
    sft = list(islice(usable(index for index in order if int(index) in can), first))
    taken = frozenset(sft)
    rl = list(islice(usable(index for index in order if int(index) not in taken), counts.rl))
    isr = sft[: counts.isr]
    _check(task, dataset, counts, len(can), len(shared), len(sft), len(rl), len(isr))
    return Parts(tuple(sorted(rl)), tuple(sorted(sft)), tuple(sorted(isr)), tuple(shared.values()))


def _check(task: str, dataset: Dataset, counts: Counts, can: int, shared: int, sft: int, rl: int, isr: int) -> None:
    """Raise a UserError if a part has fewer samples than were asked for."""
    names = ", ".join(dict.fromkeys(dataset.sets)) or task
    told = f"data.{task}={names} has {len(dataset):,} training samples"
    told += f", {shared:,} of the ones looked at show held-out photos" * bool(shared)
    if counts.sft is not None and sft < counts.sft:
        some = f", {can:,} of them with a rationale" if can < len(dataset) else ""
        raise UserError(f"data.parts.sft.{task}={counts.sft}: {told}{some}: expected at most {sft}")
    if counts.rl is not None and rl < counts.rl:
        raise UserError(
            f"data.parts.rl={counts.rl}: {told}, {sft:,} of them imitated: expected at most {rl} for {task}"
        )
    if counts.isr is not None and isr < counts.isr:
        raise UserError(f"data.parts.isr={counts.isr}: {task} has {sft:,} samples to imitate: expected at most {sft}")
    if counts.rl != 0 and not rl:
        raise UserError(f"data.parts: {told}, {sft:,} of them imitated: none is left for reinforcement learning")


def digests(dataset: Dataset, indices: Sequence[int], label: str) -> Iterator[tuple[int, tuple[bytes, ...]]]:
    """Yield each index with the hashes of its photos' pixels, in order; photos are decoded by several threads.

    Args:
        dataset: Data set of the photos.
        indices: Indices of its samples.
        label: Name of the progress bar.
    """
    with (
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
        tqdm(total=len(indices), desc=label, unit="sample", disable=None, leave=False) as bar,
    ):
        for start in range(0, len(indices), TOGETHER):
            chunk = indices[start : start + TOGETHER]
            photos = pool.map(lambda index: tuple(map(digest, dataset.photos(index))), chunk)
            for index, found in zip(chunk, photos, strict=True):
                bar.update()
                yield index, found


def digest(photo: np.ndarray) -> bytes:
    """Compute the hash of a photo's size and pixels, uint8 (H, W, 3)."""
    return hashlib.blake2b(photo.tobytes(), digest_size=16, key=str(photo.shape).encode()).digest()


def listing(task: str, dataset: Dataset, parts: Parts) -> JsonObject:
    """List the keys of a task's parts as JSON types."""
    keys = dataset.keys
    return {
        "samples": len(dataset),
        **{name: [keys[index] for index in getattr(parts, name)] for name in ("rl", "sft", "isr")},
        "shared": [{"key": one.key, "held_out": one.held_out, "why": one.why} for one in parts.shared],
    }
