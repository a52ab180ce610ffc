from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maskgym.data import Dataset, by_category, split_of
from maskgym.data.layout.images import DataFault
from maskgym.data.readers.voc import CLASSES, VOC
from maskgym.errors import UserError

SHAPE = (12, 16)
PERSON, DOG, TRAIN = 15, 12, 19


def picture(*boxes):
    """Index by (index, x, y, width, height) on (12, 16) pixels of 0; the first row is void."""
    pixels = np.zeros(SHAPE, np.uint8)
    pixels[0] = 255
    for index, x, y, width, height in boxes:
        pixels[y : y + height, x : x + width] = index
    return pixels


LEFT, RIGHT, LOW = (1, 1, 4, 4), (8, 2, 4, 6), (1, 7, 3, 3)
CLASS_PICTURE = picture((PERSON, *LEFT), (PERSON, *RIGHT), (DOG, *LOW))
OBJECTS = picture((1, *LEFT), (2, *RIGHT), (3, *LOW))


def write_picture(path, pixels, mode="P"):
    path.parent.mkdir(parents=True, exist_ok=True)
    written = Image.fromarray(pixels)
    if mode == "P":
        written = Image.frombytes("P", pixels.shape[::-1], pixels.tobytes())
        written.putpalette(list(range(256)) * 3)
    written.save(path)
    return path


@pytest.fixture
def voc(tmp_path, photo):
    """Write VOCdevkit with photos by name and list, and return the folder around it."""

    def write(train=("2007_000032",), val=("2007_000033",), classes=CLASS_PICTURE, objects=OBJECTS):
        home = tmp_path / "VOCdevkit" / "VOC2012"
        for name in (*train, *val):
            photo(home / "JPEGImages" / f"{name}.jpg", size=SHAPE)
            write_picture(home / "SegmentationClass" / f"{name}.png", classes)
            write_picture(home / "SegmentationObject" / f"{name}.png", objects)
        photo(home / "JPEGImages" / "2007_000001.jpg")  # without segmentation, as most photos
        lists = home / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        for file, names in (("train", train), ("val", val), ("trainval", (*train, *val))):
            (lists / f"{file}.txt").write_text("".join(f"{name}\n" for name in names))
        return tmp_path

    return write


@pytest.fixture
def home(voc):
    return voc() / "VOCdevkit" / "VOC2012"


def test_a_sample_is_a_photo_and_a_class(voc):
    data = VOC(voc())
    assert isinstance(data, Dataset) and (data.task, data.shown, data.split) == ("sod", "semantic", "train")
    assert data.keys == ("2007_000032/dog", "2007_000032/person")
    dog, person = data
    assert (dog.key, dog.category, person.category) == ("2007_000032/dog", "dog", "person")
    assert np.array_equal(person.masks[0], [CLASS_PICTURE == PERSON]) and person.phrases is None
    assert np.array_equal(dog.masks[0], [CLASS_PICTURE == DOG])
    assert dog.void[0].sum() == 16 and dog.void[0][0].all()
    assert dog.images[0].shape == (*SHAPE, 3)


def test_classes_are_known_without_reading_photos(voc, monkeypatch):
    data = VOC(voc())
    monkeypatch.setattr(VOC, "__getitem__", lambda self, index: pytest.fail("a sample was read"))
    assert [data.category(index) for index in range(2)] == ["dog", "person"]
    assert by_category(data) == {"dog": [0], "person": [1]}


def test_a_sample_is_a_photo_with_all_its_objects(voc):
    data = VOC(voc(), task="sis")
    assert (data.task, data.keys) == ("sis", ("2007_000032",))
    sample = data[0]
    assert np.array_equal(sample.masks[0], [OBJECTS == 1, OBJECTS == 2, OBJECTS == 3])
    assert sample.phrases == (("person", "person", "dog"),) and sample.category is None
    assert sample.void[0].sum() == 16


