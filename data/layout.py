"""How public data sets lay out their folders: which hold photos, which masks, which name a split.

Readers look for what is there instead of knowing data sets by name. Understood, in any letter case:

    images/ + masks/                       also image, imgs, img, photos, …-Image; mask, gt, gts, binary,
                                           GroundTruth, ground_truth_mask, …-Mask and the like
    train/{images,masks}, test/{…}         split folders, also DUTS-TR, TestSet, val, …
    images/train/…, masks/train/…          split folders inside
    Imgs/a.jpg + Imgs/a.png                photos and masks side by side (PASCAL-S)
    …/one folder/any of these              as archives unpack, also doubled inside (DUT-OMRON)
    train.txt, val.txt, test.txt           lists of names, one a line, beside any of these
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import UserError
from .images import SUFFIXES, DataFault, is_picture
from .sample import SPLITS, split_of

_IMAGE_NAME = re.compile(r"(.*[-_ ])?(images?|imgs?|photos?|shadowimages)")
_MASK_NAME = re.compile(
    r"(.*[-_ ])?(masks?|gts?|ground[-_ ]?truths?([-_ ]masks?)?|binary|pixelwisegt-new-png|shadowmasks)"
)
_SPLIT_NAME = re.compile(
    r"(?<![a-z])(?:gt|imgs?|sbu)?(?:"
    r"(?P<train>train(?:ing|set|val)?|sbutrain\w*|tr)|(?P<validation>val(?:idation|id|set)?)|(?P<test>test(?:ing|set)?|te)"
    r")(?![a-z])"
)
_LISTS = {"train": ("train.txt",), "validation": ("val.txt", "validation.txt"), "test": ("test.txt",)}


@dataclass(frozen=True)
class Pair:
    """A photo and its mask; ``key`` is the path under the root without suffix and without the images folder."""

    key: str
    image: Path
    mask: Path


def check_root(data: str, root: str | Path | None, task: str, tasks: tuple[str, ...], split: str) -> Path:
    """Return the root as a path, once the arguments that every reader takes are seen to make sense.

    Raises:
        UserError: If the root is not a folder, or the task or the split is not one that this reader knows.
    """
    if task not in tasks:
        raise UserError(f"task={task}: data={data} reads {', '.join(tasks)}")
    if split not in (*SPLITS, "all"):
        raise UserError(f"data.split={split}: expected {', '.join(SPLITS)} or all")
    if not root:
        raise UserError(f"data.root is not set: data={data} expects a folder")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"data.root={root}: {'not a folder' if path.exists() else 'no such folder'}")
    return path


def subfolders(folder: Path) -> list[Path]:
    """Return a folder's folders in order of name, without hidden ones and ``__MACOSX``."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]


