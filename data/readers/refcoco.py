"""Reader of referring expressions: RefCOCO, RefCOCO+ and RefCOCOg as their authors publish them."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from maskgym.aliases import JsonObject
from maskgym.data.layout.images import DataFault
from maskgym.data.layout.listing import Listing, Reader, boundary, check_root, is_text, link_fault
from maskgym.data.layout.names import find_home
from maskgym.data.needs import Id
from maskgym.data.readers.coco import Photo, doubled_ids, look_at_annotations, read_coco, read_sample
from maskgym.data.sample import Sample
from maskgym.errors import UserError

VERSIONS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}  # each with the splits that papers use
SPLITS_BY = ("unc", "umd", "google")
_SPLITS = {"train": "train", "val": "validation", "test": "test", "testA": "test", "testB": "test"}
_PHOTOS = ("images/mscoco/images/train2014", "mscoco/images/train2014", "images/train2014", "train2014")
_FIELDS = {"ref_id": int, "ann_id": int, "image_id": int, "split": str, "sentences": list}
_BEYOND_ASCII = re.compile(rb"\\x[89a-f]")
_DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError)


class RefCOCO(Reader):
    """Sentences that each refer to one object of a COCO photo; one sentence per sample, as in most evaluations.

    The sentence is ``need``, and its object is the only mask. Photos lie in COCO's ``train2014`` and are named by
    ``instances.json``; the name in an expression's record denotes a crop and is ignored. Further arguments and
    attributes: see `Reader`.

    Files such as ``refs(unc).p`` are Python 2 pickles. Only lists, dictionaries, texts and numbers are read: a file
    that requests anything else is refused before any of it is executed.

    Args:
        root: Folder that holds ``refcoco``, ``refcoco+`` and ``refcocog``, or one of these.
        task: ``need``.
        version: ``refcoco``, ``refcoco+`` or ``refcocog``.
        split_by: Author of the splits: ``unc``, ``umd`` or ``google``; None selects those that papers use: ``umd``
            for ``refcocog``, else ``unc``.
        partition: Part of the test split: ``testA`` (people), ``testB`` (other things) or ``both``.
        images: Folder of the photos, or the parent of their ``train2014``, under the root or anywhere; None searches
            in and beside the root.
        splits: See `Reader`; ``auto`` takes the split in each record, and hashes are of the photo's name.
        exclude: Photos to leave out, such as ``COCO_train2014_000000581857``.

    Attributes:
        keys: The key of each sample: the photo's name without suffix, ``#`` and the sentence's number.
    """

    def __init__(
        self,
        root: str | Path | None,
        task: str = "need",
        split: str = "train",
        version: str = "refcoco",
        split_by: str | None = None,
        partition: str = "both",
        images: str | None = None,
        splits: str = "auto",
        exclude: Sequence[str | float] = (),
        strict: bool = True,
    ) -> None:
        self.root = check_root("expressions", root, task, ("need",), split)
        self.task, self.split = "sod", split  # one region per image is read as ``sod``
        home, refs_path = _find_files(self.root, version, split_by)
        if partition not in ("both", "testA", "testB"):
            raise UserError(f"data.partition={partition}: expected testA, testB or both")
        listing = Listing(self.root, split, exclude)
        folder = _find_photos(listing, images)
        photos, owns = _list_sentences(listing, home / "instances.json", refs_path, folder) if folder else ([], [])
        if partition != "both":
            kept = [row for row, own in enumerate(owns) if _SPLITS[own] != "test" or own == partition]
            photos, owns = [photos[row] for row in kept], [owns[row] for row in kept]
        names = [photo.key.partition("#")[0] for photo in photos]
        by_name = {} if splits == "auto" else listing.assign(names, splits)
        assigned = [_SPLITS[own] for own in owns] if splits == "auto" else [by_name[name] for name in names]
        self.finish(listing, strict, assigned)
        excluded = listing.check_excluded(names)
        chosen = [row for row, own in enumerate(assigned) if listing.selects(own) and names[row] not in excluded]
        self._photos = [photos[row] for row in chosen]
        self.keys = tuple(photo.key for photo in self._photos)
        self.splits = tuple(assigned[row] for row in chosen)

    def look(self, index: int, sample: Sample) -> Iterator[tuple[str, str | None]]:
        """Yield the name of the annotation, and what is unusual about its mask."""
        yield from look_at_annotations(self._photos[index], sample)

    def __getitem__(self, index: int) -> Sample:
        """Read the photo, uint8 (H, W, 3), the mask of the referred object, bool (1, H, W), and the sentence as need.

        Raises:
            DataFault: If the photo cannot be decoded or has another size than the JSON says, or the segmentation
                cannot be read or covers no pixel.
        """
        return read_sample(self._photos[index])


def read_pickle(path: Path) -> Any:
    """Read a pickle of lists, dictionaries, texts and numbers; Python 2 texts are read as Latin-1.

    Raises:
        DataFault: If it cannot be read, is damaged, or requests anything else, which is not executed.
    """
    try:
        content = path.read_bytes()
        _check_numbers(content)
        return _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except OSError as error:
        raise DataFault(f"{path}: cannot be read: {error.strerror}") from None
    except (*_DAMAGE, MemoryError, OverflowError, RecursionError) as error:
        raise DataFault(f"{path}: not a pickle of plain values: {error}") from None


def read_list(path: Path, named: str) -> list[Any]:
    """Read a pickle that holds a list of plain values; arguments and errors are those of `read_pickle`."""
    records = read_pickle(path)
    if not isinstance(records, list):
        raise DataFault(f"{path}: a {type(records).__name__}: expected a list of {named}")
    if not records:
        raise DataFault(f"{path}: an empty list: expected {named}")
    return records


def _check_numbers(content: bytes) -> None:
    """Raise a ValueError if a memo index exceeds the pickle's size, because Python would allocate memory for it."""
    as_ascii = _BEYOND_ASCII.sub(rb"\\x4", content)  # genops reads only ASCII texts of Python 2; lengths stay
    for operation, number, _ in pickletools.genops(as_ascii):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(number or 0) > len(content):
            raise ValueError(f"it keeps a value under the number {number}")


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler that refuses every name, so that a pickle can neither build objects of a class nor call functions."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, identity: str) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an object outside of it")


