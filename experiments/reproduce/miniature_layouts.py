"""Miniatures of the data sets of AlignSAM and UserSOD, in the official folders and files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maskgym import files
from maskgym.aliases import JsonObject
from maskgym.data import run_lengths
from maskgym.data.readers.voc import CLASSES, VOID
from maskgym.experiments.reproduce.miniature_sets import (
    PALETTE,
    SPLITS,
    WRITERS,
    Scene,
    Writers,
    pairs,
    polygon_of,
    save,
)

SHOWN = ("bottle", "cat")  # classes that the miniature of PASCAL VOC shows, in turn
LEVELS = (255, 229, 204, 178, 153)  # of ASSR, from the first rank to the fifth
FOLDERS = {"train": "train", "validation": "val", "test": "test"}  # of ASSR and IRSR
COCO = "images/mscoco/images/train2014"  # beside the folders of RefCOCO and RefCOCO+, which share photos


def _voc(folder: Path, scenes: Sequence[Scene]) -> None:
    """Write photos, palette pictures of classes and objects with void borders, and the lists."""
    for one in scenes:
        (mask,) = one.sample.masks[0]
        save(folder / "JPEGImages" / f"{one.stem}.jpg", one.sample.images[0])
        edge = mask ^ _eroded(mask)
        of_class = CLASSES.index(SHOWN[one.number % len(SHOWN)]) + 1
        for kind, index in (("SegmentationClass", of_class), ("SegmentationObject", 1)):
            labels = np.where(edge, VOID, np.where(mask, index, 0)).astype(np.uint8)
            picture = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
            picture.putpalette(PALETTE.ravel().tolist())
            (folder / kind).mkdir(parents=True, exist_ok=True)
            picture.save(folder / kind / f"{one.stem}.png")
    for split, name in (("train", "train"), ("validation", "val")):
        listed = "".join(f"{one.stem}\n" for one in scenes if one.split == split)
        files.write(folder / "ImageSets" / "Segmentation" / f"{name}.txt", listed)


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Remove the pixels of a mask bool (H, W) that have a neighbour outside of it."""
    wide = np.pad(mask, 1)
    return wide[1:-1, :-2] & wide[1:-1, 2:] & wide[:-2, 1:-1] & wide[2:, 1:-1] & mask


