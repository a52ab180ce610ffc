"""Reader of referring expressions: RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO as their authors publish them."""

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
from maskgym.data.needs import ASKED, Id, reads_no_target
from maskgym.data.readers.coco import Photo, doubled_ids, look_at_annotations, read_coco, read_json, read_sample
from maskgym.data.sample import Sample
from maskgym.errors import UserError

VERSIONS = {  # each with the splits that papers use
    **{"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "grefcoco": "unc"},
}
GENERALISED = "grefcoco"  # whose sentences mean any number of objects
NO_OBJECT = [-1]  # ann_id of its sentences that mean nothing in their photo
SPLITS_BY = ("unc", "umd", "google")
_SPLITS = {"train": "train", "val": "validation", "test": "test", "testA": "test", "testB": "test"}
_PHOTOS = ("images/mscoco/images/train2014", "mscoco/images/train2014", "images/train2014", "train2014")
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "ref_id": int,
    "ann_id": (int, list),
    "image_id": int,
    "split": str,
    "sentences": list,
}
_BEYOND_ASCII = re.compile(rb"\\x[89a-f]")
_DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError)


class RefCOCO(Reader):
    """Sentences that each refer to objects of a COCO photo; one sentence per sample, as in most evaluations.

    The sentence is ``need``, and its object is the only mask. A sentence of gRefCOCO means one object, several, each a
    mask, or none. Photos lie in COCO's ``train2014`` and are named by ``instances.json``; the name in an expression's
    record denotes a crop and is ignored. Further arguments and attributes: see `Reader`.

    Files such as ``refs(unc).p`` are Python 2 pickles. Only lists, dictionaries, texts and numbers are read: a file
    that requests anything else is refused before any of it is executed. gRefCOCO's ``grefs(unc).json`` is JSON; of its
    objects, those that are crowds are left out, as its authors' loader does.

    Args:
        root: Folder that holds ``refcoco``, ``refcoco+``, ``refcocog`` and ``grefcoco``, or one of these.
        task: ``need``: the objects are one region; ``refer``: they are instances.
        version: ``refcoco``, ``refcoco+``, ``refcocog`` or ``grefcoco``.
        split_by: Author of the splits: ``unc``, ``umd`` or ``google``; None selects those that papers use: ``umd``
            for ``refcocog``, else ``unc``.
        partition: Part of the test split: ``testA`` (people), ``testB`` (other things) or ``both``.
        images: Folder of the photos, or the parent of their ``train2014``, under the root or anywhere; None searches
            in and beside the root.
        splits: See `Reader`; ``auto`` takes the split in each record, and hashes are of the photo's name.
        exclude: Photos to leave out, such as ``COCO_train2014_000000581857``.
        no_target: Whether to read the sentences that mean nothing in their photo; None reads them with ``refer`` and
            leaves them out with ``need``.

    Attributes:
        keys: The key of each sample: the photo's name without suffix, ``#`` and the sentence's number; of gRefCOCO
            ``#``, the expression's number, ``-`` and the sentence's.
        notes: Sentences and crowds that are left out without a fault.
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
        no_target: bool | None = None,
    ) -> None:
        self.root = check_root("expressions", root, task, ASKED, split)
        self.task, self.split = "sod", split  # one region per image is read as ``sod``
        if task == "refer":
            self.shown, self.task = task, "sis"
        home, refs_path = _find_files(self.root, version, split_by)
        if partition not in ("both", "testA", "testB"):
            raise UserError(f"data.partition={partition}: expected testA, testB or both")
        listing = Listing(self.root, split, exclude)
        folder = _find_photos(listing, images)
        photos, owns = _list_sentences(listing, home / "instances.json", refs_path, folder) if folder else ([], [])
        if partition != "both":
            kept = [row for row, own in enumerate(owns) if _SPLITS[own] != "test" or own == partition]
            photos, owns = [photos[row] for row in kept], [owns[row] for row in kept]
        if not reads_no_target(task, no_target):
            nothing = [photo.key for photo in photos if not photo.instances]
            listing.leave_out(nothing, "that mean nothing in their photo (data.no_target=true reads them)", "sentences")
            kept = [row for row, photo in enumerate(photos) if photo.instances]
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
        """Read the photo, uint8 (H, W, 3), the masks of the n referred objects, bool (n, H, W), and the need.

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
    return check_list(path, read_pickle(path), named)


