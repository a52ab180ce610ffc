"""Detect the folder layout of public data sets: folders of photos, of masks and of splits.

Readers detect the layout instead of knowing data sets by name. They accept these layouts, in any letter case:

    images/ + masks/                       also image, imgs, img, photos, …-Image; mask, gt, gts, binary,
                                           GroundTruth, ground_truth_mask, …-Mask and the like
    train/{images,masks}, test/{…}         split folders, also DUTS-TR, TestSet, val, …
    images/train/…, masks/train/…          split folders inside
    Imgs/a.jpg + Imgs/a.png                photos and masks side by side (PASCAL-S)
    …/one folder/any of these              as archives unpack, also doubled inside (DUT-OMRON)
    train.txt, val.txt, test.txt           lists of names, one per line, beside any of these

Links are followed if they stay inside the data set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from maskgym.data.layout.images import SUFFIXES, DataFault, is_picture
from maskgym.data.sample import SPLITS, split_of
from maskgym.errors import UserError

_IMAGE_NAME = re.compile(r"(.*[-_ ])?(images?|imgs?|photos?|shadowimages)")
_MASK_NAME = re.compile(
    r"(.*[-_ ])?(masks?|gts?|ground[-_ ]?truths?([-_ ]masks?)?|binary|pixelwisegt-new-png|shadowmasks)"
)
_INSTANCE_NAME = re.compile(r"(.*[-_ ])?inst(ances?)?([-_ ]?(gts?|masks?|maps?))?")
_SPLIT_NAME = re.compile(
    r"(?<![a-z])(?:gt|imgs?|sbu)?(?:"
    r"(?P<train>train(?:ing|set|val)?|sbutrain\w*|tr)|(?P<validation>val(?:idation|id|set)?)|(?P<test>test(?:ing|set)?|te)"
    r")(?![a-z])"
)
_LISTS = {"train": ("train.txt",), "validation": ("val.txt", "validation.txt"), "test": ("test.txt",)}


@dataclass(frozen=True)
class Pair:
    """A photo and its mask; ``key`` is the photo's path under the root without suffix and images folder."""

    key: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Place:
    """A folder of photos, the folder of their masks, and the name of the split's folder around both, or ''."""

    split: str
    images: Path
    masks: Path

    @property
    def beside_masks(self) -> bool:
        """Whether the masks are instances and a sibling folder holds masks: ``Instance gt`` (SOC)."""
        others = [path for path in _named(self.masks.parent, _MASK_NAME) if path != self.masks]
        return bool(_INSTANCE_NAME.fullmatch(self.masks.name.lower()) and others)


def check_root(data: str, root: str | Path | None, task: str, tasks: tuple[str, ...], split: str) -> Path:
    """Validate the arguments common to all readers, and return the root as a path.

    Raises:
        UserError: If the root is not a folder, or the reader does not know the task or the split.
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
    """List a folder's subfolders in order of name, without hidden ones and ``__MACOSX``."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]


def image_folders(folder: Path) -> list[Path]:
    """List the subfolders whose name denotes photos; only exact names if any exist."""
    return _named(folder, _IMAGE_NAME)


def split_in_name(name: str) -> str | None:
    """Find the split in the name of a folder or file: ``DUTS-TR`` is train, ``val2017`` validation."""
    match = _SPLIT_NAME.search(name.lower())
    return match.lastgroup if match else None


def find_pairs(
    root: Path, images: str | None = None, masks: str | None = None, faulty: Collection[str] = ()
) -> tuple[list[Pair], list[str]]:
    """List the photos under ``root`` with their masks, paired by path and stem, without decoding.

    Args:
        root: Folder of the data set; must exist.
        images: Folder of the photos, relative to the root; None detects it by name.
        masks: Folder of the masks, as ``images``; may be the same folder.
        faulty: Names of files, without suffix, that may lack a partner without a fault.

    Returns:
        The pairs in order of key, and the faults: each photo or mask without partner, or the expected layout
        if there is no pair at all.
    """
    pairs: list[Pair] = []
    faults: list[str] = []
    for place in find_places(root, images, masks):
        pairs += pair_files(root, place, faults, faulty=faulty)[0]
    if not pairs and not faults:
        faults.append(
            f"{root}: no pair of photo and mask: looked for images/ with masks/ (or image, imgs, …-Image with mask, "
            "gt, GroundTruth, binary, …-Mask), the same in train/, val/, test/, and .jpg beside .png in one folder; "
            "data.images and data.masks name others"
        )
    return pairs, faults


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
    if here := _images_and_masks(root, instances):
        return [Place("", *here)]
    inside = [(f.name, _images_and_masks(f, instances)) for f in subfolders(root) if split_in_name(f.name)]
    if found := [Place(name, *folders) for name, folders in inside if folders]:
        return found
    for folder in (root, *image_folders(root)):
        if _holds_both(folder):
            return [Place("", folder, folder)]
    only = subfolders(root)
    return find_places(only[0], instances=instances) if len(only) == 1 else []


