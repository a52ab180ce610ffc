from __future__ import annotations

import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import maskgym  # noqa: F401, registers the environments
from maskgym.data import Dataset, split_of
from maskgym.data.layout.images import DataFault
from maskgym.data.readers.ranking import RankedObjects
from maskgym.errors import UserError

SHAPE = (12, 16)
BOXES = ((1, 1, 4, 4), (8, 2, 4, 6), (1, 6, 4, 5))  # x, y, width, height: 16, 24 and 20 pixels


def polygon(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


OBJECTS = [{"bbox": [0, 0, 1, 1], "segmentation": polygon(*box)} for box in BOXES]


def grey(levels, boxes=BOXES, dtype=np.uint8):
    pixels = np.zeros(SHAPE, dtype)
    for level, (x, y, width, height) in zip(levels, boxes, strict=False):
        pixels[y : y + height, x : x + width] = level
    return pixels


@pytest.fixture
def assr(tmp_path, photo):
    """Write a split of ASSR: two listed photos and one that is not, and return the root."""

    def write(split="train", ids=("b", "a"), orders=None):
        for name in (*ids, "unlisted"):
            photo(tmp_path / "images" / split / f"{name}.jpg", size=SHAPE)
            save(tmp_path / "gt" / split / f"{name}.png", grey((255, 229, 204)))
            order = (orders or {}).get(name, [0.9, 0.4, 1.0])
            path = tmp_path / "rank_order" / split / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"rank_order": order}))
        objects = [{"img": name, "object_data": OBJECTS} for name in sorted((*ids, "unlisted"), reverse=True)]
        (tmp_path / f"obj_seg_data_{split}.json").write_text(json.dumps(objects))
        (tmp_path / f"{split}_images.txt").write_text("".join(f"{name}\n" for name in ids))
        return tmp_path

    return write


@pytest.fixture
def irsr(tmp_path, photo):
    """Write a split of IRSR with two photos, and return the root."""

    def write(split="train", records=None, photos="rgb"):
        names = [f"COCO_train2014_{number:012d}" for number in (2, 1)]
        for name in names:
            photo(tmp_path / "Images" / split / photos / f"{name}.jpg", size=SHAPE)
            save(tmp_path / "Images" / split / "gt" / f"{name}.png", grey((60, 120, 180)))
        if records is None:
            records = [
                {
                    "file_name": f"/data/{photos}/{name}.jpg",
                    "annotations": OBJECTS[: 3 - place],
                    "rank": [2, 5, 3][: 3 - place],
                }
                for place, name in enumerate(names)
            ]
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "Annotations" / f"{split}.pkl").write_bytes(pickle.dumps(records))
        return tmp_path

    return write


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def areas(sample):
    return sample.masks[0].sum(axis=(1, 2)).tolist()


def test_assr_has_the_objects_above_a_half(assr):
    data = RankedObjects(assr())
    assert isinstance(data, Dataset) and (data.task, data.shown, data.split) == ("sis", "ranking", "train")
    assert data.keys == ("train/b", "train/a") and data.faults == ()
    assert len(data.notes) == 1 and data.notes[0].endswith("that are not in train_images.txt are left out: unlisted")
    sample = data[0]
    assert areas(sample) == [16, 20] and sample.ranks[0].tolist() == [0.9, 1.0]
    assert sample.masks[0].dtype == bool and sample.need is None and sample.phrases is None and sample.void is None
    assert sample.images[0].shape == (*SHAPE, 3)


def test_everything_is_keyed_by_name(assr):
    root = assr(orders={"a": [0.6, 0.7, 0.2], "b": [0.1, 0.2, 0.8]})
    ranks = {sample.key: (areas(sample), sample.ranks[0].tolist()) for sample in RankedObjects(root)}
    assert ranks == {"train/a": ([16, 24], [0.6, 0.7]), "train/b": ([20], [0.8])}


def test_half_is_not_salient_and_a_photo_without_salient_object_is_noted(assr):
    data = RankedObjects(assr(orders={"a": [0.5, 0.5, 0.51], "b": [0.5, 0.1, 0]}))
    assert data.keys == ("train/a",) and data[0].ranks[0].tolist() == [0.51]
    assert data.notes[1].endswith("without a salient object are left out: b")