def check_list(path: Path, records: Any, named: str) -> list[Any]:
    """Return the records of a file; raise a DataFault if they are no list, or none."""
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
    path = folder / (f"grefs({by}).json" if version == GENERALISED else f"refs({by}).p")
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in folder.glob("*refs(*).*"))) or "none"
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
    """List, for each sentence, the photo with the annotations that it means and the split in the sentence's record."""
    content = list[JsonObject](), list[JsonObject](), dict[Id, str]()
    with listing.collecting():
        content = read_coco(listing, listing.inside(instances))
    records, annotations, categories = content
    found = _Annotations(listing, instances, annotations)
    images = {record["id"]: record for record in records}
    there = {path.name.casefold(): path.name for path in folder.iterdir()}
    paths: dict[int, Path | None] = {}
    photos: list[Photo] = []
    owns: list[str] = []
    for place, record in _read_expressions(listing, expressions) if records else ():
        image, number = images.get(record["image_id"]), record["image_id"]
        meant = found.meant(f"{expressions}: [{place}]", record, image)
        if meant is None or image is None:
            continue
        if number not in paths:
            paths[number] = _find_photo(listing, folder, there, instances, image["file_name"])
        if (path := paths[number]) is None:
            continue
        size = (image["height"], image["width"]) if image.get("height") and image.get("width") else None
        for sentence in record["sentences"]:
            key = f"{path.stem}#{_number(record, sentence)}"
            photos.append(Photo(key, path, size, meant, (), instances, categories, sentence["sent"]))
            owns.append(record["split"])
    listing.leave_out(found.crowds, "among the objects of expressions", "crowds")
    return photos, owns


class _Annotations:
    """Annotations by their number.

    Attributes:
        crowds: Name of each crowd that an expression of gRefCOCO means.
    """

    def __init__(self, listing: Listing, source: Path, annotations: Sequence[JsonObject]) -> None:
        self._listing, self._source = listing, source
        self._by_number = {one["id"]: one for one in annotations if isinstance(one.get("id"), int)}
        self._doubles = doubled_ids(annotations)
        self.crowds: dict[str, None] = {}

    def meant(self, where: str, record: JsonObject, image: JsonObject | None) -> tuple[JsonObject, ...] | None:
        """Find the annotations that an expression means; None, with a fault, if one is not that of its image."""
        faults, generalised = self._listing.faults, isinstance(record["ann_id"], list)
        nothing = record["ann_id"] == NO_OBJECT
        numbers = record["ann_id"] if generalised else [record["ann_id"]]
        meant: list[JsonObject] = []
        if image is None:
            faults.append(f"{where} means image {record['image_id']}, which {self._source} has not")
            return None
        for number in dict.fromkeys(() if nothing else numbers):  # an object may be named twice
            annotation = self._by_number.get(number)
            if annotation is None or annotation["image_id"] != record["image_id"]:
                named = f"annotation {number} of image {record['image_id']}"
                faults.append(f"{where} means {named}, which {self._source} has not")
                return None
            if number in self._doubles:
                faults.append(f"{where} means annotation {number}, of which {self._source} has several")
                return None
            if generalised and annotation.get("iscrowd"):
                self.crowds[f"annotation {number}"] = None
            else:
                meant.append(annotation)
        if not meant and not nothing:
            faults.append(f"{where} means crowds only: {self._source}")
            return None
        return tuple(meant)


def _read_expressions(listing: Listing, path: Path) -> Iterator[tuple[int, JsonObject]]:
    """Yield the usable records with their positions; the others are faults."""
    faults, records = listing.faults, list[JsonObject]()
    generalised = path.suffix == ".json"
    with listing.collecting():
        inside = listing.inside(path)
        records = (
            check_list(path, read_json(inside), "expressions") if generalised else read_list(inside, "expressions")
        )
    seen: set[int | str] = set()
    for place, record in enumerate(records):
        known = record if isinstance(record, dict) else {}
        missing = [field for field, kind in _FIELDS.items() if not isinstance(known.get(field), kind)]
        if not missing and not all(map(_is_sentence, known["sentences"])):
            missing = ["sentences"]
        if not missing and not _names_objects(known["ann_id"], generalised):
            missing = ["ann_id"]
        if missing:
            faults.append(f"{path}: [{place}] (ref_id {known.get('ref_id')}) has no usable {', '.join(missing)}")
        elif not _lists_all(known):
            faults.append(
                f"{path}: [{place}] (ref_id {known['ref_id']}) has {len(known['sentences'])} sentences, but its "
                f"sent_ids are {str(known['sent_ids'])[:80]}: expected the same ids"
            )
        elif known["split"] not in _SPLITS:
            faults.append(f"{path}: [{place}] is in split '{known['split'][:80]}': expected {', '.join(_SPLITS)}")
        elif again := seen.intersection(_number(known, sentence) for sentence in known["sentences"]):
            faults.append(f"{path}: [{place}] has sentence {again.pop()}, which is another's too")
        else:
            seen.update(_number(known, sentence) for sentence in known["sentences"])
            yield place, known


def _names_objects(value: int | list, generalised: bool) -> bool:
    """Check the ``ann_id`` of a record: a number, or in gRefCOCO a list of numbers, alone -1 for no object."""
    if not generalised or not isinstance(value, list):
        return isinstance(value, int) and not generalised
    numbers = all(isinstance(number, int) and not isinstance(number, bool) for number in value)
    return bool(value) and numbers and (value == NO_OBJECT or -1 not in value)


def _number(record: JsonObject, sentence: JsonObject) -> int | str:
    """Number a sentence: gRefCOCO does not say that the numbers of its sentences differ."""
    own = sentence["sent_id"]
    return f"{record['ref_id']}-{own}" if isinstance(record["ann_id"], list) else own


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
