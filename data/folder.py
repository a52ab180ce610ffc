"""Photos with one mask each: DUTS, ECSSD, DUT-OMRON, PASCAL-S, HKU-IS, … and folders of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .images import FOREGROUND, DataFault, read_pair
from .layout import assign_splits, check_excluded, check_listing, check_root, find_pairs, select
from .sample import Sample


class Folder:
    """Pairs of photo and mask, for salient object detection; one pair a sample.

    Folders are found by the names that public sets use (see :mod:`maskgym.data.layout`) and files are paired by
    stem. Listing happens here and decodes nothing; a sample is decoded, and checked, each time it is asked for.

    Args:
        root: The data set's folder.
        task: ``sod``.
        split: ``train``, ``validation``, ``test``, or ``all``.
        images: Folder of the photos under the root, where its name is not a usual one.
        masks: Folder of the masks likewise; may be the same.
        splits: ``auto``: by split folders or ``train.txt``, ``val.txt``, ``test.txt`` where these exist, else by
            the hash of the key; ``hash``: always by hash.
        exclude: Keys to leave out, such as the three pairs of DUTS-TR whose sizes differ.
        strict: Raise on what listing finds; False keeps it in ``faults`` and leaves those files out.

    Attributes:
        keys: The key of each sample: the photo's path under the root, without suffix and images folder.
        splits: The split of each sample (None: on none of the lists).
        faults: What listing found wrong, one line each.
        notes: Nothing: what listing leaves out without a fault.

    Raises:
        UserError: If an argument cannot be used, or the split is empty.
        DataFault: If strict and a photo or mask lacks its partner, or there is no pair at all.
    """

    def __init__(
        self,
        root: str | Path | None,
        task: str = "sod",
        split: str = "train",
        images: str | None = None,
        masks: str | None = None,
        splits: str = "auto",
        exclude: Sequence[str] = (),
        strict: bool = True,
    ) -> None:
        self.root = check_root("folder", root, task, ("sod",), split)
        self.task, self.split = task, split
        pairs, faults = find_pairs(self.root, images, masks)
        assigned, list_faults = assign_splits(self.root, [pair.key for pair in pairs], splits)
        self.faults, self.notes = (*faults, *list_faults), ()
        if strict:
            check_listing(self.root, split, assigned.values(), self.faults)
        excluded = check_excluded(exclude, assigned)
        self._pairs = [pair for pair in pairs if select(split, assigned[pair.key]) and pair.key not in excluded]
        self.keys = tuple(pair.key for pair in self._pairs)
        self.splits = tuple(assigned[key] for key in self.keys)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        """Return one photo, uint8 (H, W, 3), with its mask, bool (1, H, W).

        Raises:
            DataFault: If a file cannot be decoded, the sizes differ, or no pixel of the mask is above 128.
        """
        pair = self._pairs[index]
        image, levels = read_pair(pair.image, pair.mask)
        mask = levels > FOREGROUND
        if not mask.any():
            raise DataFault(f"{pair.mask}: an empty mask: no level above {FOREGROUND}, the highest is {levels.max()}")
        return Sample(key=pair.key, images=(image,), masks=(mask[None],))