def test_without_the_list_every_photo_counts(assr):
    root = assr()
    (root / "train_images.txt").unlink()
    assert RankedObjects(root).keys == ("train/a", "train/b", "train/unlisted")


def test_grey_levels_of_assr_are_ranks(assr):
    root = assr()
    save(root / "gt" / "train" / "b.png", grey((127, 153, 255)))
    data = RankedObjects(root, source="grey")
    assert data.keys == ("train/b", "train/a")
    assert areas(data[0]) == [24, 20] and data[0].ranks[0].tolist() == [153, 255]  # 127 would be at 0.498
    assert areas(data[1]) == [20, 24, 16] and data[1].ranks[0].tolist() == [204, 229, 255]


def test_grey_is_read_where_there_is_nothing_else(assr):
    root = assr()
    (root / "obj_seg_data_train.json").unlink()
    with pytest.raises(DataFault, match=r"obj_seg_data_train\.json: cannot be read: No such file"):
        RankedObjects(root)
    for path in (root / "rank_order" / "train").iterdir():
        path.unlink()
    (root / "rank_order" / "train").rmdir()
    assert RankedObjects(root)[0].ranks[0].tolist() == [204, 229, 255]
    with pytest.raises(DataFault, match=r"obj_seg_data_train\.json: cannot be read"):
        RankedObjects(root, source="objects")
    with pytest.raises(UserError, match="data.source=gt: expected one of auto, objects, grey"):
        RankedObjects(root, source="gt")


@pytest.mark.parametrize("photos", ["rgb", "image"])
def test_irsr_has_all_objects_of_the_pickle(irsr, photos):
    data = RankedObjects(irsr(photos=photos))
    assert data.keys == ("train/COCO_train2014_000000000002", "train/COCO_train2014_000000000001")
    assert areas(data[0]) == [16, 24, 20] and data[0].ranks[0].tolist() == [2, 5, 3]
    assert areas(data[1]) == [16, 24] and data[1].ranks[0].tolist() == [2, 5]


def test_irsr_by_grey_levels(irsr):
    root = irsr()
    data = RankedObjects(root, source="grey")
    assert areas(data[0]) == [16, 24, 20] and data[0].ranks[0].tolist() == [60, 120, 180]
    (root / "Annotations" / "train.pkl").unlink()
    assert RankedObjects(root)[0].ranks[0].tolist() == [60, 120, 180]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"a": 1}, "a dict: expected a list of photos"),
        ([{"file_name": "x.jpg", "rank": [1]}], r"\[0\] \(x\.jpg\) has no usable file_name, annotations and rank"),
        (
            [{"file_name": "COCO_train2014_000000000001.jpg", "annotations": OBJECTS, "rank": [1, 2]}],
            r"\[0\] \(COCO_train2014_000000000001\.jpg\) has 2 ranks, but 3 annotations",
        ),
        ([{"file_name": "x/1.jpg", "annotations": OBJECTS, "rank": [1, 2, 3]}], "no photo '1' in .*rgb"),
        ([{"file_name": "1.jpg", "annotations": OBJECTS, "rank": [1, 2, float("nan")]}], ".*has no usable"),
        ([np.float64(1)], "not a pickle of plain values: it asks for numpy.*; data.source=grey reads .*gt instead"),
    ],
)
def test_pickles_at_fault(irsr, records, message):
    with pytest.raises(DataFault, match=rf"train\.pkl: {message}"):
        RankedObjects(irsr(records=records))


def test_splits(assr, irsr):
    assr("val")
    assr("test")
    root = assr()
    assert RankedObjects(root, split="validation").keys == ("val/b", "val/a")
    (root / "obj_seg_data_test.json").write_text("{")
    assert RankedObjects(root).splits == ("train", "train")  # what is not asked for is not read
    with pytest.raises(DataFault, match=r"obj_seg_data_test\.json: not JSON"):
        RankedObjects(root, split="all")
    lenient = RankedObjects(root, split="all", strict=False)
    assert set(lenient.splits) == {"train", "validation"}
    by_hash = RankedObjects(root, split="all", splits="hash", strict=False)
    assert by_hash.splits == tuple(map(split_of, by_hash.keys)) and len(by_hash) == 4
    assert len(RankedObjects(root, split="test", splits="test", strict=False)) == 4


