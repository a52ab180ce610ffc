"""Small valid data sets: one per registered reader and published set, and one per kind of file beside them.

Names of files are such that they stand in no other word of a message.
"""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import datasets
import numpy as np

from maskgym.benchmarks.fuzzing import trees
from maskgym.benchmarks.fuzzing.trees import BOXES, SHAPE, Tree, boxes, encode, indexed, mask, photo, polygon
from maskgym.data.run_lengths import encode as run_lengths
from maskgym.data.run_lengths import runs

WORDS = ("find it", "the other one")


@dataclass(frozen=True)
class Layout:
    """A kind of data set.

    Attributes:
        name: Name of the row.
        data: Registered name of the reader.
        tree: Builds the files.
        roles: Role of each file that is read, by path; the tables of mutations have the same names.
        arguments: Arguments of the reader.
        how: ``data``: by the reader and ``maskgym.data.check``; ``hf``: by the reader alone; ``rationales``: as
            rationales of the data set; ``predictions``: by ``maskgym evaluate``, against the data set.
    """

    name: str
    data: str
    tree: Callable[[], Tree]
    roles: Mapping[str, str]
    arguments: Mapping[str, object] = field(default_factory=dict)
    how: str = "data"


# --- Pairs of photo and mask -----------------------------------------------------------------------------------------

SBU_TRAIN = "SBU-shadow/SBUTrain4KRecoveredSmall"
PAIRS: dict[str, tuple[tuple[str, str], ...]] = {  # folders of photos and of masks, as official archives unpack
    "folder": (("images", "masks"),),
    "duts": (("DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask"), ("DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask")),
    "ecssd": (("images", "ground_truth_mask"),),
    "pascal_s": (("datasets/imgs/pascal", "datasets/masks/pascal"),),
    "dut_omron": (("DUT-OMRON-image/DUT-OMRON-image", "pixelwiseGT-new-PNG"),),
    "hku_is": (("imgs", "gt"),),
    "cuhk_blur": (("image", "gt"),),
    "sbu": (
        (f"{SBU_TRAIN}/ShadowImages", f"{SBU_TRAIN}/ShadowMasks"),
        ("SBU-shadow/SBU-Test/ShadowImages", "SBU-shadow/SBU-Test/ShadowMasks"),
    ),
    "msd": (("train/image", "train/mask"), ("test/image", "test/mask")),
    "cod10k": (("Train/Image", "Train/GT_Object"), ("Test/Image", "Test/GT_Object")),
    "camo": (("Images/Train", "GT"), ("Images/Test", "GT")),
    "dis5k": (("DIS-TR/im", "DIS-TR/gt"), ("DIS-VD/im", "DIS-VD/gt"), ("DIS-TE4/im", "DIS-TE4/gt")),
    "groups": (("image/pear tree", "gt/pear tree"), ("image/zebra", "gt/zebra")),
    "coca": (("image/alarm clock", "binary/alarm clock"), ("image/zebra", "binary/zebra")),
    "cosal2015": (("Image/aeroplane", "GroundTruth/aeroplane"), ("Image/zebra", "GroundTruth/zebra")),
    "cosod3k": (("Image/bear", "GroundTruth/bear"), ("Image/zebra", "GroundTruth/zebra")),
    "cocoseg": (("img/dog", "gt/dog"), ("img/zebra", "gt/zebra")),
}
GROUPED = ("groups", "coca", "cosal2015", "cosod3k", "cocoseg")
STEMS = ("pica", "picb", "picc")


def _pairs(name: str) -> Layout:
    files: Tree = {}
    roles: dict[str, str] = {}
    for place, (photos, masks) in enumerate(PAIRS[name]):
        for number, stem in enumerate(STEMS):
            own, seed = f"{stem}{place}q", 10 * place + number
            kind = "png" if name in ("hku_is", "cocoseg") else "jpg"
            files[f"{photos}/{own}.{kind}"] = photo(seed, "PNG" if kind == "png" else "JPEG")
            files[f"{masks}/{own}.png"] = mask()
            roles |= {f"{photos}/{own}.{kind}": "photo", f"{masks}/{own}.png": "mask"}
    if name == "folder":
        for split, stem in zip(("train", "val", "test"), STEMS, strict=True):
            files[f"{split}.txt"], roles[f"{split}.txt"] = f"{stem}0q\n".encode(), "list"
    return Layout(name, name, lambda: dict(files), roles)


