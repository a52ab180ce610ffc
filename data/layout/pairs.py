"""Detect the folder layout of public data sets: folders of photos, of masks and of splits.

Readers detect the layout instead of knowing data sets by name. They accept these layouts, in any letter case:

    images/ + masks/                       also image, imgs, img, photos, …-Image; mask, gt, gts, binary,
                                           GroundTruth, ground_truth_mask, …-Mask and the like
    train/{images,masks}, test/{…}         split folders, also DUTS-TR, TestSet, val, …
    images/train/…, masks/train/…          split folders inside
    Images/Train/…, GT/…                   photos in split folders, their masks all in one (CAMO)
    Imgs/a.jpg + Imgs/a.png                photos and masks side by side (PASCAL-S)
    …/one folder/any of these              as archives unpack, also doubled inside (DUT-OMRON)
    train.txt, val.txt, test.txt           lists of names, one per line, beside any of these

Links are followed if they stay inside the data set.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from maskgym.data.layout.images import is_picture
from maskgym.data.layout.listing import Listing, boundary, link_fault, name_fault, preview
from maskgym.data.layout.names import (
    denotes_instances,
    find_home,
    image_folders,
    mask_folders,
    split_in_name,
    subfolders,
)
from maskgym.data.sample import Pair
from maskgym.errors import UserError

_UNREAD = (".gif", ".jfif", ".jp2", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".tga", ".dng", ".npy", ".mat")


@dataclass(frozen=True)
class Place:
    """A folder of photos, the folder of their masks, and the name of the split's folder around both, or ''."""

    split: str
    images: Path
    masks: Path

    @property
    def beside_masks(self) -> bool:
        """Whether the masks are instances and a sibling folder holds masks: ``Instance gt`` (SOC)."""
        others = [path for path in mask_folders(self.masks.parent) if path != self.masks]
        return denotes_instances(self.masks.name) and bool(others)


def find_pairs(
    listing: Listing, images: str | None = None, masks: str | None = None, faulty: Collection[str] = ()
) -> list[Pair]:
    """List the photos under the root with their masks in order of key, paired by path and stem, without decoding.

    Args:
        listing: Listing that receives the faults: each photo or mask without partner, or the expected layout if there
            is no pair at all.
        images: Folder of the photos, relative to the root; None detects it by name.
        masks: Folder of the masks, as ``images``; may be the same folder.
        faulty: Names of files, without suffix, that may lack a partner without a fault.
    """
    root, pairs = listing.root, list[Pair]()
    for place in find_places(root, images, masks):
        pairs += pair_files(listing, root, place, faulty=faulty)[0]
    if not pairs and not listing.faults:
        listing.faults.append(
            f"{root}: no pair of photo and mask: looked for images/ with masks/ (or image, imgs, …-Image with mask, "
            "gt, GroundTruth, binary, …-Mask), the same in train/, val/, test/, and .jpg beside .png in one folder; "
            "data.images and data.masks name others"
        )
    return pairs


def find_places(
    root: Path, images: str | None = None, masks: str | None = None, instances: bool = False
) -> list[Place]:
    """Find the places under ``root`` that hold photos and masks: one, or one per split.

    Args:
        root: Folder of the data set; must exist.
        images: Folder of the photos, relative to the root; None detects it by name.
        masks: Folder of the masks, as ``images``; may be the same folder.
        instances: Whether to prefer a folder of instances (``Instance gt``) to one of masks if both exist.

    Raises:
        UserError: If several folders match, or a given folder does not exist.
    """
    if images is not None or masks is not None:
        return [Place("", *_given_folders(root, images, masks))]
    home = find_home(root, lambda folder: bool(_places_in(folder, instances)))
    return [] if home is None else _places_in(home, instances)


