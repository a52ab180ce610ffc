"""Read and write Hugging Face data sets: folders of ``save_to_disk``, parquet, ``imagefolder``, or names on the hub."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import datasets
import numpy as np
from huggingface_hub import constants
from PIL import Image

from maskgym.aliases import JsonObject
from maskgym.data.layout.images import (
    FOREGROUND,
    DataFault,
    Source,
    check_same_size,
    inspect_mask,
    read_all,
    read_image,
    read_mask,
)
from maskgym.data.layout.listing import Listing, Reader, link_fault
from maskgym.data.layout.names import split_in_name
from maskgym.data.needs import ASKED, reads_no_target
from maskgym.data.run_lengths import rasterise
from maskgym.data.sample import CATEGORIES, SPLITS, Dataset, Sample, split_of
from maskgym.errors import UserError, one_line

if TYPE_CHECKING:
    from pyarrow import ChunkedArray

T = TypeVar("T")
Stored = (
    str | bytes | list | dict | None
)  # a value of a row: a picture's bytes and path, a segmentation, or lists of them
# Meaning of the masks by requested task.
MEANT = {
    **{"sod": "sod", "need": "sod", "sis": "sis", "refer": "sis", "ranking": "sis", "ranking_need": "sis"},
    **{"cosod": "cosod"},
}
NEEDED = {
    "need": ("need",),
    "refer": ("need",),
    "ranking": ("ranks",),
    "ranking_need": ("ranks", "need"),
}  # required columns by task
_NOTHING = re.compile(r"\s*\[\s*\]\s*")  # JSON text of masks of a need that means nothing
OPTIONAL = ("key", "phrases", "category", "need", "ranks", "void", "rationale")
_VALIDATION = ("dev", "eval")  # besides the names accepted for folders
_LOADING_ERRORS = (  # of the library, which trusts the files that describe a data set
    *(OSError, ValueError, datasets.exceptions.DatasetsError),
    *(AttributeError, LookupError, NotImplementedError, RecursionError, TypeError),
)


@dataclass(frozen=True)
class Place:
    """Location of a sample: the part, its row, and the range of a group's images."""

    key: str
    split: str
    part: int
    row: int
    images: slice


@dataclass(frozen=True)
class Row:
    """Name of a row for messages, and the folders in which its files may lie."""

    name: str
    homes: tuple[Path, ...]

    def __str__(self) -> str:
        return self.name