def pair_files(
    root: Path, place: Place, faults: list[str], optional: bool = False, faulty: Collection[str] = ()
) -> tuple[list[Pair], list[Path]]:
    """Pair the photos and masks of one place by path and stem.

    Args:
        root: Folder of the data set, which links must not leave.
        place: Folders to search.
        faults: List to extend with files without partner, names that differ in case only, duplicate names and links.
        optional: Whether a photo may lack a mask without a fault.
        faulty: Names of files, without suffix, that may lack a partner without a fault.

    Returns:
        The pairs and the photos without mask, both in order of name.
    """
    photos, truths = _read_names(root, place, faults)
    prefix = f"{place.split}/" if place.split else ""
    pairs = [Pair(prefix + stem, photos[stem], truths[stem]) for stem in sorted(photos.keys() & truths.keys())]
    strays = {stem: truths[stem] for stem in sorted(truths.keys() - photos.keys()) if truths[stem].stem not in faulty}
    by_case = {stem.casefold(): stem for stem in strays}
    lonely = []
    for stem in sorted(photos.keys() - truths.keys()):
        if twin := by_case.pop(stem.casefold(), None):
            faults.append(f"{photos[stem]}: its mask {strays.pop(twin)} differs in case: expected the same name")
        elif photos[stem].stem not in faulty:
            lonely.append(photos[stem])
    if not optional:
        faults += [f"{path}: no mask of this name in {place.masks}" for path in lonely]
    faults += [f"{path}: no photo of this name in {place.images}" for path in strays.values()]
    return pairs, lonely


def find_home(root: Path, holds: Callable[[Path], bool]) -> Path | None:
    """Find the first folder that satisfies ``holds``: the root, or the only folder in it, as archives unpack."""
    folder, only = root, [root]
    while len(only) == 1:
        folder = only[0]
        if holds(folder):
            return folder
        only = subfolders(folder)
    return None


def list_pictures(root: Path, folder: Path, faults: list[str]) -> dict[str, Path]:
    """List the images in ``folder`` by their path without suffix, without decoding.

    Args:
        root: Folder of the data set, which links must not leave.
        folder: Folder to search at any depth; may be absent. A folder outside the root was requested explicitly, so
            its links may lead anywhere in it.
        faults: List to extend with links that leave the root and duplicate names.
    """
    return _by_stem(folder, _pictures(root, folder, faults), faults)


def absence(name: str, found: Mapping[str, Path], folder: Path, kind: str = "photo") -> str:
    """Format the end of a fault's line for a stated name that does not exist."""
    twin = next((path for stem, path in found.items() if stem.casefold() == name.casefold()), None)
    return f"no {kind} '{name}' in {folder}" + (f": {twin.name} differs in case" if twin else "")


def link_fault(root: Path, path: Path) -> str | None:
    """Check whether ``path`` is a link, or behind a link, that leaves the data set's folder; return the fault."""
    if path.resolve().is_relative_to(root.resolve()):
        return None
    return f"{path}: a link to {path.resolve()}, outside of {root}: expected the files themselves, or data.root there"


def assign_splits(
    root: Path, units: Collection[str], splits: str, lists: Mapping[str, Path] | None = None
) -> tuple[dict[str, str | None], list[str]]:
    """Decide the split of each unit (a photo's key, or a group): by folders, else by lists, else by hash.

    Folders count only if the first folder of every unit names a split: a group of trains is not the training split.

    Args:
        root: Folder that may hold ``train.txt``, ``val.txt`` and ``test.txt``.
        units: Names of the units, which begin with the split's folder if there is one.
        splits: ``auto`` as above; ``hash`` to ignore folders and lists; or the split that contains all units.
        lists: Lists by split, if they do not lie in the root under these names.

    Returns:
        The split of each unit (None: on no list), and the faults of the lists.

    Raises:
        UserError: If ``splits`` has another value.
    """
    if splits in SPLITS:
        return dict.fromkeys(units, splits), []
    if splits not in ("auto", "hash"):
        choices = f"auto (split folders or lists, else by hash), hash, or {', '.join(SPLITS)} for all of it"
        raise UserError(f"data.splits={splits}: expected {choices}")
    if splits == "auto" and units:
        stated = {unit: split_in_name(unit.split("/")[0]) if "/" in unit else None for unit in units}
        if all(stated.values()):
            return stated, []
        if lists is None:
            lists = {split: root / name for split, names in _LISTS.items() for name in names if (root / name).is_file()}
        if lists:
            return _read_lists(lists, units)
    return {unit: split_of(unit) for unit in units}, []


