"""Reader of PASCAL VOC 2012 segmentation: one class of a photo, or all its objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskgym.data.layout.images import DataFault, check_same_size, read_all, read_image, read_labels
from maskgym.data.layout.listing import Listing, Reader, check_root, read_lines
from maskgym.data.layout.pairs import absence, list_pictures
from maskgym.data.sample import Sample
from maskgym.errors import UserError

CLASSES = (  # of index 1, 2, …; 0 is background
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOID = 255
_LISTS = {"train": "train.txt", "validation": "val.txt"}
_FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject")


@dataclass(frozen=True)
class Files:
    """Files of one photo; ``objects`` is None if objects are not requested."""

    image: Path
    classes: Path
    objects: Path | None


class VOC(Reader):
    """Photos of PASCAL VOC 2012 with the masks of its segmentation task; further arguments: see `Reader`.

    With task ``semantic``, a sample is a photo and a class that it shows: the mask is that of the class, and its name
    is ``category``. For this, the class pictures of the requested split are decoded at construction. With task
    ``sis``, a sample is a photo with all its objects, and the names of their classes are ``phrases``. Pixels of index
    255, borders of objects and areas that the annotators left open, are ``void``.

    The test photos have no public masks. Therefore both ``test`` and ``validation`` are ``val.txt``, the photos that
    papers report on: do not select on ``validation`` what ``test`` evaluates. With ``all`` they are ``validation``.

    Args:
        root: Folder ``VOC2012``, its parent ``VOCdevkit``, or the parent of that.
        task: ``semantic`` or ``sis``.
        splits: See `Reader`; the lists are those in ``ImageSets/Segmentation``, and only listed photos count.
        exclude: Names of photos to leave out, such as ``2007_000033``.

    Attributes:
        keys: The key of each sample: ``2007_000033/aeroplane``, or ``2007_000033``.
        task: ``sod`` for ``semantic``, because each image has one region.
        notes: Photos left out without a fault because they show no class.
    """

    def __init__(
        self,
        root: str | Path | None,
        task: str = "semantic",
        split: str = "train",
        splits: str = "auto",
        exclude: Sequence[str | float] = (),
        strict: bool = True,
    ) -> None:
        self.root = check_root("voc", root, task, ("semantic", "sis"), split)
        self.shown, self.split = task, split
        self.task = "sod" if task == "semantic" else task
        home = _find_home(self.root)
        listing = Listing(self.root, split, exclude)
        listed = _read_lists(listing, home)
        photos = _find_files(listing, home, listed, task == "sis")
        assigned = _by_list(photos, listed, split) if splits == "auto" else listing.assign(photos, splits)
        excluded = listing.check_excluded(photos)
        chosen = {name: photos[name] for name in photos if listing.selects(assigned[name]) and name not in excluded}
        found = _list_classes(listing, chosen) if task == "semantic" else {name: [0] for name in chosen}
        bare = [name for name, classes in found.items() if not classes]
        listing.leave_out(bare, "without a class")
        self.finish(listing, strict, (assigned[name] for name in photos if name not in bare))
        self._samples = [(name, photos[name], index) for name, classes in found.items() for index in classes]
        self.keys = tuple(f"{name}/{CLASSES[index - 1]}" if index else name for name, _, index in self._samples)
        self.splits = tuple(assigned[name] for name, _, _ in self._samples)

    def category(self, index: int) -> str | None:
        """Look up the class of one sample without its files; None for objects."""
        _, _, number = self._samples[index]
        return CLASSES[number - 1] if number else None

    def __getitem__(self, index: int) -> Sample:
        """Read one photo, uint8 (H, W, 3), with bool (1, H, W) of a class or (n, H, W) of its objects in order.

        Raises:
            DataFault: If a file cannot be decoded, sizes differ, an annotation has no palette or holds an index that is
                not a class, or an object has no class under it.
        """
        name, files, number = self._samples[index]
        if files.objects is None:
            image, classes = _read(files.image, files.classes)
            mask = classes == number
            return Sample(self.keys[index], (image,), (mask[None],), _void(classes), category=CLASSES[number - 1])
        image, classes, objects = _read(files.image, files.classes, files.objects)
        numbers = np.setdiff1d(objects, (0, VOID))
        if not len(numbers):
            raise DataFault(f"{files.objects}: no object: every index is 0 or {VOID}")
        masks = objects == numbers[:, None, None]
        names = [_class_under(mask, classes) for mask in masks]
        if None in names:
            number = numbers[names.index(None)]
            raise DataFault(f"{files.objects}: object {number} has no class under it in {files.classes}")
        return Sample(name, (image,), (masks,), _void(objects), phrases=(tuple(map(str, names)),))


def read_classes(path: Path) -> np.ndarray:
    """Read a class picture as int32 (H, W): 0 background, 1 to 20 the classes, 255 void.

    Raises:
        DataFault: If it cannot be decoded, has no palette, or holds another index.
    """
    classes = read_labels(path, palette=True)
    wrong = classes[(classes > len(CLASSES)) & (classes != VOID)]
    if wrong.size:
        raise DataFault(f"{path}: index {wrong[0]} is no class: expected 0 to {len(CLASSES)}, or {VOID} for void")
    return classes


def _find_home(root: Path) -> Path:
    """Find the folder that holds ``JPEGImages`` and the rest."""
    for home in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (home / _FOLDERS[0]).is_dir() and (home / "ImageSets").is_dir():
            return home
    raise UserError(f"data.root={root}: no JPEGImages and ImageSets here, in VOC2012 or in VOCdevkit/VOC2012")


def _read_lists(listing: Listing, home: Path) -> dict[str, str]:
    """Read the names on the two lists in their order, each with ``train`` or ``validation``."""
    listed: dict[str, str] = {}
    for split in _LISTS:
        path = _list_of(home, split)
        if not path.is_file():
            listing.faults.append(f"{path}: no such file")
            continue
        lines: list[str] = []
        with listing.collecting():
            lines = read_lines(listing.inside(path))
        for number, line in enumerate(lines, start=1):
            name = line.strip()
            if name in listed:
                listing.faults.append(f"{path}: line {number}: '{name[:80]}' is on {_LISTS[listed[name]]} before")
            elif name:
                listed[name] = split
    return listed


def _list_of(home: Path, split: str) -> Path:
    return home / "ImageSets" / "Segmentation" / _LISTS[split]


def _find_files(listing: Listing, home: Path, listed: Mapping[str, str], objects: bool) -> dict[str, Files]:
    """Find the files of each name that has them all; absent files are faults."""
    folders = [home / name for name in (_FOLDERS if objects else _FOLDERS[:2])]
    found = [list_pictures(listing, listing.root, folder) for folder in folders]
    files = {}
    for name, split in listed.items():
        absent = [(paths, folder) for paths, folder in zip(found, folders, strict=True) if name not in paths]
        for paths, folder in absent:
            kind = "photo" if folder is folders[0] else "annotation"
            listing.find_fault(name, f"{_list_of(home, split)}: {absence(name, paths, folder, kind)}")
        if not absent:
            image, classes, *rest = (paths[name] for paths in found)
            files[name] = Files(image, classes, rest[0] if rest else None)
    return files


def _by_list(photos: Iterable[str], listed: Mapping[str, str], split: str) -> dict[str, str | None]:
    """Assign a split to each photo; ``val.txt`` is ``test`` if that is requested, else ``validation``."""
    held_out = "test" if split == "test" else "validation"
    return {name: "train" if listed[name] == "train" else held_out for name in photos}


def _list_classes(listing: Listing, photos: Mapping[str, Files]) -> dict[str, list[int]]:
    """List the class indices in each photo, without photos whose class picture is faulty."""
    found = {}
    for name, files in tqdm(photos.items(), desc="list VOC", unit="photo", disable=None if photos else True):
        with listing.collecting():
            found[name] = [int(index) + 1 for index in np.flatnonzero(_count_pixels(read_classes(files.classes)))]
    return found


def _count_pixels(classes: np.ndarray) -> np.ndarray:
    """Count the pixels of each class, int (20,)."""
    return np.bincount(classes.ravel(), minlength=VOID + 1)[1 : len(CLASSES) + 1]


def _read(image_path: Path, *annotations: Path) -> list[np.ndarray]:
    """Read the photo, the class picture and, if requested, the object picture, all of one size."""
    readings = [partial(read_image, image_path), partial(read_classes, annotations[0])]
    image, *labels = read_all([*readings, *(partial(read_labels, path, palette=True) for path in annotations[1:])])
    for path, picture in zip(annotations, labels, strict=True):
        check_same_size(image_path, image, f"its annotation {path}", picture.shape)
    return [image, *labels]


def _class_under(mask: np.ndarray, classes: np.ndarray) -> str | None:
    """Find the most frequent class of a mask's pixels; None if no pixel has a class."""
    counts = _count_pixels(classes[mask])
    return CLASSES[int(counts.argmax())] if counts.any() else None


def _void(labels: np.ndarray) -> tuple[np.ndarray] | None:
    void = labels == VOID
    return (void,) if void.any() else None
