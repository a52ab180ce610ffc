"""Instances from COCO-style JSON: SIS10K, ILSO and SOC in that form, COCO itself, and custom annotations."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isclose
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from maskgym.aliases import JsonObject
from maskgym.data.layout.images import DataFault, check_regular, check_same_size, read_all, read_image
from maskgym.data.layout.listing import Listing, Reader, boundary, check_root, link_fault, preview
from maskgym.data.layout.names import image_folders, split_in_name, subfolders
from maskgym.data.needs import ASKED, SOURCES, Id, category_of, find_needs
from maskgym.data.run_lengths import rasterise
from maskgym.data.sample import Sample
from maskgym.errors import UserError

PHRASE_FIELDS = ("phrase", "caption")
CROWDS = ("void", "instances")
AGREEMENT = 0.3  # least IoU of a mask's box with the stated one, and least ratio of areas, that is not noted
_HUGE = 1e12  # more than any side or area in pixels
_FLAGS = ("iscrowd", "salient")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
_OTHER_ANNOTATIONS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")  # COCO files without instances


@dataclass(frozen=True)
class Photo:
    """One photo of the JSON with its usable annotations."""

    key: str
    path: Path
    size: tuple[int, int] | None  # (H, W) as the JSON states it
    instances: tuple[JsonObject, ...]
    crowds: tuple[JsonObject, ...]
    source: Path
    categories: dict[Id, str]
    need: str | None = None


class Coco(Reader):
    """Photos with instance masks from COCO-style JSON, for salient instances; one photo per sample.

    Segmentations may be polygons or run-length codes, compressed or not.
    Photos without a relevant instance are left out. ``phrases`` come from ``phrase`` or ``caption`` fields if
    every instance of the photo has one. Further arguments and attributes: see `Reader`.

    With task ``need`` or ``refer`` a sample is a photo and a need, and its masks are the annotations that the need
    means (`maskgym.data.needs`), salient or not. Its key is the photo's, ``#`` and a number.

    Args:
        task: ``sis``; or ``sod``: the same masks as one region; or ``need``, as one region; or ``refer``, as instances.
        annotations: JSON file under the root; None searches for ``annotations.json``, else files named after splits
            (as ``train/train.json`` or ``annotations/instances_val2017.json``), else any JSON in COCO's form.
        images: Folder of the photos under the root; None searches beside the JSON and under the root.
        salient_only: Whether to leave out annotations with ``"salient": false``, unless the task asks for needs.
        crowds: Meaning of ``"iscrowd": 1``: ``void``, pixels that are not scored, as in COCO; or ``instances``, for
            programs that mark every run-length code so.
        splits: See `Reader`; the names of JSON files count as split folders.
        needs: With these tasks: ``own``: needs of the annotations; ``category``: in addition ``find a`` and the
            category's name for annotations without needs.

    Attributes:
        keys: The key of each sample: the photo's ``file_name`` without suffix, after the split if files name it.
        notes: Photos left out without a fault because they hold no relevant instance; numbers of annotations that are
            crowds, or left out.
    """

    def __init__(
        self,
        root: str | Path | None,
        task: str = "sis",
        split: str = "train",
        annotations: str | None = None,
        images: str | None = None,
        salient_only: bool = True,
        crowds: str = "void",
        splits: str = "auto",
        exclude: Sequence[str | float] = (),
        strict: bool = True,
        needs: str = "own",
    ) -> None:
        self.root = check_root("coco", root, task, ("sis", "sod", *ASKED), split)
        if needs not in SOURCES:
            raise UserError(f"data.needs={needs}: expected one of {', '.join(SOURCES)}")
        if crowds not in CROWDS:
            raise UserError(f"data.crowds={crowds}: expected one of {', '.join(CROWDS)}")
        needed = task in ASKED
        self.task, self.split = {"need": "sod", "refer": "sis"}.get(task, task), split
        if task == "refer":
            self.shown = task
        if images is not None and not (self.root / images).is_dir():
            raise UserError(f"data.images={images}: no such folder in {self.root}")
        listing = Listing(self.root, split, exclude)
        sources: dict[str | None, Path] = {None: self.root / str(annotations)}
        if annotations is None:  # a file that was requested may lie anywhere
            sources = {}
            for file_split, source in find_annotations(self.root).items():
                with listing.collecting():
                    sources[file_split] = listing.inside(source)
        if not sources and not listing.faults:
            listing.faults.append(f"{self.root}: no COCO-style JSON here, in annotations/ or in a split's folder")
        photos: list[Photo] = []
        for file_split, source in sources.items():
            if splits == "hash" or file_split in (None, split) or split not in sources:
                folders = [self.root / images] if images is not None else _image_folders(self.root, source, file_split)
                reading = _Reading(listing, source, folders, file_split, salient_only and not needed, crowds)
                photos += reading.photos()
        asked = {photo.key: _by_need(listing, photo, needs) if needed else [photo] for photo in photos}
        assigned = listing.assign([photo.key for photo in photos], splits)
        found = {photo.key: photo for photo in photos if photo.instances and asked[photo.key]}
        lacking = "a need" if needed else "an instance"
        listing.leave_out((photo.path.name for photo in photos if photo.key not in found), f"without {lacking}")
        if strict and needed and not found and not listing.faults:
            raise UserError(f"{self.root}: no annotation has needs: +data.needs=category asks by category")
        self.finish(listing, strict, (assigned[key] for key in found))
        excluded = listing.check_excluded(assigned)
        chosen = [found[key] for key in found if listing.selects(assigned[key]) and key not in excluded]
        self.splits = tuple(assigned[photo.key] for photo in chosen for _ in asked[photo.key])
        self._photos = [part for photo in chosen for part in asked[photo.key]]
        self.keys = tuple(photo.key for photo in self._photos)

    def look(self, index: int, sample: Sample) -> Iterator[tuple[str, str | None]]:
        """Yield the name of each annotation, and what is unusual about its mask."""
        yield from look_at_annotations(self._photos[index], sample)

    def photos(self, index: int) -> tuple[np.ndarray, ...]:
        """Read one photo without its masks."""
        return (read_image(self._photos[index].path),)

    def __getitem__(self, index: int) -> Sample:
        """Read one photo, uint8 (H, W, 3), with its instances, bool (n, H, W), in the file's order.

        Raises:
            DataFault: If the photo cannot be decoded or has another size than the JSON says, a segmentation cannot
                be read, or an instance covers no pixel.
        """
        return read_sample(self._photos[index])


def read_sample(photo: Photo) -> Sample:
    """Read a photo, uint8 (H, W, 3), with its instances, bool (n, H, W), n from 0, in their order, and its need.

    Raises:
        DataFault: If the photo cannot be decoded or has another size than is stated, a segmentation cannot be read, or
            an instance covers no pixel.
    """
    image = read_image(photo.path)
    shape = image.shape[:2]
    if photo.size is not None:
        check_same_size(photo.path, image, str(photo.source), photo.size)
    instances = read_all(partial(_read_instance, photo, annotation, shape) for annotation in photo.instances)
    # COCO's masks are in column order.
    masks = np.ascontiguousarray(np.stack(instances)) if instances else np.zeros((0, *shape), bool)
    return Sample(
        key=photo.key,
        images=(image,),
        masks=(masks,),
        void=_read_void(photo, masks) if photo.crowds else None,
        phrases=_phrases(photo.instances),
        category=_category(photo) if photo.need is not None else None,
        need=photo.need,
    )


def look_at_annotations(photo: Photo, sample: Sample) -> Iterator[tuple[str, str | None]]:
    """Yield the name of each annotation of a photo, and how its mask differs from its own ``bbox`` or ``area``."""
    for annotation, mask in zip(photo.instances, sample.masks[0], strict=True):
        yield f"annotation {annotation.get('id')} of {photo.path.name}", disagreement(annotation, mask)


def disagreement(annotation: JsonObject, mask: np.ndarray) -> str | None:
    """Describe how a mask differs from what its annotation states, as one in row order or of (y, x) does."""
    bbox, area, found = _numbers(annotation.get("bbox"), 4), annotation.get("area"), int(mask.sum())
    if bbox is not None and bbox[2] > 0 and bbox[3] > 0 and _box_iou(mask, bbox) < AGREEMENT:
        return f"whose box has an IoU below {AGREEMENT} with their stated bbox"
    stated = area if isinstance(area, (int, float)) and 0 < area < _HUGE else found
    of_box = bbox is not None and isclose(stated, bbox[2] * bbox[3], rel_tol=1e-5)  # some programs state the box's area
    if not of_box and min(found, stated) < AGREEMENT * max(found, stated):
        return f"whose area differs from the stated one by a factor above {1 / AGREEMENT:.1f}"
    return "that fill the whole photo" if mask.all() else None


def _numbers(values: list | None, count: int) -> list[float] | None:
    """Read numbers; None if there are others than ``count``, or values that are no usable numbers."""
    if not isinstance(values, list) or len(values) != count:
        return None
    return values if all(isinstance(value, (int, float)) and abs(value) < _HUGE for value in values) else None


def _box_iou(mask: np.ndarray, bbox: Sequence[float]) -> float:
    """Compute the IoU of a mask's box with a box of x, y, width and height."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y, width, height = bbox
    across = max(0.0, min(columns[-1] + 1, x + width) - max(columns[0], x))
    down = max(0.0, min(rows[-1] + 1, y + height) - max(rows[0], y))
    own = (columns[-1] + 1 - columns[0]) * (rows[-1] + 1 - rows[0])
    return float(across * down / (own + width * height - across * down))


