"""Published data sets by name, each on a miniature of its official layout."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from maskgym.data import make, names
from maskgym.data.check import check, detect
from maskgym.data.layout.images import DataFault
from maskgym.data.published import PUBLISHED
from maskgym.errors import UserError

SBU, SBU_TRAIN = "SBU-shadow", "SBU-shadow/SBUTrain4KRecoveredSmall"
# Of each set with one mask a photo: files of photos and masks as the official archives unpack, and the splits.
LAYOUTS = {
    "duts": (
        ("DUTS-TR/DUTS-TR-Image/n04442312_17818.jpg", "DUTS-TR/DUTS-TR-Mask/n04442312_17818.png", None),
        ("DUTS-TR/DUTS-TR-Image/sun_a.jpg", "DUTS-TR/DUTS-TR-Mask/sun_a.png", "train"),
        ("DUTS-TE/DUTS-TE-Image/ILSVRC2012_test_03.jpg", "DUTS-TE/DUTS-TE-Mask/ILSVRC2012_test_03.png", "test"),
    ),
    "ecssd": (("images/0001.jpg", "ground_truth_mask/0001.png", "test"),),
    "pascal_s": (("datasets/imgs/pascal/1.jpg", "datasets/masks/pascal/1.png", "test"),),
    "dut_omron": (("DUT-OMRON-image/DUT-OMRON-image/im005.jpg", "pixelwiseGT-new-PNG/im005.png", "test"),),
    "hku_is": (("imgs/0004.png", "gt/0004.png", "test"), ("imgs/9057.png", "gt/9057.png", "test")),
    "cuhk_blur": (("image/out_of_focus0016.JPG", "gt/out_of_focus0016.png", ...),),
    "sbu": (
        (f"{SBU_TRAIN}/ShadowImages/1.jpg", f"{SBU_TRAIN}/ShadowMasks/1.png", "train"),
        (f"{SBU}/SBU-Test/ShadowImages/lssd9.jpg", f"{SBU}/SBU-Test/ShadowMasks/lssd9.png", "test"),
    ),
    "msd": (
        ("train/image/1_512x640.jpg", "train/mask/1_512x640.png", "train"),
        ("test/image/2_512x640.jpg", "test/mask/2_512x640.png", "test"),
        ("test/image/1751_512x640.jpg", "test/mask/1751_512x640.png", None),
    ),
    "cod10k": (
        ("COD10K-v3/Train/Image/COD10K-CAM-1-a-1.jpg", "COD10K-v3/Train/GT_Object/COD10K-CAM-1-a-1.png", "train"),
        ("COD10K-v3/Test/Image/COD10K-CAM-2-b-2.jpg", "COD10K-v3/Test/GT_Object/COD10K-CAM-2-b-2.png", "test"),
        ("COD10K-v3/Test/Image/COD10K-NonCAM-5-3.jpg", "COD10K-v3/Test/GT_Object/COD10K-NonCAM-5-3.png", None),
    ),
    "camo": (
        ("Images/Train/camourflage_00001.jpg", "GT/camourflage_00001.png", "train"),
        ("Images/Test/camourflage_00012.jpg", "GT/camourflage_00012.png", "test"),
    ),
    "dis5k": (
        ("DIS-TR/im/1#Accessories#1#Bag#1_o.jpg", "DIS-TR/gt/1#Accessories#1#Bag#1_o.png", "train"),
        ("DIS-VD/im/2.jpg", "DIS-VD/gt/2.png", "validation"),
        ("DIS-TE1/im/3.jpg", "DIS-TE1/gt/3.png", "test"),
        ("DIS-TE4/im/3.jpg", "DIS-TE4/gt/3.png", "test"),
    ),
    "coca": (("image/alarm clock/51499.jpg", "binary/alarm clock/51499.png", "test"),),
    "cosal2015": (("Image/aeroplane/aeroplane_001.jpg", "GroundTruth/aeroplane/aeroplane_001.png", "test"),),
    "cosod3k": (("Image/bear/ILSVRC2012_val_00000009.jpg", "GroundTruth/bear/ILSVRC2012_val_00000009.png", "test"),),
    "cocoseg": (("img/dog/1.png", "gt/dog/1.png", "train"), ("img/cat/1.png", "gt/cat/1.png", "train")),
}  # fmt: skip
HIDDEN = ("Thumbs.db", "desktop.ini", ".DS_Store", "._a.png")


@pytest.fixture
def lay_out(tmp_path, photo, mask):
    """Return a function that writes the files of a set, with those that operating systems leave among them."""

    def write(name):
        for image, truth, _ in LAYOUTS[name]:
            photo(tmp_path / image)
            mask(tmp_path / truth, level=0 if "NonCAM" in truth else 255)
            for hidden in HIDDEN:
                (tmp_path / image).with_name(hidden).write_bytes(b"hidden")
                (tmp_path / truth).with_name(hidden).write_bytes(b"hidden")
        for unused in ("GT_Edge", "GT_Instance"):  # of COD10K
            if name == "cod10k":
                mask(tmp_path / "COD10K-v3" / "Test" / unused / "COD10K-CAM-2-b-2.png", level=7)
        (tmp_path / "__MACOSX" / "masks").mkdir(parents=True)
        return tmp_path

    return write


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_official_layout_is_read_whole(lay_out, name):
    dataset = make(name, root=lay_out(name), split="all")
    splits = [split for _, _, split in LAYOUTS[name] if split is not None]
    assert len(dataset) == len(splits) and dataset.faults == ()
    if ... not in splits:
        assert sorted(dataset.splits) == sorted(splits)
    for index in range(len(dataset)):
        assert dataset[index].masks[0].sum() == 6 * 8
    assert len(dataset.mask_files) == len(dataset)


@pytest.mark.parametrize(
    ("name", "category"),
    [
        *(("cuhk_blur", "blur"), ("sbu", "shadow"), ("msd", "glass"), ("ecssd", "salient object")),
        *(("cod10k", "camouflaged object"), ("camo", "camouflaged object"), ("dis5k", "salient object")),
    ],
)
def test_what_the_masks_show(lay_out, name, category):
    assert make(name, root=lay_out(name), split="all")[0].category == category


@pytest.mark.parametrize("task", ["need", "refer"])
def test_sets_of_one_region_are_asked_for_by_what_they_show(lay_out, task):
    dataset = make("camo", root=lay_out("camo"), split="all", task=task)
    assert [sample.need for sample in (dataset[0], dataset[1])] == ["camouflaged object"] * 2
    assert dataset.shown == task and dataset.keys == ("Test/camourflage_00012", "Train/camourflage_00001")


def test_photos_without_a_camouflaged_object_are_no_target(lay_out, mask):
    root = lay_out("cod10k")
    for task, count in (("camouflage", 1), ("need", 1), ("refer", 2)):
        dataset = make("cod10k", root=root, split="test", task=task)
        assert len(dataset) == count
    told = "1 photos without a camouflaged object are left out: COD10K-NonCAM-5-3.jpg"
    assert told in make("cod10k", root=root, split="test", task="need").describe()
    sample = dataset[1]
    assert (sample.key, sample.need) == ("COD10K-v3/Test/COD10K-NonCAM-5-3".split("/", 1)[1], "camouflaged object")
    assert sample.masks[0].shape == (0, 12, 16) and not dataset.notes
    assert len(make("cod10k", root=root, split="test", task="need", no_target=True)) == 2
    mask(root / "COD10K-v3/Test/GT_Object/COD10K-NonCAM-5-3.png")
    with pytest.raises(DataFault, match=r"NonCAM-5-3.png: a mask that is not empty: names with 'COD10K-NonCAM' show"):
        dataset[1]
    with pytest.raises(UserError, match="data.shows=cats: expected one of sod, blur"):
        make("cod10k", root=root, shows="cats")


def test_a_photo_in_two_splits_has_no_mask_of_its_own(lay_out, photo):
    root = lay_out("camo")
    photo(root / "Images/Test/camourflage_00001.jpg")
    with pytest.raises(DataFault, match=r"camourflage_00001.jpg: no mask of this name"):
        make("camo", root=root)


def test_what_is_known_to_be_wrong_is_left_out_and_noted(lay_out, mask, photo):
    root = lay_out("duts")
    mask(root / "DUTS-TR/DUTS-TR-Mask/n04442312_17818.png", size=(9, 9))
    mask(root / "DUTS-TE/DUTS-TE-Mask/msun_bcogaqperiljqupq.jpg")
    dataset = make("duts", root=root, split="train")
    assert dataset.keys == ("DUTS-TR/sun_a",)
    assert dataset.notes == ("1 photos that are known to be wrong are left out: n04442312_17818.jpg",)
    mask(root / "DUTS-TE/DUTS-TE-Mask/other.png")
    with pytest.raises(DataFault, match=r"other.png: no photo of this name"):
        make("duts", root=root, split="train")


def test_a_pickle_of_edges_beside_masks_is_passed_over(lay_out, mask):
    root = lay_out("duts")
    mask(root / "DUTS-TR/DUTS-TR-Mask/sun_a_edge.png")
    assert make("duts", root=root, split="train").keys == ("DUTS-TR/sun_a",)


def test_that_a_hash_deals_the_splits_of_cuhk_is_told_in_one_line(lay_out, photo, mask):
    root = lay_out("cuhk_blur")
    for number in range(20):
        photo(root / f"image/{number}.jpg")
        mask(root / f"gt/{number}.png")
    (told,) = make("cuhk_blur", root=root, split="test").describe()
    assert told.startswith("cuhk_blur has no official split: a hash of the names deals 80 % to training")
    for name in (*make("cuhk_blur", root=root, split="train").keys, "0"):
        with (root / "train.txt").open("a") as file:
            file.write(f"{name}\n")
    assert make("cuhk_blur", root=root, split="train").notes == ()  # lists of the user's own


def test_arguments_of_the_reader_win(lay_out):
    root = lay_out("ecssd")
    assert make("ecssd", root=root, split="train", splits="train").keys == ("0001",)
    assert make("ecssd", root=root, split="test", splits="auto").keys == ("0001",)  # its own: all of it is test


def test_counts_are_compared_with_the_authors(lay_out):
    report = check("ecssd", lay_out("ecssd"))
    assert report.ok and "split test has 1 photos without fault; its authors state 1,000" in report.notes


@pytest.mark.parametrize(
    ("name", "total"),
    [("refcoco", 142210), ("refcoco_plus", 141564), ("refcocog", 95010), ("refcocog_google", 95010)],
)
def test_sentences_are_compared_with_the_authors_files(tmp_path, photo, name, total):
    assert sum(PUBLISHED[name].sentences.values()) == total
    version = PUBLISHED[name].folder[0]
    by = {"refcocog": "umd", "refcocog_google": "google"}.get(name, "unc")
    photo(tmp_path / "train2014" / "a.jpg")
    (tmp_path / version).mkdir()
    annotation = {"id": 1, "image_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [annotation]}
    (tmp_path / version / "instances.json").write_text(json.dumps(content))
    sentences = [{"sent": "it", "sent_id": 5}]
    record = {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "val", "sentences": sentences}
    (tmp_path / version / f"refs({by}).p").write_bytes(pickle.dumps([record], protocol=0))
    stated = PUBLISHED[name].sentences["validation"]
    noted = f"split validation has 1 sentences; its authors' files have {stated:,}"
    assert noted in check(name, tmp_path).notes
    assert not any("authors" in note for note in check(name, tmp_path, partition="testA").notes)


def test_photos_are_counted_where_samples_are_parts_of_them(tmp_path, photo):
    home = tmp_path / "VOCdevkit" / "VOC2012"
    levels = np.zeros((12, 16), np.uint8)
    levels[:4, :4], levels[8:, 8:] = 1, 15
    for folder in ("SegmentationClass", "SegmentationObject"):
        (home / folder).mkdir(parents=True)
        picture = Image.fromarray(levels, "P")
        picture.putpalette(list(range(256)) * 3)
        picture.save(home / folder / "2007_000032.png")
    photo(home / "JPEGImages" / "2007_000032.jpg")
    lists = home / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, text in (("train", "2007_000032\n"), ("val", ""), ("trainval", "2007_000032\n")):
        (lists / f"{name}.txt").write_text(text)
    dataset = make("voc2012", root=tmp_path, split="train")
    assert [dataset[index].category for index in range(2)] == ["aeroplane", "person"]
    assert "split train has 1 photos without fault; its authors state 1,464" in check("voc2012", tmp_path).notes
    assert detect(tmp_path) == "voc" and detect(tmp_path / "VOCdevkit") == "voc2012"


def test_a_set_is_told_by_the_name_of_its_folder(lay_out, tmp_path, photo, mask):
    photo(tmp_path / "dut-omron" / "images" / "a.jpg")
    mask(tmp_path / "dut-omron" / "masks" / "a.png")
    assert detect(tmp_path / "dut-omron") == "dut_omron"
    assert detect(lay_out("coca")) == "folder"  # one group is told from none by its name only


def test_sets_of_json_take_their_reader(tmp_path, photo):
    for split in ("train", "test"):
        photo(tmp_path / split / "images" / "1.jpg")
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]}
        crowd = annotation | {"id": 2, "iscrowd": 1, "segmentation": {"size": [12, 16], "counts": [0, 12, 180]}}
        content = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [annotation, crowd]}
        content["categories"] = [{"id": 1, "name": "salient"}]
        (tmp_path / split / f"SIS10K_{split}.json").write_text(json.dumps(content))
    dataset = make("sis10k", root=tmp_path, split="all")
    assert len(dataset) == 2 and [len(dataset[0].masks[0]), dataset[0].void[0].any()] == [1, True]


def test_every_published_set_has_a_reader():
    assert {published.reader for published in PUBLISHED.values()} <= set(names())
    tasks = {"sod", "sis", "cosod", "blur", "shadow", "glass", "camouflage", "semantic", "need", "refer", "ranking"}
    for name, published in PUBLISHED.items():
        assert published.task in tasks, name
        assert all(count > 0 for count in published.counts.values())
