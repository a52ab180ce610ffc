from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskgym.data import Dataset, make, split_of
from maskgym.data.layout.images import DataFault
from maskgym.data.readers.coco import Coco
from maskgym.errors import UserError

SHAPE = (12, 16)
LEFT, RIGHT = [1, 1, 5, 1, 5, 5, 1, 5], [8, 2, 12, 2, 12, 8, 8, 8]  # 4x4 and 4x6 pixels


def box(x, y, width, height):
    """A mask of (12, 16) pixels that is True in one box."""
    mask = np.zeros(SHAPE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def instance(number, image=1, segmentation=None, **fields):
    return {"id": number, "image_id": image, "segmentation": [LEFT] if segmentation is None else segmentation, **fields}


def image(number, name=None, **fields):
    return {"id": number, "file_name": name or f"{number}.jpg", "height": 12, "width": 16, **fields}


@pytest.fixture
def coco(tmp_path, photo):
    """Write a data set: the JSON as given, and a photo for each image that it names."""

    def write(annotations, images=None, name="annotations.json", folder="images"):
        images = images or [image(1)]
        for record in images:
            photo(tmp_path / folder / record["file_name"], size=SHAPE)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
        return tmp_path

    return write


def test_sample_holds_instances_in_order(coco):
    data = make("coco", root=coco([instance(7, segmentation=[RIGHT]), instance(3)]), split="all")
    sample = data[0]
    assert isinstance(data, Dataset) and (data.task, len(data)) == ("sis", 1)
    assert sample.key == "1" and sample.images[0].shape == (*SHAPE, 3)
    assert sample.void is None and sample.phrases is None
    (masks,) = sample.masks
    assert masks.dtype == bool and masks.flags.c_contiguous
    assert np.array_equal(masks, [box(8, 2, 4, 6), box(1, 1, 4, 4)])


def test_several_polygons_are_one_instance(coco):
    sample = Coco(coco([instance(1, segmentation=[LEFT, RIGHT])]), split="all")[0]
    assert np.array_equal(sample.masks[0], [box(1, 1, 4, 4) | box(8, 2, 4, 6)])


def test_run_lengths_compressed_and_not(coco):
    expected = box(2, 3, 5, 4)
    compressed = coco_mask.encode(np.asfortranarray(expected.astype(np.uint8)))["counts"].decode()
    runs = [2 * 12 + 3, *[4, 8] * 4, 4, 12 * 9 + 5]  # two empty columns, then five with four pixels below the third row
    codes = [{"size": [12, 16], "counts": counts} for counts in (compressed, runs)]
    sample = Coco(coco([instance(1, segmentation=codes[0]), instance(2, segmentation=codes[1])]), split="all")[0]
    assert np.array_equal(sample.masks[0], [expected, expected])


def test_crowd_becomes_void(coco):
    everything = {"size": [12, 16], "counts": [0, 192]}
    crowds = [instance(2, segmentation=everything, iscrowd=1, salient=False), instance(3, iscrowd=1)]
    root = coco([instance(1), *crowds])
    sample = Coco(root, split="all")[0]
    assert sample.masks[0].shape[0] == 1
    assert np.array_equal(sample.void[0], ~box(1, 1, 4, 4))  # the instance itself is scored


def test_a_crowd_may_be_an_instance(coco):
    """CVAT marks every brushed mask as a crowd."""
    brushed = {"size": [12, 16], "counts": [12 * 8, 12, 84]}
    root = coco([instance(1), instance(2, segmentation=brushed, iscrowd=1)])
    void = Coco(root, split="all")
    assert len(void[0].masks[0]) == 1 and void[0].void[0].sum() == 12
    noted = "1 of 2 annotations are crowds (iscrowd), every run-length code among them, read as void, not scored: "
    assert void.notes[0].endswith(noted + "data.crowds=instances reads them as instances")
    both = Coco(root, split="all", crowds="instances")
    assert both[0].void is None and [mask.sum() for mask in both[0].masks[0]] == [16, 12]
    assert "read as instances" in both.notes[0]
    with pytest.raises(UserError, match="data.crowds=none: expected one of void, instances"):
        Coco(root, crowds="none")
    plain = Coco(coco([instance(1, iscrowd=0)]), split="all")
    assert plain.notes == ()


@pytest.mark.parametrize(("flag", "value"), [("iscrowd", "0"), ("salient", "false"), ("iscrowd", [])])
def test_a_flag_that_is_no_number_is_a_fault(coco, flag, value):
    with pytest.raises(DataFault, match=f"annotation 1: {flag} is .*: expected 0 or 1"):
        Coco(coco([instance(1, **{flag: value})]), split="all")


def row_major(mask):
    changes = np.flatnonzero(np.diff(mask.ravel())) + 1
    return {"size": [12, 16], "counts": np.diff([0, *changes, mask.size]).tolist()}


BOX = box(9, 1, 5, 4)
CORNERS = [9, 1, 14, 1, 14, 5, 9, 5]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"segmentation": [CORNERS], "bbox": [9, 1, 5, 4], "area": 20}, None),
        ({"segmentation": [CORNERS], "bbox": [0, 0, 0, 0], "area": 0}, None),  # stands for none
        ({"segmentation": row_major(BOX), "bbox": [9, 1, 5, 4]}, "bbox"),
        (
            {
                "segmentation": [[at for pair in zip(CORNERS[1::2], CORNERS[::2], strict=True) for at in pair]],
                "bbox": [9, 1, 5, 4],
            },
            "bbox",
        ),
        ({"segmentation": [CORNERS], "bbox": [9, 1, 14, 5], "area": 20}, "bbox"),  # corners in place of a size
        ({"segmentation": [CORNERS], "area": 100}, "area"),
        ({"segmentation": [CORNERS], "bbox": [10**400, 1, 5, 4], "area": 10**400}, None),
        ({"segmentation": [CORNERS], "bbox": ["9", 1, 5, None], "area": "20"}, None),
        ({"segmentation": [[9, 1, 14, 1, 14, 2]], "bbox": [9, 1, 5, 4], "area": 20}, "bbox"),
    ],
)
def test_masks_are_compared_with_their_own_bbox_and_area(coco, fields, kind):
    data = Coco(coco([instance(1, **fields), instance(2)]), split="all")
    told = {
        "bbox": "1 of 2 masks whose box has an IoU below 0.3 with their stated bbox: annotation 1 of 1.jpg",
        "area": "1 of 2 masks whose area differs from the stated one by a factor above 3.3: annotation 1 of 1.jpg",
    }
    assert data.describe() == ([told[kind]] if kind else [])