def find_annotations(root: Path) -> dict[str | None, Path]:
    """Find the COCO-style JSON files under ``root`` by the split in their names (None: one file for all splits).

    Raises:
        UserError: If several files match.
    """
    for path in (root / "annotations.json", root / "annotations" / "annotations.json"):
        if path.is_file():
            return {None: path}
    inside = {folder: split_in_name(folder.name) for folder in subfolders(root)}
    nearby = [root, *(folder for folder, split in inside.items() if split or folder.name.lower() == "annotations")]
    files = [path for folder in nearby for path in sorted(folder.glob("*.json"))]
    files = [path for path in files if path.is_file() and not path.name.startswith((".", *_OTHER_ANNOTATIONS))]
    stated = {path: split_in_name(path.stem) or inside.get(path.parent) for path in files}
    candidates = [path for path in files if stated[path]] or [path for path in files if _is_coco(path)]
    by_split: dict[str | None, Path] = {}
    for path in candidates:
        split = stated[path]
        if split in by_split:
            raise UserError(f"{root}: both {by_split[split].name} and {path.name} may be meant: set data.annotations")
        by_split[split] = path
    return by_split


def _is_coco(path: Path) -> bool:
    try:
        content = read_json(path)
    except DataFault:
        return False
    return isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content


def _image_folders(root: Path, source: Path, split: str | None) -> list[Path]:
    """List the candidate folders for the photos of a JSON file, nearest first."""
    near = list(dict.fromkeys((source.parent, root)))
    near += [folder for place in near for folder in image_folders(place)]
    if split:
        near += [folder for place in tuple(near) for folder in subfolders(place) if split_in_name(folder.name) == split]
    near += [folder for place in tuple(near) for folder in image_folders(place)]
    return list(dict.fromkeys(near))


