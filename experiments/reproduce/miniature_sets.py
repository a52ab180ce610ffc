"""Miniatures of Saliency-R1's data sets: the official folders and files, with procedural scenes as photographs.

Every photo is another scene, so no two sets and no two splits share one. ILSO's real photos are partly those of ECSSD
and DUT-OMRON, and their names say so; the names here are of its other sources.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from maskgym import data, files
from maskgym.aliases import JsonObject
from maskgym.data import Sample
from maskgym.data.published import PUBLISHED
from maskgym.data.scenes import Scenes
from maskgym.errors import UserError

SPLITS = ("train", "validation", "test")
BLOCK = 1000  # scenes that one split of one set may use
RATIONALES = "rationales.jsonl"
_COLOURS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))
_FURTHER = tuple((level, level, 255 - level) for level in range(10, 250, 5))
PALETTE = np.array([*_COLOURS, *_FURTHER], np.uint8)  # colour of each label


@dataclass(frozen=True)
class Sizes:
    """Numbers of photos, of one split of one set.

    Attributes:
        train: Training photos, or groups.
        validation: Validation photos, of sets that have such a split.
        test: Test photos, or groups.
        group: Photos per group.
        side: Side of a photo in pixels.
    """

    train: int = 8
    validation: int = 2
    test: int = 3
    group: int = 8
    side: int = 96


@dataclass(frozen=True)
class Scene:
    """A photo or a group to write: its split, the name of its files or folder, its number, and the sample."""

    split: str
    stem: str
    number: int
    sample: Sample


Writer = Callable[[Path, Sequence[Scene]], None]
Writers = Mapping[str, tuple[tuple[str, ...], Writer]]  # splits of each set, and how its folder is written


def write_sets(
    root: str | Path,
    names: Sequence[str] | None = None,
    sizes: Sizes | None = None,
    seed: int = 0,
    writers: Writers | None = None,
) -> list[Path]:
    """Write miniatures of data sets by their official names, and the rationales of their training samples.

    Args:
        root: Folder of the sets' folders; the rationales are in its file `RATIONALES`, by the keys of ``data=tasks``.
        names: Names in `maskgym.data.published`; None selects all sets of the paper.
        sizes: Numbers of photos; None selects the defaults.
        seed: Other seeds give other photos.
        writers: What is known; None selects `WRITERS`.

    Returns:
        The folders of the sets.

    Raises:
        UserError: If a name is not known, or a split is larger than `BLOCK`.
    """
    root, sizes, known = Path(root).expanduser(), sizes or Sizes(), writers or WRITERS
    folders, rows = [], list[JsonObject]()
    for name in names or known:
        if name not in known:
            raise UserError(f"miniature of '{name}': expected one of {', '.join(known)}")
        splits, write = known[name]
        scenes = list(_scenes(name, splits, sizes, list(known).index(name) + seed * len(known)))
        folder = root / PUBLISHED[name].folder[0]
        write(folder, scenes)
        rows += _rationales(name, folder, [one for one in scenes if one.split == "train"], sizes)
        folders.append(folder)
    files.write(root / RATIONALES, "".join(f"{json.dumps(row)}\n" for row in rows))
    return folders


def _scenes(name: str, splits: Sequence[str], sizes: Sizes, turn: int) -> Iterator[Scene]:
    """Draw the scenes of a set, of no other turn; a group whose category is absent from a photo is passed over."""
    task = PUBLISHED[name].task
    first = turn * len(SPLITS) * BLOCK
    for place, split in enumerate(SPLITS):
        count, begin = getattr(sizes, split), first + place * BLOCK
        if split not in splits or not count:
            continue
        scenes = Scenes(task, size=begin + BLOCK, image_size=sizes.side, group_size=sizes.group)
        usable = (
            sample
            for sample in map(scenes.__getitem__, range(begin, begin + BLOCK))
            if all(masks.any() for masks in sample.masks)
        )
        for number in range(1, count + 1):
            sample = next(usable, None)
            if sample is None:
                raise UserError(f"miniature of {name}: {split}={count} is too large: expected at most {number - 1}")
            named = number + 100 * place  # the numbers of a set go on from split to split
            stem = STEMS.get(name, "{category} {number}").format(split=split, number=named, category=sample.category)
            yield Scene(split, stem, named, sample)


def _rationales(name: str, folder: Path, scenes: Sequence[Scene], sizes: Sizes) -> Iterator[JsonObject]:
    """Yield the rationale of each training sample by its key, as a reader of the written folder names it."""
    if not any(one.sample.rationale for one in scenes):
        return
    task = PUBLISHED[name].task
    more = {"group_size": sizes.group} if task == "cosod" else {}
    texts = {one.stem: one.sample.rationale for one in scenes if one.sample.rationale is not None}
    for key in data.make(name, root=folder, split="train", **more).keys:
        stem = Path(key).parent.name if more else Path(key).name
        if stem in texts:
            yield {"key": f"{name}/{key}", "task": task, "rationale": texts[stem]}


def pairs(photo: str, mask: str, **parts: str) -> Writer:
    """Build a writer of one photo and one mask per scene, from paths with ``{stem}`` and ``{part}``, a split's name."""

    def write(folder: Path, scenes: Sequence[Scene]) -> None:
        for one in scenes:
            given = {"part": parts.get(one.split, one.split), "stem": one.stem}
            save(folder / photo.format(**given), one.sample.images[0])
            save(folder / mask.format(**given), binary(one.sample.masks[0]))

    return write