def _find_files(root: Path, version: str, split_by: str | None) -> tuple[Path, Path]:
    """Find the folder of a version and its file of expressions."""
    if version not in VERSIONS:
        raise UserError(f"data.version={version}: expected one of {', '.join(VERSIONS)}")
    by = VERSIONS[version] if split_by is None else split_by
    if by not in SPLITS_BY:
        raise UserError(f"data.split_by={by}: expected one of {', '.join(SPLITS_BY)}")
    home = find_home(root, lambda folder: (folder / version).is_dir())
    folder = root if root.name == version or home is None else home / version
    path = folder / f"refs({by}).p"
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in folder.glob("refs(*).p"))) or "none"
        raise UserError(f"data.root={root}: no {version}/{path.name} (expressions in {folder}: {there})")
    return folder, path


def _find_photos(listing: Listing, images: str | None) -> Path | None:
    """Find the folder of the photos; None, with a fault, if it is behind a link that was not requested."""
    root = listing.root
    if images is not None:
        given = root / images
        if not given.is_dir():
            raise UserError(f"data.images={images}: no such folder in {root}")
        return next((given / name for name in _PHOTOS if (given / name).is_dir()), given)
    found = [(place, place / name) for place in (root, root.parent) for name in _PHOTOS if (place / name).is_dir()]
    if not found:
        raise UserError(
            f"data.root={root}: no {_PHOTOS[0]} or train2014 in or beside it: data.images names that folder"
        )
    place, folder = found[0]
    if fault := link_fault(place, folder):
        listing.faults.append(f"{fault}; data.images may name it")
        return None
    return folder


