"""Hugging Face data sets: round trips, kinds of masks, splits, and faults by name."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Features, Image, List, Value
from PIL import Image as Pillow
from pycocotools import mask as coco_mask

from maskgym.data import Dataset, Sample, split_of
from maskgym.data.layout.images import DataFault
from maskgym.data.readers.folder import Folder
from maskgym.data.readers.hf import HuggingFace, to_hugging_face
from maskgym.data.scenes import Scenes
from maskgym.errors import UserError

HEIGHT, WIDTH = 20, 30


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def photo(number: int) -> Pillow.Image:
    noise = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Pillow.fromarray(noise)


def box(left: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:15, left:right] = True
    return mask


def grey(mask: np.ndarray, level: int = 255) -> Pillow.Image:
    return Pillow.fromarray(mask.astype(np.uint8) * level)


def lengths(mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def polygon(left: int, right: int) -> list[list[float]]:
    return [[left, 5, right, 5, right, 15, left, 15]]


def save(folder: Path, rows: list[dict], features: dict, split: str | None = "train") -> Path:
    found = datasets.Dataset.from_list(rows, Features(features))
    (found if split is None else datasets.DatasetDict({split: found})).save_to_disk(folder)
    return folder


def simple(folder: Path, count: int = 3, split: str | None = "train", **more: object) -> Path:
    rows = [
        {"image": photo(n), "mask": grey(box(n, n + 9)), **{k: v[n] for k, v in more.items()}} for n in range(count)
    ]
    kinds = {name: Value("string") for name in more}
    return save(folder, rows, {"image": Image(), "mask": Image(), **kinds}, split)


def assert_equal(one: Sample, other: Sample) -> None:
    for field in fields(Sample):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, tuple) and isinstance(a[0], np.ndarray):
            assert len(a) == len(b) and all(x.dtype == y.dtype for x, y in zip(a, b, strict=True)), field.name
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)), field.name
        else:
            assert a == b, field.name


# --- Out and in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["sod", "sis", "need", "refer", "cosod", "ranking", "ranking_need"])
def test_scenes_come_back_as_they_were(task, tmp_path):
    parts = [Scenes(task, split, size=3, image_size=64) for split in ("train", "test")]
    whole = datasets.DatasetDict({part.split: to_hugging_face(part) for part in parts})
    whole.save_to_disk(tmp_path / "saved")
    for part in parts:
        again = HuggingFace(tmp_path / "saved", task=task, split=part.split, group_size=4 if task == "cosod" else None)
        assert isinstance(again, Dataset)
        assert (len(again), again.task, again.split) == (3, part.task, part.split)
        assert again.keys == tuple(part[index].key for index in range(3))
        for index in range(3):
            assert_equal(part[index], again[index])


def test_photos_come_back_as_they_were_and_void_too(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
    for number in range(12):
        photo(number).save(tmp_path / "photos" / "images" / f"{number}.jpg")
        grey(box(2, 9)).save(tmp_path / "photos" / "masks" / f"{number}.png")
    folder = Folder(tmp_path / "photos")
    to_hugging_face(folder).save_to_disk(tmp_path / "saved")
    again = HuggingFace(tmp_path / "saved", split="train")
    assert len(again) == len(folder) > 5
    for index in range(len(folder)):
        assert_equal(folder[index], again[index])

    class Void:
        task, split = "sis", "test"

        def __len__(self):
            return 2

        def __getitem__(self, index):
            image, masks = np.asarray(photo(index)), np.stack([box(0, 5), box(10, 15)])
            return Sample(f"{index}", (image,), (masks,), void=(box(20, 25),) if index else None)

    to_hugging_face(Void()).to_parquet(tmp_path / "void.parquet")
    again = HuggingFace(tmp_path / "void.parquet", task="sis", split="all")
    for index in range(2):
        assert_equal(Void()[index], again[index])
    with pytest.raises(UserError, match="split=all: expected a data set of one split"):
        to_hugging_face(again)


def test_what_is_written_is_what_the_data_set_holds_now(tmp_path):
    """Not what a cache holds of an equal one."""

    class Changing:
        task, split, level = "sod", "train", 1

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Sample("a", (np.full((4, 4, 3), type(self).level, np.uint8),), (np.ones((1, 4, 4), bool),))

    for Changing.level in (1, 2):
        assert np.asarray(to_hugging_face(Changing())[0]["image"]).max() == Changing.level


# --- Masks -----------------------------------------------------------------------------------------------------------

TWO = [box(1, 9), box(12, 20)]


@pytest.mark.parametrize(
    ("feature", "value", "expected"),
    [
        (Image(), grey(TWO[0]), TWO[:1]),
        (List(Image()), [grey(mask) for mask in TWO], TWO),
        ({"size": List(Value("int64")), "counts": Value("string")}, lengths(TWO[0]), TWO[:1]),
        (List({"size": List(Value("int64")), "counts": Value("string")}), [lengths(mask) for mask in TWO], TWO),
        (List(List(Value("float64"))), polygon(1, 9), TWO[:1]),
        (List(List(Value("float64"))), polygon(1, 9) + polygon(12, 20), [TWO[0] | TWO[1]]),
        (List(List(List(Value("float64")))), [polygon(1, 9), polygon(12, 20)], TWO),
        (Value("string"), json.dumps(lengths(TWO[1])), TWO[1:]),
        (List(Value("string")), [json.dumps(lengths(TWO[0])), json.dumps(polygon(12, 20))], TWO),
    ],
)
def test_masks_may_be_pictures_run_lengths_or_polygons(tmp_path, feature, value, expected):
    rows = [{"photo": photo(0), "truth": value}]
    folder = save(tmp_path / "saved", rows, {"photo": Image(), "truth": feature})
    sample = HuggingFace(folder, task="sis", image="photo", mask="truth")[0]
    np.testing.assert_array_equal(sample.images[0], np.asarray(photo(0)))
    np.testing.assert_array_equal(sample.masks[0], expected)


def test_a_mask_is_what_is_above_128(tmp_path):
    levels = np.where(box(0, 9), 129, 128).astype(np.uint8)
    folder = save(
        tmp_path / "s", [{"image": photo(0), "mask": Pillow.fromarray(levels)}], {"image": Image(), "mask": Image()}
    )
    np.testing.assert_array_equal(HuggingFace(folder)[0].masks[0][0], box(0, 9))


def test_unusual_pictures_of_masks_are_noted_and_those_without_foreground_refused(tmp_path):
    deep = Pillow.fromarray(box(3, 9).astype(np.uint16) * 65535)
    rows = [{"image": photo(i), "mask": one} for i, one in enumerate((grey(box(3, 9)), grey(box(3, 9), 200), deep))]
    root = save(tmp_path / "notes", rows, {"image": Image(), "mask": Image()})
    notes = HuggingFace(root).describe()
    assert any("1 of 3 masks of 2 levels (0, 200)" in note for note in notes), notes
    assert any("1 of 3 masks of 16 bits, read as 8" in note for note in notes), notes
    white = grey(box(0, 30) | True)
    white.putalpha(grey(box(3, 9)))
    for number, mask in enumerate((Pillow.fromarray(box(3, 9).astype(np.uint16) * 255), white)):
        root = save(tmp_path / str(number), [{"image": photo(0), "mask": mask}], {"image": Image(), "mask": Image()})
        with pytest.raises(DataFault, match="of 16 bits without a level above 255|one colour and 2 levels of alpha"):
            HuggingFace(root)[0]


def test_groups_are_cut_and_images_without_the_object_have_no_mask(tmp_path):
    empty = np.zeros((HEIGHT, WIDTH), bool)
    masks = [box(0, 5), empty, box(1, 6)]
    rows = [{"image": [photo(n) for n in range(3)], "mask": [grey(mask) for mask in masks], "key": "cats"}]
    folder = save(tmp_path / "s", rows, {"image": List(Image()), "mask": List(Image()), "key": Value("string")})
    whole, cut = HuggingFace(folder, task="cosod"), HuggingFace(folder, task="cosod", group_size=2)
    assert (whole.keys, cut.keys) == (("cats",), ("cats/0", "cats/1"))
    assert [len(rows) for rows in whole[0].masks] == [1, 0, 1]
    assert [len(sample.images) for sample in (cut[0], cut[1])] == [2, 1]
    np.testing.assert_array_equal(cut[1].masks[0][0], masks[2])


# --- Columns, keys and splits ----------------------------------------------------------------------------------------


def test_columns_are_named_or_found_by_their_own_names(tmp_path):
    rows = [
        {"image": photo(n), "mask": [grey(m) for m in TWO], "words": ["a", "b"], "category": n, "wish": f"find {n}"}
        for n in range(2)
    ]
    kinds = {"words": List(Value("string")), "category": ClassLabel(names=["cat", "dog"]), "wish": Value("string")}
    folder = save(tmp_path / "saved", rows, {"image": Image(), "mask": List(Image()), **kinds})
    sample = HuggingFace(folder, task="sis", phrases="words")[1]
    assert (sample.phrases, sample.category, sample.need) == ((("a", "b"),), "dog", None)
    assert HuggingFace(folder, task="need", need="wish")[1].need == "find 1"
    assert HuggingFace(folder, category="wish")[0].category == "find 0"


def test_without_a_column_of_categories_regions_have_the_tasks(tmp_path):
    folder = simple(tmp_path / "saved", 1)
    assert HuggingFace(folder)[0].category == "salient object"
    assert HuggingFace(folder, task="sis")[0].category is None


def test_named_splits_are_mapped(tmp_path):
    rows = [{"image": photo(0), "mask": grey(box(0, 9))}]
    part = datasets.Dataset.from_list(rows, Features({"image": Image(), "mask": Image()}))
    names = {"training": "train", "dev": "validation", "testing": "test", "unlabelled": None}
    datasets.DatasetDict(dict.fromkeys(names, part)).save_to_disk(tmp_path / "saved")
    for split in ("train", "validation", "test"):
        found = HuggingFace(tmp_path / "saved", split=split)
        assert (found.keys, found.splits) == ((f"{split}/000000",), (split,))
    assert found.notes == ("the split 'unlabelled' is left out: its name says none of train, validation, test",)
    assert len(HuggingFace(tmp_path / "saved", split="all")) == 3
    datasets.DatasetDict({"val": part, "dev": part}).save_to_disk(tmp_path / "twice")
    with pytest.raises(UserError, match="several splits are read as validation: val, dev"):
        HuggingFace(tmp_path / "twice")


@pytest.mark.parametrize("splits", ["auto", "hash"])
def test_rows_without_splits_are_dealt_out_by_hash(tmp_path, splits):
    keys = [f"photo {n}" for n in range(40)]
    folder = simple(tmp_path / "saved", 40, None if splits == "auto" else "test", key=keys)
    found = {split: HuggingFace(folder, split=split, splits=splits).keys for split in ("train", "validation", "test")}
    assert found == {split: tuple(key for key in keys if split_of(key) == split) for split in found}
    left = HuggingFace(folder, split="train", splits=splits, exclude=found["train"][:2])
    assert left.keys == found["train"][2:]


def test_by_hash_the_rows_of_all_splits_are_numbered_through(tmp_path):
    part = to_hugging_face(Scenes("sis", "train", size=3, image_size=64)).remove_columns("key")
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "saved")
    found = HuggingFace(tmp_path / "saved", task="sis", split="all", splits="hash")
    assert found.keys == tuple(f"{row:06d}" for row in range(6))
    assert found.splits == tuple(map(split_of, found.keys))


def test_parquet_and_imagefolder_are_loaded_and_their_one_split_is_dealt_out(tmp_path):
    (tmp_path / "parquet").mkdir()
    rows = [{"image": photo(n), "mask": grey(box(n, n + 9))} for n in range(20)]
    part = datasets.Dataset.from_list(rows, Features({"image": Image(), "mask": Image()}))
    part.to_parquet(tmp_path / "parquet" / "part-0.parquet")
    one = HuggingFace(tmp_path / "parquet", split="train")
    assert one.keys == tuple(f"{n:06d}" for n in range(20) if split_of(f"{n:06d}") == "train")
    np.testing.assert_array_equal(one[0].images[0], np.asarray(photo(int(one.keys[0]))))

    for split in ("train", "test"):
        (tmp_path / "folder" / split).mkdir(parents=True)
        lines = []
        for n in range(2):
            photo(n).save(tmp_path / "folder" / split / f"{n}.png")
            grey(box(n, n + 9)).save(tmp_path / "folder" / split / f"m{n}.png")
            lines.append(json.dumps({"file_name": f"{n}.png", "mask_file_name": f"m{n}.png", "category": "cat"}))
        (tmp_path / "folder" / split / "metadata.jsonl").write_text("\n".join(lines))
    two = HuggingFace(tmp_path / "folder", split="test")
    assert (two.keys, two[1].category) == (("test/000000", "test/000001"), "cat")
    np.testing.assert_array_equal(two[1].masks[0][0], box(1, 10))


def test_it_is_pickled(tmp_path):
    found = HuggingFace(simple(tmp_path / "saved"))
    assert_equal(pickle.loads(pickle.dumps(found))[1], found[1])


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"path": None}, "data.path is not set: data=hf expects a folder or a name on the hub"),
        ({"path": "/no/such"}, "data.path=/no/such: no such folder"),
        ({"image": "photo"}, "data.image=photo: no such column in .*: its columns are image, mask"),
        ({"phrases": "words"}, "data.phrases=words: no such column in .*: its columns are image, mask"),
        ({"task": "need"}, "task=need: name the column of need with data.need: .*: its columns are image, mask"),
        ({"task": "ranking"}, "task=ranking: name the column of ranks"),
        ({"task": "cosod"}, "task=cosod: data.image=image: expected a column of lists of images"),
        ({"task": "blur"}, "task=blur: data=hf reads sod, need, sis, refer, ranking, ranking_need, cosod"),
        ({"split": "test"}, r"data.split=test: .* has no sample there \(train 3, validation 0, test 0\)"),
        ({"split": "holdout"}, "data.split=holdout: expected one of train, validation, test, all"),
        ({"splits": "own"}, "data.splits=own: expected one of auto, hash"),
        ({"group_size": 0}, "data.group_size=0: expected a number of photos"),
        ({"exclude": 3}, r"data.exclude=3: expected a list of keys, such as \[3\]"),
        ({"exclude": ["nobody"]}, "data.exclude: no photo has the key 'nobody'"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, words):
    folder = simple(tmp_path / "saved")
    with pytest.raises(UserError, match=words):
        HuggingFace(**{"path": folder, **arguments})


def test_data_without_a_split_is_told(tmp_path):
    folder = simple(tmp_path / "saved")
    (folder / "dataset_dict.json").write_text('{"splits": []}')
    with pytest.raises(UserError, match=r"data\.path=.*saved: has no split"):
        HuggingFace(folder)


def test_a_folder_that_holds_no_data_set_is_named(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="data.path=.*none: cannot be loaded: "):
        HuggingFace(tmp_path / "none")


def test_keys_must_differ(tmp_path):
    folder = simple(tmp_path / "saved", key=["a", "b", "a"])
    with pytest.raises(DataFault, match="row 2: another one has the key 'a' too"):
        HuggingFace(folder)
    lenient = HuggingFace(folder, strict=False)
    assert lenient.keys == ("a", "b") and len(lenient.faults) == 1


SMALL = Pillow.fromarray(np.full((9, 9), 255, np.uint8))
COLOURED = Pillow.fromarray(np.full((HEIGHT, WIDTH, 3), (255, 0, 0), np.uint8))


@pytest.mark.parametrize(
    ("feature", "value", "words"),
    [
        (Image(), None, "no mask"),
        (Image(), grey(box(0, 9), 100), "an empty mask"),
        (Image(), SMALL, "the photo is 30x20 but its mask is 9x9"),
        (Image(), COLOURED, "a coloured mask"),
        (Image(), {"bytes": b"nonsense", "path": None}, "cannot be decoded: not a picture"),
        (Image(), {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "path": None}, "not a picture"),
        (Value("string"), "[" * 100_000, "unreadable segmentation: not JSON"),
        (Value("int64"), 3, "unreadable"),
        (Value("string"), "nonsense", "unreadable segmentation: not JSON"),
        (List(List(Value("float64"))), [[1.0, 2.0]], "unreadable segmentation: a polygon needs three or more"),
        ({"size": List(Value("int64")), "counts": Value("string")}, {"size": [9, 9], "counts": "0"}, "its size is"),
    ],
)
def test_faults_name_the_row(tmp_path, feature, value, words):
    rows = [{"image": photo(0), "mask": value, "key": "the one"}]
    folder = save(tmp_path / "saved", rows, {"image": Image(), "mask": feature, "key": Value("string")})
    with pytest.raises(DataFault, match=words) as fault:
        HuggingFace(folder)[0]
    assert "row 'the one'" in str(fault.value)


KINDS_OF_MASKS = {  # a feature, and the mask of a row, in it
    "pictures": (List(Image()), [grey(box(0, 9))]),
    "polygons": (List(List(Value("float64"))), polygon(0, 9)),
    "text": (Value("string"), json.dumps(polygon(0, 9))),
}


def asked(folder: Path, kind: str, *masks: object) -> Path:
    """Save rows with needs, the first of which has a mask; the others have what is given."""
    feature, mask = KINDS_OF_MASKS[kind]
    values = [mask, *masks]
    rows = [{"image": photo(n), "mask": value, "need": f"find {n}"} for n, value in enumerate(values)]
    return save(folder, rows, {"image": Image(), "mask": feature, "need": Value("string")})


@pytest.mark.parametrize("kind", KINDS_OF_MASKS)
def test_an_empty_list_says_that_a_need_means_nothing(tmp_path, kind):
    folder = asked(tmp_path / "saved", kind, " [ ] " if kind == "text" else [])
    some, none = HuggingFace(folder, task="refer")
    assert some.masks[0].shape == (1, HEIGHT, WIDTH) and some.masks[0].any()
    assert (none.masks[0].shape, none.masks[0].dtype, none.need) == ((0, HEIGHT, WIDTH), bool, "find 1")
    for task, given in (("refer", False), ("need", None), ("need", False)):
        left = HuggingFace(folder, task=task, no_target=given)
        assert left.keys == (some.key,)
        told = "1 rows that mean nothing in their image (data.no_target=true reads them) are left out: train/000001"
        assert told in left.describe()
    assert len(HuggingFace(folder, task="need", no_target=True)) == 2


@pytest.mark.parametrize("kind", KINDS_OF_MASKS)
def test_a_missing_mask_is_a_fault_unless_the_data_set_means_nothing_by_it(tmp_path, kind):
    folder = asked(tmp_path / "saved", kind, None)
    for task in ("refer", "need"):
        with pytest.raises(DataFault, match="no mask: expected an empty list where the need means nothing, or") as told:
            HuggingFace(folder, task=task)[1]
        assert "row 'train/000001'" in str(told.value) and "\n" not in str(told.value)
        (_, none) = HuggingFace(folder, task=task, no_target=True)
        assert none.masks[0].shape == (0, HEIGHT, WIDTH)
    with pytest.raises(DataFault, match="no mask$"):
        HuggingFace(folder, task="sis")[1]
    with pytest.raises(UserError, match="data.no_target=True: task=sis has no needs: expected null"):
        HuggingFace(folder, task="sis", no_target=True)
    with pytest.raises(UserError, match="data.no_target=maybe: expected true, false or null"):
        HuggingFace(folder, task="refer", no_target="maybe")


def test_there_must_be_one_phrase_a_mask(tmp_path):
    rows = [{"image": photo(0), "mask": [grey(m) for m in TWO], "phrases": ["a"]}]
    folder = save(tmp_path / "s", rows, {"image": Image(), "mask": List(Image()), "phrases": List(Value("string"))})
    with pytest.raises(DataFault, match=r"phrases for \[1\] masks of \[2\]"):
        HuggingFace(folder, task="sis")[0]


def test_a_row_cannot_name_files_outside_of_the_data_set(tmp_path):
    photo(0).save(tmp_path / "secret.png")
    inside = tmp_path / "set"
    inside.mkdir()
    up, nul = inside / ".." / "secret.png", inside / "a\0secret.png"  # a name that no file can have
    for name, path in (("absolute", tmp_path / "secret.png"), ("up", up), ("nul", nul)):
        values = {"bytes": None, "path": str(path)}
        part = datasets.Dataset.from_list([{"image": values, "mask": grey(box(0, 9))}])
        features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}, "mask": Image()})
        part.cast(features).to_parquet(inside / f"{name}.parquet")
        with pytest.raises(DataFault, match=r"row '000000': its file .*secret\.png is outside of .*set"):
            HuggingFace(inside / f"{name}.parquet", split="all")[0]


@pytest.mark.parametrize("file", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ["{}", "[]", "3", "[" * 100_000])
def test_files_of_a_saved_set_that_have_another_form(tmp_path, file, content):
    folder = simple(tmp_path / "saved")
    (folder / "train" / file).write_text(content)
    try:
        HuggingFace(folder, split="all")[0]
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert file == "dataset_info.json" and content == "{}"  # types are then those of Arrow


@pytest.mark.parametrize("ranks", [[float("nan"), 1.0], [float("inf"), 1.0]])
def test_ranks_are_finite(tmp_path, ranks):
    rows = [{"image": photo(0), "mask": [grey(m) for m in TWO], "ranks": ranks}]
    kinds = {"image": Image(), "mask": List(Image()), "ranks": List(Value("float64"))}
    with pytest.raises(DataFault, match=r"row 'train/000000': ranks .*: expected finite numbers"):
        HuggingFace(save(tmp_path / "s", rows, kinds), task="ranking")[0]