def _groups(photos: str, masks: str, suffix: str) -> Writer:
    """Build a writer of one folder per group, of photos and of masks."""

    def write(folder: Path, scenes: Sequence[Scene]) -> None:
        for one in scenes:
            for number, (image, rows) in enumerate(zip(one.sample.images, one.sample.masks, strict=True), start=1):
                stem = f"{one.sample.category}_{number:03d}"
                save(folder / photos / one.stem / f"{stem}.{suffix}", image)
                save(folder / masks / one.stem / f"{stem}.png", binary(rows))

    return write


def _ilso(folder: Path, scenes: Sequence[Scene]) -> None:
    """Write photos, label maps with a palette, and the list of test photos."""
    for one in scenes:
        save(folder / "image" / f"{one.stem}.jpg", one.sample.images[0])
        labels = labels_of(one.sample.masks[0])
        picture = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
        picture.putpalette(PALETTE.ravel().tolist())
        (folder / "gt").mkdir(parents=True, exist_ok=True)
        picture.save(folder / "gt" / f"{one.stem}.png")
    listed = [one.stem for one in scenes if one.split == "test"]
    files.write(folder / "ImageSets" / "test_id_1000.txt", "".join(f"{stem}\n" for stem in listed))


def _sis10k(folder: Path, scenes: Sequence[Scene]) -> None:
    """Write photos, and polygons in COCO's form for each split."""
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        images, annotations = [], list[JsonObject]()
        for one in (one for one in scenes if one.split == split):
            (photo,), (masks,), file = one.sample.images, one.sample.masks, f"{one.stem}.jpg"
            save(folder / name / "images" / file, photo)
            size = {"height": photo.shape[0], "width": photo.shape[1]}
            images.append({"id": one.number, "file_name": file, **size})
            common = {"image_id": one.number, "category_id": 1, "iscrowd": 0}
            annotations += [
                {"id": len(annotations) + place, **common, **polygon_of(mask)}
                for place, mask in enumerate(masks, start=1)
            ]
        if images:
            categories = [{"id": 1, "name": "salient"}]
            content = {"images": images, "annotations": annotations, "categories": categories}
            files.write(folder / name / f"SIS10K_{name}.json", json.dumps(content))


def _soc(folder: Path, scenes: Sequence[Scene]) -> None:
    """Write photos, masks and instances in colours; the last photo of each split shows nothing salient."""
    for split, name in (("train", "TrainSet"), ("validation", "ValSet"), ("test", "TestSet")):
        own = [one for one in scenes if one.split == split]
        for one in own:
            (photo,), (masks,) = one.sample.images, one.sample.masks
            save(folder / name / "Imgs" / f"{one.stem}.jpg", photo)
            save(folder / name / "GT" / f"{one.stem}.png", binary(masks))
            save(folder / name / "Instance gt" / f"{one.stem}.png", PALETTE[labels_of(masks)])
        if own:
            texture = np.asarray(Image.fromarray(photo).resize((4, 4)).resize(photo.shape[1::-1]))
            stem = STEMS["soc"].format(number=own[-1].number + 900)
            save(folder / name / "Imgs" / f"{stem}.jpg", texture)
            save(folder / name / "GT" / f"{stem}.png", np.zeros(texture.shape[:2], np.uint8))


