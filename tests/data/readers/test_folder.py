from __future__ import annotations

import numpy as np
import pytest

from maskgym.data import Dataset, make, split_of
from maskgym.data.layout.images import DataFault
from maskgym.data.readers.folder import Folder
from maskgym.errors import UserError

LAYOUTS = [  # public sets and common re-packagings: (photo, mask, key)
    ("images/a.jpg", "masks/a.png", "a"),
    ("DUTS-TR-Image/n01_1.jpg", "DUTS-TR-Mask/n01_1.png", "n01_1"),
    ("images/0001.jpg", "ground_truth_mask/0001.png", "0001"),
    ("imgs/0004.png", "gt/0004.png", "0004"),
    ("Image/a.JPG", "GroundTruth/a.PNG", "a"),
    ("Img/a.jpeg", "GT/a.bmp", "a"),
    ("datasets/imgs/pascal/1.jpg", "datasets/masks/pascal/1.png", "pascal/1"),
    ("DUT-OMRON-image/DUT-OMRON-image/sun_a.jpg", "pixelwiseGT-new-PNG/sun_a.png", "sun_a"),
    ("Imgs/1.jpg", "Imgs/1.png", "1"),
    ("1.jpg", "1.png", "1"),
    ("MSD/image/1_512x640.jpg", "MSD/mask/1_512x640.png", "1_512x640"),
    ("DUTS/DUTS-TE/DUTS-TE-Image/a.jpg", "DUTS/DUTS-TE/DUTS-TE-Mask/a.png", "DUTS-TE/a"),
]


@pytest.fixture
def pairs(tmp_path, photo, mask):
    """Write pairs by name into images/ and masks/ of a folder, and return it."""

    def write(*names, root=tmp_path):
        for name in names:
            photo(root / "images" / f"{name}.jpg")
            mask(root / "masks" / f"{name}.png")
        return root

    return write


@pytest.mark.parametrize(("image", "truth", "key"), LAYOUTS)
def test_layout_is_found(tmp_path, photo, mask, image, truth, key):
    photo(tmp_path / image)
    mask(tmp_path / truth)
    folder = Folder(tmp_path, split="all")
    assert folder.keys == (key,)
    assert folder[0].masks[0].sum() == 6 * 8


@pytest.mark.parametrize(
    ("task", "category"), [("sod", "salient object"), ("shadow", "shadow"), ("semantic", "old car")]
)
def test_what_the_masks_show(pairs, task, category):
    folder = Folder(pairs("old_car/a"), task=task, split="all")
    assert (folder.task, folder.shown, folder[0].category) == ("sod", task, category)


def test_a_class_needs_a_folder(pairs):
    with pytest.raises(DataFault, match=r"a.jpg: task=semantic: expected a folder named after its class"):
        Folder(pairs("a"), task="semantic", split="all")[0]
    with pytest.raises(
        UserError, match="task=sis: data=folder reads sod, blur, shadow, glass, camouflage, semantic, need, refer"
    ):
        Folder(pairs("a"), task="sis")


def test_sample_holds_the_pixels(pairs):
    folder = make("folder", root=str(pairs("a")), split="all")
    sample = folder[0]
    assert isinstance(folder, Dataset) and (folder.task, folder.split) == ("sod", "all")
    assert sample.key == "a" and sample.void is None and sample.phrases is None
    (image,), (masks,) = sample.images, sample.masks
    assert image.dtype == np.uint8 and image.shape == (12, 16, 3) and abs(int(image[0, 0, 0]) - 90) <= 2
    assert masks.dtype == bool and masks.shape == (1, 12, 16)
    assert masks[0, :6, :8].all() and masks.sum() == 48


def test_pairs_by_stem_not_by_position(tmp_path, photo, mask):
    for number, stem in enumerate(["10", "9", "a.b"]):
        photo(tmp_path / "images" / f"{stem}.png", value=50 * number)
        mask(tmp_path / "masks" / f"{stem}.png", size=(12, 16), level=200 + number)
    folder = Folder(tmp_path, split="all")
    assert folder.keys == ("10", "9", "a.b")
    assert [int(folder[k].images[0][0, 0, 0]) for k in range(3)] == [0, 50, 100]


def test_iteration_ends(pairs):
    assert [sample.key for sample in Folder(pairs("a", "b"), split="all")] == ["a", "b"]