def test_a_mask_that_fills_the_photo_is_noted(coco):
    data = Coco(coco([instance(1, segmentation={"size": [12, 16], "counts": [0, 192]})]), split="all")
    assert data.describe() == ["1 of 1 masks that fill the whole photo: annotation 1 of 1.jpg"]


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/secret.jpg", "..\\\\secret.jpg", "a/../../secret.jpg", "", ".", "/"]
)
def test_names_that_leave_the_data_set_are_faults(coco, photo, name):
    root = coco([instance(1)])
    photo(root.parent / "secret.jpg", size=SHAPE)
    text = (root / "annotations.json").read_text().replace("1.jpg", name)
    (root / "annotations.json").write_text(text)
    with pytest.raises(DataFault, match="annotations.json: file_name '.*': expected a path inside the data set"):
        Coco(root, split="all")


@pytest.mark.parametrize("link", ["images/1.jpg", "images/deep", "images"])
def test_links_out_of_the_data_set_are_faults(coco, photo, tmp_path_factory, link):
    outside = tmp_path_factory.mktemp("outside")
    root = coco([instance(1)], [image(1, "deep/1.jpg" if link == "images/deep" else "1.jpg")])
    (root / link).rename(outside / "moved")
    (root / link).symlink_to(outside / "moved")
    with pytest.raises(DataFault, match=f"{link}.*: a link to .*moved.*, outside of"):
        Coco(root, split="all")


