"""Miniature data sets: the official layouts, read whole and clean, with other photos in each set and split."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from maskgym import data
from maskgym.data import WithRationales
from maskgym.data.check import check
from maskgym.data.parts import digest
from maskgym.data.published import PUBLISHED
from maskgym.errors import UserError
from maskgym.experiments.reproduce.miniature_layouts import LAYOUTS
from maskgym.experiments.reproduce.miniature_sets import BLOCK, RATIONALES, WRITERS, Sizes, write_sets
from maskgym.rewards import parse

EXPECTED = ("authors", "fewer than 30", "no sample is in split", "without a salient object")  # notes on any miniature
FURTHER = ("a hash of the names deals", "has a need in words")
PROTOCOL = {
    "sod": "duts",
    "sis": ["ilso", "sis10k", "soc"],
    "cosod": "cocoseg",
    "held_out": {"sod": ["dut_omron", "ecssd", "pascal_s"], "cosod": ["cosod3k", "coca", "cosal2015"]},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    assert [path.name for path in write_sets(folder)] == [PUBLISHED[name].folder[0] for name in WRITERS]
    return folder


@pytest.mark.parametrize("name", WRITERS)
def test_each_official_layout_is_clean(root, name):
    report = check(name, root / PUBLISHED[name].folder[0])
    assert report.ok and all(any(words in note for words in EXPECTED) for note in report.notes)
    splits = WRITERS[name][0]
    sizes = {"train": 8, "validation": 2, "test": 3}
    expected = {split: sizes[split] if split in splits else 0 for split in sizes}
    if name == "ilso":  # only test photos are listed, and a hash draws validation from the others
        expected = {"train": 10, "validation": 0, "test": 3}
    assert {split: row["samples"] for split, row in report.counts.items()} == expected
    images = 8 if PUBLISHED[name].task == "cosod" else 1
    assert all(row["images"] == images * row["samples"] for row in report.counts.values())


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in WRITERS])
def test_each_further_layout_is_clean(tmp_path, name):
    (folder,) = write_sets(tmp_path, [name], Sizes(train=4, validation=4, test=2, side=64), writers=LAYOUTS)
    report = check(name, folder)
    assert report.ok and all(any(words in note for words in (*EXPECTED, *FURTHER)) for note in report.notes)
    written = {split: getattr(Sizes(4, 4, 2), split) for split in LAYOUTS[name][0]}
    found = {split: row["samples"] for split, row in report.counts.items() if row["samples"]}
    assert found == ({"train": 8, "test": 2} if name == "cuhk_blur" else written)
    sample = data.make(name, root=folder, split="test")[0]
    assert all(masks.any(axis=(1, 2)).all() for masks in sample.masks)
    assert (sample.need is not None) == (PUBLISHED[name].task == "need") and (sample.void is not None) == (
        name == "voc2012"
    )


def test_refcoco_and_refcoco_plus_share_a_folder_of_photos_and_have_both_parts_of_the_test_split(tmp_path):
    names = ["refcoco", "refcoco_plus"]
    folders = write_sets(tmp_path, names, Sizes(train=1, validation=1, test=3, side=32), writers=LAYOUTS)
    assert [folder.name for folder in folders] == ["refcoco", "refcoco+"]
    for name, folder in zip(names, folders, strict=True):
        parts = [data.make(name, root=folder, split="test", partition=part) for part in ("testA", "testB")]
        assert [len(part) for part in parts] == [2, 1]
    assert len(list((tmp_path / "images/mscoco/images/train2014").iterdir())) == 2 * 5


def test_no_two_sets_or_splits_share_a_photo(root):
    seen = Counter()
    for name in WRITERS:
        dataset = data.make(name, root=root / PUBLISHED[name].folder[0], split="all")
        seen.update(digest(photo) for index in range(len(dataset)) for photo in dataset.photos(index))
    assert set(seen.values()) == {1} and sum(seen.values()) == 11 + 3 * 3 + 3 * 13 + 8 * 8 + 3 * 3 * 8


@pytest.mark.parametrize("task", ["sod", "sis", "cosod"])
def test_the_sets_of_the_paper_are_read_together_with_a_rationale_of_each_training_sample(root, task):
    sizes = {"group_size": 8} if task == "cosod" else {}
    train, test = (
        data.make("tasks", task=task, split=split, root=root, **PROTOCOL, **sizes) for split in ("train", "test")
    )
    imitated = WithRationales(train, root / RATIONALES)
    assert len(imitated) == {"sod": 8, "sis": 24, "cosod": 8}[task] and len(test) == 9
    assert set(test.sets) == set(PROTOCOL["held_out"].get(task) or PROTOCOL[task])
    for index in range(len(imitated)):
        answer = parse(imitated[index].rationale, task)
        assert answer.structured and answer.tagged
        assert ("<rg>[semantic]" in imitated[index].rationale) or task != "cosod"


def test_a_set_that_is_missing_is_named(root, tmp_path):
    for folder in root.iterdir():
        if folder.name != "SOC":
            (tmp_path / folder.name).symlink_to(folder)
    with pytest.raises(
        UserError, match=r"not in data.root=.*: data.sis=soc \(folder SOC\): expected the folders there"
    ):
        data.make("tasks", task="sod", root=tmp_path, **PROTOCOL)


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_seed_gives_the_same_files_and_another_seed_other_photos(tmp_path):
    small = Sizes(train=1, validation=1, test=1, group=2, side=32)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_sets(tmp_path / name, sizes=small, seed=seed)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again and first.keys() - other.keys() <= {name for name in first if "CoC" in name or "CoS" in name}
    assert not {first[name] for name in first if name.endswith(".jpg")} & set(other.values())


def test_sizes_matter_and_wrong_ones_are_refused(tmp_path):
    write_sets(tmp_path, ["duts", "coca"], Sizes(train=3, test=2, group=4, side=48))
    train = data.make("duts", root=tmp_path / "DUTS", split="train")
    assert len(train) == 3 and train[0].images[0].shape == (48, 48, 3)
    assert len(data.make("coca", root=tmp_path / "CoCA", split="test")[0].images) == 4
    with pytest.raises(UserError, match="miniature of 'msd': expected one of duts"):
        write_sets(tmp_path, ["msd"])
    with pytest.raises(UserError, match=f"ecssd: test={BLOCK + 1} is too large: expected at most {BLOCK}"):
        write_sets(tmp_path, ["ecssd"], Sizes(test=BLOCK + 1, side=32))


def test_outlines_of_sis10k_are_near_the_masks(root):
    dataset = data.make("sis10k", root=root / "SIS10K", split="train")
    for index in range(len(dataset)):
        (masks,) = dataset[index].masks
        assert masks.any(axis=(1, 2)).all() and np.mean(masks) > 0.01
