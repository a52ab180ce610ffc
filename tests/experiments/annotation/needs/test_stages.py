"""Detect, segment, needs: what they record, and that nothing is lost, done or paid twice, however they end."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskgym.data import run_lengths
from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import masks, sources, stages
from maskgym.experiments.annotation.needs.project import Project

DATA = Path(os.environ.get("MASKGYM_DATA") or Path(__file__).parents[5] / "shared" / "data")


def records(folder, stage):
    return [json.loads(file.read_text()) for file in sorted((Path(folder) / stage).glob("*.json"))]


def test_every_field_says_who_made_it(dug):
    source = sources.SceneSource("train", 3)
    for stage, fields in (("detect", ("box", "category")), ("segment", ("segmentation",)), ("needs", ("needs",))):
        listed = records(dug, stage)
        assert [one["key"] for one in listed] == [item.key for item in source.items]
        for one in (one for record in listed for one in record["objects"]):
            assert set(one["provenance"]) == set(fields)
            for by in one["provenance"].values():
                assert by["by"] in ("annotations", "templates") and by["at"].endswith("+00:00")
    found = records(dug, "detect")[0]["objects"]
    assert [one["category"] for one in found] == [one.category for one in source.annotations(source.items[0])]
    codes = [one["segmentation"] for one in records(dug, "segment")[0]["objects"]]
    assert codes == [one.segmentation for one in source.annotations(source.items[0])]
    needs = [one["needs"] for one in records(dug, "needs")[0]["objects"]]
    phrases = [one.phrases for one in source.annotations(source.items[0])]
    assert needs == [[f"find {phrase}" for phrase in three[:3]] for three in phrases]


def test_a_second_run_changes_no_byte(project, dig, contents):
    before = contents(project.folder)
    times = {path: path.stat().st_mtime_ns for path in project.folder.rglob("*.json")}
    dig(project.folder)
    assert contents(project.folder) == before
    assert {path: path.stat().st_mtime_ns for path in project.folder.rglob("*.json")} == times


def test_boxes_prompt_the_segmenter(tmp_path, dig):
    project = dig(tmp_path / "p", "detect", "segment", dataset="scenes", samples=1, device="cpu")
    (found,), (made,) = records(project.folder, "detect"), records(project.folder, "segment")
    source = sources.open_source(project.settings)
    network = stages.make_segmenter("sam_tiny", project.settings)
    expected = masks.Prompted(network)(source.image(source.items[0]), [one["box"] for one in found["objects"]])
    for one, mask in zip(made["objects"], expected, strict=True):
        assert (run_lengths.decode(one["segmentation"]) == mask).all() and mask.any()
        assert one["provenance"]["segmentation"]["version"] == network.fingerprint


@pytest.mark.parametrize("stage", ["detect", "segment"])
def test_killed_in_the_middle_a_stage_goes_on_and_ends_alike(tmp_path, scenes, dig, killed, deadly, stage, contents):
    settings = {**scenes, "segmenter": "sam_tiny", "device": "cpu"}
    if stage == "segment":
        dig(tmp_path / "p", "detect", **settings)
    else:
        Project(tmp_path / "p", settings)
    source = sources.SceneSource("train", 3)
    killed(lambda: dig(tmp_path / "p", stage, source=deadly(source, 2), **settings))
    before = contents(tmp_path / "p" / stage)
    assert len(before) == 1
    dig(tmp_path / "p", "detect", "segment", "needs", **settings)
    after = contents(tmp_path / "p" / stage)
    assert len(after) == 3 and before.items() <= after.items()
    whole = dig(tmp_path / "q", "detect", "segment", **settings)

    def without_times(folder):
        return [json.dumps(one).replace(by, "") for one in records(folder, stage) for by in _times(one)]

    assert without_times(tmp_path / "p") == without_times(whole.folder)


def _times(record):
    return {by["at"] for one in record["objects"] for by in one["provenance"].values()}


def test_a_kill_while_needs_are_written_pays_nothing_twice(project, asking, server, dig, killed, contents):
    pytest.importorskip("openai")
    total = sum(len(record["objects"]) for record in records(project.folder, "detect"))

    def act():
        from maskgym.chat.server import ChatServer

        ask, left = ChatServer.ask, [4]

        def deadly(self, *question):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), 9)
            return ask(self, *question)

        ChatServer.ask = deadly
        dig(project.folder, "needs", **asking)

    killed(act)
    assert len(server.requests) == 3 and len(contents(project.folder / "answers")) == 3
    dig(project.folder, "needs")
    assert len(server.requests) == total == len(contents(project.folder / "answers"))
    before = contents(project.folder)
    dig(project.folder, "needs")
    assert contents(project.folder) == before and len(server.requests) == total


def test_a_server_that_goes_away_ends_it_in_one_line_and_the_next_run_goes_on(project, asking, server, dig, contents):
    pytest.importorskip("openai")
    total = sum(len(record["objects"]) for record in records(project.folder, "detect"))
    server.plan = ["ok", "ok", *["gone"] * 20]
    with pytest.raises(UserError, match="3 objects in a row got no answer .no connection.*: the same command goes on"):
        dig(project.folder, "needs", **asking)
    asked = len(server.requests)
    assert asked <= 2 + 9 + 1 and len(contents(project.folder / "answers")) == 2  # one more may be on its way
    server.plan.clear()
    dig(project.folder, "needs")
    assert len(server.requests) == asked + total - 2
    assert all(len(one["needs"]) == 3 for record in records(project.folder, "needs") for one in record["objects"])


def test_one_object_given_up_does_not_stop_the_others(project, asking, server, dig, contents):
    pytest.importorskip("openai")
    server.plan = ["prose"] * 3 + ["late"] * 3
    dig(project.folder, "needs", **{**asking, "timeout": 0.25})
    entries = [one for record in records(project.folder, "needs") for one in record["objects"]]
    assert [one.get("kind") for one in entries[:3]] == ["unusable", "unreachable", None]
    assert entries[0]["reason"] == "no JSON list" and all(one["needs"] for one in entries[2:])
    asked = len(server.requests)
    dig(project.folder, "needs")  # what no answer came for is asked again, what was of no use is not
    assert len(server.requests) == asked + 1
    before = contents(project.folder)
    dig(project.folder, "needs")
    assert contents(project.folder) == before and len(server.requests) == asked + 1
    dig(project.folder, "needs", retry=True)
    assert len(server.requests) == asked + 2
    assert all(one["needs"] for record in records(project.folder, "needs") for one in record["objects"])


def test_several_requests_at_a_time_give_the_same(project, asking, server, dig):
    pytest.importorskip("openai")
    dig(project.folder, "needs", **asking)
    alone = [one["needs"] for record in records(project.folder, "needs") for one in record["objects"]]
    asked = len(server.requests)
    for file in [*(project.folder / "needs").iterdir(), *(project.folder / "answers").iterdir()]:
        file.unlink()
    dig(project.folder, "needs", **{**asking, "jobs": 4})
    assert [one["needs"] for record in records(project.folder, "needs") for one in record["objects"]] == alone
    assert len(server.requests) == 2 * asked


def test_what_changes_is_done_again_and_nothing_else(project, dig, contents):
    before = contents(project.folder)
    dig(project.folder, needs=2)
    after = contents(project.folder)
    changed = {name for name in after if after[name] != before.get(name)}
    assert {name.split("/")[0] for name in changed} == {"needs", "project.json"}
    dig(project.folder, samples=4)
    grown = contents(project.folder)
    assert {name for name in grown if grown[name] != after.get(name)} == {
        "project.json",
        *(f"{stage}/scene-train-00003.json" for stage in ("detect", "segment", "needs")),
    }


def test_a_stage_asks_for_the_one_before(tmp_path, scenes, dig):
    with pytest.raises(UserError, match="has no record yet: run --stage detect first"):
        dig(tmp_path / "p", "segment", **scenes)
    dig(tmp_path / "p", "detect", **scenes)
    with pytest.raises(UserError, match="run --stage segment first"):
        dig(tmp_path / "p", "needs", **scenes)
    with pytest.raises(UserError, match="takes no boxes"):
        dig(tmp_path / "p", "segment", segmenter="evf_sam_tiny")
    with pytest.raises(UserError, match="'checkpoint': segmenter 'sam_tiny' does not take it"):
        dig(tmp_path / "p", "segment", segmenter="sam_tiny", checkpoint="x")


def test_a_photo_that_cannot_be_read_is_recorded_and_the_others_go_on(tmp_path, dig):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"not a photo")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(photos / "b.png")
    marks = {"images": [{"id": 1, "file_name": "b.png", "width": 9, "height": 9}], "categories": []}
    marks["annotations"] = [{"id": 1, "image_id": 1, "segmentation": [[1, 1, 8, 1, 8, 8]]}]
    (photos / "annotations.json").write_text(json.dumps(marks))
    project = dig(tmp_path / "p", images=str(photos), segmenter="annotations", min_side=1.0)
    broken, good = records(project.folder, "detect")
    assert "cannot be decoded" in broken["fault"] and len(good["objects"]) == 1
    assert [one["needs"] for one in records(project.folder, "needs")[1]["objects"]] == [
        ["find the object", "look for the object", "show me the object"]
    ]
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(photos / "a.jpg")
    dig(project.folder)
    assert "fault" not in records(project.folder, "detect")[0]


def test_real_photographs(tmp_path, dig, contents):
    if not (DATA / "real_sis").is_dir():
        pytest.skip(f"no photographs in {DATA}: set MASKGYM_DATA")
    source = sources.PhotoSource(DATA / "real_sis")
    source.items = source.items[:3]
    project = dig(tmp_path / "p", source=source, images=str(DATA / "real_sis"), device="cpu")
    found = [one for record in records(project.folder, "detect") for one in record["objects"]]
    made = [one for record in records(project.folder, "segment") for one in record["objects"]]
    needs = [one for record in records(project.folder, "needs") for one in record["objects"]]
    marked = [one.box for item in source.items for one in source.annotations(item)]
    large = [box for box in marked if min(box[2] - box[0], box[3] - box[1]) >= project.settings.min_side]
    assert len(found) == len(made) == len(needs) == len(large) < len(marked)
    assert needs[0]["needs"][0] == f"find the {found[0]['category']}"
    before = contents(project.folder)
    dig(project.folder, source=source)
    assert contents(project.folder) == before
