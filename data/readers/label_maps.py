"""Reader of instances from label maps: ILSO, S4Net's copy of it, SOC, and custom folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskgym.data.layout.images import DataFault, check_same_size, read_all, read_image, read_labels
from maskgym.data.layout.listing import Listing, Reader, check_root
from maskgym.data.layout.names import split_in_name
from maskgym.data.layout.pairs import Place, find_places, pair_files
from maskgym.data.sample import Pair, Sample, split_of
from maskgym.errors import UserError

SPECKS = ("fault", "drop", "keep")
MOST = 255  # maximal number of instances in one map
_LIST_NAME = re.compile(r"(?:train|val|validation|test)(?:[-_]?ids?)?(?:[-_]?\d+k?)?\.txt", re.IGNORECASE)


@dataclass(frozen=True)
class Instances:
    """Decoded label map.

    Attributes:
        labels: int32 (n,), the labels in ascending order.
        masks: bool (n, H, W), one row per label.
        void: bool (H, W), the specks that were dropped, or None.
    """

    labels: np.ndarray
    masks: np.ndarray
    void: np.ndarray | None


class LabelMaps(Reader):
    """Photos with label maps of instances; one photo per sample. Further arguments and attributes: see `Reader`.

    A label is a palette's index, a grey level (of 8 or 16 bits) or a colour; 0 and black are background. Photos and
    maps are found by the names that public sets use (see :mod:`maskgym.data.layout.pairs`) and paired by stem. If
    instances have a folder beside that of the masks (``Imgs``, ``GT``, ``Instance gt``, as in SOC), it is read, and
    photos without a map there, or with a black one, are left out, because they show nothing salient. In this case the
    maps of the requested split are decoded at construction.

    An instance holds at least one block of 3x3 pixels. Labels without such a block are specks: artefacts of
    antialiasing and resizing, or slips of an annotator's pen.

    Args:
        task: ``sis``; or ``sod``: the same masks as one region.
        images: Folder of the photos under the root, if its name is unusual.
        masks: Folder of the label maps, as ``images``.
        lists: Part of a list's name, to select one of several lists of a split: ``1000`` takes ILSO's
            ``ImageSets/test_id_1000.txt``.
        specks: Treatment of specks: ``fault`` refuses the map; ``drop`` makes them void, not scored; ``keep`` makes
            them instances.
        splits: See `Reader`; lists in ``ImageSets`` count too. If only test photos are listed, as in ILSO, one in ten
            of the others, by hash, is validation.

    Attributes:
        keys: The key of each sample: the photo's path under the root, without suffix and images folder.
        notes: Photos left out without a fault because they show no salient object.
    """

    def __init__(
        self,
        root: str | Path | None,
        task: str = "sis",
        split: str = "train",
        images: str | None = None,
        masks: str | None = None,
        lists: str | None = None,
        specks: str = "fault",
        splits: str = "auto",
        exclude: Sequence[str | float] = (),
        strict: bool = True,
    ) -> None:
        self.root = check_root("label_maps", root, task, ("sis", "sod"), split)
        check_specks(specks)
        self.task, self.split, self.specks = task, split, specks
        listing = Listing(self.root, split, exclude)
        places = find_places(self.root, images, masks, instances=True)
        pairs, uncertain, absent = _pair(listing, places)
        found = _find_lists(self.root, [place.masks.parent for place in places if not place.split], lists)
        assigned = _assign(listing, [pair.key for pair in pairs], splits, found)
        asked = [pair for pair in pairs if listing.selects(assigned[pair.key])]
        black = _find_black([pair for pair in asked if pair.key in uncertain], self.root)
        by_folder = splits == "auto" and bool(places and places[0].split)
        blank = [path for own, path in absent if not by_folder or listing.selects(own)]
        names = sorted(path.name for path in (*blank, *black.values()))
        listing.leave_out(names, "without a salient object")
        self.finish(listing, strict, (assigned[pair.key] for pair in pairs if pair.key not in black))
        excluded = listing.check_excluded(assigned)
        self._pairs = [pair for pair in asked if pair.key not in black and pair.key not in excluded]
        self.keys = tuple(pair.key for pair in self._pairs)
        self.splits = tuple(assigned[key] for key in self.keys)

    def photos(self, index: int) -> tuple[np.ndarray, ...]:
        """Read one photo without its label map."""
        return (read_image(self._pairs[index].image),)

    def __getitem__(self, index: int) -> Sample:
        """Read one photo, uint8 (H, W, 3), with its instances, bool (n, H, W), in ascending order of label.

        Raises:
            DataFault: If a file cannot be decoded, the sizes differ, or the map is a JPEG, empty, or has specks that
                are refused.
        """
        pair = self._pairs[index]
        image, labels = read_all([partial(read_image, pair.image), partial(read_labels, pair.mask)])
        check_same_size(pair.image, image, f"its label map {pair.mask}", labels.shape)
        found = find_instances(pair.mask, labels, self.specks)
        void = None if found.void is None else (found.void,)
        return Sample(key=pair.key, images=(image,), masks=(found.masks,), void=void)


def check_specks(specks: str) -> None:
    """Raise a UserError if ``specks`` has an unknown value."""
    if specks not in SPECKS:
        raise UserError(f"data.specks={specks}: expected one of {', '.join(SPECKS)}")


def find_instances(path: Path, labels: np.ndarray, specks: str) -> Instances:
    """Extract the instances of a label map.

    Args:
        path: File of the map, for the message.
        labels: Non-negative int (H, W), 0 for background.
        specks: ``fault``, ``drop`` or ``keep``, as :class:`LabelMaps` takes it.

    Raises:
        DataFault: If the map has no instance, more than 255, or specks that are refused.
    """
    present = np.unique(labels)
    present = present[present > 0]
    whole = np.intersect1d(present, _filling_blocks(labels))
    thin = np.setdiff1d(present, whole)
    if len(thin) and specks == "fault":
        pixels = int((labels == thin[0]).sum())
        raise DataFault(
            f"{path}: {len(thin)} of {len(present)} labels have no block of 3x3 pixels (label {thin[0]}: {pixels} "
            "pixels), as antialiasing leaves them: expected flat labels; data.specks=drop makes them void"
        )
    kept = present if specks == "keep" else whole
    if not len(kept):
        raise DataFault(f"{path}: an empty label map: expected an instance, a label that is not 0 or black")
    if len(kept) > MOST:
        raise DataFault(f"{path}: {len(kept)} instances: expected flat labels, {MOST} at most")
    void = np.isin(labels, thin) if len(thin) and specks == "drop" else None
    return Instances(kept, labels == kept[:, None, None], void)


def _filling_blocks(labels: np.ndarray) -> np.ndarray:
    """List the labels that fill at least one block of 3x3 pixels."""
    columns = (labels[:-2] == labels[1:-1]) & (labels[1:-1] == labels[2:])  # (H-2, W): three equal labels in a column
    centre = labels[1:-1]
    beside = centre[:, :-1] == centre[:, 1:]
    blocks = columns[:, :-2] & columns[:, 1:-1] & columns[:, 2:] & beside[:, :-1] & beside[:, 1:]
    return np.unique(centre[:, 1:-1][blocks])


def _pair(listing: Listing, places: Iterable[Place]) -> tuple[list[Pair], set[str], list[tuple[str | None, Path]]]:
    """Pair the photos and maps of all places.

    Returns:
        The pairs, the keys of pairs whose map may be black, and the photos that may lack a map, each with the
        split that its folder states.
    """
    pairs: list[Pair] = []
    uncertain: set[str] = set()
    absent: list[tuple[str | None, Path]] = []
    for place in places:
        found, lonely = pair_files(listing, listing.root, place, optional=place.beside_masks)
        pairs += found
        if place.beside_masks:
            uncertain |= {pair.key for pair in found}
            absent += [(split_in_name(place.split), path) for path in lonely]
    if not pairs and not listing.faults:
        listing.faults.append(
            f"{listing.root}: no pair of photo and label map: looked for images/ with gt/ (or image, imgs, … with "
            "Instance gt, masks, …), the same in train/, val/, test/; data.images and data.masks name others"
        )
    return pairs, uncertain, absent


def _assign(listing: Listing, keys: Sequence[str], splits: str, lists: dict[str, Path]) -> dict[str, str | None]:
    """Assign a split to each key; if only test photos are listed, the rest is training and validation."""
    assigned = listing.assign(keys, splits, lists)
    if splits == "auto" and set(lists) == {"test"}:
        for key in keys:
            rest = "validation" if split_of(key) == "validation" else "train"
            assigned[key] = assigned[key] or rest
    return assigned


def _find_lists(root: Path, folders: Sequence[Path], word: str | None) -> dict[str, Path]:
    """Find the lists in the root, the folders and their ``ImageSets`` by split; of several, those with ``word``."""
    places = [inside for folder in dict.fromkeys((root, *folders)) for inside in (folder, folder / "ImageSets")]
    files = [path for place in places for path in sorted(place.glob("*.txt"))]
    files = [path for path in files if path.is_file() and _LIST_NAME.fullmatch(path.name)]
    if word is not None:
        names = ", ".join(path.name for path in files) or "none"
        files = [path for path in files if str(word) in path.name]
        if not files:
            raise UserError(f"data.lists={word}: no list in {root} has that in its name (there are: {names})")
    lists: dict[str, Path] = {}
    for path in files:
        split = split_in_name(path.stem) or ""
        if split in lists:
            raise UserError(f"{root}: both {lists[split].name} and {path.name} may be meant: choose with data.lists")
        lists[split] = path
    return lists


def _find_black(pairs: Sequence[Pair], root: Path) -> dict[str, Path]:
    """List the photos, by key, whose map is empty; an unreadable map is a fault on access."""
    black = {}
    for pair in tqdm(pairs, desc=f"list {root.name}", unit="map", disable=None if pairs else True):
        try:
            empty = not read_labels(pair.mask).any()
        except DataFault:
            continue
        if empty:
            black[pair.key] = pair.image
    return black
