from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from maskgym import data
from maskgym.data.check import check, detect
from maskgym.data.layout.images import DataFault
from maskgym.errors import UserError


@pytest.fixture
def folder(tmp_path, photo, mask):
    for split, number in (("train", 3), ("test", 2)):
        for stem in range(number):
            photo(tmp_path / split / "images" / f"{stem}.jpg")
            mask(tmp_path / split / "masks" / f"{stem}.png")
    return tmp_path


@pytest.fixture
def groups(tmp_path, photo, mask):
    for name in ("cat", "dog"):
        for stem in ("1", "2"):
            photo(tmp_path / "Image" / name / f"{stem}.jpg")
            mask(tmp_path / "GroundTruth" / name / f"{stem}.png")
    return tmp_path


@pytest.fixture
def coco(tmp_path, photo):
    annotations = []
    for number in (1, 2, 3):
        photo(tmp_path / "images" / f"{number}.jpg", size=(12, 16))
        polygon = [1, 1, 5, 1, 5, 5, 1, 5]
        annotations += [{"id": 10 * number + k, "image_id": number, "segmentation": [polygon]} for k in range(number)]
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2, 3)]
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return tmp_path


def counts(samples, images, instances):
    return {"samples": samples, "images": images, "instances": instances}


def test_folder_without_faults(folder):
    report = check(None, folder)
    assert report.ok and report.faults == ()
    assert report.notes == (
        "no sample is in split validation",
        "split test has 2 samples, fewer than 30: means over them are uncertain",
    )
    assert report.as_dict() == json.loads(json.dumps(report.as_dict()))
    assert report.as_dict()["counts"] == {
        "train": counts(3, 3, 3),
        "validation": counts(0, 0, 0),
        "test": counts(2, 2, 2),
        "total": counts(5, 5, 5),
    }
    lines = str(report).splitlines()
    assert lines[0] == f"data=folder task=sod data.root={folder}" and lines[-1] == "no faults"
    assert [line.split() for line in lines if line.startswith(("split", "train", "total"))] == [
        ["split", "samples", "images", "instances"],
        ["train", "3", "3", "3"],
        ["total", "5", "5", "5"],
    ]


def test_every_fault_of_every_split_is_listed(folder, photo, mask, truncate):
    photo(folder / "train" / "images" / "lonely.jpg")
    truncate(folder / "train" / "images" / "0.jpg")
    truncate(folder / "train" / "masks" / "0.png")
    mask(folder / "test" / "masks" / "0.png", level=0)
    mask(folder / "test" / "masks" / "1.png", size=(5, 5))
    report = check("auto", folder)
    named = [fault.split(":")[0] for fault in report.faults]
    files = [
        "train/images/lonely.jpg",
        "test/masks/0.png",
        "test/images/1.jpg",
        "train/images/0.jpg",
        "train/masks/0.png",
    ]
    assert sorted(named) == sorted(str(folder / name) for name in files)
    assert not report.ok
    assert report.counts["train"] == counts(3, 2, 2) and report.counts["test"] == counts(2, 0, 0)
    assert str(report).count("fault  ") == 5 and str(report).endswith("\n5 faults")


def test_groups_note_photos_without_the_object(groups, mask):
    mask(groups / "GroundTruth" / "cat" / "2.png", level=0)
    report = check(None, groups)
    assert (report.data, report.task, report.ok) == ("groups", "cosod", True)
    assert "1 of 4 masks of one level: no foreground (foreground is above 128): 2.png" in report.notes
    assert report.as_dict()["counts"]["total"] == counts(2, 4, 3)


def test_coco(coco):
    report = check(None, coco)
    assert (report.data, report.task) == ("coco", "sis")
    assert report.as_dict()["counts"]["total"] == counts(3, 3, 6)
    assert check(None, coco, task="sod").task == "sod"
    assert check("coco", coco, exclude=["3"]).as_dict()["counts"]["total"] == counts(2, 2, 3)
    (coco / "annotations.json").write_text("{")
    assert "annotations.json: not JSON" in check(None, coco).faults[0]


def test_samples_on_no_list_are_counted(groups):
    (groups / "train.txt").write_text("cat\n")
    assert check(None, groups).counts["unlisted"] == counts(1, 2, 2)


def test_a_folder_with_nothing_is_a_fault(tmp_path):
    report = check(None, tmp_path)
    assert len(report.faults) == 1 and "no pair of photo and mask" in report.faults[0]


@pytest.mark.parametrize(
    ("name", "root", "message"),
    [
        (None, "absent", r"data\.root=absent: no such folder"),
        ("scenes", ".", r"data=scenes: expected one of folder, coco, groups"),
    ],
)
def test_arguments_that_make_no_sense(name, root, message):
    with pytest.raises(UserError, match=message):
        check(name, root)