@pytest.mark.parametrize("folder", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_root_is_any_of_three_folders(voc, folder):
    assert VOC(voc() / folder, task="sis").keys == ("2007_000032",)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no JPEGImages and ImageSets here, in VOC2012 or in VOCdevkit/VOC2012"):
        VOC(tmp_path)


def test_order_of_classes():
    assert len(CLASSES) == 20 and (CLASSES[PERSON - 1], CLASSES[DOG - 1], CLASSES[TRAIN - 1]) == (
        "person",
        "dog",
        "train",
    )


def test_validation_and_test_are_the_same_photos(voc):
    root = voc(train=("2007_000032", "2007_000039"), val=("2007_000033",))
    assert VOC(root, split="test", task="sis").splits == ("test",)
    assert VOC(root, split="validation", task="sis").splits == ("validation",)
    assert VOC(root, split="validation").keys == VOC(root, split="test").keys
    everything = VOC(root, split="all", task="sis")
    assert everything.keys == ("2007_000032", "2007_000039", "2007_000033")
    assert everything.splits == ("train", "train", "validation")
    assert VOC(root, split="all", task="sis", splits="test").splits == ("test",) * 3


def test_splits_by_hash(voc):
    names = tuple(f"2008_{number:06d}" for number in range(20))
    root = voc(train=names, val=())
    for split in ("train", "validation", "test"):
        by_hash = VOC(root, split=split, task="sis", splits="hash")
        assert set(by_hash.keys) == {name for name in names if split_of(name) == split}
    with pytest.raises(UserError, match=r"data\.split=test: .* has no sample there \(train 20, validation 0, test 0\)"):
        VOC(root, split="test")
    with pytest.raises(UserError, match="data.splits=random: expected auto"):
        VOC(root, splits="random")


def test_listing_decodes_only_the_split_asked_for_and_only_classes(home):
    (home / "SegmentationClass" / "2007_000033.png").write_bytes(b"junk")
    (home / "JPEGImages" / "2007_000032.jpg").write_bytes(b"junk")
    assert len(VOC(home)) == 2
    assert VOC(home, split="test", task="sis").keys == ("2007_000033",)
    with pytest.raises(DataFault, match=r"2007_000033\.png: cannot be decoded"):
        VOC(home, split="test")
    with pytest.raises(DataFault, match=r"2007_000032\.jpg: cannot be decoded"):
        VOC(home)[0]
    lenient = VOC(home, split="all", strict=False)
    assert len(lenient) == 2 and len(lenient.faults) == 1


@pytest.mark.parametrize(
    ("pixels", "mode", "message"),
    [
        (CLASS_PICTURE, "L", r"no palette \(mode L\): expected a palette PNG"),
        (CLASS_PICTURE.astype(np.uint16), "I", r"no palette \(mode I;16\)"),
        (np.stack([CLASS_PICTURE] * 3, axis=2), "RGB", r"no palette \(mode RGB\)"),
        (picture((21, *LEFT)), "P", "index 21 is no class: expected 0 to 20, or 255 for void"),
        (picture((254, *LEFT)), "P", "index 254 is no class"),
    ],
)
def test_class_pictures_at_fault(home, pixels, mode, message):
    write_picture(home / "SegmentationClass" / "2007_000032.png", pixels, mode)
    with pytest.raises(DataFault, match=rf"2007_000032\.png: {message}"):
        VOC(home)
    with pytest.raises(DataFault, match=rf"2007_000032\.png: {message}"):
        VOC(home, task="sis")[0]


def test_object_pictures_at_fault(home):
    path = home / "SegmentationObject" / "2007_000032.png"
    data = VOC(home, task="sis")
    for pixels, mode, message in [
        (OBJECTS, "L", "no palette"),
        (picture(), "P", "no object: every index is 0 or 255"),
        (picture((1, *LEFT), (2, 12, 9, 3, 3)), "P", "object 2 has no class under it in .*SegmentationClass"),
    ]:
        write_picture(path, pixels, mode)
        with pytest.raises(DataFault, match=rf"SegmentationObject/2007_000032\.png: {message}"):
            data[0]
    write_picture(path, np.zeros((6, 8), np.uint8))
    with pytest.raises(DataFault, match=r"the photo is 16x12 but its annotation .*SegmentationObject.* is 8x6"):
        data[0]


def test_many_objects_are_no_fault_and_the_commonest_class_counts(home):
    objects = np.zeros(SHAPE, np.uint8)
    objects[1:5, 1:5], objects[2:8, 8:12] = 30, 31
    write_picture(home / "SegmentationObject" / "2007_000032.png", objects)
    classes = CLASS_PICTURE.copy()
    classes[1, 1:5] = DOG  # four of sixteen pixels
    write_picture(home / "SegmentationClass" / "2007_000032.png", classes)
    assert VOC(home, task="sis")[0].phrases == (("person", "person"),)


def test_a_photo_without_class_is_noted(voc, home):
    write_picture(home / "SegmentationClass" / "2007_000032.png", picture())
    data = VOC(home, split="all")
    assert data.keys == ("2007_000033/dog", "2007_000033/person")
    assert data.notes == ("1 photos without a class are left out: 2007_000032",)
    with pytest.raises(UserError, match="has no sample there"):
        VOC(home)


def test_no_void_is_none(home):
    classes = CLASS_PICTURE.copy()
    classes[0] = 0
    write_picture(home / "SegmentationClass" / "2007_000032.png", classes)
    assert VOC(home)[0].void is None


def test_what_lists_name_must_be_there(home):
    lists = home / "ImageSets" / "Segmentation"
    (home / "JPEGImages" / "2007_000032.jpg").rename(home / "JPEGImages" / "2007_000032X.jpg")
    (home / "SegmentationClass" / "2007_000033.png").unlink()
    (lists / "train.txt").write_text("2007_000032\nABC\nabc\n2007_000033\n")
    faults = VOC(home, split="all", strict=False).faults
    assert faults[0].endswith("val.txt: line 1: '2007_000033' is on train.txt before")
    assert "train.txt: no photo '2007_000032' in" in faults[1]
    assert any("no annotation '2007_000033' in" in fault for fault in faults)
    (lists / "val.txt").unlink()
    with pytest.raises(DataFault, match=r"val\.txt: no such file"):
        VOC(home)


def test_names_that_differ_in_case_hidden_files_and_links(voc, photo, tmp_path_factory):
    root = voc(train=("a", "b"), val=())
    home = root / "VOCdevkit" / "VOC2012"
    (home / "SegmentationClass" / "a.png").rename(home / "SegmentationClass" / "A.png")
    (home / "JPEGImages" / "b.jpg").unlink()
    (home / "JPEGImages" / "b.jpg").symlink_to(photo(tmp_path_factory.mktemp("outside") / "b.jpg"))
    for name in ("JPEGImages/Thumbs.db", "SegmentationClass/desktop.ini", "SegmentationClass/._a.png"):
        (home / name).write_bytes(b"junk")
    data = VOC(root, split="all", strict=False)
    assert len(data) == 0
    assert any("b.jpg: a link to" in fault and "outside of" in fault for fault in data.faults)
    assert any(fault.endswith("A.png differs in case") and "train.txt" in fault for fault in data.faults)
    assert len(data.faults) == 3  # and so 'b' has no photo


def test_exclude_names_photos(voc):
    root = voc(train=("a", "b"), val=())
    assert VOC(root, exclude=["a"]).keys == ("b/dog", "b/person")
    with pytest.raises(UserError, match="data.exclude: no photo has the key 'a/dog'"):
        VOC(root, exclude=["a/dog"])
    with pytest.raises(UserError, match="task=sod: data=voc reads semantic, sis"):
        VOC(root, task="sod")


def test_truncated_photo_and_other_size(home, photo, truncate):
    data = VOC(home)
    photo(home / "JPEGImages" / "2007_000032.jpg", size=(10, 16))
    with pytest.raises(DataFault, match=r"the photo is 16x10 but its annotation .*SegmentationClass.* is 16x12"):
        data[0]
    truncate(home / "SegmentationClass" / "2007_000032.png")
    with pytest.raises(DataFault, match=r"2007_000032\.png: cannot be decoded"):
        data[0]