def _usersod(folder: Path, scenes: Sequence[Scene]) -> None:
    """Write photos in folders of splits, and COCO-style JSON with needs, as ``maskgym data dig`` exports them."""
    images, annotations = [], list[JsonObject]()
    for number, one in enumerate(scenes, start=1):
        (photo,), ((mask,),) = one.sample.images, one.sample.masks
        save(folder / "images" / f"{one.stem}.jpg", photo)
        size = {"height": photo.shape[0], "width": photo.shape[1]}
        images.append({"id": number, "file_name": f"{one.stem}.jpg", **size})
        outline = {**polygon_of(mask), "segmentation": run_lengths.encode(mask)}
        common = {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0}
        annotations.append({**common, **outline, "needs": [one.sample.need]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    files.write(folder / "annotations.json", json.dumps(content))


def _ranked(scenes: Sequence[Scene]) -> Iterator[tuple[Scene, list[JsonObject], list[int], np.ndarray]]:
    """Yield each scene with its objects, their places from 0, the first, and the picture of their ranks."""
    for one in scenes:
        assert one.sample.ranks is not None  # of the task
        (masks,), (ranks,) = one.sample.masks, one.sample.ranks
        places = np.argsort(np.argsort(-ranks)).tolist()
        grey = np.zeros(masks.shape[1:], np.uint8)
        for mask, place in zip(masks, places, strict=True):
            grey[mask] = LEVELS[place]
        yield one, [polygon_of(mask) for mask in masks], places, grey


def _assr(folder: Path, scenes: Sequence[Scene]) -> None:
    """Write photos, pictures of ranks, and for each split the objects, their order and the list of photos."""
    objects: dict[str, list[JsonObject]] = {}
    for one, outlines, places, grey in _ranked(scenes):
        split = FOLDERS[one.split]
        save(folder / "images" / split / f"{one.stem}.jpg", one.sample.images[0])
        save(folder / "gt" / split / f"{one.stem}.png", grey)
        order = json.dumps({"rank_order": [1 - place / 10 for place in places]})
        files.write(folder / "rank_order" / split / f"{one.stem}.json", order)
        objects.setdefault(split, []).append({"img": one.stem, "object_data": outlines})
    for split, rows in objects.items():
        files.write(folder / f"obj_seg_data_{split}.json", json.dumps(rows))
        files.write(folder / f"{split}_images.txt", "".join(f"{row['img']}\n" for row in rows))


def _irsr(folder: Path, scenes: Sequence[Scene]) -> None:
    """Write photos, pictures of ranks, and for each split the objects with their ranks as a pickle of plain values."""
    records: dict[str, list[JsonObject]] = {}
    for one, outlines, places, grey in _ranked(scenes):
        split = FOLDERS[one.split]
        save(folder / "Images" / split / "rgb" / f"{one.stem}.jpg", one.sample.images[0])
        save(folder / "Images" / split / "gt" / f"{one.stem}.png", grey)
        ranks = [len(places) - place for place in places]
        record = {"file_name": f"{split}/rgb/{one.stem}.jpg", "annotations": outlines, "rank": ranks}
        records.setdefault(split, []).append(record)
    for split, rows in records.items():
        files.write(folder / "Annotations" / f"{split}.pkl", pickle.dumps(rows, protocol=2))


def _expressions(folder: Path, scenes: Sequence[Scene]) -> None:
    """Write photos, COCO objects, and expressions as a pickle; test scenes are testA's and testB's in turn."""
    images, annotations, records = [], list[JsonObject](), list[JsonObject]()
    for number, one in enumerate(scenes, start=1):
        (photo,), ((mask,),), need = one.sample.images, one.sample.masks, one.sample.need
        assert need is not None  # of the task
        save(folder.parent / COCO / f"{one.stem}.jpg", photo)
        size = {"height": photo.shape[0], "width": photo.shape[1]}
        images.append({"id": number, "file_name": f"{one.stem}.jpg", **size})
        common = {"image_id": number, "category_id": 1}
        annotations.append({"id": number, "iscrowd": 0, **common, **polygon_of(mask)})
        sentence = {"sent_id": number, "sent": need, "raw": need, "tokens": need.split()}
        part = {"train": "train", "validation": "val", "test": "testA" if one.number % 2 else "testB"}[one.split]
        crop = {"file_name": f"{one.stem}_{number}.jpg", "sent_ids": [number], "sentences": [sentence]}
        records.append({"ref_id": number, "ann_id": number, "split": part, **common, **crop})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    files.write(folder / "instances.json", json.dumps(content))
    files.write(folder / "refs(unc).p", pickle.dumps(records, protocol=2))


LAYOUTS: Writers = {
    **WRITERS,
    "hku_is": (("test",), pairs("imgs/{stem}.png", "gt/{stem}.png")),
    "cuhk_blur": (SPLITS, pairs("image/{stem}.jpg", "gt/{stem}.png")),  # in one folder, as there is no official split
    "sbu": (
        ("train", "test"),
        pairs(
            "{part}/ShadowImages/{stem}.jpg",
            "{part}/ShadowMasks/{stem}.png",
            train="SBUTrain4KRecoveredSmall",
            test="SBU-Test",
        ),
    ),
    "msd": (("train", "test"), pairs("{part}/image/{stem}.jpg", "{part}/mask/{stem}.png")),
    "voc2012": (("train", "validation"), _voc),
    "usersod": (("train", "test"), _usersod),
    "assr": (("train", "validation", "test"), _assr),
    "salmon": (("train", "test"), _irsr),
    "refcoco": (SPLITS, _expressions),
    "refcoco_plus": (SPLITS, _expressions),
}