@dataclass(frozen=True)
class _Reading:
    """Reading of one JSON file: which photos and annotations it lists, and what of them is used."""

    listing: Listing
    source: Path
    folders: list[Path]
    split: str | None
    salient_only: bool
    crowds: str

    def photos(self) -> list[Photo]:
        """List the photos that exist on disk; the others are faults."""
        records, annotations, categories = read_coco(self.listing, self.source)
        by_image = self._by_image(records, annotations)
        self._note([annotation for own in by_image.values() for annotation in own])
        photos: dict[str, Photo] = {}
        behind: dict[Path, str | None] = {}  # faults of folders that are links
        for record in records:
            name = PurePosixPath(record["file_name"].replace("\\", "/"))
            if not name.name or name.is_absolute() or ".." in name.parts:
                shown = record["file_name"][:80]
                self.listing.faults.append(f"{self.source}: file_name '{shown}': expected a path inside the data set")
                continue
            key = f"{self.split}/{name.with_suffix('')}" if self.split else str(name.with_suffix(""))
            path = self._find(key, name, behind)
            if path is None:
                continue
            if key in photos:
                self.listing.faults.append(f"{self.source}: {name} is listed twice")
                continue
            own = by_image[record["id"]]
            size = (record["height"], record["width"]) if record.get("height") and record.get("width") else None
            instances, crowds = tuple(filter(self._is_instance, own)), tuple(filter(self._is_void, own))
            photos[key] = Photo(key, path, size, instances, crowds, self.source, categories)
        return list(photos.values())

    def _by_image(self, records: list[JsonObject], annotations: list[JsonObject]) -> dict[Id, list[JsonObject]]:
        """List the annotations of each image; wrong ones are faults."""
        by_image: dict[Id, list[JsonObject]] = {}
        faults = self.listing.faults
        for record in records:
            if record["id"] in by_image:
                faults.append(f"{self.source}: two images have the id {record['id']}")
            by_image[record["id"]] = []
        for annotation in annotations:
            image = annotation["image_id"]
            wrong = next((flag for flag in _FLAGS if annotation.get(flag) not in (None, 0, 1)), None)
            if image not in by_image:
                number = annotation.get("id")
                faults.append(f"{self.source}: annotation {number} belongs to image {image}, which is not in images")
            elif wrong:
                value = str(annotation[wrong])[:80]
                faults.append(
                    f"{self.source}: annotation {annotation.get('id')}: {wrong} is {value!r}: expected 0 or 1"
                )
            else:
                by_image[image].append(annotation)
        return by_image

    def _is_void(self, annotation: JsonObject) -> bool:
        return bool(annotation.get("iscrowd")) and self.crowds == "void"

    def _is_instance(self, annotation: JsonObject) -> bool:
        return not self._is_void(annotation) and bool(annotation.get("salient", True) or not self.salient_only)

    def _note(self, annotations: list[JsonObject]) -> None:
        """Note the annotations that are crowds, and those that are left out because they are not salient."""
        count, notes = len(annotations), self.listing.notes
        crowds = [annotation for annotation in annotations if annotation.get("iscrowd")]
        if crowds:
            coded = sum(isinstance(annotation["segmentation"], dict) for annotation in annotations)
            every = coded == sum(isinstance(annotation["segmentation"], dict) for annotation in crowds) > 0
            why = ", every run-length code among them" if every else ""
            how = "data.crowds=instances reads them as instances" if self.crowds == "void" else "data.crowds=instances"
            meant = "void, not scored" if self.crowds == "void" else "instances"
            notes.append(
                f"{self.source}: {len(crowds)} of {count} annotations are crowds (iscrowd){why}, read as {meant}: {how}"
            )
        left = sum(not self._is_void(one) and not self._is_instance(one) for one in annotations)
        if left:
            notes.append(
                f'{self.source}: {left} of {count} annotations are left out because they say "salient": false: '
                "data.salient_only=false reads them"
            )

    def _find(self, key: str, name: PurePosixPath, behind: dict[Path, str | None]) -> Path | None:
        """Find the file of a photo; one that is absent, or behind a link out of the data set, is a fault."""
        found = next(((folder, folder / name) for folder in self.folders if _is_file(folder / name)), None)
        if found is None:
            places = ", ".join(map(str, self.folders))
            self.listing.find_fault(key, f"{self.source}: no file {str(name)[:80]} in {places}")
            return None
        folder, path = found
        root = boundary(self.listing.root, folder)
        if path.parent not in behind:
            behind[path.parent] = link_fault(root, path.parent)
        fault = behind[path.parent] or (link_fault(root, path) if path.is_symlink() else None)
        if fault:
            self.listing.find_fault(key, fault)
        return None if fault else path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def read_json(source: Path, other: str | None = None) -> Any:
    """Read a JSON file.

    Args:
        source: The file, in UTF-8, UTF-16 or UTF-32.
        other: Name of an encoding, for files that are in UTF-8 or in this one.

    Raises:
        DataFault: If it cannot be read, is not JSON, or holds half of a surrogate pair, which no file can hold.
    """
    check_regular(source)
    try:
        content = source.read_bytes()
        found = json.loads(content if other is None else _decoded(content, other))
        if _SURROGATE.search(content):
            json.dumps(found, ensure_ascii=False).encode()
    except OSError as error:
        raise DataFault(f"{source}: cannot be read: {error.strerror}") from None
    except UnicodeEncodeError as error:
        near = error.object[max(error.start - 40, 0) : error.end]
        raise DataFault(f"{source}: half of a surrogate pair is no text: {near}") from None
    except (ValueError, RecursionError) as error:
        raise DataFault(f"{source}: not JSON: {error}") from None
    return found