def test_detect(tmp_path, photo, mask):
    photo(tmp_path / "images" / "pascal" / "1.jpg")
    mask(tmp_path / "masks" / "pascal" / "1.png")
    assert detect(tmp_path) == "folder"  # one folder inside is a set's name, not a group
    photo(tmp_path / "images" / "train" / "1.jpg")
    mask(tmp_path / "masks" / "train" / "1.png")
    assert detect(tmp_path) == "groups"
    for side in ("images", "masks"):
        (tmp_path / side / "pascal").rename(tmp_path / side / "test")
    assert detect(tmp_path) == "folder"


def test_no_progress_bar_without_a_terminal(folder, capsys):
    check(None, folder)
    assert capsys.readouterr() == ("", "")


def test_one_bit_masks_are_not_empty(tmp_path, photo):
    photo(tmp_path / "images" / "a.jpg")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.eye(12, 16, dtype=bool)).save(tmp_path / "masks" / "a.png")
    assert check(None, tmp_path).ok


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("real_sod", "folder", counts(150, 150, 150)),
        ("real_sis", "coco", counts(57, 57, 139)),
        ("real_cosod", "groups", counts(13, 72, 72)),
    ],
)
def test_real_photographs(real_data, name, data, expected):
    report = check(None, real_data / name)
    assert report.data == data and report.faults == ()
    assert report.as_dict()["counts"]["total"] == expected


def test_masks_that_are_unusual_are_noted_by_name(folder, mask):
    truths = folder / "train" / "masks"
    levels = np.zeros((12, 16), np.uint8)
    levels[:6, :8], levels[8:, 8:] = 255, 100
    Image.fromarray(levels).save(truths / "0.png")
    Image.fromarray(levels.astype(np.uint16) * 257).save(truths / "1.png")
    (truths / "2.png").unlink()
    Image.fromarray(np.uint8(255) * (levels > 128)).resize((48, 36)).save(truths / "2.jpg", quality=30)
    Image.fromarray(np.zeros((36, 48, 3), np.uint8)).save(folder / "train" / "images" / "2.jpg")
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 17, (12, 1))
    Image.fromarray(ramp).save(folder / "test" / "masks" / "0.png")
    report = check("folder", folder)
    assert report.ok
    words = {
        "0.png": "of 3 levels (0, 100, 255), perhaps of several classes",
        "1.png": "of 16 bits, read as 8",
        "2.jpg": "in JPEG, with levels between black and white",
    }
    for name, kind in words.items():
        assert f"1 of 5 masks {kind} (foreground is above 128): {name}" in report.notes
    assert "1 of 5 masks grey, with levels between black and white (foreground is above 128): 0.png" in report.notes
    assert len(report.notes) == 6  # and no sample for validation, few for test
    assert set(report.notes[2:]) == {*data.make("folder", root=folder, split="all").describe()}


def test_masks_that_fill_the_photo_and_thin_photos_are_noted(tmp_path, photo, mask):
    photo(tmp_path / "images" / "a.jpg", size=(2, 900))
    mask(tmp_path / "masks" / "a.png", size=(2, 900))
    photo(tmp_path / "images" / "b.jpg")
    Image.new("L", (16, 12), 255).save(tmp_path / "masks" / "b.png")
    notes = check("folder", tmp_path, splits="train").notes
    assert "1 of 2 masks of one level: all foreground (foreground is above 128): b.png" in notes
    assert "1 of 2 photos more than 200 times as long as wide, which processors of models refuse: a" in notes


def test_names_cannot_write_to_the_terminal(tmp_path, photo):
    photo(tmp_path / "images" / "a\x1b]0;owned\x07.jpg")
    (tmp_path / "masks").mkdir()
    report = check("folder", tmp_path)
    assert len(report.faults) == 1 and r"a\x1b]0;owned\x07.jpg: no mask of this name" in report.faults[0]
    assert "\x1b" not in str(report)


def test_a_name_that_is_no_utf_8_is_a_fault(tmp_path, photo, mask):
    photo(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "a.png")
    for folder in ("images", "masks"):
        source = next((tmp_path / folder).iterdir())
        os.link(source, os.fsencode(tmp_path / folder) + b"/\xe9" + source.suffix.encode())
    report = check("folder", tmp_path)
    assert len(report.faults) == 2 and report.as_dict()["counts"]["total"] == counts(1, 1, 1)
    assert all(r"\udce9" in fault and "its name is no UTF-8" in fault for fault in report.faults)
    with pytest.raises(DataFault, match="its name is no UTF-8"):  # before anything is trained
        data.make("folder", root=tmp_path, split="all")
