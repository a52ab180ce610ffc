"""Image sources of a project, with annotations where the data set has them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from maskgym.aliases import JsonObject
from maskgym.data import run_lengths
from maskgym.data.layout.images import DataFault, is_picture, read_image, read_size
from maskgym.data.layout.listing import link_fault, name_fault, preview
from maskgym.data.layout.names import image_folders
from maskgym.data.needs import Id, category_of
from maskgym.data.readers.coco import PHRASE_FIELDS, disagreement, find_annotations, read_json
from maskgym.data.scenes import FULL, Scenes
from maskgym.errors import UserError, one_line
from maskgym.experiments.annotation.needs import masks
from maskgym.experiments.annotation.needs.project import Settings

# Attributes in the descriptions of an object of a scene, most distinctive first.
DESCRIPTIONS = (("colour", "shape"), ("texture", "colour", "shape"), FULL, ("shape",))


@dataclass(frozen=True)
class Item:
    """One image of a source.

    Attributes:
        key: Path under the folder, or name of the scene.
        name: Unique file name of the records.
    """

    key: str
    name: str


@dataclass(frozen=True)
class Annotation:
    """One annotated object.

    Attributes:
        category: Category of the object.
        box: (left, top, right, bottom), pixels.
        segmentation: Run-length code of its mask, or None.
        phrases: Descriptions of the object in the data set, such as ``a red star``.
    """

    category: str
    box: tuple[float, float, float, float]
    segmentation: run_lengths.RunLengths | None
    phrases: tuple[str, ...] = ()


class Source(Protocol):
    """Images in a fixed order."""

    @property
    def items(self) -> Sequence[Item]:
        """All images."""

    def image(self, item: Item) -> np.ndarray:
        """Read or render uint8 (H, W, 3)."""

    def content(self, item: Item) -> str:
        """Compute a text that changes with the image."""

    def file(self, item: Item) -> Path | None:
        """Return the file of the image, or None."""

    def annotations(self, item: Item) -> list[Annotation]:
        """List the annotated objects."""


def open_source(settings: Settings) -> Source:
    """Build the source that the settings name.

    Raises:
        UserError: If a setting is invalid.
    """
    if settings.dataset is not None:
        if settings.dataset != "scenes":
            raise UserError(f"--dataset {settings.dataset}: expected scenes; for photos, --images DIR")
        return SceneSource(settings.split, settings.samples)
    assert settings.images is not None
    return PhotoSource(settings.images, settings.annotations)


class SceneSource:
    """Procedural scenes, in which every object is annotated, pale ones included.

    Args:
        split: Split of the scenes.
        samples: Number of scenes, from the first.
    """

    def __init__(self, split: str, samples: int) -> None:
        self.scenes = Scenes("sis", split, samples)
        self.items = [Item(f"scene-{split}-{index:05d}", f"scene-{split}-{index:05d}") for index in range(samples)]

    def image(self, item: Item) -> np.ndarray:
        """Render uint8 (H, W, 3)."""
        return self.scenes.scene(self._index(item)).image

    def content(self, item: Item) -> str:
        """Return the scene's name, which determines it."""
        return item.key

    def file(self, item: Item) -> None:
        """Return None: a scene has no file."""

    def annotations(self, item: Item) -> list[Annotation]:
        """List the visible objects in drawing order."""
        scene = self.scenes.scene(self._index(item))
        found = []
        for thing, mask in zip(scene.objects, scene.masks, strict=True):
            box = masks.box_of(mask)
            if box is not None:
                phrases = dict.fromkeys(thing.describe(attributes) for attributes in DESCRIPTIONS)
                found.append(Annotation(thing.shape, box, run_lengths.encode(mask), tuple(phrases)))
        return found

    def _index(self, item: Item) -> int:
        return int(item.key.rpartition("-")[2])