# Splits of each set, and how its official folder is written (see `maskgym.data.published` for the sources).
WRITERS: Writers = {
    "duts": (
        ("train", "test"),
        pairs(
            "DUTS-{part}/DUTS-{part}-Image/{stem}.jpg", "DUTS-{part}/DUTS-{part}-Mask/{stem}.png", train="TR", test="TE"
        ),
    ),
    "dut_omron": (("test",), pairs("DUT-OMRON-image/DUT-OMRON-image/{stem}.jpg", "pixelwiseGT-new-PNG/{stem}.png")),
    "ecssd": (("test",), pairs("images/{stem}.jpg", "ground_truth_mask/{stem}.png")),
    "pascal_s": (("test",), pairs("datasets/imgs/pascal/{stem}.jpg", "datasets/masks/pascal/{stem}.png")),
    "ilso": (("train", "validation", "test"), _ilso),
    "sis10k": (("train", "validation", "test"), _sis10k),
    "soc": (("train", "validation", "test"), _soc),
    "cocoseg": (("train",), _groups("img", "gt", "png")),
    "coca": (("test",), _groups("image", "binary", "jpg")),
    "cosod3k": (("test",), _groups("Image", "GroundTruth", "jpg")),
    "cosal2015": (("test",), _groups("Image", "GroundTruth", "jpg")),
}
STEMS = {  # names of photos; groups are named after their category
    "duts": "ILSVRC2014_{split}_{number:08d}",
    "dut_omron": "im{number:03d}",
    "ecssd": "{number:04d}",
    "pascal_s": "{number}",
    "ilso": "MSO_{number:04d}",
    "sis10k": "{number:06d}",
    "soc": "COCO_train2014_{number:012d}",
    "hku_is": "{number:04d}",
    "cuhk_blur": "out_of_focus{number:04d}",
    "sbu": "lssd{number}",
    "msd": "{number}_512x640",
    "voc2012": "2007_{number:06d}",
    "usersod": "{split}/{number:06d}",
    "assr": "{number:012d}",
    "salmon": "COCO_train2014_{number:012d}",
    "refcoco": "COCO_train2014_1{number:011d}",
    "refcoco_plus": "COCO_train2014_2{number:011d}",
}


def save(file: Path, pixels: np.ndarray) -> None:
    """Write a picture uint8 (H, W) or (H, W, 3), and its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, quality=95)  # of JPEG; PNG has none


def binary(masks: np.ndarray) -> np.ndarray:
    """Join masks bool (n, H, W) to a picture uint8 (H, W): 255 where one of them is, else 0."""
    return np.where(masks.any(axis=0), 255, 0).astype(np.uint8)


def labels_of(masks: np.ndarray) -> np.ndarray:
    """Number instances bool (n, H, W) from 1, uint8 (H, W)."""
    return (masks * np.arange(1, len(masks) + 1)[:, None, None]).max(axis=0).astype(np.uint8)


def polygon_of(mask: np.ndarray) -> JsonObject:
    """Outline a mask by the first and last pixel of each row, as a coarse polygon with its box and area."""
    rows = np.flatnonzero(mask.any(axis=1))
    left = mask[rows].argmax(axis=1)
    right = mask.shape[1] - mask[rows][:, ::-1].argmax(axis=1)
    down = [(float(x), float(y)) for x, y in zip(left, rows, strict=True)]
    down.append((float(left[-1]), float(rows[-1] + 1)))
    up = [(float(x), float(y + 1)) for x, y in zip(right[::-1], rows[::-1], strict=True)]
    up.append((float(right[0]), float(rows[0])))
    x, y = int(left.min()), int(rows[0])
    box = [x, y, int(right.max()) - x, int(rows[-1]) + 1 - y]
    outline = [value for point in (*down, *up) for value in point]
    return {"segmentation": [outline], "bbox": box, "area": int((right - left).sum())}