def _list_sentences(
    listing: Listing, instances: Path, expressions: Path, folder: Path
) -> tuple[list[Photo], list[str]]:
    """List, for each sentence, the photo with its one annotation and the split in the sentence's record."""
    content = list[JsonObject](), list[JsonObject](), dict[Id, str]()
    with listing.collecting():
        content = read_coco(listing, listing.inside(instances))
    records, annotations, categories = content
    images = {record["id"]: record for record in records}
    by_number = {annotation["id"]: annotation for annotation in annotations if isinstance(annotation.get("id"), int)}
    doubles = doubled_ids(annotations)
    there = {path.name.casefold(): path.name for path in folder.iterdir()}
    paths: dict[int, Path | None] = {}
    photos: list[Photo] = []
    owns: list[str] = []
    for place, record in _read_expressions(listing, expressions) if records else ():
        annotation, image = by_number.get(record["ann_id"]), images.get(record["image_id"])
        if annotation is None or image is None or annotation["image_id"] != record["image_id"]:
            named = f"annotation {record['ann_id']} of image {record['image_id']}"
            listing.faults.append(f"{expressions}: [{place}] means {named}, which {instances} has not")
            continue
        if record["ann_id"] in doubles:
            number = f"annotation {record['ann_id']}"
            listing.faults.append(f"{expressions}: [{place}] means {number}, of which {instances} has several")
            continue
        if record["image_id"] not in paths:
            paths[record["image_id"]] = _find_photo(listing, folder, there, instances, image["file_name"])
        if (path := paths[record["image_id"]]) is None:
            continue
        size = (image["height"], image["width"]) if image.get("height") and image.get("width") else None
        for sentence in record["sentences"]:
            key = f"{path.stem}#{sentence['sent_id']}"
            photos.append(Photo(key, path, size, (annotation,), (), instances, categories, sentence["sent"]))
            owns.append(record["split"])
    return photos, owns


def _read_expressions(listing: Listing, path: Path) -> Iterator[tuple[int, JsonObject]]:
    """Yield the usable records with their positions; the others are faults."""
    faults, records = listing.faults, list[JsonObject]()
    with listing.collecting():
        records = read_list(listing.inside(path), "expressions")
    seen: set[int] = set()
    for place, record in enumerate(records):
        known = record if isinstance(record, dict) else {}
        missing = [field for field, kind in _FIELDS.items() if not isinstance(known.get(field), kind)]
        if not missing and not all(map(_is_sentence, known["sentences"])):
            missing = ["sentences"]
        if missing:
            faults.append(f"{path}: [{place}] (ref_id {known.get('ref_id')}) has no usable {', '.join(missing)}")
        elif not _lists_all(known):
            faults.append(
                f"{path}: [{place}] (ref_id {known['ref_id']}) has {len(known['sentences'])} sentences, but its "
                f"sent_ids are {str(known['sent_ids'])[:80]}: expected the same ids"
            )
        elif known["split"] not in _SPLITS:
            faults.append(f"{path}: [{place}] is in split '{known['split'][:80]}': expected {', '.join(_SPLITS)}")
        elif again := seen.intersection(sentence["sent_id"] for sentence in known["sentences"]):
            faults.append(f"{path}: [{place}] has sentence {again.pop()}, which is another's too")
        else:
            seen.update(sentence["sent_id"] for sentence in known["sentences"])
            yield place, known


def _is_sentence(value: JsonObject) -> bool:
    known = isinstance(value, dict) and isinstance(value.get("sent"), str) and isinstance(value.get("sent_id"), int)
    return known and is_text(value["sent"])


def _lists_all(record: JsonObject) -> bool:
    """Check whether the sentences of a record are those of its ``sent_ids``, if it has them."""
    stated = record.get("sent_ids")
    found = [sentence["sent_id"] for sentence in record["sentences"]]
    return stated is None or (
        isinstance(stated, list) and len(stated) == len(found) and {*map(str, stated)} == {*map(str, found)}
    )


def _find_photo(listing: Listing, folder: Path, there: Mapping[str, str], source: Path, file_name: str) -> Path | None:
    """Find the file of a photo; ``there`` maps case-folded names to names."""
    path = folder / PurePosixPath(file_name.replace("\\", "/")).name
    twin = there.get(path.name.casefold())
    fault: str | None = None
    if twin != path.name:
        fault = f"{source}: no file {path.name[:80]} in {folder}" + (f": {twin} differs in case" if twin else "")
    elif path.is_symlink():
        fault = link_fault(boundary(listing.root, folder), path)
    if fault:
        listing.find_fault(path.stem, fault)
    return None if fault else path
