"""Data sets to attack: small ones in the layout of each reader, and of published sets that differ from it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from maskgym.aliases import Json

HEIGHT, WIDTH, PHOTOS = 12, 16, 4
BOX = [1, 1, 7, 1, 7, 9, 1, 9]


def _photo(file: Path, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)


def write_mask(file: Path, level: int = 255, palette: bool = False) -> None:
    """Write a mask whose rectangle has a level, grey or with a palette."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[1:9, 1:7] = level
    picture = Image.fromarray(pixels)
    if palette:
        picture = Image.frombytes("P", (WIDTH, HEIGHT), pixels.tobytes())
        picture.putpalette(list(range(256)) * 3)
    picture.save(file)


def _folder(root: Path) -> None:
    for number in range(PHOTOS):
        _photo(root / "images" / f"{number}.jpg", number)
        write_mask(root / "masks" / f"{number}.png")


def _groups(root: Path) -> None:
    for number in range(PHOTOS):
        _photo(root / "images" / f"group{number // 2}" / f"{number}.jpg", number)
        write_mask(root / "masks" / f"group{number // 2}" / f"{number}.png")


def _label_maps(root: Path) -> None:
    for number in range(PHOTOS):
        _photo(root / "images" / f"{number}.jpg", number)
        write_mask(root / "instances" / f"{number}.png", 1, palette=True)


def _voc(root: Path) -> None:
    home, names = root / "VOCdevkit" / "VOC2012", [f"2007_{number:06d}" for number in range(PHOTOS)]
    for number, name in enumerate(names):
        _photo(home / "JPEGImages" / f"{name}.jpg", number)
        write_mask(home / "SegmentationClass" / f"{name}.png", 15, palette=True)
        write_mask(home / "SegmentationObject" / f"{name}.png", 1, palette=True)
    lists = home / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, listed in (("train", names[:2]), ("val", names[2:])):
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in listed))