def check_listing(root: Path, split: str, splits: Iterable[str | None], faults: Iterable[str]) -> None:
    """Raise if a listing has faults, or the requested split is empty.

    Args:
        root: Folder of the data set, for the message.
        split: Requested split, or ``all``.
        splits: Split of every sample.
        faults: Faults found in listing.

    Raises:
        DataFault: If there are faults.
        UserError: If the split is empty; the message states the sizes of the other splits.
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
    """Check whether a sample of split ``own`` belongs to the requested split."""
    return split in ("all", own)


def leave_out(pairs: Iterable[Pair], faulty: Iterable[str]) -> tuple[list[Pair], tuple[str, ...]]:
    """Remove the named pairs, and build a note that lists the removed ones."""
    names, kept, left = frozenset(faulty), list[Pair](), list[Pair]()
    for pair in pairs:
        (left if pair.image.stem in names else kept).append(pair)
    return kept, left_out((pair.image.name for pair in left), "that are known to be wrong")


def check_excluded(exclude: Iterable[str], keys: Iterable[str]) -> frozenset[str]:
    """Check the keys to leave out.

    Raises:
        UserError: If a key matches no sample, which is most likely a typing error.
    """
    excluded = frozenset(exclude)
    if unknown := sorted(excluded.difference(keys)):
        raise UserError(f"data.exclude: no photo has the key '{unknown[0]}'")
    return excluded


def left_out(names: Iterable[str], why: str) -> tuple[str, ...]:
    """Build the note on photos that are left out without a fault; empty without such photos.

    Example:
        >>> left_out(["a.jpg", "b.jpg"], "without an instance")
        ('2 photos without an instance are left out: a.jpg, b.jpg',)
    """
    listed = list(names)
    return (f"{len(listed)} photos {why} are left out: {first(listed)}",) if listed else ()


def first(names: Sequence[str]) -> str:
    """Format the first five names as text."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _named(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    matches = [(path, pattern.fullmatch(path.name.lower())) for path in subfolders(folder)]
    plain = [path for path, match in matches if match and not match[1]]
    return plain or [path for path, match in matches if match]  # 'GT' takes precedence over 'Instance gt' (SOC)


def _given_folders(root: Path, images: str | None, masks: str | None) -> tuple[Path, Path]:
    if images is None or masks is None:
        raise UserError(f"data.images={images}, data.masks={masks}: name both, or neither to have them found")
    for argument, name in (("images", images), ("masks", masks)):
        if not (root / name).is_dir():
            raise UserError(f"data.{argument}={name}: no such folder in {root}")
    return root / images, root / masks


def _images_and_masks(folder: Path, instances: bool = False) -> tuple[Path, Path] | None:
    images = image_folders(folder)
    masks = (_named(folder, _INSTANCE_NAME) if instances else []) or _named(folder, _MASK_NAME)
    for argument, found in (("images", images), ("masks", masks)):
        if images and masks and len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{folder}: several folders for {argument} ({names}): choose with data.images, data.masks")
    return (images[0], masks[0]) if images and masks else None


def _holds_both(folder: Path) -> bool:
    names = [PurePosixPath(path.name) for path in folder.iterdir() if is_picture(path.name)]
    masks = {name.stem for name in names if name.suffix.lower() == ".png"}
    return any(name.stem in masks for name in names if name.suffix.lower() != ".png")


def _read_names(root: Path, place: Place, faults: list[str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Index photos and masks by the part of their path, without suffix, that both sides share."""
    images, masks = place.images, place.masks
    if images == masks:
        everything = list(_pictures(root, images, faults))
        photos = _by_stem(images, [path for path in everything if path.suffix.lower() != ".png"], faults)
        truths = _by_stem(masks, [path for path in everything if path.suffix.lower() == ".png"], faults)
    else:
        photos, truths = list_pictures(root, images, faults), list_pictures(root, masks, faults)
    if not photos.keys() & truths.keys():  # one side may have unpacked into an extra folder
        photos, truths = _without_common_folder(photos), _without_common_folder(truths)
    edges = {stem for stem in truths if stem.endswith("_edge") and stem not in photos}  # written by training scripts
    return photos, {stem: path for stem, path in truths.items() if stem not in edges}


def _pictures(root: Path, folder: Path, faults: list[str]) -> list[Path]:
    """List the images at any depth in order of name; add links that may not be followed to ``faults``."""
    if not Path(os.path.normpath(folder)).is_relative_to(os.path.normpath(root)):
        root = folder
    if fault := link_fault(root, folder):
        faults.append(fault)
        return []
    pictures: list[Path] = []
    for directory, names, files in os.walk(folder, followlinks=True):
        inside = [name for name in sorted(names) if not name.startswith((".", "__"))]
        names[:] = [name for name in inside if _may_follow(root, Path(directory, name), faults)]
        paths = (Path(directory, name) for name in sorted(files) if is_picture(name))
        pictures += [path for path in paths if _may_follow(root, path, faults)]
    return pictures


def _may_follow(root: Path, path: Path, faults: list[str]) -> bool:
    if not path.is_symlink():
        return True
    fault = link_fault(root, path)
    if fault is None and path.parent.resolve().is_relative_to(path.resolve()):
        fault = f"{path}: a link to a folder around it"
    if fault:
        faults.append(fault)
    return fault is None


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
    """Parse the unit from a list's line: a name with or without suffix and folders, alone or before a mask's."""
    for text in (entry, entry.split()[0]):
        path = PurePosixPath(text)
        parts = (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).parts
        for start in range(len(parts)):
            if (name := "/".join(parts[start:])) in units:
                return name
    return None