class HuggingFace(Reader):
    """Rows of a Hugging Face data set; one row per sample. Further attributes: see `Reader`.

    A mask column holds, for each image, a picture (grey, above 128 is foreground), a list of pictures (instances), or
    COCO's segmentations, one or a list of them: run-length codes or lists of polygons, as values or as JSON text.
    Groups of images (``cosod``) have lists of all of these. With ``need`` and ``refer`` an empty list says that the
    need means nothing in the image; a missing mask is a fault. What `to_hugging_face` wrote is read back unchanged.

    Args:
        path: Folder that ``save_to_disk`` wrote, or an input of ``load_dataset``: a folder of parquet files or of
            pictures with metadata, a parquet file, or a name on the hub.
        task: Meaning of the masks: ``sod``, ``sis``, ``cosod``; ``need`` (one region, and a column of needs); ``refer``
            (the same, as instances); ``ranking``, or ``ranking_need`` with needs (instances, and a column of ranks).
        split: ``train``, ``validation``, ``test``, or ``all``.
        config: Configuration of a data set that has several.
        image: Column of the images, or of lists of them for ``cosod``.
        mask: Column of the masks.
        key: Column of unique names; without one rows are numbered. This and the following arguments default to the
            column of the same name, if it exists.
        phrases: Column with one text per mask.
        category: Column of categories, as texts or class labels.
        need: Column of needs.
        ranks: Column with one number per mask, larger is more salient.
        void: Column of images of the pixels that are not scored.
        rationale: Column of answers to imitate.
        group_size: Images per sample of ``cosod``: longer groups are cut into chunks, the last one shorter; None gives
            whole groups.
        splits: ``auto``: by the names of its splits if there are several, or if it was saved with a name; else by the
            hash of the key; ``hash``: always by hash.
        exclude: Keys of samples to leave out.
        no_target: Whether to read the rows whose need means nothing in the image, with no mask; True takes a missing
            mask for such a row, too. None reads them with ``refer`` and leaves them out with ``need``.
        strict: Whether to raise on faults found in listing; False records them in ``faults`` and skips those rows.

    Attributes:
        keys: The key of each sample, with the number of the chunk for a group that is cut.
        task: Meaning of the masks: ``sod``, ``sis`` or ``cosod``.
        notes: Parts left out without a fault: splits whose name denotes none of the three.

    Raises:
        UserError: If the data set cannot be loaded, a column is absent or unfit, or the split is empty.
        DataFault: If strict and two rows have the same key.
    """

    def __init__(
        self,
        path: str | Path | None,
        task: str = "sod",
        split: str = "train",
        config: str | None = None,
        image: str = "image",
        mask: str = "mask",
        key: str | None = None,
        phrases: str | None = None,
        category: str | None = None,
        need: str | None = None,
        ranks: str | None = None,
        void: str | None = None,
        rationale: str | None = None,
        group_size: int | None = None,
        splits: str = "auto",
        exclude: Sequence[str | float] = (),
        no_target: bool | None = None,
        strict: bool = True,
    ) -> None:
        _check_arguments(path, task, split, splits, group_size)
        self._leaves_out = not reads_no_target(task, no_target) and task in ASKED
        self._missing_is_none = no_target is True
        if no_target is not None and task not in ASKED:
            raise UserError(f"data.no_target={no_target}: task={task} has no needs: expected null")
        self.path, self.shown, self.task, self.split = str(path), task, MEANT[task], split
        self._homes = _homes(self.path)
        listing = Listing(Path(self.path), split, exclude)
        parts = _name_splits(listing, *_load(self.path, config), splits)
        named = {"image": image, "mask": mask, "key": key, "phrases": phrases, "category": category, "need": need}
        named |= {"ranks": ranks, "void": void, "rationale": rationale}
        self._columns = _find_columns(self.path, task, named, parts[0][1].column_names)
        features = parts[0][1].features
        if self.task == "cosod" and not isinstance(
            features[self._columns["image"]], datasets.List | datasets.LargeList
        ):
            raise UserError(f"task=cosod: data.image={image}: expected a column of lists of images, one a group")
        self._labels = features.get(self._columns.get("category", ""))
        # Arrow's raw values stay undecoded until access, so that the common reader decodes them.
        self._parts = [
            part.select_columns(list(dict.fromkeys(self._columns.values()))).with_format("arrow") for _, part in parts
        ]
        places = self._with_target(listing, self._list(listing, [name for name, _ in parts], group_size))
        self.finish(listing, strict, (place.split for place in places))
        excluded = listing.check_excluded(place.key for place in places)
        self._places = [place for place in places if listing.selects(place.split) and place.key not in excluded]
        self.keys = tuple(place.key for place in self._places)
        self.splits = tuple(place.split for place in self._places)

    def __getitem__(self, index: int) -> Sample:
        """Read one row: images uint8 (H, W, 3), with masks bool (n, H, W).

        Raises:
            DataFault: If a picture or a segmentation cannot be read, sizes differ, a mask is missing or empty (for
                ``cosod``: all masks of the group), or there is not one phrase or rank per mask.
        """
        where, values, per_image = self._read_row(index)
        images, masks = _read_pictures(where, per_image["image"], per_image["mask"], self.task == "cosod")
        if not any(map(len, masks)):
            self._check_means_nothing(where, per_image["mask"])
        return Sample(
            key=self.keys[index],
            images=images,
            masks=masks,
            void=_read_voids(where, per_image.get("void"), images),
            phrases=_per_mask(where, "phrases", per_image.get("phrases"), masks, _texts),
            category=self._category(values),
            need=values.get("need"),
            ranks=_per_mask(where, "ranks", per_image.get("ranks"), masks, np.array),
            rationale=values.get("rationale"),
        )

    def _check_means_nothing(self, where: Row, truths: Sequence[Stored]) -> None:
        """Raise a DataFault unless a row without masks says that its need means nothing, by an empty list."""
        if self.shown not in ASKED:
            raise DataFault(f"{where}: no mask" + (" in the whole group" if self.task == "cosod" else ""))
        if not self._missing_is_none and _parsed(where, truths[0]) is None:
            told = "expected an empty list where the need means nothing, or data.no_target=true"
            raise DataFault(f"{where}: no mask: {told}")

    def look(self, index: int, sample: Sample) -> Iterator[tuple[str, str | None]]:
        """Yield the name of each mask, and what is unusual about its picture, or about the mask of a segmentation."""
        where, _, per_image = self._read_row(index)
        values = [_parsed(where, value) for truth in per_image["mask"] for value in _instances(where, truth)]
        pictures = [value for value in values if isinstance(value, dict) and "counts" not in value]
        if len(pictures) < len(values):
            yield from super().look(index, sample)
        for picture in pictures:
            kind = inspect_mask(_file(where, picture))[1]
            yield sample.key, kind and f"{kind} (foreground is above {FOREGROUND})"

    def _read_row(self, index: int) -> tuple[Row, JsonObject, dict[str, list]]:
        """Read the values of a sample, undecoded, and those that are stored per image."""
        place = self._places[index]
        (row,) = self._parts[place.part][place.row].to_pylist()
        values = {name: row[column] for name, column in self._columns.items()}
        per_image = {
            name: ((values[name] or [])[place.images] if self.task == "cosod" else [values[name]])
            for name in ("image", "mask", "phrases", "ranks", "void")
            if values.get(name) is not None or name in ("image", "mask")
        }
        return Row(f"{self.path}: row '{place.key}'", self._homes), values, per_image

    @cached_property
    def with_rationale(self) -> tuple[int, ...]:
        """Indices of the samples with a rationale; only its column is read."""
        column = self._columns.get("rationale")
        if column is None:
            return ()
        texts = [part.select_columns([column])[:][column].to_pylist() for part in self._parts]
        return tuple(index for index, place in enumerate(self._places) if texts[place.part][place.row])

    def _list(self, listing: Listing, names: Sequence[str | None], group_size: int | None) -> list[Place]:
        """List all samples in order without decoding; rows whose key is taken are faults."""
        places: list[Place] = []
        seen: set[str] = set()
        for number, (name, part) in enumerate(zip(names, self._parts, strict=True)):
            table = part[:]
            column = self._columns.get("key")
            keys = table[column].to_pylist() if column else [f"{row:06d}" for row in range(len(table))]
            counts = _lengths(table[self._columns["image"]]) if self.task == "cosod" else [1] * len(keys)
            for row, (raw, count) in enumerate(zip(keys, counts, strict=True)):
                key = str(raw) if column or name is None else f"{name}/{raw}"
                if key in seen:
                    listing.faults.append(f"{self.path}: row {row}: another one has the key '{key}' too")
                    continue
                seen.add(key)
                size = group_size or max(count, 1)
                for start in range(0, count, size):
                    own = key if count <= size else f"{key}/{start // size}"
                    places.append(Place(own, name or split_of(key), number, row, slice(start, start + size)))
        return places

    def _with_target(self, listing: Listing, places: list[Place]) -> list[Place]:
        """Leave out the rows whose list of masks is empty, if asked; only the column of masks is read."""
        if not self._leaves_out:
            return places
        column = self._columns["mask"]
        empty = [_empty_lists(part[:][column], part.features[column]) for part in self._parts]
        nothing = [place.key for place in places if place.row in empty[place.part]]
        listing.leave_out(nothing, "that mean nothing in their image (data.no_target=true reads them)", "rows")
        return [place for place in places if place.row not in empty[place.part]]

    def _category(self, values: JsonObject) -> str | None:
        """Find the category of a row; without such a column, it is the name of the task's masks."""
        if "category" not in values:
            return CATEGORIES.get(self.shown)
        value = values["category"]
        if value is not None and isinstance(self._labels, datasets.ClassLabel):
            return self._labels.int2str(value)
        return None if value is None else str(value)


