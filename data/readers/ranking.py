"""Reader of objects with saliency ranks: ASSR and IRSR as their authors publish them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from maskgym.data.layout.images import SUFFIXES, DataFault, check_same_size, read_all, read_image, read_levels
from maskgym.data.layout.listing import Listing, Reader, check_root, read_lines
from maskgym.data.layout.names import find_home, image_folders, split_in_name, subfolders
from maskgym.data.layout.pairs import Place, absence, list_pictures, pair_files
from maskgym.data.readers.coco import Photo, read_json, read_sample
from maskgym.data.readers.label_maps import check_specks, find_instances
from maskgym.data.readers.refcoco import read_list
from maskgym.data.run_lengths import Segmentation
from maskgym.data.sample import Sample
from maskgym.errors import UserError

SOURCES = ("auto", "objects", "grey")
WITHOUT_NEEDS = "no sample has a need in words: a policy with skip_empty_need=true answers as the plain detector"
SALIENT = 0.5  # an object of ASSR is salient above this value of rank_order, and above this share of 255 in its gt


@dataclass(frozen=True)
class Ranked:
    """One photo with the source of its objects and ranks: ``photo`` and ``ranks``, or the levels of ``grey``.

    Attributes:
        key: Name in the data set.
        image: File of the photo.
        photo: The photo with its objects, for :func:`~maskgym.data.readers.coco.read_sample`, or None.
        ranks: Ranks of the objects, larger is more salient.
        grey: Image whose grey levels are the ranks, or None.
        share: Share of the full level above which a level is an object.
    """

    key: str
    image: Path
    photo: Photo | None = None
    ranks: tuple[float, ...] = ()
    grey: Path | None = None
    share: float = 0.0


@dataclass(frozen=True)
class Annotated:
    """Salient objects of a photo: segmentations by their number in the file, and one rank each."""

    segmentations: dict[int, Segmentation]
    ranks: tuple[float, ...]


@dataclass(frozen=True)
class Part:
    """Paths of the folders and files of one split, if they exist; IRSR has no orders and no list."""

    home: Path
    name: str
    split: str
    images: Path
    greys: Path
    objects: Path
    orders: Path | None = None
    listed: Path | None = None

    @property
    def has_objects(self) -> bool:
        """Whether files of objects and ranks exist."""
        return self.objects.exists() or (self.orders is not None and self.orders.exists())


class RankedObjects(Reader):
    """Photos whose salient objects have ranks; one photo per sample. Further arguments and attributes: see `Reader`.

    Two layouts are supported:

        ASSR    images/<split>/*.jpg, gt/<split>/*.png, obj_seg_data_<split>.json, rank_order/<split>/<id>.json,
                <split>_images.txt
        IRSR    Images/<split>/rgb/*.jpg (or image), Images/<split>/gt/*.png, Annotations/<split>.pkl

    Files are found by the photo's name, never by the order of a list. In ASSR, the objects whose value of
    ``rank_order`` is above 0.5 are salient (the top five); in IRSR, all objects are. The grey levels of ``gt`` hold the
    same ranks, but there objects of equal rank are merged and occluded parts are missing. In ASSR, the levels are 255,
    229, 204, 178 and 153 from the first rank to the fifth, and levels up to 127 denote objects that are not salient. In
    IRSR, every level except 0 is an object.

    IRSR's pickle is read as plain values only (`maskgym.data.readers.refcoco.read_pickle`).

    Args:
        task: ``ranking``.
        source: ``objects``: the files of objects and ranks; ``grey``: the levels of ``gt``; ``auto``: ``objects`` where
            a split has such files, else ``grey``.
        specks: In ``gt``, levels without a block of 3x3 pixels: ``fault``, ``drop`` or ``keep``, as
            :class:`~maskgym.data.readers.label_maps.LabelMaps` takes it.

    Attributes:
        keys: The key of each sample: the name of the split's folder, ``/`` and the photo's name without suffix.
        task: ``sis``, because the masks are instances.
        notes: Photos left out without a fault: those on no list, and those without a salient object.
    """

    def __init__(
        self,
        root: str | Path | None,
        task: str = "ranking",
        split: str = "train",
        source: str = "auto",
        specks: str = "fault",
        splits: str = "auto",
        exclude: Sequence[str | float] = (),
        strict: bool = True,
    ) -> None:
        self.root = check_root("ranked", root, task, ("ranking",), split)
        check_specks(specks)
        if source not in SOURCES:
            raise UserError(f"data.source={source}: expected one of {', '.join(SOURCES)}")
        self.shown, self.task, self.split, self.specks = task, "sis", split, specks
        parts = _find_parts(self.root)
        some = splits == "auto" and any(part.split == split for part in parts)
        listing = Listing(self.root, split, exclude)
        listed = [part for part in parts if part.split == split or not some]
        photos = [photo for part in listed for photo in _list_part(listing, part, source)]
        assigned = listing.assign([photo.key for photo in photos], splits)
        self.finish(listing, strict, assigned.values())
        excluded = listing.check_excluded(assigned)
        self._photos = [p for p in photos if listing.selects(assigned[p.key]) and p.key not in excluded]
        self.keys = tuple(photo.key for photo in self._photos)
        self.splits = tuple(assigned[key] for key in self.keys)

    def describe(self) -> list[str]:
        """List what `Reader.describe` does, and that no sample has a need."""
        return [*super().describe(), WITHOUT_NEEDS]

    def __getitem__(self, index: int) -> Sample:
        """Read one photo, uint8 (H, W, 3), with its objects, bool (n, H, W), and their ranks, float (n,).

        Raises:
            DataFault: If a file cannot be decoded, sizes differ, a segmentation cannot be read or covers no pixel, or a
                picture of ranks is a JPEG, coloured, empty, or has specks that are refused.
        """
        ranked = self._photos[index]
        if ranked.photo is not None:
            return replace(read_sample(ranked.photo), ranks=(np.array(ranked.ranks),))
        assert ranked.grey is not None
        image, levels = read_all([partial(read_image, ranked.image), partial(read_levels, ranked.grey)])
        check_same_size(ranked.image, image, f"its picture of ranks {ranked.grey}", levels.shape)
        full = 255 if levels.max() <= 255 else 65535
        found = find_instances(ranked.grey, np.where(levels > ranked.share * full, levels, 0), self.specks)
        void = None if found.void is None else (found.void,)
        return Sample(ranked.key, (image,), (found.masks,), void, ranks=(found.labels.astype(float),))


def _find_parts(root: Path) -> list[Part]:
    """List the splits of a data set in order of name.

    Raises:
        UserError: If there is none.
    """
    home = find_home(root, lambda folder: bool(_split_folders(folder)))
    if home is None:
        raise UserError(
            f"data.root={root}: no images/train, images/val or images/test here, as ASSR and IRSR have them"
        )
    parts = []
    for folder in _split_folders(home):
        name, split = folder.name, split_in_name(folder.name) or ""
        inside = {path.name.lower(): path for path in subfolders(folder)}
        photos = next((inside[word] for word in ("rgb", "image", "images") if word in inside), None)
        if photos is not None:
            greys, objects = inside.get("gt", folder / "gt"), home / "Annotations" / f"{name}.pkl"
            parts.append(Part(home, name, split, photos, greys, objects))
        else:
            objects, orders = home / f"obj_seg_data_{name}.json", home / "rank_order" / name
            listed = home / f"{name}_images.txt"
            parts.append(Part(home, name, split, folder, home / "gt" / name, objects, orders, listed))
    return parts


def _split_folders(folder: Path) -> list[Path]:
    return [inside for images in image_folders(folder) for inside in subfolders(images) if split_in_name(inside.name)]


def _list_part(listing: Listing, part: Part, source: str) -> list[Ranked]:
    """List the photos of one split."""
    if source == "grey" or (source == "auto" and not part.has_objects):
        if source == "auto":
            listing.notes.append(f"{part.objects}: no such file: the ranks are the levels of {part.greys}")
        return _list_greys(listing, part)
    photos = list_pictures(listing, listing.root, part.images)
    annotated = _read_irsr(listing, part, photos) if part.orders is None else _read_assr(listing, part, photos)
    found = {name: record for name, record in annotated.items() if record.segmentations}
    listing.leave_out(sorted(annotated.keys() - found.keys()), f"in {part.images} without a salient object")
    return [_ranked(part, name, photos[name], record) for name, record in found.items()]


def _ranked(part: Part, name: str, image: Path, record: Annotated) -> Ranked:
    """Build one photo with its objects as COCO annotations."""
    key = f"{part.name}/{name}"
    instances = tuple({"id": number, "segmentation": value} for number, value in record.segmentations.items())
    return Ranked(key, image, Photo(key, image, None, instances, (), part.objects, {}), record.ranks)


def _list_greys(listing: Listing, part: Part) -> list[Ranked]:
    if not part.greys.is_dir():
        listing.faults.append(f"{part.greys}: no such folder: expected the pictures of ranks")
        return []
    pairs, _ = pair_files(listing, listing.root, Place(part.name, part.images, part.greys))
    by_name = {pair.key.removeprefix(f"{part.name}/"): pair for pair in pairs}
    names = _read_names(listing, part, {name: pair.image for name, pair in by_name.items()})
    share = 0.0 if part.orders is None else SALIENT
    return [Ranked(by_name[n].key, by_name[n].image, grey=by_name[n].mask, share=share) for n in names]


def _read_names(listing: Listing, part: Part, photos: Mapping[str, Path]) -> list[str]:
    """List the names of the photos to use: those on the split's list, if it exists, in its order."""
    if part.listed is None or not part.listed.is_file():
        return sorted(photos)
    lines: list[str] = []
    with listing.collecting():
        lines = read_lines(listing.inside(part.listed))
    names = list(dict.fromkeys(_stem(line.strip()) for line in lines if line.strip()))
    listing.faults += [f"{part.listed}: {absence(name, photos, part.images)}" for name in names if name not in photos]
    listing.leave_out(sorted(photos.keys() - {*names}), f"in {part.images} that are not in {part.listed.name}")
    return [name for name in names if name in photos]


def _read_assr(listing: Listing, part: Part, photos: Mapping[str, Path]) -> dict[str, Annotated]:
    """Read the salient objects of each photo whose order has one rank per object."""
    assert part.orders is not None
    found: dict[str, Annotated] = {}
    with listing.collecting():  # without the objects there is nothing to read
        objects = _read_objects(listing, part.objects)
        for name in _read_names(listing, part, photos):
            with listing.collecting():
                order = _read_order(path := listing.inside(part.orders / f"{name}.json"))
                if name not in objects:
                    raise DataFault(f"{part.objects}: no objects of '{name}'")
                if len(order) != (count := len(objects[name])):
                    raise DataFault(f"{path}: {len(order)} ranks, but {part.objects} has {count} objects of '{name}'")
                salient = [number for number, value in enumerate(order) if value > SALIENT]
                segmentations = {number: objects[name][number] for number in salient}
                found[name] = Annotated(segmentations, tuple(order[number] for number in salient))
    return found


def _read_objects(listing: Listing, path: Path) -> dict[str, list[Segmentation]]:
    """Read the segmentations of each photo in the order of the file.

    Raises:
        DataFault: If the whole file is faulty.
    """
    records = read_json(listing.inside(path))
    if not isinstance(records, list):
        raise DataFault(f"{path}: a {type(records).__name__}: expected a list of photos with img and object_data")
    objects: dict[str, list[Segmentation]] = {}
    for place, record in enumerate(records):
        known = record if isinstance(record, dict) else {}
        name, values = known.get("img"), _segmentations(known.get("object_data"))
        if not isinstance(name, (str, int)) or values is None:
            listing.faults.append(f"{path}: [{place}] (img {name}) has no usable img and object_data")
        elif _stem(str(name)) in objects:
            listing.faults.append(f"{path}: [{place}]: '{name}' is listed before")
        else:
            objects[_stem(str(name))] = values
    return objects


def _read_order(path: Path) -> list[float]:
    content = read_json(path)
    order = _numbers(content.get("rank_order")) if isinstance(content, dict) else None
    if order is None:
        raise DataFault(f"{path}: no usable rank_order: expected a list of numbers")
    return order


def _read_irsr(listing: Listing, part: Part, photos: Mapping[str, Path]) -> dict[str, Annotated]:
    """Read the objects of each photo in the pickle; all are salient."""
    try:
        records = read_list(listing.inside(part.objects), "photos")
    except DataFault as error:
        listing.faults.append(f"{error}; data.source=grey reads {part.greys} instead")
        return {}
    faults, found = listing.faults, dict[str, Annotated]()
    for place, record in enumerate(records):
        known = record if isinstance(record, dict) else {}
        file, values = known.get("file_name"), _segmentations(known.get("annotations"))
        ranks = _numbers(known.get("rank"))
        name = _stem(file) if isinstance(file, str) else ""
        if not name or values is None or ranks is None:
            faults.append(f"{part.objects}: [{place}] ({file}) has no usable file_name, annotations and rank")
        elif len(values) != len(ranks):
            faults.append(f"{part.objects}: [{place}] ({file}) has {len(ranks)} ranks, but {len(values)} annotations")
        elif name not in photos:
            faults.append(f"{part.objects}: {absence(name, photos, part.images)}")
        elif name in found:
            faults.append(f"{part.objects}: [{place}]: '{name}' is listed before")
        else:
            found[name] = Annotated(dict(enumerate(values)), tuple(ranks))
    listing.leave_out(sorted(photos.keys() - found.keys()), f"in {part.images} that are not in {part.objects.name}")
    return found


def _segmentations(records: list | None) -> list[Segmentation] | None:
    """Read the segmentation of each object; None if the format is wrong."""
    if not isinstance(records, list) or not all(isinstance(r, dict) and "segmentation" in r for r in records):
        return None
    return [record["segmentation"] for record in records]


def _numbers(values: list | None) -> list[float] | None:
    """Read finite numbers; None if a value is not a finite number."""
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) and abs(v) < 1e300 for v in values):
        return None
    return [float(value) for value in values]


def _stem(name: str) -> str:
    """Strip folders and suffix from a file's name; a name without suffix may hold dots."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.stem if path.suffix.lower() in SUFFIXES else path.name