class PhotoSource:
    """Photos anywhere under a folder, in order of their paths; COCO-style JSON may mark objects in them.

    Args:
        folder: Folder of the photos; if it holds ``images/`` or the like, only photos in there count.
        annotations: The JSON, under the folder or anywhere; None searches for it when it is needed.

    Raises:
        UserError: If there is no photo, or the name of one is no UTF-8.
    """

    def __init__(self, folder: str | Path, annotations: str | None = None) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"--images {folder}: {'not a folder' if self.folder.exists() else 'no such folder'}")
        places = image_folders(self.folder) or [self.folder]  # beside images/, pictures may be masks
        found = sorted(path for place in places for path in place.rglob("*") if is_picture(path.name))
        keys = [path.relative_to(self.folder).as_posix() for path in found if path.is_file()]
        links = (link_fault(self.folder, path) for path in found if path.is_symlink())
        if fault := next(filter(None, (*map(name_fault, map(Path, keys)), *links)), None):
            raise UserError(f"--images {folder}: {fault}")
        self.items = [Item(key, _file_name(key)) for key in keys]
        if not self.items:
            raise UserError(f"--images {folder}: no photo there: expected .jpg, .jpeg, .png or .bmp")
        self._json = annotations

    def image(self, item: Item) -> np.ndarray:
        """Read uint8 (H, W, 3), upright.

        Raises:
            DataFault: If the photo cannot be decoded.
        """
        return read_image(self.folder / item.key)

    def content(self, item: Item) -> str:
        """Compute the hash of the file.

        Raises:
            UserError: If it cannot be read.
        """
        try:
            return hashlib.sha256((self.folder / item.key).read_bytes()).hexdigest()[:24]
        except OSError as error:
            raise UserError(f"{self.folder / item.key}: cannot be read: {error.strerror}") from error

    def file(self, item: Item) -> Path:
        """Return the photo's file."""
        return self.folder / item.key

    def annotations(self, item: Item) -> list[Annotation]:
        """List the objects of the JSON in its order, without crowds.

        Raises:
            UserError: If there is no JSON, or it is faulty.
        """
        return self._marked.get(item.key, [])

    @cached_property
    def _marked(self) -> dict[str, list[Annotation]]:
        file = self._find_json()
        try:
            content = read_json(file)
            names = {record["id"]: record["name"] for record in content.get("categories", ())}
            images = {record["id"]: record for record in content["images"]}
            records = [(images[record["image_id"]], record) for record in content["annotations"]]
            named = [str(image["file_name"]) for image, _ in records]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}: cannot be read as COCO-style JSON: {type(error).__name__} {error}") from error
        keys = self._keys_of(set(named), file)
        sizes = {key: self._size(key) for key in keys.values()}
        marked: dict[str, list[Annotation]] = {}
        unusual: dict[str, list[str]] = {}
        for (image, record), name in zip(records, named, strict=True):
            size = sizes.get(key := keys.get(name, ""))
            if size is None:
                continue
            if record.get("iscrowd"):
                kind: str | None = "that are crowds (iscrowd) and left out"
            else:
                found, kind = _annotation(file, image, record, names, size)
                marked.setdefault(key, []).append(found)
            if kind:
                unusual.setdefault(kind, []).append(f"annotation {record.get('id')} of {name}")
        for kind, places in unusual.items():
            print(one_line(f"{file}: {len(places)} of {len(records):,} annotations {kind}: {preview(places)}"))
        return marked

    def _size(self, key: str) -> tuple[int, int] | None:
        """Read the size (H, W) of a photo; None if it is no picture, which the stage ``detect`` records."""
        try:
            return read_size(self.folder / key)
        except DataFault:
            return None

    def _find_json(self) -> Path:
        if self._json is not None:
            beside = self.folder / self._json
            return beside if beside.exists() else Path(self._json)
        found = find_annotations(self.folder)
        if len(found) != 1:
            there = "several COCO-style JSON files" if found else "no COCO-style JSON"
            raise UserError(f"{self.folder}: {there} there: --detector annotations needs --annotations FILE")
        return next(iter(found.values()))

    def _keys_of(self, names: set[str], file: Path) -> dict[str, str]:
        """Find the key of each file name: the path, or its end."""
        by_last: dict[str, list[str]] = {}
        for item in self.items:
            by_last.setdefault(PurePosixPath(item.key).name, []).append(item.key)
        keys = {}
        for name in names:
            tail = name.replace("\\", "/")
            near = [k for k in by_last.get(PurePosixPath(tail).name, ()) if k == tail or k.endswith(f"/{tail}")]
            if len(near) > 1:
                raise UserError(f"{file}: {name} may be {' or '.join(near[:2])}: expected one photo of this name")
            if near:
                keys[name] = near[0]
        return keys


def _annotation(
    file: Path, image: JsonObject, record: JsonObject, names: dict[Id, str], size: tuple[int, int]
) -> tuple[Annotation, str | None]:
    """Read an annotation of a photo, and describe how its mask differs from its own ``bbox`` or ``area``.

    The photo has the given size (H, W), so that no number of the JSON decides about memory.
    """
    try:
        stated = image.get("height"), image.get("width")
        if any(side not in (None, own) for side, own in zip(stated, size, strict=True)):
            raise ValueError(f"it states {stated[1]}x{stated[0]} pixels, the photo has {size[1]}x{size[0]}")
        mask = run_lengths.rasterise(record["segmentation"], size)
        box = masks.box_of(mask)
        if box is None:
            raise ValueError("its mask is empty")
        phrase = next((str(record[field]) for field in PHRASE_FIELDS if record.get(field)), None)
        category = str(category_of(record, names) or "object")
        found = Annotation(category, box, run_lengths.encode(mask), (phrase,) if phrase else ())
        return found, disagreement(record, mask)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{file}: annotation {record.get('id')} of {image.get('file_name')}: {error}") from error


def _file_name(key: str) -> str:
    """Build a file name from a path: readable, and unique by its end."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", PurePosixPath(key).stem)[:60]
    return f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