def test_a_split_that_is_not_there(irsr):
    irsr("test")
    root = irsr()
    with pytest.raises(UserError, match=r"data\.split=validation: .* \(train 2, validation 0, test 2\)"):
        RankedObjects(root, split="validation")
    with pytest.raises(UserError, match="task=sis: data=ranked reads ranking"):
        RankedObjects(root, task="sis")


def test_other_folders_and_folders_around(tmp_path, assr):
    with pytest.raises(UserError, match="no images/train, images/val or images/test here"):
        RankedObjects(tmp_path)
    assr()
    for path in list(tmp_path.iterdir()):
        (tmp_path / "ASSR").mkdir(exist_ok=True)
        path.rename(tmp_path / "ASSR" / path.name)
    assert len(RankedObjects(tmp_path)) == 2


def test_a_folder_of_no_photos(tmp_path):
    for name in ("images/train", "gt/train"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"has no sample there \(train 0, validation 0, test 0\)"):
        RankedObjects(tmp_path)
    (tmp_path / "gt" / "train").rmdir()
    with pytest.raises(DataFault, match=r"gt/train: no such folder: expected the pictures of ranks"):
        RankedObjects(tmp_path)


def test_files_of_assr_at_fault(assr, photo):
    root = assr(ids=("a", "b", "c", "d", "e"), orders={"c": [1, 2], "d": "high"})
    (root / "images" / "train" / "a.jpg").rename(root / "images" / "train" / "A.jpg")
    (root / "rank_order" / "train" / "b.json").unlink()
    objects = json.loads((root / "obj_seg_data_train.json").read_text())
    kept = [record for record in objects if record["img"] != "e"]
    (root / "obj_seg_data_train.json").write_text(json.dumps([*kept, kept[0], {"img": "f"}]))
    faults = RankedObjects(root, split="all", strict=False).faults
    expected = [
        "obj_seg_data_train.json: [5]: 'unlisted' is listed before",
        "obj_seg_data_train.json: [6] (img f) has no usable img and object_data",
        "train_images.txt: no photo 'a' in ",
        "b.json: cannot be read: No such file",
        "c.json: 2 ranks, but ",
        "d.json: no usable rank_order: expected a list of numbers",
        "obj_seg_data_train.json: no objects of 'e'",
    ]
    assert len(faults) == len(expected)
    assert all(words in fault for words, fault in zip(expected, faults, strict=True))
    assert faults[2].endswith("A.jpg differs in case")


def test_hidden_files_and_links(assr, photo, tmp_path_factory):
    root = assr()
    for name in ("images/train/Thumbs.db", "gt/train/desktop.ini", "rank_order/train/._a.json", "images/train/._a.jpg"):
        (root / name).write_bytes(b"junk")
    assert len(RankedObjects(root)) == len(RankedObjects(root, source="grey")) == 2
    (root / "images" / "train" / "a.jpg").unlink()
    (root / "images" / "train" / "a.jpg").symlink_to(photo(tmp_path_factory.mktemp("outside") / "a.jpg"))
    data = RankedObjects(root, strict=False)
    assert data.keys == ("train/b",) and "a.jpg: a link to" in data.faults[0]


def test_objects_at_fault_when_read(assr, photo, truncate):
    root = assr()
    objects = [{"img": name, "object_data": [OBJECTS[0], OBJECTS[1], {"segmentation": [[1, 2]]}]} for name in "ab"]
    (root / "obj_seg_data_train.json").write_text(json.dumps([*objects, {"img": "unlisted", "object_data": OBJECTS}]))
    data = RankedObjects(root)
    with pytest.raises(DataFault, match=r"obj_seg_data_train\.json: annotation 2 of b\.jpg: unreadable segmentation"):
        data[0]
    truncate(photo(root / "images" / "train" / "b.jpg"))
    with pytest.raises(DataFault, match=r"b\.jpg: cannot be decoded"):
        data[0]


