from __future__ import annotations

import pytest

from maskgym.data import Dataset, make, split_of
from maskgym.data.layout.images import DataFault
from maskgym.data.readers.groups import Groups
from maskgym.errors import UserError

LAYOUTS = [  # photos, masks, name of the group
    ("image/alarm clock", "binary/alarm clock", "alarm clock"),  # CoCA
    ("Image/aeroplane", "GroundTruth/aeroplane", "aeroplane"),  # CoSal2015, CoSOD3k, iCoseg
    ("img/cat", "gt/cat", "cat"),  # COCO9213
    ("imgs/cat", "gts/cat", "cat"),
    ("images/CoCA/cat", "gts/CoCA/cat", "CoCA/cat"),  # GCoNet+
    ("CoSOD/images/train", "CoSOD/masks/train", "train"),  # a group of trains is not the training split
]


@pytest.fixture
def groups(tmp_path, photo, mask):
    """Write groups of so many photos, 0.jpg, 1.jpg, …, and return the root."""

    def write(**sizes):
        for name, size in sizes.items():
            for number in range(size):
                photo(tmp_path / "images" / name / f"{number}.jpg", size=(8, 10 + number))
                mask(tmp_path / "masks" / name / f"{number}.png", size=(8, 10 + number))
        return tmp_path

    return write


@pytest.mark.parametrize(("images", "masks", "name"), LAYOUTS)
def test_layout_is_found(tmp_path, photo, mask, images, masks, name):
    for stem in ("1", "2"):
        photo(tmp_path / images / f"{stem}.jpg")
        mask(tmp_path / masks / f"{stem}.png")
    (sample,) = Groups(tmp_path, split="all", splits="hash")
    assert (sample.key, sample.category, len(sample.images)) == (f"{name}/0", name.split("/")[-1], 2)


def test_sample_is_a_whole_group(groups):
    data = make("groups", root=groups(cat=3, dog=1), split="all")
    assert isinstance(data, Dataset) and data.task == "cosod" and len(data) == 2
    sample = data[0]
    assert (sample.key, sample.category) == ("cat/0", "cat")
    assert [image.shape for image in sample.images] == [(8, 10, 3), (8, 11, 3), (8, 12, 3)]
    assert [mask.shape for mask in sample.masks] == [(1, 8, 10), (1, 8, 11), (1, 8, 12)]
    assert [mask.sum() for mask in sample.masks] == [20, 20, 24]


def test_group_size_cuts_groups_in_order(groups):
    data = Groups(groups(cat=5, dog=2), split="all", group_size=2)
    assert data.keys == ("cat/0", "cat/1", "cat/2", "dog/0")
    assert [[image.shape[1] for image in sample.images] for sample in data] == [[10, 11], [12, 13], [14], [10, 11]]
    assert [pair.key for pair in data.pairs(1)] == ["cat/2", "cat/3"]
    with pytest.raises(UserError, match=r"data\.group_size=0: expected"):
        Groups(groups(cat=1), group_size=0)


def test_the_same_stem_in_two_groups_is_two_photos(groups):
    assert Groups(groups(cat=1, dog=1), split="all").keys == ("cat/0", "dog/0")


def test_photo_without_the_object_has_no_mask_row(groups, mask):
    root = groups(cat=3)
    mask(root / "masks" / "cat" / "1.png", size=(8, 11), level=0)
    sample = Groups(root, split="all")[0]
    assert [masks.shape for masks in sample.masks] == [(1, 8, 10), (0, 8, 11), (1, 8, 12)]


def test_group_of_empty_masks_is_a_fault(groups, mask):
    root = groups(cat=2)
    for number in range(2):
        mask(root / "masks" / "cat" / f"{number}.png", size=(8, 10 + number), level=1)
    with pytest.raises(DataFault, match=r"cat: only empty masks in cat/0: no level above 128, the highest is 1$"):
        Groups(root, split="all")[0]


def test_faults_of_a_group_come_together(groups, mask, truncate):
    root = groups(cat=3)
    truncate(root / "images" / "cat" / "0.jpg")
    mask(root / "masks" / "cat" / "2.png", size=(8, 9))
    with pytest.raises(DataFault) as error:
        Groups(root, split="all")[0]
    assert [fault.split(":")[0] for fault in error.value.faults] == [
        str(root / "images" / "cat" / name) for name in ("0.jpg", "2.jpg")
    ]


def test_missing_partner(groups, photo):
    root = groups(cat=1)
    photo(root / "images" / "cat" / "9.jpg")
    with pytest.raises(DataFault, match=r"cat/9\.jpg: no mask of this name"):
        Groups(root, split="all")
    assert len(Groups(root, split="all", strict=False)[0].images) == 1


def test_photos_outside_any_group(groups, photo, mask):
    root = groups(cat=1)
    photo(root / "images" / "loose.jpg")
    mask(root / "masks" / "loose.png")
    with pytest.raises(DataFault, match=r"loose\.jpg: in no group: expected one folder per group \(1 such photos\)"):
        Groups(root, split="all")


def test_a_group_is_in_one_split(groups):
    names = [f"g{number}" for number in range(30)]
    root = groups(**dict.fromkeys(names, 3))
    for split in ("train", "validation", "test"):
        data = Groups(root, split=split, group_size=2)
        expected = sorted(name for name in names if split_of(name) == split)
        assert data.keys == tuple(f"{name}/{chunk}" for name in expected for chunk in (0, 1))
        assert set(data.splits) == {split}


def test_split_folders_and_lists(groups, tmp_path):
    root = groups(**{"train/cat": 2, "test/cat": 1, "test/dog": 1})
    assert Groups(root).keys == ("train/cat/0",)
    assert Groups(root, split="test").keys == ("test/cat/0", "test/dog/0")


def test_list_of_groups(groups):
    root = groups(cat=1, dog=1, cow=1)
    (root / "train.txt").write_text("cat\ncow\n")
    (root / "val.txt").write_text("dog\n")
    assert Groups(root).keys == ("cat/0", "cow/0")
    assert Groups(root, split="validation").keys == ("dog/0",)


def test_exclude_and_named_folders(groups):
    root = groups(cat=3)
    assert len(Groups(root, split="all", exclude=["cat/1"])[0].images) == 2
    (root / "images").rename(root / "pictures")
    with pytest.raises(DataFault, match="no pair"):
        Groups(root, split="all")
    assert len(Groups(root, split="all", images="pictures", masks="masks")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"root": "absent"}, r"data\.root=absent: no such folder"),
        ({"task": "sod"}, r"task=sod: data=groups reads cosod"),
        ({"split": "dev"}, r"data\.split=dev"),
    ],
)
def test_arguments_that_make_no_sense(groups, arguments, message):
    with pytest.raises(UserError, match=message):
        Groups(**{"root": groups(cat=1), **arguments})


def test_real_photographs(real_data):
    data = Groups(real_data / "real_cosod", split="all")
    assert len(data) == 13
    assert sum(len(sample.images) for sample in data) == 72
    assert all(masks.shape[0] == 1 for sample in data for masks in sample.masks)
    assert data[0].category == "coco_airplane"
    assert len(Groups(real_data / "real_cosod", split="all", group_size=4)) == 20  # 6 groups of 4, 3 of 5 or 6, 4 of 8