def _places_in(folder: Path, instances: bool) -> list[Place]:
    """Find folders of photos and of masks side by side, else in folders of splits, else one folder that holds both."""
    if here := _images_and_masks(folder, instances):
        return [Place("", *here)]
    inside = [
        (part.name, _images_and_masks(part, instances)) for part in subfolders(folder) if split_in_name(part.name)
    ]
    if places := [Place(name, *folders) for name, folders in inside if folders]:
        return places
    mixed = next((place for place in (folder, *image_folders(folder)) if _holds_both(place)), None)
    return [] if mixed is None else [Place("", mixed, mixed)]


def pair_files(
    listing: Listing, root: Path, place: Place, optional: bool = False, faulty: Collection[str] = ()
) -> tuple[list[Pair], list[Path]]:
    """Pair the photos and masks of one place by path and stem.

    Args:
        listing: Listing that receives the faults: files without partner, names that differ in case only, duplicate
            names, and links that leave the root.
        root: Folder that links must not leave.
        place: Folders to search.
        optional: Whether a photo may lack a mask without a fault.
        faulty: Names of files, without suffix, that may lack a partner without a fault.

    Returns:
        The pairs and the photos without mask, both in order of name.
    """
    photos, truths = _read_names(listing, root, place)
    prefix = f"{place.split}/" if place.split else ""
    pairs = [Pair(prefix + stem, photos[stem], truths[stem]) for stem in sorted(photos.keys() & truths.keys())]
    strays = {stem: truths[stem] for stem in sorted(truths.keys() - photos.keys()) if truths[stem].stem not in faulty}
    by_case = {stem.casefold(): stem for stem in strays}
    lonely = []
    for stem in sorted(photos.keys() - truths.keys()):
        if twin := by_case.pop(stem.casefold(), None):
            fault = f"{photos[stem]}: its mask {strays.pop(twin)} differs in case: expected the same name"
            listing.find_fault(prefix + stem, fault)
        elif photos[stem].stem not in faulty:
            lonely.append(photos[stem])
            if not optional:
                fault = f"{photos[stem]}: no mask of this name in {place.masks}"
                listing.find_fault(prefix + stem, fault)
    for stem, path in strays.items():
        listing.find_fault(prefix + stem, f"{path}: no photo of this name in {place.images}")
    return pairs, lonely


def list_pictures(listing: Listing, root: Path, folder: Path) -> dict[str, Path]:
    """List the images in ``folder`` by their path without suffix, without decoding.

    Args:
        listing: Listing that receives the faults: links that leave the root and duplicate names.
        root: Folder that links must not leave.
        folder: Folder to search at any depth; may be absent. A folder outside the root was requested explicitly, so
            its links may lead anywhere in it.
    """
    return _by_stem(listing, folder, _pictures(listing, root, folder))


def absence(name: str, found: Mapping[str, Path], folder: Path, kind: str = "photo") -> str:
    """Format the end of a fault's line for a stated name that does not exist."""
    twin = next((path for stem, path in found.items() if stem.casefold() == name.casefold()), None)
    return f"no {kind} '{name[:80]}' in {folder}" + (f": {twin.name} differs in case" if twin else "")


def without_faulty(listing: Listing, pairs: Sequence[Pair], faulty: Collection[str]) -> list[Pair]:
    """Remove the pairs of the named photos, and note them."""
    listing.leave_out((pair.image.name for pair in pairs if pair.image.stem in faulty), "that are known to be wrong")
    return [pair for pair in pairs if pair.image.stem not in faulty]


def _given_folders(root: Path, images: str | None, masks: str | None) -> tuple[Path, Path]:
    if images is None or masks is None:
        raise UserError(f"data.images={images}, data.masks={masks}: name both, or neither to have them found")
    for argument, name in (("images", images), ("masks", masks)):
        if not (root / name).is_dir():
            raise UserError(f"data.{argument}={name}: no such folder in {root}")
    return root / images, root / masks


