"""Needs in COCO-style JSON: what they mean, how they are asked by category, and texts of any kind."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maskgym.data import make
from maskgym.data.check import check
from maskgym.data.layout.images import DataFault
from maskgym.errors import UserError

SHAPE = (12, 16)
BOXES = ([1, 1, 5, 1, 5, 5, 1, 5], [8, 2, 12, 2, 12, 8, 8, 8], [1, 7, 5, 7, 5, 11, 1, 11])
CATEGORIES = [{"id": 1, "name": "car"}, {"id": 2, "name": "dog"}]


@pytest.fixture
def write(tmp_path, photo):
    """Write photos 1, 2, … whose annotations have the fields given, and return the folder."""

    def make_folder(*photos: list[dict], categories=CATEGORIES):
        images, annotations = [], []
        for number, rows in enumerate(photos, start=1):
            photo(tmp_path / "images" / f"{number}.jpg", size=SHAPE)
            images.append({"id": number, "file_name": f"{number}.jpg", "height": 12, "width": 16})
            for box, fields in zip(BOXES, rows, strict=False):
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "segmentation": [box], "category_id": 1, **fields}
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "annotations.json").write_text(json.dumps(content))
        return tmp_path

    return make_folder


def read(root, **arguments):
    return make("coco", root=root, task="need", **{"split": "all", **arguments})


def areas(sample) -> list[int]:
    return sample.masks[0].sum(axis=(1, 2)).tolist()


def test_a_sample_is_a_photo_and_a_need_with_all_that_carry_its_text(write):
    provenance = {"needs": {"by": "a model", "at": "2025-01-01T00:00:00"}}
    data = read(
        write(
            [
                {"needs": ["find the car", " Find it "], "provenance": provenance},
                {"needs": ["find it", "FIND IT"], "category_id": 2},
                {"needs": []},
            ],
            [{"needs": ["find the dog"], "category_id": 2}],
            [{}],
        )
    )
    assert (data.task, data.keys) == ("sod", ("1#0", "1#1", "2#0"))
    assert [sample.need for sample in map(data.__getitem__, range(3))] == ["find the car", "Find it", "find the dog"]
    assert [areas(data[index]) for index in range(3)] == [[16], [16, 24], [16]]
    assert [data[index].category for index in range(3)] == ["car", None, "dog"]
    assert data.notes == ("1 photos without a need are left out: 3.jpg",)


def test_needs_are_made_of_categories_where_there_are_none(write):
    root = write([{"needs": ["the left one"]}, {}, {"category_id": 2}])
    data = read(root, needs="category")
    assert [data[i].need for i in range(3)] == ["the left one", "find a car", "find a dog"]
    assert [areas(data[i]) for i in range(3)] == [[16], [24], [16]]


def test_what_is_asked_for_need_not_be_salient(write):
    root = write([{"salient": False, "needs": ["that"]}, {"salient": True, "needs": ["this"]}])
    assert [read(root)[i].need for i in range(2)] == ["that", "this"]


@pytest.mark.parametrize("text", ["x" * 10_000, "найди красную машину", "寻找红色的车", "🚗", ""])
def test_any_text_is_a_need(write, text):
    sample = read(write([{"needs": [text]}]))[0]
    assert sample.need == text and areas(sample) == [16]


def test_crowds_are_void_and_never_meant(write):
    sample = read(write([{"needs": ["it"]}, {"needs": ["it"], "iscrowd": 1}]))[0]
    assert areas(sample) == [16] and sample.void[0].sum() == 24


def test_the_needs_of_a_photo_stay_in_its_split(write):
    root = write(*([{"needs": ["one"]}, {"needs": ["two"]}] for _ in range(20)))
    keys = {split: read(root, split=split).keys for split in ("train", "validation", "test")}
    assert sum(map(len, keys.values())) == 40
    for own in keys.values():
        photos = [key.partition("#")[0] for key in own]
        assert all(photos.count(photo) == 2 for photo in photos)
    photo = keys["train"][0].partition("#")[0]
    assert not any(key.startswith(f"{photo}#") for key in read(root, split="train", exclude=[photo]).keys)


@pytest.mark.parametrize(
    ("fields", "needs", "words"),
    [
        ({"needs": "find it"}, "own", "annotation 1: needs is 'find it': expected a list of texts"),
        ({"needs": [3]}, "own", r"annotation 1: needs is '\[3\]'"),
        ({"category_id": 9}, "category", "annotation 1: category 9 is not in categories"),
        ({"category_id": [1]}, "category", r"annotation 1: category \[1\] is not in categories"),
    ],
)
def test_faults_name_the_annotation(write, fields, needs, words):
    root = write([fields])
    with pytest.raises(DataFault, match=words):
        read(root, needs=needs)
    assert any("annotation 1" in fault for fault in check("coco", root, task="need", needs=needs).faults)


def test_categories_that_are_none_are_not_read(write):
    with pytest.raises(DataFault, match="category 1 is not in categories"):
        read(write([{}], categories=[{"id": 1}, "car"]), needs="category")


def test_a_data_set_without_needs_says_how_to_make_them(write):
    root = write([{}])
    with pytest.raises(UserError, match=r"no annotation has needs: \+data.needs=category asks by category"):
        read(root)
    with pytest.raises(UserError, match="data.needs=x: expected one of own, category"):
        read(root, needs="x")
    report = check("coco", root, task="need")
    assert report.ok and report.as_dict()["counts"]["total"]["samples"] == 0


def test_real_photos_are_asked_for_by_category(real_data):
    data = make("coco", root=real_data / "real_sis", task="need", split="all", needs="category")
    with open(real_data / "real_sis" / "annotations.json") as file:
        content = json.load(file)
    names = {record["id"]: record["name"] for record in content["categories"]}
    photos = {record["id"]: record["file_name"].partition(".")[0] for record in content["images"]}
    articles = {name: "an" if name[0] in "aeiou" else "a" for name in names.values()}
    asked = {number: f"find {articles[name]} {name}" for number, name in names.items()}
    pairs = {(photos[a["image_id"]], asked[a["category_id"]]) for a in content["annotations"]}
    assert {(key.partition("#")[0], data[i].need) for i, key in enumerate(data.keys[:12])} <= pairs
    assert len(data) == len(pairs)
    np.testing.assert_array_equal(data[0].masks[0].any(axis=(1, 2)), True)
