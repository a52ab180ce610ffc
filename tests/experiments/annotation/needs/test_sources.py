from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgym.data import run_lengths
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import masks
from maskgym.experiments.annotation.needs.project import Settings
from maskgym.experiments.annotation.needs.sources import Item, PhotoSource, SceneSource, open_source

DATA = Path(os.environ.get("MASKGYM_DATA") or Path(__file__).parents[5] / "shared" / "data")


def picture(file: Path, size=(30, 20)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 10, 200)).save(file)
    return file


def coco(file: Path, *annotations: dict, name: str = "a.png") -> Path:
    images = [{"id": 1, "file_name": name, "width": 30, "height": 20}]
    listed = [{"id": n, "image_id": 1, "category_id": 5, **one} for n, one in enumerate(annotations)]
    file.write_text(json.dumps({"images": images, "annotations": listed, "categories": [{"id": 5, "name": "cat"}]}))
    return file


SQUARE = {"segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]]}


def test_scenes_give_every_visible_object_with_descriptions():
    source = SceneSource("test", 2)
    scene = source.scenes.scene(1)
    marked = source.annotations(source.items[1])
    assert [one.category for one in marked] == [item.shape for item in scene.objects]
    for one, mask in zip(marked, scene.masks, strict=True):
        assert (run_lengths.decode(one.segmentation) == mask).all() and one.box == masks.box_of(mask)
        assert one.phrases[0].endswith(one.category) and len(set(one.phrases)) == len(one.phrases) > 2
    assert (source.image(source.items[1]) == scene.image).all() and source.file(source.items[1]) is None
    assert SceneSource("train", 2).content(source.items[1]) == source.content(source.items[1])


def test_photos_are_found_and_named_apart(tmp_path):
    for name in ("b/a.png", "a.png", "a b+ü.jpg", "notes.txt/skip.png", ".hidden.png"):
        picture(tmp_path / name)
    source = PhotoSource(tmp_path)
    assert [item.key for item in source.items] == ["a b+ü.jpg", "a.png", "b/a.png", "notes.txt/skip.png"]
    names = [item.name for item in source.items]
    assert len(set(names)) == 4 and all(name.isascii() and "/" not in name for name in names)
    assert source.image(source.items[1]).shape == (20, 30, 3)
    before = source.content(source.items[1])
    picture(tmp_path / "a.png", (31, 20))
    assert source.content(source.items[1]) != before
    picture(tmp_path / "images" / "c.png")
    assert [item.key for item in PhotoSource(tmp_path).items] == ["images/c.png"]  # the others may be masks


def test_a_photo_from_elsewhere_is_refused(tmp_path):
    picture(tmp_path / "photos" / "a.png")
    picture(tmp_path / "secret.png")
    (tmp_path / "photos" / "b.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match=r"b\.png: a link to .*secret\.png, outside of"):
        PhotoSource(tmp_path / "photos")


def test_a_name_that_is_no_text_is_refused(tmp_path):
    picture(tmp_path / "a.png")
    try:
        (tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(UserError, match="its name is no UTF-8: expected another name"):
        PhotoSource(tmp_path)


def test_annotations_of_coco(tmp_path, capsys):
    picture(tmp_path / "images" / "deep" / "a.png")
    runs = run_lengths.encode(np.eye(20, 30, dtype=bool))
    coco(
        tmp_path / "annotations.json",
        {**SQUARE, "caption": "a grey cat"},
        {"segmentation": runs},
        {**SQUARE, "iscrowd": 1},
        {**SQUARE, "iscrowd": 0, "bbox": [0, 0, 3, 3]},
        {"segmentation": {"size": [20, 30], "counts": [45, 5, 550]}, "category_id": 9},
    )
    source = PhotoSource(tmp_path)
    polygon, diagonal, _, uncompressed = source.annotations(source.items[0])
    assert polygon.category == "cat" and polygon.box == (5, 5, 15, 15) and polygon.phrases == ("a grey cat",)
    assert diagonal.segmentation == runs and diagonal.phrases == ()
    assert uncompressed.box == (2, 5, 3, 10) and uncompressed.category == "object"
    crowds, boxes = capsys.readouterr().out.splitlines()
    assert crowds.endswith("1 of 5 annotations that are crowds (iscrowd) and left out: annotation 2 of a.png")
    assert "1 of 5 annotations whose box has an IoU below" in boxes and boxes.endswith(": annotation 3 of a.png")


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ({"segmentation": [[1, 2]]}, "annotation 0 of a.png"),
        ({"segmentation": []}, "annotation 0 of a.png"),
        ({"segmentation": {"size": [20, 30], "counts": "!!"}}, "annotation 0 of a.png: .*run lengths"),
        ({"segmentation": {"size": [20, 31], "counts": [620]}}, "its size is .20, 31., the photo's"),
        ({}, "annotation 0 of a.png"),
    ],
)
def test_annotations_at_fault_are_named(tmp_path, annotation, expected):
    picture(tmp_path / "a.png")
    coco(tmp_path / "annotations.json", annotation)
    source = PhotoSource(tmp_path)
    with pytest.raises(UserError, match=expected):
        source.annotations(source.items[0])


@pytest.mark.parametrize("number", [1e9, 1e18, 1e300, -1e9, float("inf"), float("nan"), 10**400, "x", None, [1], {}])
def test_no_number_of_a_polygon_ends_the_process(tmp_path, number):
    picture(tmp_path / "a.png")
    for segmentation in ([[5, 5, 15, 5, number, 15]], [[number] * 6], [number], number, {"size": number, "counts": ""}):
        coco(tmp_path / "annotations.json", {"segmentation": segmentation})
        source = PhotoSource(tmp_path)
        with pytest.raises(UserError, match=r"annotations.json: annotation 0 of a.png: ."):
            source.annotations(source.items[0])


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"height": 10**9, "width": 10**9}, "it states 1000000000x1000000000 pixels, the photo has 30x20"),
        ({"height": 30, "width": 20}, "it states 20x30 pixels, the photo has 30x20"),
        ({"height": -20, "width": 30}, "30x-20 pixels"),
        ({"height": "20"}, "the photo has 30x20"),
        ({"height": [20], "width": {}}, "the photo has 30x20"),
        ({"height": float("nan")}, "xnan pixels"),
    ],
)
def test_the_size_that_the_json_states_is_compared_with_the_photo(tmp_path, stated, told):
    picture(tmp_path / "a.png")
    content = json.loads(coco(tmp_path / "annotations.json", SQUARE).read_text())
    content["images"] = [{"id": 1, "file_name": "a.png", **stated}]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=told):
        PhotoSource(tmp_path).annotations(PhotoSource(tmp_path).items[0])
    content["images"] = [{"id": 1, "file_name": "a.png"}]  # the photo's own size counts
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (found,) = PhotoSource(tmp_path).annotations(PhotoSource(tmp_path).items[0])
    assert found.box == (5, 5, 15, 15) and found.segmentation["size"] == [20, 30]