def test_junk_is_passed_over(pairs, photo, mask):
    root = pairs("a", "wing_edge")
    for name in (
        "images/._a.jpg",
        "images/Thumbs.db",
        "__MACOSX/images/x.jpg",
        "masks/.DS_Store",
        "readme.txt",
        "images/.cache/a.jpg",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"junk")
    mask(root / "masks" / "a_edge.png")  # a training script's
    assert Folder(root, split="all").keys == ("a", "wing_edge")


def test_plain_name_wins_and_two_plain_names_are_refused(pairs, mask):
    root = pairs("a")
    mask(root / "Instance gt" / "a.png")
    assert Folder(root, split="all").keys == ("a",)
    mask(root / "GT" / "a.png", level=200)
    with pytest.raises(UserError, match=r"several folders for masks \(GT, masks\): choose"):
        Folder(root, split="all")
    assert len(Folder(root, split="all", images="images", masks="GT")) == 1


def test_images_and_masks_name_other_folders(tmp_path, photo, mask):
    photo(tmp_path / "foo" / "a.jpg")
    mask(tmp_path / "bar" / "a.png")
    assert Folder(tmp_path, split="all", images="foo", masks="bar").keys == ("a",)
    with pytest.raises(UserError, match=r"data\.masks=baz: no such folder"):
        Folder(tmp_path, split="all", images="foo", masks="baz")
    with pytest.raises(UserError, match=r"data\.images=foo, data\.masks=None: name both"):
        Folder(tmp_path, split="all", images="foo")


def test_splits_by_hash_of_the_key(pairs):
    names = [f"n{k}" for k in range(40)]
    root = pairs(*names)
    for split in ("train", "validation", "test"):
        assert set(Folder(root, split=split).keys) == {name for name in names if split_of(name) == split}
    everything = Folder(root, split="all")
    assert len(everything) == 40 and everything.splits == tuple(map(split_of, everything.keys))


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("TrainSet", "ValSet", "TestSet"), ("X-TR", "X-VAL", "X-TE")]
)
def test_split_folders(tmp_path, pairs, names):
    for number, name in enumerate(names):
        pairs(*[f"{name}{k}" for k in range(number + 1)], root=tmp_path / name)
    assert [len(Folder(tmp_path, split=split)) for split in ("train", "validation", "test")] == [1, 2, 3]
    assert Folder(tmp_path, split="train").keys == (f"{names[0]}/{names[0]}0",)
    by_hash = Folder(tmp_path, split="all", splits="hash")
    assert by_hash.splits == tuple(map(split_of, by_hash.keys))


def test_split_folders_inside(pairs):
    root = pairs("train/a", "train/b", "val/a")
    assert Folder(root).keys == ("train/a", "train/b")
    assert Folder(root, split="validation").keys == ("val/a",)
    with pytest.raises(UserError, match=r"data\.split=test: .* \(train 2, validation 1, test 0\)"):
        Folder(root, split="test")


def test_folders_are_splits_only_if_all_of_them_are(pairs):
    folder = Folder(pairs("train/a", "bus/a"), split="all")
    assert folder.splits == tuple(map(split_of, folder.keys))


def test_list_files(pairs):
    root = pairs("a", "b", "c", "d", "alarm clock 1")
    (root / "train.txt").write_text("images/a.jpg masks/a.png\nb.jpg b.png\n\n")
    (root / "test.txt").write_text("c.jpg\r\nalarm clock 1\n")
    assert Folder(root).keys == ("a", "b")
    assert Folder(root, split="test").keys == ("alarm clock 1", "c")
    everything = Folder(root, split="all")
    assert dict(zip(everything.keys, everything.splits, strict=True))["d"] is None


def test_list_files_at_fault(pairs):
    root = pairs("a", "b")
    (root / "train.txt").write_text("a\nnothing\n")
    (root / "val.txt").write_text("b\na\n")
    folder = Folder(root, split="all", strict=False)
    assert len(folder.faults) == 2
    assert folder.faults[0].endswith("train.txt: line 2 names nothing in the data set: 'nothing'")
    assert folder.faults[1].endswith("val.txt: line 2: 'a' is on the train list too")


def test_missing_partners(pairs, photo, mask):
    root = pairs("a")
    photo(root / "images" / "lonely.jpg")
    mask(root / "masks" / "stray.png")
    with pytest.raises(DataFault, match=r"lonely\.jpg: no mask of this name in .*masks \(and 1 more"):
        Folder(root, split="all")
    folder = Folder(root, split="all", strict=False)
    assert folder.keys == ("a",) and "stray.png: no photo of this name in" in folder.faults[1]