def to_hugging_face(dataset: Dataset) -> datasets.Dataset:
    """Convert a data set to a Hugging Face data set for ``save_to_disk``, ``to_parquet`` or ``push_to_hub``.

    Images are stored as PNG. Combine several splits with
    ``datasets.DatasetDict({part.split: to_hugging_face(part) for part in parts})``. `HuggingFace` reads equal samples.

    Args:
        dataset: Data set of one split, with at least one sample.

    Raises:
        UserError: If the data set holds all splits together.
    """
    if dataset.split not in SPLITS:
        raise UserError(f"split={dataset.split}: expected a data set of one split: {', '.join(SPLITS)}")
    group = dataset.task == "cosod"

    def each(
        feature: datasets.Value | datasets.Image | datasets.List,
    ) -> datasets.Value | datasets.Image | datasets.List:
        return datasets.List(feature) if group else feature

    text = datasets.Value("string")
    features = {
        "key": text,
        "image": each(datasets.Image()),
        "mask": each(datasets.List(datasets.Image())),
        "void": each(datasets.Image()),
        "phrases": each(datasets.List(text)),
        "ranks": each(datasets.List(datasets.Value("float64"))),
        "category": text,
        "need": text,
        "rationale": text,
    }
    with _quiet():
        return datasets.Dataset.from_generator(
            _write_rows,
            features=datasets.Features(features),
            gen_kwargs={"dataset": dataset, "group": group},
            split=datasets.NamedSplit(dataset.split),
            fingerprint=uuid4().hex,  # otherwise the cache would return an outdated folder
        )