def test_an_annotation_file_behind_a_link_is_a_fault_unless_it_is_requested(coco, tmp_path_factory):
    root, outside = coco([instance(1)]), tmp_path_factory.mktemp("outside") / "a.json"
    (root / "annotations.json").rename(outside)
    (root / "annotations.json").symlink_to(outside)
    with pytest.raises(DataFault, match=r"annotations\.json: a link to .*a\.json, outside of"):
        Coco(root, split="all")
    assert len(Coco(root, split="all", annotations=str(outside))) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [("x" * 300 + ".jpg", "no file x{80} in"), ("a\ud800.jpg", "half of a surrogate pair is no text: .*a\\\\ud800")],
)
def test_names_that_no_file_can_have(coco, name, words):
    root = coco([instance(1)])
    content = json.loads((root / "annotations.json").read_text())
    content["images"][0]["file_name"] = name
    (root / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(DataFault, match=words):
        Coco(root, split="all")


def test_files_beside_the_annotations_hinder_no_search(coco):
    root = coco([instance(1)], name="mine.json")
    os.mkfifo(root / "pipe.json")
    (root / "gone.json").symlink_to("nowhere.json")
    (root / "deep.json").write_text("[" * 100_000)
    assert Coco(root, split="all").keys == ("1",)


def test_a_photo_that_is_missing_can_be_excluded(coco):
    root = coco([instance(1), instance(2, 2)], [image(1), image(2)])
    (root / "images" / "2.jpg").unlink()
    assert Coco(root, split="all", exclude=[2]).keys == ("1",)


def test_salient_only(coco):
    root = coco([instance(1, salient=False), instance(2, segmentation=[RIGHT], salient=True), instance(3)])
    assert len(Coco(root, split="all")[0].masks[0]) == 2
    assert len(Coco(root, split="all", salient_only=False)[0].masks[0]) == 3


def test_photos_without_instance_are_left_out_and_noted(coco):
    root = coco([instance(1), instance(2, image=2, salient=False)], [image(1), image(2), image(3)])
    data = Coco(root, split="all")
    assert data.keys == ("1",) and data.faults == ()
    assert data.notes[1:] == ("2 photos without an instance are left out: 2.jpg, 3.jpg",)
    assert data.notes[0].endswith(
        '1 of 2 annotations are left out because they say "salient": false: data.salient_only=false reads them'
    )


def test_phrases_only_where_every_instance_has_one(coco):
    root = coco(
        [instance(1, phrase="a cup"), instance(2, caption="the dog"), instance(3, 2, phrase="a cat"), instance(4, 2)],
        [image(1), image(2)],
    )
    data = Coco(root, split="all")
    assert data[0].phrases == (("a cup", "the dog"),)
    assert data[1].phrases is None


def test_task_sod_gives_the_same_masks(coco):
    root = coco([instance(1), instance(2, segmentation=[RIGHT])])
    data = Coco(root, task="sod", split="all")
    assert data.task == "sod" and len(data[0].masks[0]) == 2
    with pytest.raises(UserError, match=r"task=cosod: data=coco reads sis, sod"):
        Coco(root, task="cosod")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("annotations.json", "images"),
        ("annotations.json", "."),
        ("anything.json", "Imgs"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("train/SIS10K_train.json", "train/images"),
        ("Train/train.json", "Train/Image"),
        ("trainval/trainval.json", "trainval/imgs"),
        ("Li_train500.json", "train"),
        ("gttrain600.json", "imgtrain600"),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_layout_is_found(coco, name, folder):
    root = coco([instance(1)], name=name, folder=folder)
    (root / "manifest.json").write_text('{"items": []}')
    (root / "captions_train2017.json").write_text("{}")
    data = Coco(root, split="all")
    named = "train" in name
    assert data.keys == ("train/1" if named else "1",)
    assert data.splits == ("train" if named else split_of("1"),)


def test_json_files_of_splits(coco):
    coco([instance(1)], name="train/a_train.json", folder="train/images")
    root = coco([instance(1)], [image(1), image(2, name="x.jpg")], name="test/a_test.json", folder="test/images")
    assert Coco(root).keys == ("train/1",)
    assert Coco(root, split="test").keys == ("test/1",)
    assert Coco(root, split="all").splits == ("test", "train")
    with pytest.raises(UserError, match=r"data\.split=validation: .* \(train 1, validation 0, test 1\)"):
        Coco(root, split="validation")
    by_hash = Coco(root, split="all", splits="hash")
    assert by_hash.splits == tuple(map(split_of, by_hash.keys))
    coco([instance(1)], name="train/b_train.json")
    with pytest.raises(UserError, match=r"both a_train\.json and b_train\.json may be meant: set data\.annotations"):
        Coco(root)
    assert len(Coco(root, split="all", annotations="train/a_train.json", images="train/images")) == 1


def test_splits_by_hash_and_lists(coco):
    records = [image(number) for number in range(20)]
    root = coco([instance(number, number) for number in range(20)], records)
    assert set(Coco(root, split="test").keys) == {str(n) for n in range(20) if split_of(str(n)) == "test"}
    (root / "val.txt").write_text("3.jpg\n4\n")
    assert Coco(root, split="validation").keys == ("3", "4")
    assert Coco(root, split="all", exclude=["3"]).keys == tuple(str(n) for n in range(20) if n != 3)


def test_json_at_fault(tmp_path):
    with pytest.raises(DataFault, match="no COCO-style JSON here"):
        Coco(tmp_path)
    path = tmp_path / "annotations.json"
    for text, message in [
        ('{"images": [', "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ("[]", "a list: expected an object with images and annotations"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": {}, "annotations": []}', "no list 'images'"),
        ('{"images": [{"id": 1}], "annotations": []}', r"images\[0\] \(id 1\) has no usable file_name"),
        ('{"images": [3], "annotations": []}', r"images\[0\] \(id None\) has no usable id, file_name"),
        (
            '{"images": [], "annotations": [{"id": 5, "image_id": 1}]}',
            r"annotations\[0\] \(id 5\) has no usable segmentation",
        ),
    ]:
        path.write_text(text)
        with pytest.raises(DataFault, match=rf"annotations\.json: {message}"):
            Coco(tmp_path)
    with pytest.raises(DataFault, match=r"absent\.json: cannot be read: No such file"):
        Coco(tmp_path, annotations="absent.json")
    with pytest.raises(UserError, match=r"data\.images=photos: no such folder"):
        Coco(tmp_path, images="photos")


def test_listing_collects_every_fault(coco):
    root = coco(
        [instance(1), instance(2, image=99)], [image(1), image(2), image(3, name="1.jpg"), image(1, name="4.jpg")]
    )
    (root / "images" / "2.jpg").unlink()
    data = Coco(root, split="all", strict=False)
    messages = [
        "two images have the id 1",
        "annotation 2 belongs to image 99",
        "no file 2.jpg in",
        "1.jpg is listed twice",
    ]
    assert len(data.faults) == 4
    for fault, message in zip(data.faults, messages, strict=True):
        assert message in fault and "annotations.json" in fault
    with pytest.raises(DataFault, match="and 3 more"):
        Coco(root, split="all")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 5, 5]], "a polygon needs three or more pairs"),
        ([[1, 1, 5, 5, 1, 5, 2]], "a polygon needs three or more pairs"),
        ([[1, 1, 5, 5, 1, "x"]], "unreadable segmentation"),
        ([[1, 1, 5, 5, 1, None]], "a polygon lies far outside"),
        ([[1, 1, 1e9, 1, 5, 5]], "a polygon lies far outside"),
        ([], "no polygon"),
        ({"size": [16, 12], "counts": [0, 192]}, r"its size is \[16, 12\], the photo's \[12, 16\]"),
        ({"size": [12, 16], "counts": [0, 191]}, "do not fill 16x12"),
        ({"size": [12, 16]}, "counts"),
        ({"size": 3, "counts": "a"}, "unreadable segmentation"),
        ([[2, 2, 2.1, 2, 2.1, 2.1]], "an empty mask: the segmentation covers no pixel"),
        ({"size": [12, 16], "counts": [192]}, "an empty mask"),
    ],
)
def test_segmentation_at_fault(coco, segmentation, message):
    data = Coco(coco([instance(1), instance(12, segmentation=segmentation)]), split="all")
    with pytest.raises(DataFault, match=rf"annotations\.json: annotation 12 of 1\.jpg: .*{message}"):
        data[0]


