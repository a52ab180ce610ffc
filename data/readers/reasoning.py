"""Reader of ReasonSeg: photos with polygons and texts that take a step of reasoning, as LISA's authors publish them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from maskgym.aliases import Json, JsonObject
from maskgym.data.layout.images import DataFault, is_picture, read_image
from maskgym.data.layout.listing import Listing, Reader, check_root, link_fault, name_fault
from maskgym.data.layout.names import find_home, split_in_name, subfolders
from maskgym.data.needs import ASKED, reads_no_target
from maskgym.data.readers.coco import read_json
from maskgym.data.sample import Sample

OTHER_ENCODING = "cp1252"  # of some files of the authors
DEPRECATED = "flag"  # label of shapes without meaning
FARTHEST = 100_000  # pixels: a coordinate beyond is no part of a photo
Polygon = tuple[tuple[int, int], ...]  # corners, (x, y) in pixels


@dataclass(frozen=True)
class Shape:
    """A polygon and whether its pixels are ignored: neither the target nor the background."""

    corners: Polygon
    ignored: bool


@dataclass(frozen=True)
class Text:
    """A sample: a text and the photo that it is about."""

    key: str
    photo: Path
    source: Path
    need: str
    shapes: tuple[Shape, ...]


class ReasonSeg(Reader):
    """Photos with one region and texts that mean it without naming it, in pairs of NAME.jpg and NAME.json.

    Each text is a sample and is its ``need``: photos to train on have up to five texts of one meaning. The region is
    the union of the polygons labelled ``target``, which are not instances; polygons whose label contains ``ignore``
    are ``void``. Smaller polygons lie on larger ones, and outlines belong to polygons, as in the authors' script. A
    photo without a target polygon shows nothing that is meant. ``is_sentence`` is not used. Further arguments and
    attributes: see `Reader`.

    Args:
        root: Folder that holds ``train``, ``val`` and ``test``, or the photos themselves; ``explanatory`` is not read.
        task: ``need`` or ``refer``, with the same masks.
        exclude: Photos to leave out, such as ``train/NAME``.
        no_target: Whether to read photos without a target polygon, with no mask; None reads them with ``refer`` and
            leaves them out with ``need``.

    Attributes:
        keys: The key of each sample: the photo's path without suffix, ``#`` and the number of the text, from 0.
        notes: Photos without a target polygon that are left out.

    References:
        Lai et al., LISA: reasoning segmentation via large language model, CVPR 2024; dvlab-research/LISA README.md and
        utils/data_processing.py.
    """

    def __init__(
        self,
        root: str | Path | None,
        task: str = "need",
        split: str = "train",
        splits: str = "auto",
        exclude: Sequence[str | float] = (),
        strict: bool = True,
        no_target: bool | None = None,
    ) -> None:
        self.root = check_root("reasoning", root, task, ASKED, split)
        self.task, self.split, self.shown = "sod", split, task  # one region per image is read as ``sod``
        listing = Listing(self.root, split, exclude)
        texts = [text for folder in _folders(self.root) for text in _list_texts(listing, self.root, folder)]
        if not texts and not listing.faults:
            listing.faults.append(f"{self.root}: no NAME.json beside NAME.jpg here or in train/, val/ or test/")
        if not reads_no_target(task, no_target):
            nothing = dict.fromkeys(_photo_of(text) for text in texts if not _has_target(text))
            listing.leave_out(nothing, "without a target (data.no_target=true reads them)")
            texts = [text for text in texts if _has_target(text)]
        assigned = listing.assign(dict.fromkeys(map(_photo_of, texts)), splits)
        self.finish(listing, strict, (assigned[_photo_of(text)] for text in texts))
        excluded = listing.check_excluded(assigned)
        chosen = [text for text in texts if listing.selects(assigned[_photo_of(text)])]
        self._texts = [text for text in chosen if _photo_of(text) not in excluded]
        self.keys = tuple(text.key for text in self._texts)
        self.splits = tuple(assigned[_photo_of(text)] for text in self._texts)

    def photos(self, index: int) -> tuple[np.ndarray, ...]:
        """Read one photo without its mask."""
        return (read_image(self._texts[index].photo),)

    def __getitem__(self, index: int) -> Sample:
        """Read the photo, uint8 (H, W, 3), its region, bool (1, H, W), or (0, H, W) if it has none, and its void.

        Raises:
            DataFault: If the photo cannot be decoded, or no pixel of the target lies in it.
        """
        text = self._texts[index]
        image = read_image(text.photo)
        target, void = rasterise(text.shapes, image.shape[:2])
        if _has_target(text) and not target.any():
            raise DataFault(f"{text.source}: no pixel of {text.photo.name} is target")
        masks = target[None][: 1 if _has_target(text) else 0]
        return Sample(
            key=text.key,
            images=(image,),
            masks=(masks,),
            void=(void,) if void.any() else None,
            need=text.need,
        )


def is_reasoning(root: Path) -> bool:
    """Check whether a folder, or a folder of a split in it, holds a JSON file beside a photo of its name."""
    for folder in _folders(root):
        stems = {path.stem for path in folder.iterdir() if is_picture(path.name)}
        if any(path.stem in stems for path in folder.glob("*.json")):
            return True
    return False


def rasterise(shapes: Sequence[Shape], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw polygons over each other, the smallest last.

    Args:
        shapes: The polygons.
        size: Height and width of the photo.

    Returns:
        The target and what is ignored, bool (H, W) each, without a common pixel.
    """
    drawn = [(_draw(shape.corners, size), shape.ignored) for shape in shapes]
    levels = np.zeros(size, np.uint8)
    for mask, ignored in sorted(drawn, key=lambda one: -np.count_nonzero(one[0])):
        levels[mask] = 2 if ignored else 1
    return levels == 1, levels == 2