def _write_rows(dataset: Dataset, group: bool) -> Iterator[JsonObject]:
    """Yield one row per sample."""
    for index in range(len(dataset)):
        sample = dataset[index]
        per_image: dict[str, list | None] = {
            "image": [Image.fromarray(image) for image in sample.images],
            "mask": [[_grey(mask) for mask in masks] for masks in sample.masks],
            "void": None if sample.void is None else [_grey(void) for void in sample.void],
            "phrases": None if sample.phrases is None else [list(phrases) for phrases in sample.phrases],
            "ranks": None if sample.ranks is None else [ranks.tolist() for ranks in sample.ranks],
        }
        row = {name: values if group or values is None else values[0] for name, values in per_image.items()}
        texts = {"key": sample.key, "category": sample.category, "need": sample.need, "rationale": sample.rationale}
        yield {**texts, **row}


def _grey(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _check_arguments(path: str | Path | None, task: str, split: str, splits: str, group_size: int | None) -> None:
    if not path:
        raise UserError("data.path is not set: data=hf expects a folder or a name on the hub")
    for name, value, allowed in (("split", split, (*SPLITS, "all")), ("splits", splits, ("auto", "hash"))):
        if value not in allowed:
            raise UserError(f"data.{name}={value}: expected one of {', '.join(allowed)}")
    if task not in MEANT:
        raise UserError(f"task={task}: data=hf reads {', '.join(MEANT)}")
    if group_size is not None and group_size < 1:
        raise UserError(f"data.group_size={group_size}: expected a number of photos, 1 or more, or null")


def _load(path: str, config: str | None) -> tuple[dict[str | None, datasets.Dataset], bool]:
    """Load the splits by name (None: no name), and whether the author of the data chose the names."""
    local = Path(path).expanduser()
    if not local.exists() and path.startswith(("/", ".", "~")):
        raise UserError(f"data.path={path}: no such folder")
    saved = any((local / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        with _quiet():
            if saved:
                found = datasets.load_from_disk(str(local))
            elif local.is_file():
                found = datasets.load_dataset("parquet", data_files=str(local))
            else:
                found = datasets.load_dataset(str(local) if local.exists() else path, config)
    except _LOADING_ERRORS as error:
        raise UserError(f"data.path={path}: cannot be loaded: {one_line(error)[:300]}") from error
    if isinstance(found, datasets.Dataset):
        return {None if found.split is None else str(found.split): found}, saved
    if not found:
        raise UserError(f"data.path={path}: has no split: expected at least one")
    return dict(found), saved


def _name_splits(
    listing: Listing, found: Mapping[str | None, datasets.Dataset], saved: bool, splits: str
) -> list[tuple[str | None, datasets.Dataset]]:
    """Assign a split to each part (None: split by hash); note parts that are left out."""
    # `load_dataset` names a single part train, regardless of its content.
    if splits == "hash" or (len(found) == 1 and not (saved and None not in found)):
        return [(None, datasets.concatenate_datasets([*found.values()]))]
    named: dict[str, datasets.Dataset] = {}
    notes = []
    for name, part in found.items():
        split = "validation" if name in _VALIDATION else split_in_name(str(name))
        if split is None:
            notes.append(f"the split '{name}' is left out: its name says none of {', '.join(SPLITS)}")
        elif split in named:
            raise UserError(f"data.path: several splits are read as {split}: {', '.join(map(str, found))}")
        else:
            named[split] = part
    if not named:
        return [(None, datasets.concatenate_datasets([*found.values()]))]
    listing.notes += notes
    return [*named.items()]


def _find_columns(path: str, task: str, named: Mapping[str, str | None], there: Sequence[str]) -> dict[str, str]:
    """Find the column of each field of a sample that has one."""
    offer = f"its columns are {', '.join(there)}"
    for name, column in named.items():
        if column is not None and column not in there:
            raise UserError(f"data.{name}={column}: no such column in {path}: {offer}")
    columns = {name: column or name for name, column in named.items() if column or name in there}
    for name in NEEDED.get(task, ()):
        if name not in columns:
            raise UserError(f"task={task}: name the column of {name} with data.{name}: {path}: {offer}")
    return columns


def _lengths(column: ChunkedArray) -> list[int]:
    """Compute the length of each list in an Arrow column; 0 for a missing list."""
    return [length or 0 for chunk in column.chunks for length in chunk.value_lengths().to_pylist()]


def _empty_lists(column: ChunkedArray, feature: object) -> set[int]:
    """Find the rows of a column of masks that hold an empty list, as a value or as JSON text, not those without any."""
    if isinstance(feature, datasets.List | datasets.LargeList):
        lengths = [length for chunk in column.chunks for length in chunk.value_lengths().to_pylist()]
        return {row for row, length in enumerate(lengths) if length == 0}
    if getattr(feature, "dtype", None) in ("string", "large_string"):
        return {row for row, text in enumerate(column.to_pylist()) if text and _NOTHING.fullmatch(text)}
    return set()


def _read_pictures(
    where: Row, pictures: Sequence[Stored], truths: Sequence[Stored], group: bool
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Read the images and the masks of one sample."""
    if len(pictures) != len(truths):
        raise DataFault(f"{where}: {len(pictures)} images and masks for {len(truths)}")
    read = read_all(partial(_read_one, where, *pair, group) for pair in zip(pictures, truths, strict=True))
    return tuple(image for image, _ in read), tuple(rows for _, rows in read)


def _read_one(where: Row, picture: Stored, truth: Stored, group: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read an image uint8 (H, W, 3) and its masks bool (n, H, W); in a group, empty masks are left out."""
    image = read_image(_file(where, picture))
    masks = read_all(partial(_read_mask, where, image, value) for value in _instances(where, truth))
    if group:
        masks = [mask for mask in masks if mask.any()]
    elif not all(mask.any() for mask in masks):
        raise DataFault(f"{where}: an empty mask: no pixel is foreground (of a picture: above {FOREGROUND})")
    return image, np.array(masks, bool).reshape(-1, *image.shape[:2])


def _instances(where: Row, truth: Stored) -> list[Stored]:
    """List one value per mask; a single image or segmentation gives a list of one."""
    truth = _parsed(where, truth)
    if truth is None:
        return []
    if isinstance(truth, dict):
        return [truth]
    if not isinstance(truth, list):
        raise DataFault(f"{where}: unreadable mask: {truth!r:.80}: expected pictures or segmentations")
    first = truth[0] if truth else None
    # COCO stores one object as a list of polygons, and a polygon as a list of numbers.
    polygons = isinstance(first, list) and len(first) > 0 and isinstance(first[0], int | float)
    return [truth] if polygons else list(truth)


def _read_mask(where: Row, image: np.ndarray, value: Stored) -> np.ndarray:
    """Decode one value to a mask, bool (H, W), at the size of its image."""
    value = _parsed(where, value)
    if isinstance(value, dict) and "counts" not in value:
        mask = read_mask(_file(where, value)) > FOREGROUND
        check_same_size(Path(str(where)), image, "its mask", mask.shape)
        return mask
    try:
        if not isinstance(value, dict | list):
            raise TypeError(f"a {type(value).__name__}")
        return rasterise(value, image.shape[:2])
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise DataFault(f"{where}: unreadable segmentation: {error}") from None


def _parsed(where: Row, value: Stored) -> Stored:
    """Parse text as JSON; return other values unchanged."""
    if not isinstance(value, str | bytes):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataFault(f"{where}: unreadable segmentation: not JSON: {error}") from None


def _read_voids(
    where: Row, pictures: Sequence[Stored] | None, images: Sequence[np.ndarray]
) -> tuple[np.ndarray, ...] | None:
    if pictures is None:
        return None
    if len(pictures) != len(images):
        raise DataFault(f"{where}: void for {len(pictures)} of {len(images)} images")
    return tuple(
        np.zeros(image.shape[:2], bool) if picture is None else _read_mask(where, image, picture)
        for picture, image in zip(pictures, images, strict=True)
    )


def _per_mask(
    where: Row, name: str, values: Sequence | None, masks: Sequence[np.ndarray], read: Callable[[list], T]
) -> tuple[T, ...] | None:
    """List the per-mask values of each image; None if a row has none."""
    if values is None:
        return None
    rows = [[value] if isinstance(value, str | int | float) else value or [] for value in values]
    if any(isinstance(value, float) and not isfinite(value) for row in rows for value in row):
        raise DataFault(f"{where}: {name} {rows}: expected finite numbers")
    counts, expected = [len(row) for row in rows], [len(row) for row in masks]
    if counts != expected:
        raise DataFault(f"{where}: {name} for {counts} masks of {expected}")
    return None if any(value is None for row in rows for value in row) else tuple(read(row) for row in rows)


def _texts(values: list) -> tuple[str, ...]:
    return tuple(map(str, values))


class _Content(BytesIO):
    """Bytes of an image with a name for messages, like a file."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


def _file(where: Row, picture: Stored) -> Source:
    """Convert a stored image to an object that the file readers open.

    Raises:
        DataFault: If it is no picture, or a file outside of the data set, whose rows may name any file.
    """
    if not isinstance(picture, dict) or not (picture.get("bytes") or picture.get("path")):
        raise DataFault(f"{where}: no picture: expected an Image column")
    if picture.get("bytes"):
        return _Content(picture["bytes"], str(where))
    path = Path(picture["path"])
    if all(link_fault(home, path) for home in where.homes):
        raise DataFault(f"{where}: its file {path} is outside of {where.homes[0]}: expected pictures in the data set")
    return path


def _homes(path: str) -> tuple[Path, ...]:
    """List the folders in which a data set's files may lie: its own, or the library's caches for a name on the hub."""
    local = Path(path).expanduser()
    if local.exists():
        return (local if local.is_dir() else local.parent,)
    caches = (datasets.config.HF_DATASETS_CACHE, datasets.config.HF_CACHE_HOME, constants.HF_HUB_CACHE)
    return tuple(map(Path, caches))


@contextmanager
def _quiet() -> Iterator[None]:
    """Show the library's progress bars on a terminal only."""
    shown = datasets.is_progress_bar_enabled() and not sys.stderr.isatty()
    if shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