# --- Label maps ------------------------------------------------------------------------------------------------------


def _label_maps(name: str) -> Layout:
    files: Tree = {}
    roles: dict[str, str] = {}
    folder, maps = ("TrainSet/Imgs", "TrainSet/Instance gt/gt") if name == "soc" else ("image", "gt")
    for number, stem in enumerate(STEMS):
        files[f"{folder}/{stem}q.jpg"] = photo(number)
        files[f"{maps}/{stem}q.png"] = encode(indexed(boxes((1, 2))))
        roles |= {f"{folder}/{stem}q.jpg": "photo", f"{maps}/{stem}q.png": "labels"}
        if name == "soc":
            files[f"TrainSet/gt/{stem}q.png"] = mask()
            files[f"TrainSet/Instance gt/Instance name/{stem}q.txt"] = b"1:person\n2:dog\n"
        if name == "ilso":
            split = ("train", "val", "test")[number]
            files[f"ImageSets/{split}_id.txt"], roles[f"ImageSets/{split}_id.txt"] = f"{stem}q\n".encode(), "list"
    return Layout(name, name, lambda: dict(files), roles)


# --- COCO-style JSON -------------------------------------------------------------------------------------------------

SIZES = (SHAPE, (13, 18), SHAPE)


def annotations_of(number: int, first: int, needs: bool = False) -> list[dict]:
    """List the two annotations of an image: of polygons, listed runs or compressed runs by its number."""
    made = []
    for place, (x, y, width, height) in enumerate(BOXES):
        pixels = np.zeros(SIZES[number - 1], bool)
        pixels[y : y + height, x : x + width] = True
        code: object = (
            polygon(place),
            {"size": list(pixels.shape), "counts": runs(pixels)},
            {**run_lengths(pixels)},
        )[number - 1]
        own = {
            "id": first + place,
            "image_id": number,
            "category_id": 1,
            "iscrowd": 0,
            "salient": True,
            "bbox": [x, y, width, height],
            "area": width * height,
            "segmentation": code,
            "phrase": WORDS[place],
        }
        made.append(own | ({"needs": [WORDS[place], "both of them"]} if needs else {}))
    return made