def _images_and_masks(folder: Path, instances: bool = False) -> tuple[Path, Path] | None:
    images = image_folders(folder)
    masks = mask_folders(folder, instances)
    for argument, found in (("images", images), ("masks", masks)):
        if images and masks and len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{folder}: several folders for {argument} ({names}): choose with data.images, data.masks")
    return (images[0], masks[0]) if images and masks else None


def _holds_both(folder: Path) -> bool:
    names = [PurePosixPath(path.name) for path in folder.iterdir() if is_picture(path.name)]
    masks = {name.stem for name in names if name.suffix.lower() == ".png"}
    return any(name.stem in masks for name in names if name.suffix.lower() != ".png")


def _read_names(listing: Listing, root: Path, place: Place) -> tuple[dict[str, Path], dict[str, Path]]:
    """Index photos and masks by the part of their path, without suffix, that both sides share."""
    images, masks = place.images, place.masks
    if images == masks:
        everything = _pictures(listing, root, images)
        photos = _by_stem(listing, images, [path for path in everything if path.suffix.lower() != ".png"])
        truths = _by_stem(listing, masks, [path for path in everything if path.suffix.lower() == ".png"])
    else:
        photos, truths = list_pictures(listing, root, images), list_pictures(listing, root, masks)
    if not photos.keys() & truths.keys():  # one side may have unpacked into an extra folder
        photos, truths = _without_common_folder(photos), _without_common_folder(truths)
    if not photos.keys() & truths.keys():
        truths = _in_splits(photos, truths)
    edges = {stem for stem in truths if stem.endswith("_edge") and stem not in photos}  # written by training scripts
    return photos, {stem: path for stem, path in truths.items() if stem not in edges}


def _pictures(listing: Listing, root: Path, folder: Path) -> list[Path]:
    """List the images at any depth in order of name; links that may not be followed are faults."""
    root = boundary(root, folder)
    if fault := link_fault(root, folder):
        listing.faults.append(fault)
        return []
    pictures: list[Path] = []
    unread: list[str] = []
    if not folder.is_dir():
        return []

    def report(error: OSError) -> None:
        listing.faults.append(f"{error.filename}: cannot be read: {error.strerror}")

    for directory, names, files in os.walk(folder, onerror=report, followlinks=True):
        inside = [name for name in sorted(names) if not name.startswith((".", "__"))]
        names[:] = [name for name in inside if _may_follow(listing, root, Path(directory, name))]
        paths = (Path(directory, name) for name in sorted(files) if is_picture(name))
        pictures += [path for path in paths if _may_follow(listing, root, path)]
        unread += [name for name in sorted(files) if name.lower().endswith(_UNREAD) and not name.startswith(".")]
    if unread:
        listing.notes.append(f"{folder}: {len(unread)} files of formats that are not read: {preview(unread)}")
    return pictures


def _may_follow(listing: Listing, root: Path, path: Path) -> bool:
    fault = name_fault(path)
    if fault is None and path.is_symlink():
        fault = link_fault(root, path)
    if fault is None and path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve()):
        fault = f"{path}: a link to a folder around it"
    if fault:
        listing.faults.append(fault)
    return fault is None


def _by_stem(listing: Listing, folder: Path, paths: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            listing.faults.append(f"{path}: {found[stem].name} beside it has the same name")
        else:
            found[stem] = path
    return found


def _without_common_folder(found: dict[str, Path]) -> dict[str, Path]:
    common = os.path.commonpath([os.path.dirname(stem) for stem in found]) if found else ""
    return {os.path.relpath(stem, common) if common else stem: path for stem, path in found.items()}


def _in_splits(photos: Mapping[str, Path], truths: Mapping[str, Path]) -> dict[str, Path]:
    """Give masks that lie in one folder the names of their photos, if those lie in folders of splits."""
    parts = [PurePosixPath(stem) for stem in photos]
    inside = {part.name: str(part) for part in parts if len(part.parts) == 2 and split_in_name(part.parts[0])}
    return {inside.get(stem, stem): path for stem, path in truths.items()}
