from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgym.data import run_lengths
from maskgym.data.readers.coco import Coco
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import masks
from maskgym.experiments.annotation.needs.export import export
from maskgym.experiments.annotation.needs.project import Settings
from maskgym.experiments.annotation.needs.sources import PhotoSource, SceneSource, open_source

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


def test_a_name_that_is_no_text_goes_all_the_way(tmp_path, dig):
    photos = tmp_path / "photos"
    picture(photos / "a.png")
    try:
        (photos / "a.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system has no such names")
    name = os.fsdecode(b"caf\xe9.png")
    coco(photos / "annotations.json", SQUARE, name=name)
    project = dig(tmp_path / "p", images=str(photos), segmenter="annotations")
    source = PhotoSource(photos)
    assert project.read("needs", source.items[0].name)["objects"][0]["needs"][0] == "find the cat"
    assert export(project, source, "all")["annotations"] == 1
    assert len(Coco(project.folder / "export", split="all")) == 1


def test_annotations_of_coco(tmp_path):
    picture(tmp_path / "images" / "deep" / "a.png")
    runs = run_lengths.encode(np.eye(20, 30, dtype=bool))
    coco(
        tmp_path / "annotations.json",
        {**SQUARE, "caption": "a grey cat"},
        {"segmentation": runs},
        {**SQUARE, "iscrowd": 1},
        {"segmentation": {"size": [20, 30], "counts": [45, 5, 550]}, "category_id": 9},
    )
    source = PhotoSource(tmp_path)
    polygon, diagonal, uncompressed = source.annotations(source.items[0])
    assert polygon.category == "cat" and polygon.box == (5, 5, 15, 15) and polygon.phrases == ("a grey cat",)
    assert diagonal.segmentation == runs and diagonal.phrases == ()
    assert uncompressed.box == (2, 5, 3, 10) and uncompressed.category == "object"


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
