from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maskgym.data import Dataset, split_of
from maskgym.data.layout.images import DataFault
from maskgym.data.readers.label_maps import LabelMaps, find_instances
from maskgym.errors import UserError

SHAPE = (12, 16)
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


def labels(*boxes):
    """Label 1, 2, … in boxes of (x, y, width, height) on (12, 16) pixels of 0."""
    pixels = np.zeros(SHAPE, np.uint8)
    for number, (x, y, width, height) in enumerate(boxes, start=1):
        pixels[y : y + height, x : x + width] = number
    return pixels


TWO = labels((1, 1, 4, 5), (8, 2, 6, 6))


def indexed(pixels, palette):
    """A palette picture whose indices are the pixels."""
    picture = Image.frombytes("P", pixels.shape[::-1], pixels.tobytes())
    picture.putpalette(palette)
    return picture


def write_map(path, pixels=TWO, kind="palette"):
    """Write labels as a palette's indices, as grey of 8 or 16 bits, or in colours of which 2 is red, 1 and 3 others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "colour":
        picture = Image.fromarray(np.array([(0, 0, 0), (0, 0, 255), (255, 0, 0), (0, 255, 0)], np.uint8)[pixels])
    elif kind == "grey16":
        picture = Image.fromarray(pixels.astype(np.uint16) * 300)
    else:
        picture = Image.fromarray(pixels)
        if kind == "palette":
            picture = indexed(pixels, PALETTE)
    picture.save(path)
    return path


@pytest.fixture
def ilso(tmp_path, photo):
    """Write photos and palette label maps by name, as image/ and gt/, and return the root."""

    def write(*stems, pixels=TWO, kind="palette"):
        for stem in stems:
            photo(tmp_path / "image" / f"{stem}.jpg")
            write_map(tmp_path / "gt" / f"{stem}.png", pixels, kind)
        return tmp_path

    return write


@pytest.fixture
def soc(tmp_path, photo, mask):
    """Write a split of SOC: two photos with instances, one with a black map, one without map, and return the root."""

    def write(name="TrainSet", inside="gt", suffix=".png"):
        folder = tmp_path / name
        for number in range(4):
            photo(folder / "Imgs" / f"COCO_train2014_{number}.jpg")
            mask(folder / "gt" / f"COCO_train2014_{number}.png", level=255 * (number < 2))
        maps = folder / "Instance gt" / inside
        for number in range(2):
            write_map(maps / f"COCO_train2014_{number}{suffix}", kind="colour")
            names = folder / "Instance gt" / "Instance name" / f"COCO_train2014_{number}.txt"
            names.parent.mkdir(exist_ok=True)
            names.write_text("1:person\n2:dog\n")
        write_map(maps / "COCO_train2014_2.png", np.zeros(SHAPE, np.uint8), "colour")
        return tmp_path

    return write


@pytest.mark.parametrize("kind", ["palette", "grey", "grey16", "colour"])
def test_each_label_is_an_instance(ilso, kind):
    data = LabelMaps(ilso("PASCALContour1", kind=kind), split="all")
    assert isinstance(data, Dataset) and (data.task, data.split, data.faults, data.notes) == ("sis", "all", (), ())
    sample = data[0]
    assert sample.key == "PASCALContour1" and sample.images[0].shape == (*SHAPE, 3)
    assert sample.void is None and sample.phrases is None
    (masks,) = sample.masks
    assert masks.dtype == bool and np.array_equal(masks, [TWO == 1, TWO == 2])


def test_a_palette_is_not_looked_up(ilso):
    root = ilso("a")
    indexed(TWO, [255, 255, 255, 0, 0, 0, 0, 0, 0]).save(root / "gt" / "a.png")  # white around two black instances
    assert np.array_equal(LabelMaps(root, split="all")[0].masks[0], [TWO == 1, TWO == 2])


def test_task_sod_gives_the_same_masks(ilso):
    data = LabelMaps(ilso("a"), task="sod", split="all")
    assert data.task == "sod" and len(data[0].masks[0]) == 2
    with pytest.raises(UserError, match="task=cosod: data=label_maps reads sis, sod"):
        LabelMaps(ilso("a"), task="cosod")


def test_the_official_list_names_the_test_photos(ilso):
    stems = [f"MSO{number}" for number in range(30)]
    root = ilso(*stems)
    lists = root / "ImageSets"
    lists.mkdir()
    (lists / "test_id_1000.txt").write_text("\r\n".join(stems[:9]) + "\r\n")
    assert set(LabelMaps(root, split="test").keys) == set(stems[:9])
    rest = {"train": set(LabelMaps(root).keys), "validation": set(LabelMaps(root, split="validation").keys)}
    assert rest["train"] | rest["validation"] == set(stems[9:])
    assert rest["validation"] == {stem for stem in stems[9:] if split_of(stem) == "validation"}
    by_hash = LabelMaps(root, split="all", splits="hash")
    assert by_hash.splits == tuple(map(split_of, by_hash.keys))


def test_two_versions_need_a_choice(ilso):
    root = ilso("a", "b", "c")
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "test_id_1000.txt").write_text("a\n")
    (root / "ImageSets" / "test_id_2000.txt").write_text("b\nADD9\n")
    with pytest.raises(UserError, match=r"both test_id_1000\.txt and test_id_2000\.txt may be meant"):
        LabelMaps(root)
    assert LabelMaps(root, split="test", lists="1000").keys == ("a",)
    with pytest.raises(DataFault, match=r"test_id_2000\.txt: line 2 names nothing in the data set: 'ADD9'"):
        LabelMaps(root, split="test", lists="2000")
    with pytest.raises(UserError, match=r"data\.lists=3000: no list .* \(there are: test_id_1000\.txt, test_id_2000"):
        LabelMaps(root, lists="3000")


def test_all_three_lists_beside_the_folders(ilso):
    root = ilso("a", "b", "c", "d")
    for split, stem in (("train", "a"), ("val", "b"), ("test", "c")):
        (root / f"{split}.txt").write_text(stem)
    assert dict(zip("abcd", LabelMaps(root, split="all").splits, strict=True)) == {
        "a": "train",
        "b": "validation",
        "c": "test",
        "d": None,
    }


@pytest.mark.parametrize(("inside", "suffix"), [("gt", ".png"), (".", ".PNG")])
def test_soc_takes_the_instances_and_counts_what_has_none(soc, inside, suffix):
    soc("ValSet", inside)
    root = soc("TrainSet", inside, suffix)
    data = LabelMaps(root)
    assert data.keys == ("TrainSet/COCO_train2014_0", "TrainSet/COCO_train2014_1") and data.faults == ()
    left = "COCO_train2014_2.jpg, COCO_train2014_3.jpg"
    assert data.notes == (f"2 photos without a salient object are left out: {left}",)
    assert np.array_equal(data[0].masks[0], [TWO == 1, TWO == 2])
    assert LabelMaps(root, split="validation").keys[0] == "ValSet/COCO_train2014_0"
    everything = LabelMaps(root, split="all")
    assert everything.splits == ("train", "train", "validation", "validation")
    assert everything.notes[0].startswith("4 photos without a salient object")


def test_without_a_folder_of_masks_beside_it_every_photo_needs_a_map(tmp_path, photo):
    photo(tmp_path / "images" / "a.jpg")
    photo(tmp_path / "images" / "b.jpg")
    write_map(tmp_path / "instances" / "a.png")
    with pytest.raises(DataFault, match=r"b\.jpg: no mask of this name in .*instances"):
        LabelMaps(tmp_path, split="all")
    write_map(tmp_path / "instances" / "b.png", np.zeros(SHAPE, np.uint8))
    data = LabelMaps(tmp_path, split="all")
    assert len(data) == 2  # not decoded here
    with pytest.raises(DataFault, match=r"b\.png: an empty label map"):
        data[1]


def test_listing_decodes_nothing_but_where_maps_may_be_black(ilso):
    root = ilso("a")
    (root / "gt" / "a.png").write_bytes(b"no picture")
    data = LabelMaps(root, split="all")
    with pytest.raises(DataFault, match=r"a\.png: cannot be decoded"):
        data[0]


def test_a_damaged_map_of_soc_is_a_fault_when_read(soc, truncate):
    root = soc()
    truncate(root / "TrainSet" / "Instance gt" / "gt" / "COCO_train2014_2.png")
    data = LabelMaps(root)
    assert len(data) == 3 and data.notes == ("1 photos without a salient object are left out: COCO_train2014_3.jpg",)
    with pytest.raises(DataFault, match=r"COCO_train2014_2\.png: cannot be decoded"):
        data[2]


def test_a_jpeg_is_refused_whatever_its_name(ilso):
    root = ilso("a", "b")
    (root / "gt" / "a.png").unlink()
    write_map(root / "gt" / "a.jpg", kind="grey")
    Image.fromarray(TWO * 100).save(root / "gt" / "b.png", format="JPEG")
    data = LabelMaps(root, split="all")
    for index, name in enumerate((r"a\.jpg", r"b\.png")):
        with pytest.raises(DataFault, match=rf"{name}: a JPEG: expected values without loss"):
            data[index]


def antialiased():
    """Two flat discs in red and blue, four times the size, brought down smoothly: hundreds of colours at the edges."""
    y, x = np.mgrid[:240, :320]
    pixels = np.zeros((240, 320, 3), np.uint8)
    pixels[(x - 90) ** 2 + (y - 120) ** 2 < 60**2] = (255, 0, 0)
    pixels[(x - 220) ** 2 + (y - 120) ** 2 < 80**2] = (0, 0, 255)
    return Image.fromarray(pixels).resize((80, 60), Image.Resampling.LANCZOS)


def test_antialiased_colours_are_refused_or_void(tmp_path, photo):
    photo(tmp_path / "image" / "a.jpg", size=(60, 80))
    (tmp_path / "gt").mkdir()
    antialiased().save(tmp_path / "gt" / "a.png")
    with pytest.raises(DataFault, match=r"a\.png: \d+ of \d+ labels have no block of 3x3 pixels .* data\.specks=drop"):
        LabelMaps(tmp_path, split="all")[0]
    sample = LabelMaps(tmp_path, split="all", specks="drop")[0]
    assert len(sample.masks[0]) == 2 and 0 < sample.void[0].mean() < 0.2
    assert not (sample.void[0] & sample.masks[0]).any()
    kept = LabelMaps(tmp_path, split="all", specks="keep")[0]
    assert len(kept.masks[0]) > 20 and kept.void is None
    with pytest.raises(UserError, match=r"data\.specks=no: expected one of fault, drop, keep"):
        LabelMaps(tmp_path, specks="no")


def test_thousands_of_colours_are_no_instances(tmp_path, photo):
    photo(tmp_path / "image" / "a.jpg", size=(60, 80))
    (tmp_path / "gt").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "gt" / "a.png")
    with pytest.raises(DataFault, match=r"a\.png: \d{4} instances: expected flat labels, 255 at most"):
        LabelMaps(tmp_path, split="all", specks="keep")[0]
    with pytest.raises(DataFault, match=r"a\.png: an empty label map"):
        LabelMaps(tmp_path, split="all", specks="drop")[0]


def test_what_a_speck_is():
    assert len(find_instances(None, labels((0, 0, 3, 3)), "fault").masks) == 1
    with pytest.raises(DataFault, match=r"1 of 2 labels have no block of 3x3 pixels \(label 2: 10 pixels\)"):
        find_instances("map.png", labels((0, 0, 3, 3), (5, 5, 2, 5)), "fault")
    with pytest.raises(DataFault, match="an empty label map"):
        find_instances("map.png", np.zeros((2, 2), int), "fault")


def test_names_that_differ_in_case_and_hidden_files(ilso, photo):
    root = ilso("a")
    photo(root / "image" / "Big.jpg")
    write_map(root / "gt" / "big.png")
    for name in ("image/Thumbs.db", "gt/desktop.ini", "gt/._a.png", "image/._a.jpg", "__MACOSX/gt/a.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"junk")
    data = LabelMaps(root, split="all", strict=False)
    assert data.keys == ("a",) and len(data.faults) == 1
    assert "Big.jpg: its mask" in data.faults[0] and data.faults[0].endswith("differs in case: expected the same name")


def test_links_that_leave_the_root(ilso, tmp_path_factory, photo):
    root = ilso("a", "b")
    outside = photo(tmp_path_factory.mktemp("outside") / "c.jpg")
    (root / "image" / "c.jpg").symlink_to(outside)
    write_map(root / "gt" / "c.png")
    data = LabelMaps(root, split="all", strict=False)
    assert data.keys == ("a", "b") and "c.jpg: a link to" in data.faults[0]


def test_sizes_that_differ_and_a_truncated_map(ilso, photo, truncate):
    root = ilso("a", "b")
    photo(root / "image" / "a.jpg", size=(10, 16))
    truncate(root / "gt" / "b.png")
    data = LabelMaps(root, split="all")
    with pytest.raises(DataFault, match=r"a\.jpg: the photo is 16x10 but its label map .*a\.png is 16x12"):
        data[0]
    with pytest.raises(DataFault, match=r"b\.png: cannot be decoded"):
        data[1]


def test_no_pairs_and_other_folders(tmp_path, photo):
    (tmp_path / "image").mkdir()
    (tmp_path / "gt").mkdir()
    with pytest.raises(DataFault, match="no pair of photo and label map: looked for images/ with gt/"):
        LabelMaps(tmp_path)
    photo(tmp_path / "foo" / "a.jpg")
    write_map(tmp_path / "bar" / "a.png")
    assert LabelMaps(tmp_path, split="all", images="foo", masks="bar").keys == ("a",)


def test_exclude(ilso):
    root = ilso("a", "b")
    assert LabelMaps(root, split="all", exclude=["a"]).keys == ("b",)
    with pytest.raises(UserError, match=r"data\.exclude: no photo has the key 'z'"):
        LabelMaps(root, split="all", exclude=["z"])
