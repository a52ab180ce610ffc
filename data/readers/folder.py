"""Reader of photos with one mask each: salient or camouflaged objects, blur, shadow, glass, a class, or custom sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from maskgym.data.layout.images import FOREGROUND, DataFault, inspect_mask, read_image, read_pair
from maskgym.data.layout.listing import Listing, Reader, check_root
from maskgym.data.layout.pairs import find_pairs, without_faulty
from maskgym.data.needs import ASKED, reads_no_target
from maskgym.data.sample import CATEGORIES, Pair, Sample
from maskgym.errors import UserError


class Folder(Reader):
    """Pairs of photo and mask; one pair per sample. Further arguments and attributes: see `Reader`.

    Folders are found by the names that public sets use (see :mod:`maskgym.data.layout.pairs`) and files are paired by
    stem.

    Args:
        task: What the masks show: ``sod``, ``blur``, ``shadow``, ``glass``, ``camouflage``; or ``semantic``: the class
            that the folder of the photo is named after. With ``need`` and ``refer`` the masks show ``shows``, and its
            category, such as "camouflaged object", is the need of every sample.
        images: Folder of the photos under the root, if its name is unusual.
        masks: Folder of the masks, as ``images``; may be the same.
        faulty: Names of files, without suffix, that are known to be faulty and are left out.
        shows: What the masks show with ``need`` and ``refer``: another ``task`` of those above.
        absent: Beginning of the names of photos that show nothing of it, such as ``COD10K-NonCAM``; None if all do.
        no_target: Whether to read these photos, with no mask; None reads them with ``refer`` and leaves them out else.

    Attributes:
        keys: The key of each sample: the photo's path under the root, without suffix and images folder.
        task: ``sod``, because each image has one region.
        notes: Files left out without a fault: the ``faulty`` and the ``absent`` ones.
    """

    def __init__(
        self,
        root: str | Path | None,
        task: str = "sod",
        split: str = "train",
        images: str | None = None,
        masks: str | None = None,
        splits: str = "auto",
        exclude: Sequence[str | float] = (),
        faulty: Sequence[str] = (),
        strict: bool = True,
        shows: str = "sod",
        absent: str | None = None,
        no_target: bool | None = None,
    ) -> None:
        self.root = check_root("folder", root, task, (*CATEGORIES, "semantic", *ASKED), split)
        if shows not in (*CATEGORIES, "semantic"):
            raise UserError(f"data.shows={shows}: expected one of {', '.join((*CATEGORIES, 'semantic'))}")
        self.shown, self.task, self.split = task, "sod", split  # one region per image is read as ``sod``
        self._shows, self._absent, self._asked = shows if task in ASKED else task, absent, task in ASKED
        listing = Listing(self.root, split, exclude)
        pairs = without_faulty(listing, find_pairs(listing, images, masks, faulty), faulty)
        if not reads_no_target(task, no_target):
            listing.leave_out((pair.image.name for pair in pairs if self._is_without(pair)), f"without {self._named()}")
            pairs = [pair for pair in pairs if not self._is_without(pair)]
        assigned = listing.assign([pair.key for pair in pairs], splits)
        self.finish(listing, strict, assigned.values())
        excluded = listing.check_excluded(assigned)
        self._pairs = [pair for pair in pairs if listing.selects(assigned[pair.key]) and pair.key not in excluded]
        self.keys = tuple(pair.key for pair in self._pairs)
        self.splits = tuple(assigned[key] for key in self.keys)

    @property
    def mask_files(self) -> tuple[tuple[str, Path], ...]:
        """Key of each photo, with the file of its mask."""
        return tuple((pair.key, pair.mask) for pair in self._pairs)

    def look(self, index: int, sample: Sample) -> Iterator[tuple[str, str | None]]:
        """Yield the name of the mask's file, and what is unusual about it."""
        yield from look_at_masks([self._pairs[index]])

    def photos(self, index: int) -> tuple[np.ndarray, ...]:
        """Read one photo without its mask."""
        return (read_image(self._pairs[index].image),)

    def category(self, index: int) -> str | None:
        """Look up the category of one sample without its files."""
        return self._category(self._pairs[index])

    def __getitem__(self, index: int) -> Sample:
        """Read one photo, uint8 (H, W, 3), with its mask, bool (1, H, W), or (0, H, W) of a photo that shows nothing.

        Raises:
            DataFault: If a file cannot be decoded, the sizes differ, no pixel of the mask is above 128, a pixel of an
                ``absent`` one is, or the masks show a class and the photo is in no folder of its own.
        """
        pair = self._pairs[index]
        image, levels = read_pair(pair.image, pair.mask)
        mask, without = levels > FOREGROUND, self._is_without(pair)
        if not mask.any() and not without:
            raise DataFault(f"{pair.mask}: an empty mask: no level above {FOREGROUND}, the highest is {levels.max()}")
        if mask.any() and without:
            raise DataFault(f"{pair.mask}: a mask that is not empty: names with '{self._absent}' show nothing")
        category = self._category(pair)
        masks = mask[None][: 0 if without else 1]
        need = category if self._asked else None
        return Sample(key=pair.key, images=(image,), masks=(masks,), category=category, need=need)

    def _is_without(self, pair: Pair) -> bool:
        """Check whether the name of a photo says that it shows nothing of what is asked for."""
        return self._absent is not None and pair.image.name.startswith(self._absent)

    def _named(self) -> str:
        """Return the words for what the masks show, with an article."""
        return f"a {CATEGORIES[self._shows]}" if self._shows in CATEGORIES else "an object of its class"

    def _category(self, pair: Pair) -> str:
        if self._shows in CATEGORIES:
            return CATEGORIES[self._shows]
        *_, folder, _ = ("", *Path(pair.key).parts)
        if not folder:
            raise DataFault(f"{pair.image}: task=semantic: expected a folder named after its class, as in car/1.jpg")
        return folder.replace("_", " ")


def look_at_masks(pairs: Iterable[Pair]) -> Iterator[tuple[str, str | None]]:
    """Yield, for each pair, the name of the mask's file and what is unusual about it."""
    for pair in pairs:
        kind = inspect_mask(pair.mask)[1]
        yield pair.mask.name, kind and f"{kind} (foreground is above {FOREGROUND})"