def test_sizes_are_those_of_upright_photos_and_what_is_no_picture_has_no_annotations(tmp_path):
    turned = Image.new("RGB", (20, 30))
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "a.jpg", exif=exif)
    coco(tmp_path / "annotations.json", SQUARE, name="a.jpg")
    (found,) = PhotoSource(tmp_path).annotations(PhotoSource(tmp_path).items[0])
    assert found.segmentation["size"] == [20, 30] == list(PhotoSource(tmp_path).image(Item("a.jpg", "a")).shape[:2])
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    assert PhotoSource(tmp_path).annotations(Item("a.jpg", "a")) == []


@pytest.mark.parametrize(
    "change",
    [
        {"images": [{"id": 1}]},
        {"images": [[1]]},
        {"images": [{"id": [1], "file_name": "a.png"}]},
        {"images": {}},
        {"annotations": [5]},
        {"annotations": [{"image_id": {}}]},
        {"categories": 5},
        {"categories": [5]},
    ],
)
def test_json_of_another_form_is_named(tmp_path, change):
    picture(tmp_path / "a.png")
    file = coco(tmp_path / "annotations.json", SQUARE)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=r"annotations\.json: cannot be read as COCO-style JSON"):
        PhotoSource(tmp_path, "annotations.json").annotations(Item("a.png", "a"))


def test_what_cannot_be_dug(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        PhotoSource(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no photo there"):
        PhotoSource(tmp_path)
    picture(tmp_path / "a.png")
    source = PhotoSource(tmp_path)
    with pytest.raises(UserError, match="no COCO-style JSON there"):
        source.annotations(source.items[0])
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(UserError, match=r"x\.json: cannot be read as COCO-style JSON"):
        PhotoSource(tmp_path, "x.json").annotations(source.items[0])
    picture(tmp_path / "b" / "c.png")
    picture(tmp_path / "d" / "c.png")
    coco(tmp_path / "x.json", SQUARE, name="c.png")
    with pytest.raises(UserError, match="may be b/c.png or d/c.png"):
        PhotoSource(tmp_path, str(tmp_path / "x.json")).annotations(source.items[0])
    with pytest.raises(UserError, match="--dataset sod: expected scenes"):
        open_source(Settings(dataset="sod"))


def test_real_photographs():
    if not (DATA / "real_sis").is_dir():
        pytest.skip(f"no photographs in {DATA}: set MASKGYM_DATA")
    source = PhotoSource(DATA / "real_sis")
    assert len(source.items) == 57
    marked = {item.key: source.annotations(item) for item in source.items}
    assert sum(map(len, marked.values())) == 435
    assert {"dog", "airplane"} <= {one.category for listed in marked.values() for one in listed}