def test_photo_of_another_size_and_truncated_photo(coco, photo, truncate):
    root = coco([instance(1), instance(2, 2)], [image(1), image(2)])
    photo(root / "images" / "1.jpg", size=(10, 16))
    truncate(photo(root / "images" / "2.jpg", size=SHAPE))
    data = Coco(root, split="all")
    with pytest.raises(DataFault, match=r"1\.jpg: the photo is 16x10 but .*annotations\.json is 16x12$"):
        data[0]
    with pytest.raises(DataFault, match=r"2\.jpg: cannot be decoded"):
        data[1]


def test_real_photographs(real_data):
    data = Coco(real_data / "real_sis", split="all", salient_only=False)
    assert len(data) == 57
    assert sum(len(sample.masks[0]) for sample in data) == 435
    salient = Coco(real_data / "real_sis", split="all")
    assert sum(len(sample.masks[0]) for sample in salient) == 139
    assert all(1 <= len(sample.masks[0]) <= 8 for sample in salient)


def test_real_masks_agree_with_the_instance_pictures(real_data):
    """The fixture's pictures come from another rasteriser: outlines differ by a pixel, whole objects do not."""
    root = real_data / "real_sis"
    records = json.loads((root / "annotations.json").read_text())
    values = {}
    for annotation in records["annotations"]:
        if annotation["salient"]:
            values.setdefault(annotation["image_id"], []).append(annotation["instance_value"])
    data = Coco(root, split="all")
    by_key = dict(zip(data.keys, range(len(data)), strict=True))
    overlaps = []
    for record in records["images"][:10]:
        picture = np.asarray(Image.open(root / "instances" / record["file_name"].replace(".jpg", ".png")))
        masks = data[by_key[record["file_name"][:-4]]].masks[0]
        for value, mask in zip(values[record["id"]], masks, strict=True):
            overlaps.append((mask & (picture == value)).sum() / (mask | (picture == value)).sum())
    assert np.median(overlaps) > 0.94


def test_annotations_of_one_id_are_noted(coco):
    root = coco([instance(7), instance(7, segmentation=[RIGHT]), instance(8)])
    data = Coco(root, split="all")
    assert len(data[0].masks[0]) == 3
    (note,) = data.notes
    assert note.startswith(f"{root / 'annotations.json'}: annotations of one id") and note.endswith("annotation 7")