def _draw(corners: Polygon, size: tuple[int, int]) -> np.ndarray:
    """Draw one polygon and its outline, bool (H, W).

    OpenCV, which the authors' script calls, takes other pixels at slanted edges: 0.4 % of the pixels of a polygon.
    """
    picture = Image.new("1", size[::-1])
    pen = ImageDraw.Draw(picture)
    pen.polygon(corners, fill=1)
    pen.line([*corners, corners[0]], fill=1)
    return np.array(picture)


def _photo_of(text: Text) -> str:
    return text.key.rpartition("#")[0]


def _has_target(text: Text) -> bool:
    return not all(shape.ignored for shape in text.shapes)


def _folders(root: Path) -> list[Path]:
    """List the folders of splits, at any depth of single folders around them; else the root."""
    home = find_home(root, lambda folder: any(split_in_name(part.name) for part in subfolders(folder)))
    return [root] if home is None else [part for part in subfolders(home) if split_in_name(part.name)]


def _list_texts(listing: Listing, root: Path, folder: Path) -> Iterator[Text]:
    """Yield the texts of one folder; files without partner and unusable JSON are faults."""
    if fault := link_fault(root, folder):
        listing.faults.append(fault)
        return
    prefix = "" if folder == root else f"{folder.name}/"
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    photos = {path.stem: path for path in files if is_picture(path.name)}
    sources = {path.stem: path for path in files if path.suffix == ".json"}
    for stem in sorted({*photos, *sources}):
        photo, source, key = photos.get(stem), sources.get(stem), prefix + stem
        if photo is None or source is None:
            lonely, partner = (source, "photo of this name") if photo is None else (photo, f"{stem}.json")
            listing.find_fault(key, f"{lonely}: no {partner} beside it")
            continue
        if fault := name_fault(photo) or link_fault(root, photo):
            listing.faults.append(fault)
            continue
        try:
            needs, shapes = _read(listing.inside(source))
        except DataFault as error:
            listing.find_fault(key, str(error))
            continue
        for number, need in enumerate(needs):
            yield Text(f"{key}#{number}", photo, source, need, shapes)


def _read(source: Path) -> tuple[list[str], tuple[Shape, ...]]:
    """Read the texts and the polygons of a photo.

    Raises:
        DataFault: If the file cannot be read, or a part is missing or of another kind.
    """
    content = read_json(source, OTHER_ENCODING)
    if not isinstance(content, dict):
        raise DataFault(f"{source}: a {type(content).__name__}: expected an object with text and shapes")
    needs, shapes = content.get("text"), content.get("shapes")
    if not isinstance(needs, list) or not needs or not all(isinstance(need, str) and need.strip() for need in needs):
        raise DataFault(f"{source}: text is {str(needs)[:80]!r}: expected a list of texts, at least one")
    if not isinstance(shapes, list):
        raise DataFault(f"{source}: shapes is {str(shapes)[:80]!r}: expected a list of polygons")
    read = [_shape(f"{source}: shapes[{place}]", shape) for place, shape in enumerate(shapes)]
    return needs, tuple(shape for shape in read if shape is not None)


def _shape(where: str, content: Json) -> Shape | None:
    """Read a polygon; None for one without meaning."""
    known: JsonObject = content if isinstance(content, dict) else {}
    label = known.get("label")
    if not isinstance(label, str):
        raise DataFault(f"{where}: label is {str(label)[:80]!r}: expected target or ignore")
    if label.lower() == DEPRECATED:
        return None
    points = known.get("points")
    if not isinstance(points, list) or len(points) < 3:
        told = f"{len(points)} points" if isinstance(points, list) else f"points is {str(points)[:80]!r}"
        raise DataFault(f"{where}: {told}: expected a polygon of three or more")
    return Shape(tuple(_corner(where, point) for point in points), "ignore" in label.lower())


def _corner(where: str, point: Json) -> tuple[int, int]:
    """Read a corner; its fractions are cut off, as the authors' script does."""
    if not isinstance(point, list) or len(point) != 2 or not all(map(_is_coordinate, point)):
        raise DataFault(f"{where}: a point is {str(point)[:80]!r}: expected x and y in pixels")
    return int(point[0]), int(point[1])


def _is_coordinate(value: Json) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= FARTHEST