def image_folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder`` whose name says photos: the plain names where there are any."""
    return _named(folder, _IMAGE_NAME)


def split_in_name(name: str) -> str | None:
    """Return the split that a folder's or file's name states: ``DUTS-TR`` train, ``val2017`` validation."""
    match = _SPLIT_NAME.search(name.lower())
    return match.lastgroup if match else None


def find_pairs(root: Path, images: str | None = None, masks: str | None = None) -> tuple[list[Pair], list[str]]:
    """List the photos under ``root`` with their masks, paired by path and stem; nothing is decoded.

    Args:
        root: Existing folder.
        images: Folder of the photos, relative to the root; found by its name when None.
        masks: Folder of the masks likewise; may be the same folder.

    Returns:
        The pairs in order of key, and the faults: each photo or mask without partner, or what was looked for
        when there is no pair at all.
    """
    pairs: list[Pair] = []
    faults: list[str] = []
    for split_folder, images_folder, masks_folder in _find_folders(root, images, masks):
        prefix = f"{split_folder}/" if split_folder else ""
        photos, truths = _read_names(images_folder, masks_folder, faults)
        pairs += [Pair(prefix + stem, photos[stem], truths[stem]) for stem in sorted(photos.keys() & truths.keys())]
        faults += [
            f"{photos[stem]}: no mask of this name in {masks_folder}" for stem in sorted(photos.keys() - truths.keys())
        ]
        faults += [
            f"{truths[stem]}: no photo of this name in {images_folder}"
            for stem in sorted(truths.keys() - photos.keys())
        ]
    if not pairs and not faults:
        faults.append(
            f"{root}: no pair of photo and mask: looked for images/ with masks/ (or image, imgs, …-Image with mask, "
            "gt, GroundTruth, binary, …-Mask), the same in train/, val/, test/, and .jpg beside .png in one folder; "
            "data.images and data.masks name others"
        )
    return pairs, faults


def assign_splits(root: Path, units: Collection[str], splits: str) -> tuple[dict[str, str | None], list[str]]:
    """Decide the split of each unit (a photo's key, or a group): by folders, else by lists, else by hash.

    Folders count only where the first folder of every unit names a split: a group of trains is not the training split.

    Args:
        root: Where ``train.txt``, ``val.txt`` and ``test.txt`` may lie.
        units: Names of the units, which begin with the split's folder where there is one.
        splits: ``auto`` as above; ``hash`` to ignore folders and lists.

    Returns:
        For each unit its split (None: on none of the lists), and the faults of the lists.

    Raises:
        UserError: If ``splits`` is something else.
    """
    if splits not in ("auto", "hash"):
        raise UserError(f"data.splits={splits}: expected auto (split folders or lists, else by hash) or hash")
    if splits == "auto" and units:
        stated = {unit: split_in_name(unit.split("/")[0]) if "/" in unit else None for unit in units}
        if all(stated.values()):
            return stated, []
        lists = {split: root / name for split, names in _LISTS.items() for name in names if (root / name).is_file()}
        if lists:
            return _read_lists(lists, units)
    return {unit: split_of(unit) for unit in units}, []


def check_listing(root: Path, split: str, splits: Iterable[str | None], faults: Iterable[str]) -> None:
    """Raise if a listing has faults, or nothing in the split asked for.

    Args:
        root: The data set, for the message.
        split: The split asked for, or ``all``.
        splits: The split of every sample there is.
        faults: What listing found.

    Raises:
        DataFault: If there are faults.
        UserError: If the split is empty; the message says how many samples the others have.
    """
    if faults := tuple(faults):
        raise DataFault(*faults)
    found = list(splits)
    if split != "all" and split not in found:
        counts = ", ".join(f"{name} {found.count(name)}" for name in SPLITS)
        raise UserError(
            f"data.split={split}: {root} has no sample there ({counts}): choose another, all, or data.splits=hash"
        )


def select(split: str, own: str | None) -> bool:
    """Return whether a sample of split ``own`` belongs to what was asked for."""
    return split in ("all", own)


def check_excluded(exclude: Iterable[str], keys: Iterable[str]) -> frozenset[str]:
    """Return the keys to leave out.

    Raises:
        UserError: If one of them names nothing, which is a slip of the pen rather than a wish.
    """
    excluded = frozenset(exclude)
    if unknown := sorted(excluded.difference(keys)):
        raise UserError(f"data.exclude: no photo has the key '{unknown[0]}'")
    return excluded


def _named(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    matches = [(path, pattern.fullmatch(path.name.lower())) for path in subfolders(folder)]
    plain = [path for path, match in matches if match and not match[1]]
    return plain or [path for path, match in matches if match]  # 'GT' wins over 'Instance gt' (SOC)


def _find_folders(root: Path, images: str | None, masks: str | None) -> list[tuple[str, Path, Path]]:
    """Return (name of the split folder or '', images folder, masks folder) for each place that holds pairs."""
    if images is not None or masks is not None:
        return [("", *_given_folders(root, images, masks))]
    if here := _images_and_masks(root):
        return [("", *here)]
    inside = [(folder.name, _images_and_masks(folder)) for folder in subfolders(root) if split_in_name(folder.name)]
    if found := [(name, *folders) for name, folders in inside if folders]:
        return found
    for folder in (root, *image_folders(root)):
        if _holds_both(folder):
            return [("", folder, folder)]
    only = subfolders(root)
    return _find_folders(only[0], None, None) if len(only) == 1 else []


def _given_folders(root: Path, images: str | None, masks: str | None) -> tuple[Path, Path]:
    if images is None or masks is None:
        raise UserError(f"data.images={images}, data.masks={masks}: name both, or neither to have them found")
    for argument, name in (("images", images), ("masks", masks)):
        if not (root / name).is_dir():
            raise UserError(f"data.{argument}={name}: no such folder in {root}")
    return root / images, root / masks


def _images_and_masks(folder: Path) -> tuple[Path, Path] | None:
    images, masks = image_folders(folder), _named(folder, _MASK_NAME)
    for argument, found in (("images", images), ("masks", masks)):
        if images and masks and len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{folder}: several folders for {argument} ({names}): choose with data.images, data.masks")
    return (images[0], masks[0]) if images and masks else None


def _holds_both(folder: Path) -> bool:
    names = [PurePosixPath(path.name) for path in folder.iterdir() if is_picture(path.name)]
    masks = {name.stem for name in names if name.suffix.lower() == ".png"}
    return any(name.stem in masks for name in names if name.suffix.lower() != ".png")


def _read_names(images: Path, masks: Path, faults: list[str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the photos and the masks by their path without suffix, as far as both sides write it alike."""
    if images == masks:
        everything = list(_pictures(images))
        photos = _by_stem(images, [path for path in everything if path.suffix.lower() != ".png"], faults)
        truths = _by_stem(masks, [path for path in everything if path.suffix.lower() == ".png"], faults)
    else:
        photos, truths = _by_stem(images, _pictures(images), faults), _by_stem(masks, _pictures(masks), faults)
    if not photos.keys() & truths.keys():  # an archive unpacked into a folder of its own on one side
        photos, truths = _without_common_folder(photos), _without_common_folder(truths)
    edges = {stem for stem in truths if stem.endswith("_edge") and stem not in photos}  # training scripts write these
    return photos, {stem: path for stem, path in truths.items() if stem not in edges}


def _pictures(folder: Path) -> Iterable[Path]:
    for directory, names, files in os.walk(folder, followlinks=True):
        names[:] = sorted(name for name in names if not name.startswith((".", "__")))
        yield from (Path(directory, name) for name in sorted(files) if is_picture(name))


def _by_stem(folder: Path, paths: Iterable[Path], faults: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            faults.append(f"{path}: {found[stem].name} beside it has the same name")
        else:
            found[stem] = path
    return found


def _without_common_folder(found: dict[str, Path]) -> dict[str, Path]:
    common = os.path.commonpath([os.path.dirname(stem) for stem in found]) if found else ""
    return {os.path.relpath(stem, common) if common else stem: path for stem, path in found.items()}


def _read_lists(lists: Mapping[str, Path], units: Iterable[str]) -> tuple[dict[str, str | None], list[str]]:
    assigned: dict[str, str | None] = dict.fromkeys(units)
    faults = []
    for split, path in lists.items():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if not (entry := line.strip()):
                continue
            unit = _unit_named(entry, assigned)
            if unit is None:
                faults.append(f"{path}: line {number} names nothing in the data set: '{entry[:80]}'")
            elif assigned[unit] not in (None, split):
                faults.append(f"{path}: line {number}: '{unit}' is on the {assigned[unit]} list too")
            else:
                assigned[unit] = split
    return assigned, faults


def _unit_named(entry: str, units: Mapping[str, object]) -> str | None:
    """Return the unit of a list's line: a name with or without suffix and folders, alone or before a mask's."""
    for text in (entry, entry.split()[0]):
        path = PurePosixPath(text)
        parts = (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).parts
        for start in range(len(parts)):
            if (name := "/".join(parts[start:])) in units:
                return name
    return None