def test_grey_pictures_at_fault(assr, truncate):
    root = assr(ids=("a",))
    path = root / "gt" / "train" / "a.png"
    data = RankedObjects(root, source="grey")
    smooth = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (12, 1))
    for pixels, message in [
        (grey((100, 90)), "an empty label map"),
        (smooth, "labels have no block of 3x3 pixels"),
        (np.stack([grey((255,)), grey((0,)), grey((0,))], axis=2), r"a coloured picture \(mode RGB\)"),
        (np.stack([grey((0,)), grey((0,)), grey((255,))], axis=2), r"a coloured picture \(mode RGB\)"),
        (grey((255,))[:6], "the photo is 16x12 but its picture of ranks .* is 16x6"),
    ]:
        save(path, pixels)
        with pytest.raises(DataFault, match=rf"a\.(png|jpg).*{message}"):
            data[0]
    save(path, smooth)
    assert len(RankedObjects(root, source="grey", specks="keep")[0].masks[0]) == 8
    with pytest.raises(UserError, match="data.specks=no: expected one of fault, drop, keep"):
        RankedObjects(root, specks="no")
    Image.fromarray(grey((255, 229))).save(path, format="JPEG")
    with pytest.raises(DataFault, match=r"a\.png: a JPEG"):
        data[0]
    save(path, grey((255,)))
    truncate(path)
    with pytest.raises(DataFault, match=r"a\.png: cannot be decoded"):
        data[0]
    path.unlink()
    with pytest.raises(DataFault, match=r"a\.jpg: no mask of this name in .*gt/train"):
        RankedObjects(root, source="grey")


def test_grey_of_other_forms(assr):
    root = assr(ids=("a",))
    path = root / "gt" / "train" / "a.png"
    data = RankedObjects(root, source="grey")
    save(path, np.stack([grey((255, 153))] * 3, axis=2))  # as OpenCV writes them
    assert data[0].ranks[0].tolist() == [153, 255]
    save(path, grey((65535, 127 * 257, 153 * 257), dtype=np.uint16))
    assert areas(data[0]) == [20, 16] and data[0].ranks[0].tolist() == [153 * 257, 65535]


def test_exclude(assr):
    root = assr()
    assert RankedObjects(root, exclude=["train/a"]).keys == ("train/b",)
    with pytest.raises(UserError, match="data.exclude: no photo has the key 'a'"):
        RankedObjects(root, exclude=["a"])


@pytest.mark.parametrize("source", ["objects", "grey"])
def test_the_environment_ranks_them(assr, source):
    data = RankedObjects(assr(), source=source)
    env = gym.make("maskgym/Ranking-v0", dataset=data, image_size=16)
    _, info = env.reset(options={"index": 0})
    first = info["target"][0][info["ranks"][0].argmax()]
    action = np.zeros((16, 16), np.float32)
    action[:12] = first
    _, reward, *_, info = env.step(action)
    assert info["iou"] == pytest.approx(1) and info["found"] == 1 and reward > 0


def test_grey_levels_in_place_of_absent_objects_are_noted(irsr):
    root = irsr()
    assert RankedObjects(root).notes == ()
    (root / "Annotations" / "train.pkl").unlink()
    data = RankedObjects(root)
    assert data[0].ranks[0].tolist() == [60, 120, 180]
    assert data.notes == (
        f"{root}/Annotations/train.pkl: no such file: the ranks are the levels of {root}/Images/train/gt",
    )
    assert RankedObjects(root, source="grey").notes == ()


def test_a_long_line_of_a_list_is_told_in_short(assr):
    root = assr()
    (root / "train_images.txt").write_text("x" * 5000 + "\n")
    with pytest.raises(DataFault, match="train_images.txt: no photo 'x{80}' in") as error:
        RankedObjects(root)
    assert len(error.value.faults[0]) < 400
