"""Instances from COCO-style JSON: SIS10K, ILSO and SOC in that form, COCO itself, and custom annotations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from maskgym.aliases import JsonObject
from maskgym.data.layout.images import DataFault, check_same_size, read_all, read_image
from maskgym.data.layout.listing import Listing, Reader, check_excluded, check_root
from maskgym.data.layout.names import image_folders, split_in_name, subfolders
from maskgym.data.needs import SOURCES, Id, category_of, find_needs
from maskgym.data.run_lengths import rasterise
from maskgym.data.sample import Sample
from maskgym.errors import UserError

PHRASE_FIELDS = ("phrase", "caption")
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

    Segmentations may be polygons or run-length codes, compressed or not. Regions marked ``iscrowd`` become ``void``.
    Photos without a relevant instance are left out. ``phrases`` come from ``phrase`` or ``caption`` fields if
    every instance of the photo has one. Further arguments and attributes: see `Reader`.

    With task ``need`` a sample is a photo and a need, and its masks are the annotations that the need means
    (`maskgym.data.needs`), salient or not. Its key is the photo's, ``#`` and a number.

    Args:
        task: ``sis``; or ``sod``: the same masks as one region; or ``need``.
        annotations: JSON file under the root; None searches for ``annotations.json``, else files named after splits
            (as ``train/train.json`` or ``annotations/instances_val2017.json``), else any JSON in COCO's form.
        images: Folder of the photos under the root; None searches beside the JSON and under the root.
        salient_only: Whether to leave out annotations with ``"salient": false``, unless the task is ``need``.
        splits: See `Reader`; the names of JSON files count as split folders.
        needs: With task ``need``: ``own``: needs of the annotations; ``category``: in addition ``find a`` and the
            category's name for annotations without needs.

    Attributes:
        keys: The key of each sample: the photo's ``file_name`` without suffix, after the split if files name it.
        notes: Photos left out without a fault because they hold no relevant instance.
    """

    def __init__(
        self,
        root: str | Path | None,
        task: str = "sis",
        split: str = "train",
        annotations: str | None = None,
        images: str | None = None,
        salient_only: bool = True,
        splits: str = "auto",
        exclude: Sequence[str] = (),
        strict: bool = True,
        needs: str = "own",
    ) -> None:
        self.root = check_root("coco", root, task, ("sis", "sod", "need"), split)
        if needs not in SOURCES:
            raise UserError(f"data.needs={needs}: expected one of {', '.join(SOURCES)}")
        needed = task == "need"
        self.task, self.split = "sod" if needed else task, split
        if images is not None and not (self.root / images).is_dir():
            raise UserError(f"data.images={images}: no such folder in {self.root}")
        sources = find_annotations(self.root) if annotations is None else {None: self.root / annotations}
        listing = Listing(self.root, split)
        if not sources:
            listing.faults.append(f"{self.root}: no COCO-style JSON here, in annotations/ or in a split's folder")
        photos: list[Photo] = []
        for file_split, source in sources.items():
            if splits == "hash" or file_split in (None, split) or split not in sources:
                folders = [self.root / images] if images is not None else _image_folders(self.root, source, file_split)
                photos += _list_photos(listing, source, folders, file_split, salient_only and not needed)
        asked = {photo.key: _by_need(listing, photo, needs) if needed else [photo] for photo in photos}
        assigned = listing.assign([photo.key for photo in photos], splits)
        found = {photo.key: photo for photo in photos if photo.instances and asked[photo.key]}
        lacking = "a need" if needed else "an instance"
        listing.leave_out((photo.path.name for photo in photos if photo.key not in found), f"without {lacking}")
        if strict and needed and not found and not listing.faults:
            raise UserError(f"{self.root}: no annotation has needs: data.needs=category asks by category")
        self.finish(listing, strict, (assigned[key] for key in found))
        excluded = check_excluded(exclude, assigned)
        chosen = [found[key] for key in found if listing.selects(assigned[key]) and key not in excluded]
        self.splits = tuple(assigned[photo.key] for photo in chosen for _ in asked[photo.key])
        self._photos = [part for photo in chosen for part in asked[photo.key]]
        self.keys = tuple(photo.key for photo in self._photos)

    def __getitem__(self, index: int) -> Sample:
        """Read one photo, uint8 (H, W, 3), with its instances, bool (n, H, W), in the file's order.

        Raises:
            DataFault: If the photo cannot be decoded or has another size than the JSON says, a segmentation cannot
                be read, or an instance covers no pixel.
        """
        return read_sample(self._photos[index])


