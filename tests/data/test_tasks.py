"""Data sets by task: several sets as one, found in one root by their usual names."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from maskgym import data
from maskgym.data.check import check_tasks
from maskgym.data.concatenated import Concatenated
from maskgym.data.scenes import Scenes
from maskgym.errors import EmptySplit, UserError


@pytest.fixture
def sets(tmp_path, photo, mask):
    """A root with miniatures of DUTS, ECSSD, ILSO, SIS10K and CoCoSeg in their official layouts."""
    for part, count in (("DUTS-TR", 3), ("DUTS-TE", 2)):
        for number in range(count):
            photo(
                tmp_path / f"DUTS/{part}/{part}-Image/{part}{number}.png", value=10 * number + 40 * (part > "DUTS-TR")
            )
            mask(tmp_path / f"DUTS/{part}/{part}-Mask/{part}{number}.png")
    photo(tmp_path / "ECSSD/images/0001.png", value=200)
    mask(tmp_path / "ECSSD/ground_truth_mask/0001.png")
    for split, number in (("train", 1), ("val", 2), ("test", 3)):
        photo(tmp_path / f"ilso/{split}/image/ECSSD_{number}.png", value=210 + number)
        mask(tmp_path / f"ilso/{split}/gt/ECSSD_{number}.png", level=1)
        photo(tmp_path / f"SIS10K/{split}/images/{number}.png", value=220 + number)
        photos = [{"id": 1, "file_name": f"{number}.png", "height": 12, "width": 16}]
        polygon = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}]
        content = {"images": photos, "annotations": polygon, "categories": [{"id": 1, "name": "salient"}]}
        (tmp_path / f"SIS10K/{split}/SIS10K_{split}.json").write_text(json.dumps(content))
    for group in ("cat", "dog"):
        for number in range(5):
            photo(tmp_path / f"COCO-SEG/img/{group}/{number}.png", value=100 + 10 * (group == "dog") + number)
            mask(tmp_path / f"COCO-SEG/gt/{group}/{number}.png")
    return tmp_path


def test_several_sets_are_read_as_one_under_their_names(sets):
    found = data.make("tasks", task="sis", split="train", sis=["ilso", "sis10k"], root=sets)
    assert found.task == "sis" and found.split == "train" and found.shown == "sis"
    assert [key.partition("/")[0] for key in found.keys] == list(found.sets) == ["ilso", "sis10k"]
    assert [found[index].key for index in range(2)] == list(found.keys)
    assert found[1].masks[0].sum() > 0 and found[0].images[0][0, 0, 0] == 211
    with pytest.raises(IndexError):
        found[2]
    other = data.make("tasks", task="sis", split="train", sis=["sis10k", "ilso"], root=sets)
    assert list(other.sets) == ["sis10k", "ilso"] and other[0].key == found[1].key


def test_the_order_of_a_split_is_the_sets_own(sets):
    found = data.make("tasks", task="sod", sod="duts", root=sets)
    own = data.make("duts", root=sets / "DUTS", split="train")
    assert found.keys == tuple(f"duts/{key}" for key in own.keys) and len(found) == 3
    assert found.mask_files == tuple((f"duts/{key}", file) for key, file in own.mask_files)
    for index in range(3):
        np.testing.assert_array_equal(found.photos(index)[0], own[index].images[0])


def test_groups_have_the_size_that_is_asked_for_and_name_their_files(sets):
    found = data.make("tasks", task="cosod", cosod="cocoseg", root=sets, group_size=3)
    assert found.keys == ("cocoseg/cat/0", "cocoseg/cat/1", "cocoseg/dog/0", "cocoseg/dog/1")
    assert [len(found[index].images) for index in range(4)] == [3, 2, 3, 2]
    assert [pair.key for pair in found.pairs(1)] == ["cocoseg/cat/3", "cocoseg/cat/4"]
    assert [photo[0, 0, 0] for photo in found.photos(1)] == [103, 104]


def test_held_out_samples_are_those_of_other_sets_where_they_are_named(sets):
    given = {"sod": "duts", "root": sets}
    assert data.make("tasks", task="sod", split="test", **given).sets == ("duts", "duts")
    found = data.make("tasks", task="sod", split="test", held_out={"sod": "ecssd"}, **given)
    assert found.keys == ("ecssd/0001",) and found.split == "test"
    assert len(data.make("tasks", task="sod", split="train", held_out={"sod": "ecssd"}, **given)) == 3


def test_a_set_without_samples_in_a_held_out_split_is_left_out_and_one_to_train_on_is_refused(sets):
    found = data.make("tasks", task="sod", split="test", sod=["duts", "ecssd"], root=sets)
    assert set(found.sets) == {"duts", "ecssd"}
    assert set(data.make("tasks", task="sis", split="test", sis=["ilso", "sis10k"], root=sets).sets) == {
        "ilso",
        "sis10k",
    }
    with pytest.raises(EmptySplit, match=r"data\.sod=ecssd: data\.split=train: .*ECSSD has no sample there"):
        data.make("tasks", task="sod", split="train", sod=["duts", "ecssd"], root=sets)
    with pytest.raises(EmptySplit, match=r"data\.cosod=cocoseg: data\.split=test"):
        data.make("tasks", task="cosod", split="test", cosod="cocoseg", root=sets)


def test_folders_of_the_root_have_the_reader_that_they_look_like(sets, photo, mask):
    photo(sets / "mine/images/a.png")
    mask(sets / "mine/masks/a.png")
    found = data.make("tasks", task="sod", split="train", sod="mine", root=sets, readers={"mine": {"splits": "train"}})
    assert found.keys == ("mine/a",)
    again = data.make(
        "tasks", task="sod", sod="mine", roots={"mine": sets / "mine"}, readers={"mine": {"splits": "train"}}
    )
    assert again.keys == found.keys


def test_a_set_without_files_has_no_folder():
    found = data.make("tasks", task="sis", split="train", sis="scenes", readers={"scenes": {"size": 3}})
    assert found.keys == tuple(f"scenes/{key}" for key in Scenes("sis", size=3).keys)
    assert found.with_rationale == (0, 1, 2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, r"data\.sod is not set: expected a set"),
        ({"sod": ["duts", "duts"]}, r"data\.sod: duts is named twice"),
        (
            {"sod": "hku_is"},
            r"not in data\.root=.*: data\.sod=hku_is \(folder HKU-IS or HKUIS\): expected the folders there",
        ),
        (
            {"sod": "duts", "sis": ["soc", "ilso"], "held_out": {"cosod": "coca"}},
            r"not in data\.root=.*: data\.sis=soc \(folder SOC\), data\.held_out\.cosod=coca \(folder CoCA\)",
        ),
        ({"sod": "duts", "roots": {"ilso": "x"}}, "a root or arguments of 'ilso', which is no set of a task"),
        ({"sod": "duts", "held_out": {"sdo": "x"}}, r"data\.held_out\.sdo: expected sod, sis, cosod"),
        ({"sod": "cocoseg"}, r"data\.sod=cocoseg: task=sod: data=groups reads cosod"),
        ({"sod": "duts", "readers": {"duts": {"sise": 3}}}, r"data\.sod=duts: unknown key 'sise'"),
        ({"task": "cosod", "cosod": "duts"}, r"data\.cosod=duts: holds single photos, not groups of them"),
        ({"task": "sis", "sis": "duts"}, r"data\.sis=duts: task=sis: data=folder reads sod"),
        ({"task": "blur", "sod": "duts"}, "task=blur: data=tasks reads sod, sis, cosod"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(sets, given, words):
    with pytest.raises(UserError, match=words) as caught:
        data.make("tasks", **{"root": sets, "split": "train", **given})
    assert "\n" not in str(caught.value)


def test_a_fault_of_a_file_names_the_set(sets, truncate):
    truncate(sets / "DUTS/DUTS-TR/DUTS-TR-Image/DUTS-TR1.png")
    (sets / "DUTS/DUTS-TR/DUTS-TR-Mask/DUTS-TR0.png").unlink()
    with pytest.raises(UserError, match=r"data\.sod=duts: .*DUTS-TR0"):
        data.make("tasks", task="sod", sod="duts", root=sets)


def test_notes_of_a_set_bear_its_name(sets):
    Image.fromarray(np.full((12, 16), 200, np.uint8)).save(sets / "DUTS/DUTS-TR/DUTS-TR-Mask/DUTS-TR0.png")
    notes = data.make("tasks", task="sod", sod="duts", root=sets).describe()
    assert notes and all(note.startswith("duts: ") for note in notes)


def test_concatenated_sets_of_rationales_keep_their_indices():
    one, two = Scenes("sod", size=2), Scenes("sod", size=3)
    found = Concatenated({"a": one, "b": two})
    assert found.with_rationale == (0, 1, 2, 3, 4) and len(found) == 5
    assert found[3].key == f"b/{two[1].key}" and found[3].rationale == two[1].rationale


def test_a_check_is_of_every_set_under_its_name_and_names_the_missing_ones(sets):
    found = check_tasks(sets, sod="duts", sis=["ilso", "sis10k"], cosod="cocoseg", held_out={"sod": "ecssd"})
    assert [report.data for report in found] == ["duts", "ilso", "sis10k", "cocoseg", "ecssd"]
    assert [report.task for report in found] == ["sod", "sis", "sis", "cosod", "sod"]
    assert all(report.ok for report in found), [report.faults for report in found]
    (sets / "DUTS/DUTS-TR/DUTS-TR-Mask/DUTS-TR0.png").unlink()
    assert [report.ok for report in check_tasks(sets, sod="duts", sis="ilso")] == [False, True]
    with pytest.raises(UserError, match=r"data\.sis=soc \(folder SOC\), data\.cosod=coca \(folder CoCA\)"):
        check_tasks(sets, sod="duts", sis="soc", cosod="coca")
    with pytest.raises(UserError, match="no task has a set with a folder"):
        check_tasks(sets)