def _decoded(content: bytes, other: str) -> str:
    """Decode UTF-8, or else another encoding; raise a ValueError if it is in neither."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode(other)


def read_coco(listing: Listing, source: Path) -> tuple[list[JsonObject], list[JsonObject], dict[Id, str]]:
    """List the complete records of ``images`` and ``annotations``, and the names of ``categories`` by id.

    An unreadable file and incomplete records are faults.
    """
    content: JsonObject | None = None
    with listing.collecting():
        found = read_json(source)
        if not isinstance(found, dict):
            raise DataFault(f"{source}: a {type(found).__name__}: expected an object with images and annotations")
        content = found
    if content is None:
        return [], [], {}
    images = _complete(listing, source, content, "images", {"id": (int, str), "file_name": str})
    fields = {"image_id": (int, str), "segmentation": (list, dict)}
    annotations = _complete(listing, source, content, "annotations", fields)
    if doubles := doubled_ids(annotations):
        listing.notes.append(
            f"{source}: annotations of one id, of which COCO's programs keep the last and this reader all: "
            f"{preview([f'annotation {number}' for number in sorted(map(str, doubles))])}"
        )
    listed = content.get("categories")
    named = [record for record in listed if isinstance(record, dict)] if isinstance(listed, list) else []
    categories = {
        r["id"]: r["name"] for r in named if isinstance(r.get("id"), (int, str)) and isinstance(r.get("name"), str)
    }
    return images, annotations, categories


def doubled_ids(records: Iterable[JsonObject]) -> frozenset[Id]:
    """Find the ids that several records have."""
    ids = [record["id"] for record in records if isinstance(record.get("id"), (int, str))]
    return frozenset(number for number, count in Counter(ids).items() if count > 1)


def _complete(
    listing: Listing, source: Path, content: JsonObject, part: str, fields: Mapping[str, type | tuple[type, ...]]
) -> list[JsonObject]:
    """List the records of one part that have all required fields with the correct types."""
    if not isinstance(content.get(part), list):
        listing.faults.append(f"{source}: no list '{part}': expected COCO's images and annotations")
        return []
    complete = []
    for place, record in enumerate(content[part]):
        known = record if isinstance(record, dict) else {}
        missing = [field for field, kind in fields.items() if not isinstance(known.get(field), kind)]
        if missing:
            listing.faults.append(
                f"{source}: {part}[{place}] (id {known.get('id')}) has no usable {', '.join(missing)}"
            )
        else:
            complete.append(record)
    return complete


def _read_instance(photo: Photo, annotation: JsonObject, shape: tuple[int, int]) -> np.ndarray:
    """Decode the mask of one annotation, bool (H, W); raise a fault if it is malformed or empty."""
    name = f"{photo.source}: annotation {annotation.get('id')} of {photo.path.name}"
    try:
        mask = rasterise(annotation["segmentation"], shape)
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise DataFault(f"{name}: unreadable segmentation: {error}") from None
    if not mask.any():
        raise DataFault(f"{name}: an empty mask: the segmentation covers no pixel")
    return mask


def _read_void(photo: Photo, masks: np.ndarray) -> tuple[np.ndarray]:
    """Decode the crowd regions, bool (H, W), without the pixels of instances."""
    shape = masks.shape[1:]
    crowds = read_all(partial(_read_instance, photo, annotation, shape) for annotation in photo.crowds)
    return (np.any(crowds, axis=0) & ~masks.any(axis=0),)


def _phrases(instances: Iterable[JsonObject]) -> tuple[tuple[str, ...]] | None:
    """List one phrase per instance; None unless every instance has a phrase."""
    phrases = [next((a[field] for field in PHRASE_FIELDS if a.get(field)), None) for a in instances]
    return (tuple(map(str, phrases)),) if phrases and all(phrases) else None


def _by_need(listing: Listing, photo: Photo, source: str) -> list[Photo]:
    """List the photo once per need, with the annotations of the need."""
    needs, wrong = find_needs(photo.instances, photo.categories, source)
    listing.faults += [f"{photo.source}: {fault}" for fault in wrong]
    return [
        replace(photo, key=f"{photo.key}#{number}", instances=need.instances, need=need.text)
        for number, need in enumerate(needs)
    ]


def _category(photo: Photo) -> str | None:
    """Find the name of the category that all instances share; None if they differ."""
    names = {category_of(annotation, photo.categories) for annotation in photo.instances}
    return names.pop() if len(names) == 1 else None
