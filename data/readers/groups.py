"""Reader of groups of photos with a common object: CoCA, CoSal2015, CoSOD3k, iCoseg, … and custom folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from maskgym.data.layout.images import FOREGROUND, DataFault, read_all, read_image, read_pair
from maskgym.data.layout.listing import Listing, Reader, check_root
from maskgym.data.layout.pairs import find_pairs, without_faulty
from maskgym.data.readers.folder import look_at_masks
from maskgym.data.sample import Pair, Sample
from maskgym.errors import UserError


class Groups(Reader):
    """Groups of photos for co-salient object detection; further arguments and attributes: see `Reader`.

    The layout is that of :class:`~maskgym.data.readers.folder.Folder`, with one folder per group in the images and in
    the masks folder. A group is in one split as a whole.

    Args:
        task: ``cosod``.
        group_size: Photos per sample: each group is cut into chunks of that many in order of name, the last one
            shorter; None gives the whole group.
        images: Folder of the photos under the root, if its name is unusual.
        masks: Folder of the masks, as ``images``.
        splits: See `Reader`; lists and hashes are of the names of groups.
        exclude: Photos to leave out, as ``group/stem``.
        faulty: Names of files, without suffix, that are known to be faulty and are left out.

    Attributes:
        keys: The key of each sample: ``group/chunk``, chunks counted from 0.
        notes: Files left out without a fault: the ``faulty`` ones.
    """

    def __init__(
        self,
        root: str | Path | None,
        task: str = "cosod",
        split: str = "train",
        group_size: int | None = None,
        images: str | None = None,
        masks: str | None = None,
        splits: str = "auto",
        exclude: Sequence[str | float] = (),
        faulty: Sequence[str] = (),
        strict: bool = True,
    ) -> None:
        self.root = check_root("groups", root, task, ("cosod",), split)
        if group_size is not None and group_size < 1:
            raise UserError(f"data.group_size={group_size}: expected a number of photos, 1 or more, or null")
        self.task, self.split = task, split
        listing = Listing(self.root, split, exclude)
        pairs = without_faulty(listing, find_pairs(listing, images, masks, faulty), faulty)
        excluded = listing.check_excluded(pair.key for pair in pairs)
        groups: dict[str, list[Pair]] = {}
        for pair in pairs:
            if pair.key not in excluded:
                groups.setdefault(str(PurePosixPath(pair.key).parent), []).append(pair)
        if loose := groups.pop(".", []):
            where = f"{loose[0].image}: in no group"
            listing.faults.append(f"{where}: expected one folder per group ({len(loose)} such photos)")
        assigned = listing.assign(groups, splits)
        self.finish(listing, strict, assigned.values())
        self._chunks = [
            (name, start // size, group[start : start + size])
            for name, group in groups.items()
            if listing.selects(assigned[name])
            for size in [group_size or len(group)]
            for start in range(0, len(group), size)
        ]
        self.keys = tuple(f"{name}/{chunk}" for name, chunk, _ in self._chunks)
        self.splits = tuple(assigned[name] for name, _, _ in self._chunks)

    @property
    def mask_files(self) -> tuple[tuple[str, Path], ...]:
        """Key of each photo, ``group/stem``, with the file of its mask."""
        return tuple((pair.key, pair.mask) for _, _, pairs in self._chunks for pair in pairs)

    def pairs(self, index: int) -> tuple[Pair, ...]:
        """List the files of one sample."""
        return tuple(self._chunks[index][2])

    def photos(self, index: int) -> tuple[np.ndarray, ...]:
        """Read the photos of one sample without their masks."""
        return tuple(read_image(pair.image) for pair in self.pairs(index))

    def look(self, index: int, sample: Sample) -> Iterator[tuple[str, str | None]]:
        """Yield, for each photo, the name of its mask's file, and what is unusual about it."""
        yield from look_at_masks(self.pairs(index))

    def __getitem__(self, index: int) -> Sample:
        """Read at most ``group_size`` photos; a photo without the common object has masks of shape (0, H, W).

        Raises:
            DataFault: If a file cannot be decoded, sizes differ, or no mask of the sample has a pixel above 128.
        """
        name, chunk, pairs = self._chunks[index]
        read = read_all(partial(read_pair, pair.image, pair.mask) for pair in pairs)
        masks = [(levels > FOREGROUND)[None] for _, levels in read]
        if not any(mask.any() for mask in masks):
            highest = max(levels.max() for _, levels in read)
            raise DataFault(
                f"{pairs[0].mask.parent}: only empty masks in {name}/{chunk}: "
                f"no level above {FOREGROUND}, the highest is {highest}"
            )
        return Sample(
            key=self.keys[index],
            images=tuple(image for image, _ in read),
            masks=tuple(mask if mask.any() else mask[:0] for mask in masks),
            category=PurePosixPath(name).name,
        )