def coco_content(name: str = "{}.jpg") -> dict[str, Json]:
    """Build COCO-style JSON of the photos, one object each."""
    images = [
        {"id": number, "file_name": name.format(number), "height": HEIGHT, "width": WIDTH} for number in range(PHOTOS)
    ]
    objects = [
        {"id": 10 + number, "image_id": number, "category_id": 1, "segmentation": [BOX], "area": 48, "iscrowd": 0}
        for number in range(PHOTOS)
    ]
    return {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cup"}]}


def _coco(root: Path) -> None:
    for number in range(PHOTOS):
        _photo(root / "images" / f"{number}.jpg", number)
    (root / "annotations.json").write_text(json.dumps(coco_content()))


NAME = "COCO_train2014_{:012d}.jpg"  # of COCO, which has the photos of expressions
SPLITS = ("train", "val", "testA", "testB")


def _refs(splits: tuple[str, ...]) -> list[dict[str, Json]]:
    """List an expression per photo, which means its object."""
    return [
        {
            "ref_id": n,
            "ann_id": 10 + n,
            "image_id": n,
            "split": split,
            "sentences": [{"raw": f"Cup {n}", "sent": f"cup {n}", "sent_id": n, "tokens": ["cup"]}],
            "sent_ids": [n],
        }
        for n, split in zip(range(PHOTOS), splits, strict=True)
    ]


def _expressions_in(root: Path, version: str) -> Path:
    """Write the photos and ``instances.json`` of a version; return its folder."""
    for number in range(PHOTOS):
        _photo(root / "train2014" / NAME.format(number), number)
    home = root / version
    home.mkdir(parents=True)
    (home / "instances.json").write_text(json.dumps(coco_content(NAME)))
    return home


def _expressions(root: Path) -> None:
    (_expressions_in(root, "refcoco") / "refs(unc).p").write_bytes(pickle.dumps(_refs(SPLITS), 2))


def _refcocog(root: Path) -> None:
    refs = _refs(("train", "train", "val", "test"))
    (_expressions_in(root, "refcocog") / "refs(umd).p").write_bytes(pickle.dumps(refs, 2))


def _grefcoco(root: Path) -> None:
    """Write expressions that mean an object each, and one that means none."""
    refs: list[dict[str, Json]] = [{**ref, "ann_id": [ref["ann_id"]]} for ref in _refs(SPLITS)]
    sentence = {"raw": "A dog", "sent": "a dog", "sent_id": PHOTOS, "tokens": ["a", "dog"]}
    refs.append({**refs[0], "ref_id": PHOTOS, "ann_id": [-1], "sentences": [sentence], "sent_ids": [PHOTOS]})
    (_expressions_in(root, "grefcoco") / "grefs(unc).json").write_text(json.dumps(refs))


def _reasonseg(root: Path) -> None:
    corners = [BOX[place : place + 2] for place in range(0, len(BOX), 2)]
    shapes = [{"label": "target", "points": corners}, {"label": "ignore", "points": [[9, 9], [12, 9], [12, 11]]}]
    for number, split in enumerate(("train", "train", "val", "test")):
        _photo(root / split / f"{number}.jpg", number)
        content = {"text": [f"what number {number} is for"], "is_sentence": True, "shapes": shapes}
        (root / split / f"{number}.json").write_text(json.dumps(content))
    (root / "explanatory").mkdir()
    (root / "explanatory" / "train.json").write_text(json.dumps([{"image": "0.jpg", "outputs": "To drink."}]))


def _cod10k(root: Path) -> None:
    """Write photos of both splits; one of each shows no animal."""
    for number in range(PHOTOS):
        home = root / "COD10K-v3" / ("Train" if number < 2 else "Test")
        stem = f"COD10K-CAM-1-Aquatic-{number}" if number % 2 else f"COD10K-NonCAM-5-Other-{number}"
        _photo(home / "Image" / f"{stem}.jpg", number)
        write_mask(home / "GT_Object" / f"{stem}.png", 255 if number % 2 else 0)
        write_mask(home / "GT_Edge" / f"{stem}.png", 255 if number % 2 else 0)


def _camo(root: Path) -> None:
    for number in range(PHOTOS):
        part = "Train" if number < 2 else "Test"
        _photo(root / "Images" / part / f"camourflage_{number:05d}.jpg", number)
        write_mask(root / "GT" / f"camourflage_{number:05d}.png")


def _dis5k(root: Path) -> None:
    for number, part in enumerate(("DIS-TR", "DIS-VD", "DIS-TE1", "DIS-TE4")):
        stem = f"{number}#Accessories#1#Bag#{number}_o"
        _photo(root / part / "im" / f"{stem}.jpg", number)
        write_mask(root / part / "gt" / f"{stem}.png")


def _ranked(root: Path) -> None:
    for number in range(PHOTOS):
        _photo(root / "images" / "train" / f"{number}.jpg", number)
        write_mask(root / "gt" / "train" / f"{number}.png")
        order = root / "rank_order" / "train" / f"{number}.json"
        order.parent.mkdir(parents=True, exist_ok=True)
        order.write_text(json.dumps({"rank_order": [0.9]}))
    names = [str(number) for number in range(PHOTOS)]
    objects = [{"img": name, "object_data": [{"bbox": [1, 1, 6, 8], "segmentation": [BOX]}]} for name in names]
    (root / "obj_seg_data_train.json").write_text(json.dumps(objects))
    (root / "train_images.txt").write_text("".join(f"{name}\n" for name in names))


SETS: dict[str, Callable[[Path], None]] = {  # by the name of the reader or the published set
    "folder": _folder,
    "groups": _groups,
    "label_maps": _label_maps,
    "voc": _voc,
    "coco": _coco,
    "expressions": _expressions,
    "ranked": _ranked,
    "refcocog": _refcocog,
    "grefcoco": _grefcoco,
    "reasonseg": _reasonseg,
    "cod10k": _cod10k,
    "camo": _camo,
    "dis5k": _dis5k,
}
TASKS = {"cod10k": "refer"}  # where the default task of a set leaves files unread