def coco(stems: Mapping[int, str], needs: bool = False) -> dict:
    """Build the content of a JSON file with the images of given numbers and names."""
    images = [
        {"id": number, "file_name": f"{stem}.jpg", "height": SIZES[number - 1][0], "width": SIZES[number - 1][1]}
        for number, stem in stems.items()
    ]
    annotations = [one for number in stems for one in annotations_of(number, 100 * number + 7, needs)]
    categories = [{"id": 1, "name": "thing"}, {"id": 2, "name": "other"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def to_json(content: object) -> bytes:
    """Encode JSON."""
    return json.dumps(content).encode()


def _coco(
    name: str, data: str, role: str, needs: bool, parts: Mapping[str, Mapping[int, str]], **arguments: object
) -> Layout:
    files: Tree = {}
    roles: dict[str, str] = {}
    for path, stems in parts.items():
        files[path], roles[path] = to_json(coco(stems, needs)), role
        folder = path.rpartition("/")[0] + "/images/" if "/" in path else "images/"
        for number, stem in stems.items():
            files[f"{folder}{stem}.jpg"] = photo(number, shape=SIZES[number - 1])
            roles[f"{folder}{stem}.jpg"] = "named photo"
    return Layout(name, data, lambda: dict(files), roles, arguments)


WHOLE = {"annotations.json": dict(enumerate(("picaq", "picbq", "piccq"), start=1))}
SPLIT = {"train/SIS10K_train.json": {1: "picaq", 2: "picbq"}, "test/SIS10K_test.json": {3: "piccq"}}


# --- PASCAL VOC ------------------------------------------------------------------------------------------------------


def _voc(name: str, task: str) -> Layout:
    files: Tree = {}
    roles: dict[str, str] = {}
    home = "VOCdevkit/VOC2012"
    for number, stem in enumerate(("2007_000032", "2007_000033")):
        files[f"{home}/JPEGImages/{stem}.jpg"], roles[f"{home}/JPEGImages/{stem}.jpg"] = photo(number), "listed photo"
        for folder, levels in (("SegmentationClass", (15, 12)), ("SegmentationObject", (1, 2))):
            pixels = boxes(levels)
            pixels[0] = 255
            files[f"{home}/{folder}/{stem}.png"] = encode(indexed(pixels))
            if folder == "SegmentationClass" or task == "sis":
                roles[f"{home}/{folder}/{stem}.png"] = "classes" if folder == "SegmentationClass" else "objects"
        split = ("train", "val")[number]
        files[f"{home}/ImageSets/Segmentation/{split}.txt"] = f"{stem}\n".encode()
        roles[f"{home}/ImageSets/Segmentation/{split}.txt"] = "voc list"
    return Layout(f"{name}, {task}", name, lambda: dict(files), roles, {"task": task})


# --- Referring expressions -------------------------------------------------------------------------------------------


def refs() -> list[dict]:
    """List the records of expressions: one per annotation of `coco`."""
    records = []
    for place, number in enumerate((107, 108, 207, 208)):
        texts = [
            {"raw": word.upper(), "sent": word, "sent_id": 1000 + 10 * place + row, "tokens": word.split()}
            for row, word in enumerate(WORDS)
        ]
        records.append(
            {
                "ref_id": 50 + place,
                "ann_id": number,
                "category_id": 1,
                "image_id": number // 100,
                "file_name": f"crop_{place}.jpg",
                "split": ("train", "val", "testA", "testB")[place],
                "sent_ids": [text["sent_id"] for text in texts],
                "sentences": texts,
            }
        )
    return records


def grefs() -> list[dict]:
    """List the same records in the form of gRefCOCO: the first means both objects, the last nothing."""
    meant = ([107, 108], [108], [207, 208], [-1])
    return [{**record, "ann_id": numbers} for record, numbers in zip(refs(), meant, strict=True)]


def _expressions(name: str, version: str, by: str = "unc", **arguments: object) -> Layout:
    files: Tree = {}
    stems = {1: "COCO_train2014_000000000011", 2: "COCO_train2014_000000000012"}
    general = version == "grefcoco"
    file = f"{version}/grefs({by}).json" if general else f"{version}/refs({by}).p"
    roles = {f"{version}/instances.json": "instances", file: "grefs" if general else "refs"}
    for number, stem in stems.items():
        path = f"images/mscoco/images/train2014/{stem}.jpg"
        files[path], roles[path] = photo(number, shape=SIZES[number - 1]), "named photo"
    files[f"{version}/instances.json"] = to_json(coco(stems))
    files[file] = to_json(grefs()) if general else pickle.dumps(refs(), protocol=0)
    return Layout(name, name, lambda: dict(files), roles, arguments)


def _reasoning(name: str) -> Layout:
    files: Tree = {}
    roles: dict[str, str] = {}
    for number, split in enumerate(("train", "val", "test")):
        stem = f"ReasonSeg/{split}/pic{number}q"
        shapes = [
            {"label": label, "points": np.reshape(polygon(place)[0], (-1, 2)).tolist()}
            for place, label in enumerate(("target", "ignore"))
        ]
        files[f"{stem}.jpg"], roles[f"{stem}.jpg"] = photo(number), "unsized photo"
        files[f"{stem}.json"] = to_json({"text": list(WORDS), "is_sentence": True, "shapes": shapes})
        roles[f"{stem}.json"] = "reasoning"
    return Layout(name, name, lambda: dict(files), roles)


# --- Ranks -----------------------------------------------------------------------------------------------------------


def _assr(name: str, data: str, **arguments: object) -> Layout:
    files: Tree = {}
    roles: dict[str, str] = {}
    grey = arguments.get("source") == "grey"
    for split, stems in (("train", ("picaq", "picbq")), ("test", ("piccq", "picdq"))):
        for number, stem in enumerate(stems):
            files[f"images/{split}/{stem}.jpg"] = photo(number)
            files[f"gt/{split}/{stem}.png"] = encode(boxes((255, 229)))
            files[f"rank_order/{split}/{stem}.json"] = to_json({"rank_order": [0.9, 1.0]})
            roles[f"images/{split}/{stem}.jpg"] = "photo" if grey else "unsized photo"
            roles |= {f"gt/{split}/{stem}.png": "grey"} if grey else {f"rank_order/{split}/{stem}.json": "order"}
        objects = [
            {"img": stem, "object_data": [{"bbox": [0, 0, 1, 1], "segmentation": polygon(k)} for k in (0, 1)]}
            for stem in stems
        ]
        files[f"obj_seg_data_{split}.json"] = to_json(objects)
        roles |= {} if grey else {f"obj_seg_data_{split}.json": "ranked objects"}
        files[f"{split}_images.txt"], roles[f"{split}_images.txt"] = (
            "".join(f"{s}\n" for s in stems).encode(),
            "name list",
        )
    return Layout(name, data, lambda: dict(files), roles, arguments)


def _irsr(name: str, data: str) -> Layout:
    files: Tree = {}
    roles: dict[str, str] = {}
    for split, stems in (("train", ("picaq", "picbq")), ("test", ("piccq", "picdq"))):
        for number, stem in enumerate(stems):
            files[f"Images/{split}/rgb/{stem}.jpg"] = photo(number)
            files[f"Images/{split}/gt/{stem}.png"] = encode(boxes((60, 120)))
            roles[f"Images/{split}/rgb/{stem}.jpg"] = "unsized photo"
        records = [
            {
                "file_name": f"/data/rgb/{stem}.jpg",
                "annotations": [{"bbox": [0, 0, 1, 1], "segmentation": polygon(k)} for k in (0, 1)],
                "rank": [2, 5],
            }
            for stem in stems
        ]
        files[f"Annotations/{split}.pkl"], roles[f"Annotations/{split}.pkl"] = pickle.dumps(records), "ranked pickle"
    return Layout(name, data, lambda: dict(files), roles)


# --- Hugging Face, rationales, predictions ---------------------------------------------------------------------------


def hf_rows() -> list[dict]:
    """List the rows of a Hugging Face data set, with pictures as bytes."""
    return [
        {
            "key": stem,
            "image": {"bytes": photo(number, "PNG"), "path": None},
            "mask": [{"bytes": encode(boxes(levels)), "path": None} for levels in ((255,), (0, 255))],
            "phrases": list(WORDS),
            "ranks": [2.0, 1.0],
            "void": {"bytes": encode(boxes((0, 0))), "path": None},
            "need": WORDS[0],
            "category": "thing",
            "rationale": "<think>a</think><answer><ins>b</ins></answer>",
        }
        for number, stem in enumerate(("picaq", "picbq", "piccq"))
    ]


def hf_tree(rows: Sequence[dict], plain: bool = False) -> Tree:
    """Save rows as the library does; return the files.

    Args:
        rows: The rows.
        plain: Whether pictures are plain structures, whose paths the library does not follow when it saves.
    """
    text, numbers = datasets.Value("string"), datasets.List(datasets.Value("float64"))
    stored = {"bytes": datasets.Value("binary"), "path": text}
    picture = stored if plain else datasets.Image()
    features = datasets.Features(
        {
            **{"key": text, "image": picture, "mask": datasets.List(picture), "phrases": datasets.List(text)},
            **{"ranks": numbers, "void": picture, "need": text, "category": text, "rationale": text},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        datasets.disable_progress_bars()
        found = datasets.Dataset.from_list(list(rows), features, split=datasets.NamedSplit("train"))
        found.save_to_disk(folder)
        return trees.read(Path(folder))


@cache
def _hf_files() -> Tree:
    return hf_tree(hf_rows())


def _hf() -> Layout:
    roles = {"data-00000-of-00001.arrow": "rows", "state.json": "state", "dataset_info.json": "state"}
    return Layout("hf", "hf", lambda: dict(_hf_files()), roles, {"task": "ranking_need"}, how="hf")


def _rationales() -> Layout:
    base = _pairs("folder")
    rows = [
        {"key": f"{stem}0q", "task": "sod", "rationale": f"<think>{stem}</think><answer>x</answer>", "images": [0]}
        for stem in STEMS
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return Layout(
        "rationales",
        "folder",
        lambda: {**base.tree(), "reasons.jsonl": text},
        {"reasons.jsonl": "rationales"},
        how="rationales",
    )


TRUTH, PREDICTED = "truth/", "predicted/"


def _predictions(name: str, base: Layout, own: Mapping[str, bytes], role: str, **settings: object) -> Layout:
    files = {
        **{TRUTH + path: node for path, node in base.tree().items()},
        **{PREDICTED + path: node for path, node in own.items()},
    }
    files[PREDICTED + "notes.md"] = b"keeps the folder\n"
    roles = {PREDICTED + path: role for path in own}
    return Layout(
        f"predictions, {name}", base.data, lambda: dict(files), roles, {**base.arguments, **settings}, how="predictions"
    )


def _all_predictions() -> list[Layout]:
    soft = np.linspace(0, 255, SHAPE[0] * SHAPE[1]).astype(np.uint8).reshape(SHAPE)
    labels, whole = _label_maps("label_maps"), _coco("", "coco", "coco", False, WHOLE)
    needed = _coco("", "usersod", "needs", True, WHOLE)
    lines = [
        {
            "key": stem,
            "masks": [{**run_lengths(boxes(levels, SIZES[number]) > 0)} for levels in ((255,), (0, 255))],
            "scores": [0.5, 0.25],
        }
        for number, stem in enumerate(("picaq", "picbq", "piccq"))
    ]
    maps = {f"{stem}0q.png": encode(np.roll(soft, number)) for number, stem in enumerate(STEMS)}
    each = {
        f"{stem}q#{number}.png": encode(np.resize(soft, SIZES[place]))
        for place, stem in enumerate(STEMS)
        for number in range(3)
    }
    classes = {
        f"{stem}/{name}.png": encode(soft) for stem in ("2007_000032", "2007_000033") for name in ("dog", "person")
    }
    ranked = {
        f"{split}/{stem}.png": encode(boxes((200, 100)))
        for split, stem in (("train", "picaq"), ("train", "picbq"), ("test", "piccq"), ("test", "picdq"))
    }
    return [
        _predictions("maps", _pairs("folder"), maps, "predicted map"),
        _predictions("needs", needed, each, "predicted map"),
        _predictions("classes", replace(_voc("voc", "semantic"), arguments={}), classes, "predicted map"),
        _predictions(
            "label maps", labels, {f"{stem}q.png": encode(indexed(boxes((1, 2)))) for stem in STEMS}, "predicted labels"
        ),
        _predictions(
            "lines", whole, {"instances.jsonl": "".join(json.dumps(row) + "\n" for row in lines).encode()}, "lines"
        ),
        _predictions("ranks", _assr("assr", "assr"), ranked, "predicted ranks"),
    ]


def layouts() -> list[Layout]:
    """List all layouts."""
    return [
        *map(_pairs, PAIRS),
        *map(_label_maps, ("label_maps", "ilso", "soc")),
        _coco("coco", "coco", "coco", False, WHOLE),
        _coco("needs", "coco", "needs", True, WHOLE, task="need"),
        _coco("sis10k", "sis10k", "coco", False, SPLIT),
        _coco("usersod", "usersod", "needs", True, WHOLE),
        *(_voc(name, task) for name, task in (("voc", "semantic"), ("voc", "sis"), ("voc2012", "semantic"))),
        _expressions("expressions", "refcoco"),
        _expressions("refcoco", "refcoco"),
        _expressions("refcoco_plus", "refcoco+"),
        _expressions("refcocog", "refcocog", "umd"),
        _expressions("refcocog_google", "refcocog", "google"),
        _expressions("grefcoco", "grefcoco"),
        *map(_reasoning, ("reasoning", "reasonseg")),
        _assr("assr", "assr"),
        _assr("ranked, grey", "ranked", source="grey"),
        _irsr("ranked", "ranked"),
        _irsr("salmon", "salmon"),
        _hf(),
        _rationales(),
        *_all_predictions(),
    ]