def read_sample(photo: Photo) -> Sample:
    """Read a photo, uint8 (H, W, 3), with its instances, bool (n, H, W), in their order, and its need.

    Raises:
        DataFault: If the photo cannot be decoded or has another size than is stated, a segmentation cannot be read, or
            an instance covers no pixel.
    """
    image = read_image(photo.path)
    shape = image.shape[:2]
    if photo.size is not None:
        check_same_size(photo.path, image, str(photo.source), photo.size)
    instances = read_all(partial(_read_instance, photo, annotation, shape) for annotation in photo.instances)
    masks = np.ascontiguousarray(np.stack(instances))  # COCO's masks are in column order
    return Sample(
        key=photo.key,
        images=(image,),
        masks=(masks,),
        void=_read_void(photo, masks) if photo.crowds else None,
        phrases=_phrases(photo.instances),
        category=_category(photo) if photo.need is not None else None,
        need=photo.need,
    )


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
    files = [path for path in files if not path.name.startswith((".", *_OTHER_ANNOTATIONS))]
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
        content = json.loads(path.read_bytes())
    except ValueError:
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


def _list_photos(
    listing: Listing, source: Path, folders: list[Path], split: str | None, salient_only: bool
) -> list[Photo]:
    """List the photos of one JSON file that exist on disk; the others are faults."""
    records, annotations, categories = read_coco(listing, source)
    by_image: dict[Id, list[JsonObject]] = {}
    for record in records:
        if record["id"] in by_image:
            listing.faults.append(f"{source}: two images have the id {record['id']}")
        by_image[record["id"]] = []
    for annotation in annotations:
        if annotation["image_id"] not in by_image:
            number, image = annotation.get("id"), annotation["image_id"]
            listing.faults.append(f"{source}: annotation {number} belongs to image {image}, which is not in images")
        else:
            by_image[annotation["image_id"]].append(annotation)
    photos: dict[str, Photo] = {}
    for record in records:
        name = PurePosixPath(str(record["file_name"]).replace("\\", "/"))
        key = f"{split}/{name.with_suffix('')}" if split else str(name.with_suffix(""))
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is None:
            listing.faults.append(f"{source}: no file {name} in {', '.join(map(str, folders))}")
        elif key in photos:
            listing.faults.append(f"{source}: {name} is listed twice")
        else:
            own = by_image[record["id"]]
            size = (record["height"], record["width"]) if record.get("height") and record.get("width") else None
            instances = (a for a in own if not a.get("iscrowd") and (a.get("salient", True) or not salient_only))
            crowds = (a for a in own if a.get("iscrowd"))
            photos[key] = Photo(key, path, size, tuple(instances), tuple(crowds), source, categories)
    return list(photos.values())


def read_json(source: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataFault: If it cannot be read, or is not JSON.
    """
    try:
        return json.loads(source.read_bytes())
    except OSError as error:
        raise DataFault(f"{source}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataFault(f"{source}: not JSON: {error}") from None


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
    listed = content.get("categories")
    named = [record for record in listed if isinstance(record, dict)] if isinstance(listed, list) else []
    categories = {
        r["id"]: r["name"] for r in named if isinstance(r.get("id"), (int, str)) and isinstance(r.get("name"), str)
    }
    return images, annotations, categories


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
    return (tuple(map(str, phrases)),) if all(phrases) else None


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