def test_two_photos_of_one_name(pairs, photo):
    root = pairs("a")
    photo(root / "images" / "a.png")
    with pytest.raises(DataFault, match=r"a\.png: a\.jpg beside it has the same name"):
        Folder(root, split="all")


def test_no_pairs_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataFault, match=r"no pair of photo and mask: looked for images/ with masks/"):
        Folder(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataFault, match=r"no pair of photo and mask"):
        Folder(tmp_path)


def test_faults_of_files_come_when_read(pairs, photo, mask, truncate):
    root = pairs("cut", "empty", "ones", "small", "whole")
    truncate(root / "images" / "cut.jpg")
    mask(root / "masks" / "empty.png", level=0)
    mask(root / "masks" / "ones.png", level=1)
    mask(root / "masks" / "small.png", size=(6, 8))
    folder = Folder(root, split="all")
    for index, message in enumerate(
        [
            r"cut\.jpg: cannot be decoded: ",
            r"empty\.png: an empty mask: no level above 128, the highest is 0$",
            r"ones\.png: an empty mask: no level above 128, the highest is 1$",
            r"small\.jpg: the photo is 16x12 but its mask .*small\.png is 8x6$",
        ]
    ):
        with pytest.raises(DataFault, match=message):
            folder[index]
    assert folder[4].key == "whole"


def test_exclude(pairs):
    root = pairs("a", "b")
    assert Folder(root, split="all", exclude=["a"]).keys == ("b",)
    with pytest.raises(UserError, match=r"data\.exclude: no photo has the key 'z'"):
        Folder(root, split="all", exclude=["z"])


def test_keys_of_digits_are_excluded_as_numbers(pairs):
    root = pairs("4", "5", "007")
    assert Folder(root, split="all", exclude=[4, 5]).keys == ("007",)  # as YAML reads [4, 5]
    with pytest.raises(UserError, match="data.exclude: no photo has the key '7': quotes keep the zeros of '007'"):
        Folder(root, split="all", exclude=[7])
    for value in ("4", 4):
        with pytest.raises(UserError, match=r"data\.exclude=4: expected a list of keys, such as \[4\]"):
            Folder(root, split="all", exclude=value)


def test_a_photo_without_a_mask_can_be_excluded(pairs, photo):
    root = pairs("a")
    photo(root / "images" / "b.jpg")
    with pytest.raises(DataFault, match=r"b\.jpg: no mask of this name"):
        Folder(root, split="all")
    assert Folder(root, split="all", exclude=["b"]).keys == ("a",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_with_a_byte_order_mark(pairs, encoding):
    root = pairs("a", "ä")
    (root / "train.txt").write_text("ä\r\n", encoding=encoding)
    (root / "test.txt").write_text("a\n", encoding=encoding)
    assert Folder(root).keys == ("ä",) and Folder(root, split="test").keys == ("a",)


def test_a_list_outside_of_the_data_set_is_not_read(pairs, tmp_path_factory):
    root, other = pairs("a"), tmp_path_factory.mktemp("other") / "list.txt"
    other.write_text("a\n")
    (root / "train.txt").symlink_to(other)
    with pytest.raises(DataFault, match=r"train\.txt: a link to .*list\.txt, outside of"):
        Folder(root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"root": "absent"}, r"data\.root=absent: no such folder"),
        ({"root": None}, r"data\.root is not set"),
        ({"root": __file__}, r"data\.root=.*: not a folder"),
        ({"task": "sis"}, r"task=sis: data=folder reads sod"),
        ({"split": "dev"}, r"data\.split=dev: expected train, validation, test or all"),
        ({"splits": "random"}, r"data\.splits=random: expected auto"),
    ],
)
def test_arguments_that_make_no_sense(pairs, arguments, message):
    with pytest.raises(UserError, match=message):
        Folder(**{"root": pairs("a"), "split": "all", **arguments})


def test_real_photographs(real_data):
    splits = {split: Folder(real_data / "real_sod", split=split) for split in ("train", "validation", "test")}
    assert {split: len(folder) for split, folder in splits.items()} == {"train": 129, "validation": 12, "test": 9}
    for sample in splits["validation"]:
        assert max(sample.images[0].shape) == 320 and sample.masks[0].shape == (1, *sample.images[0].shape[:2])
    dog = next(sample for sample in Folder(real_data / "real_sod", split="all") if sample.key == "sod_101087")
    assert dog.masks[0].mean() == pytest.approx(0.2153, abs=5e-5)  # as its manifest says
