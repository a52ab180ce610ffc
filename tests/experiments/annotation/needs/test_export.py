from __future__ import annotations

import errno
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from maskgym import data
from maskgym.data import run_lengths
from maskgym.data.check import check
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import review, sources
from maskgym.experiments.annotation.needs.export import export


@pytest.fixture
def decided(project, source):
    """Return the project's objects: the first accepted with a new text and mask, the second rejected, the last kept."""
    listed = review.candidates(project, source)
    decisions = review.Decisions(project, writing=True)
    mask = np.zeros((128, 128), bool)
    mask[10:20, 30:60] = True
    decisions.decide(listed[0].id, "ann", "accepted", ["find this one"], {"segmentation": run_lengths.encode(mask)})
    decisions.decide(listed[1].id, "ann", "rejected", listed[1].needs)
    decisions.decide(listed[-1].id, "ann", "accepted", listed[-1].needs)
    return listed


def test_the_reader_of_coco_reads_it(project, source, decided):
    totals = export(project, source)
    assert totals == {"images": 2, "annotations": 2, "needs": 4, "without_mask": 0}
    read = data.make("coco", root=project.folder / "export", split="all", splits="hash")
    first, last = read[0], read[1]
    assert (first.images[0] == source.image(decided[0].item)).all()
    assert first.masks[0].shape == (1, 128, 128) and first.masks[0][0].sum() == 300
    assert (last.masks[0][0] == run_lengths.decode(decided[-1].segmentation)).all()
    assert check(None, project.folder / "export").ok
    content = json.loads((project.folder / "export" / "annotations.json").read_text())
    assert [one["needs"] for one in content["annotations"]] == [["find this one"], list(decided[-1].needs)]
    assert content["annotations"][0]["bbox"] == [30, 10, 30, 10] and content["annotations"][0]["area"] == 300
    by = content["annotations"][0]["provenance"]
    assert by["needs"]["by"] == by["segmentation"]["by"] == "ann" and by["category"]["by"] == "annotations"
    names = {one["id"]: one["name"] for one in content["categories"]}
    categories = [names[one["category_id"]] for one in content["annotations"]]
    assert categories == [decided[0].found["category"], decided[-1].found["category"]]


def test_all_is_what_nobody_rejected(project, source, decided):
    assert export(project, source, "all")["annotations"] == len(decided) - 1


def test_a_second_export_changes_no_byte_and_takes_away_what_went(project, source, decided, contents):
    export(project, source, "all")
    before = contents(project.folder)
    export(project, source, "all")
    assert contents(project.folder) == before
    export(project, source)
    assert len(list((project.folder / "export" / "images").iterdir())) == 2


@pytest.mark.parametrize("way", ["copy", "link"])
def test_photos_keep_their_folders_and_are_copied_or_linked(tmp_path, dig, way):
    photos = tmp_path / "photos"
    for name in ("train/a.jpg", "train/a.png", "test/b.png"):
        (photos / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), len(name), np.uint8)).save(photos / "images" / name)
    images = [
        {"id": n, "file_name": name, "width": 30, "height": 20}
        for n, name in enumerate(("train/a.jpg", "train/a.png", "test/b.png"))
    ]
    marked = [{"id": n, "image_id": n, "segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]]} for n in range(3)]
    (photos / "marks.json").write_text(json.dumps({"images": images, "annotations": marked, "categories": []}))
    settings = {"images": str(photos), "annotations": "marks.json", "segmenter": "annotations"}
    project = dig(tmp_path / "p", **settings)
    source = sources.open_source(project.settings)
    for _ in range(2):
        assert export(project, source, "all", way)["images"] == 3
        files = sorted(path for path in (project.folder / "export" / "images").rglob("*") if path.is_file())
        assert len(files) == 3 and [path.stat().st_nlink for path in files] == [1 + (way == "link")] * 3
    assert {len(data.make("coco", root=project.folder / "export", split=split)) for split in ("train", "test")} == {
        2,
        1,
    }
    other = "link" if way == "copy" else "copy"
    export(project, source, "all", other)
    assert [path.stat().st_nlink for path in files] == [1 + (other == "link")] * 3
    assert (photos / "images" / "train" / "a.png").exists()


def test_a_damaged_export_removes_nothing_outside_of_it(project, source, tmp_path):
    (tmp_path / "mine.png").write_bytes(b"mine")
    file = project.folder / "export" / "annotations.json"
    export(project, source, "all")
    whole = file.read_text()
    for name in ("../../../mine.png", str(tmp_path / "mine.png"), "a/../../../../mine.png"):
        file.write_text(json.dumps({"images": [{"file_name": name}]}))
        with pytest.raises(UserError, match=r"names a photo outside of .*: remove it"):
            export(project, source, "all")
    for content in ("5", "[]", "{}", '{"images": [5]}', '{"images": [{"file_name": 5}]}', '{"images": 5}'):
        file.write_text(content)
        with pytest.raises(UserError, match="is no export of a project: remove it"):
            export(project, source, "all")
    file.unlink()
    export(project, source, "all")
    assert file.read_text() == whole and (tmp_path / "mine.png").read_bytes() == b"mine"


def test_a_link_that_cannot_be_made_is_told(tmp_path, dig, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(photos / "a.png")
    images = [{"id": 1, "file_name": "a.png"}]
    marked = [{"id": 1, "image_id": 1, "segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]]}]
    (photos / "marks.json").write_text(json.dumps({"images": images, "annotations": marked}))
    project = dig(tmp_path / "p", images=str(photos), annotations="marks.json", segmenter="annotations")

    def on_another_disk(file, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", on_another_disk)
    with pytest.raises(UserError, match=r"a\.png: no link to .*: without --link the photo is copied"):
        export(project, sources.open_source(project.settings), "all", "link")


def test_what_has_no_mask_is_left_out_and_counted(project, source, decided):
    file = project.file("segment", decided[2].item.name)
    record = json.loads(file.read_text())
    next(one for one in record["objects"] if one["id"] == decided[2].id)["segmentation"] = None
    file.write_text(json.dumps(record))
    totals = export(project, source, "all")
    assert totals["without_mask"] == 1 and totals["annotations"] == len(decided) - 2


def test_killed_in_the_middle_it_goes_on_and_ends_alike(project, source, decided, killed, deadly, contents):
    killed(lambda: export(project, deadly(source, 2), "all"))
    assert len(contents(project.folder / "export")) == 1
    export(project, source, "all")
    found = contents(project.folder / "export")
    shutil.rmtree(project.folder / "export")
    export(project, source, "all")
    assert contents(project.folder / "export") == found and len(found) == 4


def test_nothing_to_export_is_told(project, source):
    with pytest.raises(UserError, match="nothing to export: no object with a mask is accepted"):
        export(project, source)
    with pytest.raises(UserError, match="expected accepted or all, and copy or link"):
        export(project, source, "some")
