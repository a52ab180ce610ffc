from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from maskgym.data import Dataset, split_of
from maskgym.data.layout.images import DataFault
from maskgym.data.readers.refcoco import RefCOCO, read_pickle
from maskgym.errors import UserError

SHAPE = (12, 16)
LEFT, RIGHT = [1, 1, 5, 1, 5, 5, 1, 5], [8, 2, 12, 2, 12, 8, 8, 8]  # 4x4 and 4x6 pixels
NAME = "COCO_train2014_{:012d}"


def expression(number, split, *sentences, image=1, annotation=10, **fields):
    """One record as the authors write it; sentences are numbered 100 · number, 100 · number + 1, …"""
    texts = [
        {"raw": text.upper(), "sent": text, "sent_id": 100 * number + place, "tokens": text.split()}
        for place, text in enumerate(sentences)
    ]
    return {
        "ref_id": number,
        "ann_id": annotation,
        "category_id": 1,
        "image_id": image,
        "file_name": f"COCO_train2014_{image:012d}_{number}.jpg",  # of a crop that is nowhere
        "split": split,
        "sent_ids": [text["sent_id"] for text in texts],
        "sentences": texts,
        **fields,
    }


REFS = [
    expression(1, "train", "left man", "guy in red"),
    expression(2, "val", "cup", image=2, annotation=21),
    expression(3, "testA", "woman", image=3, annotation=30),
    expression(4, "testB", "dog", image=4, annotation=41),
]


@pytest.fixture
def refcoco(tmp_path, photo):
    """Write a version's folder, four photos of two objects each, and return the folder around both."""

    def write(refs=REFS, version="refcoco", by="unc", photos="images/mscoco/images/train2014"):
        numbers = (1, 2, 3, 4)
        for number in numbers:
            photo(tmp_path / photos / f"{NAME.format(number)}.jpg", size=SHAPE, value=40 * number)
        content = {
            "images": [{"id": n, "file_name": f"{NAME.format(n)}.jpg", "height": 12, "width": 16} for n in numbers],
            "annotations": [
                {"id": 10 * n + k, "image_id": n, "category_id": 1 + k, "segmentation": [LEFT, RIGHT][k : k + 1]}
                for n in numbers
                for k in (0, 1)
            ],
            "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "thing"}],
        }
        folder = tmp_path / version
        folder.mkdir(exist_ok=True)
        (folder / "instances.json").write_text(json.dumps(content))
        (folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=0))
        return tmp_path

    return write


def test_a_sample_is_a_sentence_and_its_object(refcoco):
    data = RefCOCO(refcoco())
    assert isinstance(data, Dataset) and (data.task, data.split, data.faults) == ("sod", "train", ())
    assert data.keys == (f"{NAME.format(1)}#100", f"{NAME.format(1)}#101")
    first, second = data
    assert (first.need, second.need, first.category) == ("left man", "guy in red", "person")
    assert first.key == data.keys[0] and first.images[0].shape == (*SHAPE, 3)
    assert first.masks[0].shape == (1, *SHAPE) and first.masks[0].dtype == bool
    assert first.masks[0][0, 1:5, 1:5].all() and first.masks[0].sum() == 16


def test_splits_and_partitions(refcoco):
    root = refcoco()
    assert [sample.need for sample in RefCOCO(root, split="validation")] == ["cup"]
    assert [sample.need for sample in RefCOCO(root, split="test")] == ["woman", "dog"]
    assert [sample.need for sample in RefCOCO(root, split="test", partition="testA")] == ["woman"]
    (dog,) = RefCOCO(root, split="test", partition="testB")
    assert (dog.need, dog.category, dog.masks[0].sum()) == ("dog", "thing", 24)
    assert RefCOCO(root, split="all").splits == ("train", "train", "validation", "test", "test")
    assert len(RefCOCO(root, partition="testB")) == 2  # training is no part of the test
    with pytest.raises(UserError, match="data.partition=testC: expected testA, testB or both"):
        RefCOCO(root, partition="testC")


def test_splits_by_hash_of_the_photo(refcoco):
    root = refcoco()
    by_hash = RefCOCO(root, split="all", splits="hash")
    assert set(RefCOCO(root, split="all", splits="test").splits) == {"test"}
    assert by_hash.splits == tuple(split_of(key.partition("#")[0]) for key in by_hash.keys)
    with pytest.raises(UserError, match="data.splits=random: expected auto"):
        RefCOCO(root, splits="random")


@pytest.mark.parametrize(("version", "by"), [("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")])
def test_versions_and_whose_splits(refcoco, version, by):
    root = refcoco([expression(1, "test", "it")], version, by)
    refcoco([expression(1, "val", "other")], version, "google")
    assert [sample.need for sample in RefCOCO(root, split="all", version=version)] == ["it"]
    google = RefCOCO(root / version, split="all", version=version, split_by="google")
    assert ([sample.need for sample in google], google.splits) == (["other"], ("validation",))


def test_versions_that_are_not_there(refcoco):
    root = refcoco()
    with pytest.raises(
        UserError, match="data.version=refclef: expected one of refcoco, refcoco\\+, refcocog, grefcoco"
    ):
        RefCOCO(root, version="refclef")
    with pytest.raises(UserError, match="data.split_by=me: expected one of unc, umd, google"):
        RefCOCO(root, split_by="me")
    with pytest.raises(UserError, match=r"no refcoco/refs\(google\)\.p \(expressions in .*: refs\(unc\)\.p\)"):
        RefCOCO(root, split_by="google")
    with pytest.raises(UserError, match=r"no refcoco\+/refs\(unc\)\.p"):
        RefCOCO(root, version="refcoco+")
    with pytest.raises(UserError, match="task=sod: data=expressions reads need, refer"):
        RefCOCO(root, task="sod")


@pytest.mark.parametrize("photos", ["images/mscoco/images/train2014", "images/train2014", "train2014"])
@pytest.mark.parametrize("inside", [False, True])
def test_photos_are_found(refcoco, photos, inside):
    root = refcoco(photos=photos)
    data = RefCOCO(root / "refcoco" if inside else root)
    assert abs(int(data[0].images[0][0, 0, 0]) - 40) <= 2


def test_photos_elsewhere_are_named(refcoco, tmp_path_factory):
    root = refcoco(photos="somewhere/train2014")
    with pytest.raises(UserError, match="no images/mscoco/images/train2014 or train2014 in or beside it: data.images"):
        RefCOCO(root)
    for images in ("somewhere", "somewhere/train2014", str(root / "somewhere")):
        assert len(RefCOCO(root, images=images)[0].masks[0]) == 1
    with pytest.raises(UserError, match="data.images=photos: no such folder"):
        RefCOCO(root, images="photos")


def test_links_to_photos_elsewhere_must_be_asked_for(refcoco, tmp_path_factory, photo):
    root = refcoco(photos="elsewhere")
    away = tmp_path_factory.mktemp("coco") / "train2014"
    (root / "elsewhere").rename(away)
    (root / "train2014").symlink_to(away)
    with pytest.raises(DataFault, match=r"train2014: a link to .*; data\.images may name it"):
        RefCOCO(root)
    assert len(RefCOCO(root, strict=False)) == 0
    assert len(RefCOCO(root, images="train2014")) == len(RefCOCO(root, images=str(away))) == 2
    outside = photo(tmp_path_factory.mktemp("other") / "1.jpg", size=SHAPE)
    (away / f"{NAME.format(1)}.jpg").unlink()
    (away / f"{NAME.format(1)}.jpg").symlink_to(outside)
    with pytest.raises(DataFault, match=r"000000000001\.jpg: a link to .*1\.jpg"):
        RefCOCO(root, images=str(away))


def test_the_object_is_that_of_the_annotation_not_of_the_order(refcoco):
    root = refcoco([expression(1, "train", "right one", annotation=11), expression(2, "train", "left one")])
    assert [sample.masks[0].sum() for sample in RefCOCO(root)] == [24, 16]


def test_texts_of_any_kind(refcoco):
    data = RefCOCO(refcoco([expression(1, "train", "", "caf\xe9", "найди", "x" * 5000)]))
    assert [sample.need for sample in data] == ["", "caf\xe9", "найди", "x" * 5000]


def test_pickles_of_python_2(refcoco):
    root = refcoco()
    # what Python 2 wrote for [{'ref_id': 1, …, 'sentences': [{'sent': 'caf\xe9', 'sent_id': 7L}]}], text as bytes
    (root / "refcoco" / "refs(unc).p").write_bytes(
        b"(lp0\n(dp1\nS'ref_id'\np2\nI1\nsS'ann_id'\nI10\nsS'image_id'\nI1\nsS'split'\nS'train'\n"
        b"sS'sentences'\n(lp3\n(dp4\nS'sent'\nS'caf\\xe9'\nsS'sent_id'\nL7L\nsasa."
    )
    data = RefCOCO(root)
    assert (data[0].need, data.keys) == ("caf\xe9", (f"{NAME.format(1)}#7",))


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_is_run(tmp_path, refcoco, protocol):
    path = refcoco() / "refcoco" / "refs(unc).p"
    for harm in (Harmful(tmp_path / "touched"), OrderedDict(a=1), np.float64(1), print, Harmful):
        path.write_bytes(pickle.dumps([harm], protocol=protocol))
        with pytest.raises(DataFault, match=r"refs\(unc\)\.p: not a pickle of plain values: it asks for "):
            read_pickle(path)
        with pytest.raises(DataFault, match="not a pickle of plain values"):
            RefCOCO(tmp_path)
    assert not (tmp_path / "touched").exists()
    path.write_bytes(pickle.dumps([{"a": (1, 2.5, None, True, b"b", "ü", {"c"})}], protocol=max(protocol, 4)))
    assert read_pickle(path) == [{"a": (1, 2.5, None, True, b"b", "ü", {"c"})}]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"\x80\x09.",
        b"(lp0\n",
        b"]q\x00}.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"Pid\n.",
        b"(S'a'\ni__main__\nX\n.",
        b"}(]]u.",
        b"\x82\x01.",
        b"I1\n}b.",
        b"0",
        b"]R.",
        b"Sabc\n.",
        b"V\\ud8\n.",
    ],
)
def test_damaged_pickles_are_faults(tmp_path, content):
    (tmp_path / "refs.p").write_bytes(content)
    try:
        assert isinstance(read_pickle(tmp_path / "refs.p"), (list, dict))
    except DataFault as error:
        assert str(error).startswith(f"{tmp_path}/refs.p: not a pickle of plain values") and "\n" not in str(error)


@pytest.mark.parametrize("protocol", range(5))
def test_bytes_changed_at_random(tmp_path, protocol):
    random = np.random.default_rng(protocol)
    source = pickle.dumps(REFS, protocol=protocol)
    reported = 0
    for _ in range(100):
        damaged = bytearray(source)
        for place in random.integers(0, len(damaged), 3):
            damaged[place] = random.integers(256)
        (tmp_path / "refs.p").write_bytes(damaged)
        try:
            read_pickle(tmp_path / "refs.p")
        except DataFault as error:
            assert str(error).startswith(f"{tmp_path}/refs.p: not a pickle") and "\n" not in str(error)
            reported += 1
    assert reported > 20


@pytest.mark.parametrize(
    "content", [b"]r\xff\xff\xff\x7f.", b"]p99999999999\n.", b"\x8e\xff\xff\xff\xff\x00\x00\x00\x00a."]
)
def test_small_files_that_ask_for_gigabytes(tmp_path, content):
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(DataFault, match=r"refs\.p: not a pickle of plain values: "):
        read_pickle(tmp_path / "refs.p")


def test_an_absent_pickle(tmp_path):
    with pytest.raises(DataFault, match=r"refs\.p: cannot be read: No such file"):
        read_pickle(tmp_path / "refs.p")


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ({"a": 1}, "a dict: expected a list of expressions"),
        ([3], r"\[0\] \(ref_id None\) has no usable ref_id, ann_id, image_id, split, sentences"),
        ([expression(1, "train", "a", ann_id="10")], r"\[0\] \(ref_id 1\) has no usable ann_id"),
        (
            [expression(1, "train", sentences=[{"sent": 3, "sent_id": 1}])],
            r"\[0\] \(ref_id 1\) has no usable sentences",
        ),
        ([expression(1, "dev", "a")], r"\[0\] is in split 'dev': expected train, val, test, testA, testB"),
        ([expression(1, "train", "a"), expression(1, "val", "b")], r"\[1\] has sentence 100, which is another's too"),
        (
            [expression(1, "train", "a", annotation=99)],
            r"\[0\] means annotation 99 of image 1, which .*instances\.json",
        ),
        ([expression(1, "train", "a", annotation=20)], r"\[0\] means annotation 20 of image 1, which"),
    ],
)
def test_records_at_fault(refcoco, refs, message):
    root = refcoco(refs)
    with pytest.raises(DataFault, match=rf"refs\(unc\)\.p: {message}"):
        RefCOCO(root)
    assert len(RefCOCO(root, split="all", strict=False)) <= 1


def test_files_at_fault(refcoco, photo, truncate):
    root = refcoco()
    folder = root / "images/mscoco/images/train2014"
    data = RefCOCO(root, split="all")
    photo(folder / f"{NAME.format(1)}.jpg", size=(10, 16))
    with pytest.raises(DataFault, match=r"000000000001\.jpg: the photo is 16x10 but .*instances\.json is 16x12"):
        data[0]
    truncate(folder / f"{NAME.format(2)}.jpg")
    with pytest.raises(DataFault, match=r"000000000002\.jpg: cannot be decoded"):
        data[2]
    (folder / f"{NAME.format(3)}.jpg").rename(folder / f"{NAME.format(3).lower()}.jpg")
    with pytest.raises(
        DataFault, match=r"instances\.json: no file COCO_train2014_000000000003\.jpg in .*differs in case"
    ):
        RefCOCO(root)
    lenient = RefCOCO(root, split="all", strict=False)
    assert len(lenient) == 4 and len(lenient.faults) == 1
    (root / "refcoco" / "instances.json").write_text("{")
    with pytest.raises(DataFault, match=r"instances\.json: not JSON"):
        RefCOCO(root)
    (root / "refcoco" / "instances.json").unlink()
    with pytest.raises(DataFault, match=r"instances\.json: cannot be read: No such file"):
        RefCOCO(root)


def test_no_expressions(refcoco):
    with pytest.raises(DataFault, match=r"refs\(unc\)\.p: an empty list: expected expressions"):
        RefCOCO(refcoco([]))


def test_exclude_names_photos(refcoco):
    root = refcoco()
    assert len(RefCOCO(root, split="all", exclude=[NAME.format(1)])) == 3
    with pytest.raises(UserError, match="data.exclude: no photo has the key 'x'"):
        RefCOCO(root, exclude=["x"])


def test_sentences_are_those_of_sent_ids(refcoco):
    """A fifth of the sentences may be gone from a copy that reads without an error."""
    cut = expression(1, "train", "left man", "guy in red")
    del cut["sentences"][1]
    data = RefCOCO(refcoco([cut, *REFS[1:]]), split="all", strict=False)
    assert len(data) == 3 and len(data.faults) == 1
    assert "[0] (ref_id 1) has 1 sentences, but its sent_ids are [100, 101]: expected the same ids" in data.faults[0]
    unstated = expression(1, "train", "left man")
    del unstated["sent_ids"]
    assert len(RefCOCO(refcoco([unstated]), split="all")) == 1


def edited(root, change):
    """Change the content of ``instances.json``; return the root."""
    path = root / "refcoco" / "instances.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return root


def test_an_annotation_that_two_objects_could_be_is_refused(refcoco):
    root = edited(refcoco(), lambda content: content["annotations"][1].update(id=10))
    with pytest.raises(DataFault, match=r"\[0\] means annotation 10, of which .*instances.json has several"):
        RefCOCO(root)


def test_a_name_of_a_photo_that_no_disk_can_hold_is_told(refcoco):
    root = edited(refcoco(), lambda content: content["images"][0].update(file_name="x" * 5000 + ".jpg"))
    with pytest.raises(DataFault, match=r"instances.json: no file x{80} in") as error:
        RefCOCO(root)
    assert len(error.value.faults[0]) < 400


def test_links_may_lead_to_other_folders_of_the_data_set_only(refcoco, tmp_path):
    root = refcoco()
    photo = root / "images/mscoco/images/train2014" / f"{NAME.format(1)}.jpg"
    (root / "store").mkdir()
    photo.rename(root / "store" / "a.jpg")
    photo.symlink_to(root / "store" / "a.jpg")
    assert len(RefCOCO(root)) == 2
    instances = root / "refcoco" / "instances.json"
    instances.rename(tmp_path.parent / "elsewhere.json")
    instances.symlink_to(tmp_path.parent / "elsewhere.json")
    with pytest.raises(DataFault, match=r"instances.json: a link to .*elsewhere.json, outside of"):
        RefCOCO(root)


# gRefCOCO: a list of annotations, [-1] for none; the numbers of sentences may be those of other expressions.
GREFS = [
    expression(1, "train", "both", annotation=[10, 11]),
    expression(2, "train", "a cat", "the cat", annotation=[-1], category_id=[-1], no_target=True),
    expression(3, "val", "left one", image=2, annotation=[20]),
    expression(4, "testA", "nobody", image=3, annotation=[-1]),
]


@pytest.fixture
def grefcoco(refcoco):
    """Write gRefCOCO with these expressions; return its folder."""

    def write(refs=GREFS, crowds=()):
        root = refcoco(version="grefcoco", photos="images/train2014")
        (root / "grefcoco" / "refs(unc).p").unlink()
        (root / "grefcoco" / "grefs(unc).json").write_text(json.dumps(refs))
        path = root / "grefcoco" / "instances.json"
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            annotation["iscrowd"] = int(annotation["id"] in crowds)
        path.write_text(json.dumps(content))
        return root

    return write


def test_sentences_of_several_objects_and_of_none(grefcoco):
    data = RefCOCO(grefcoco(), version="grefcoco", task="refer")
    assert data.keys == tuple(f"{NAME.format(1)}#{number}" for number in ("1-100", "2-200", "2-201"))
    assert (data.shown, data.task, data.notes) == ("refer", "sis", ())
    both, cat, _ = data
    assert [mask.sum() for mask in both.masks[0]] == [16, 24] and both.need == "both"
    assert cat.masks[0].shape == (0, *SHAPE) and cat.masks[0].dtype == bool and cat.need == "a cat"
    assert cat.phrases is None and cat.category is None and not cat.union().any()


def test_sentences_of_no_object_are_left_out_of_needs_unless_asked_for(grefcoco):
    root = grefcoco()
    data = RefCOCO(root, version="grefcoco")
    assert [sample.need for sample in data] == ["both"] and data[0].union().sum() == 40
    (note,) = data.notes
    assert note.startswith("3 sentences that mean nothing in their photo (data.no_target=true reads them) are left out")
    assert note in data.describe()
    assert len(RefCOCO(root, version="grefcoco", no_target=True)) == 3
    assert len(RefCOCO(root, version="grefcoco", task="refer", no_target=False)) == 1
    with pytest.raises(UserError, match="data.no_target=3: expected true, false or null"):
        RefCOCO(root, version="grefcoco", no_target=3)


def test_crowds_among_the_objects_are_left_out_and_told(grefcoco):
    data = RefCOCO(grefcoco(crowds=[11]), version="grefcoco")
    assert [mask.sum() for mask in data[0].masks[0]] == [16]
    assert "1 crowds among the objects of expressions are left out: annotation 11" in data.notes
    with pytest.raises(DataFault, match=r"grefs\(unc\)\.json: \[2\] means crowds only"):
        RefCOCO(grefcoco(crowds=[20]), version="grefcoco")


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ({"a": 1}, "a dict: expected a list of expressions"),
        ([], "an empty list: expected expressions"),
        ([expression(1, "train", "a", annotation=10)], r"\[0\] \(ref_id 1\) has no usable ann_id"),
        ([expression(1, "train", "a", annotation=[])], r"\[0\] \(ref_id 1\) has no usable ann_id"),
        ([expression(1, "train", "a", annotation=[10, -1])], r"\[0\] \(ref_id 1\) has no usable ann_id"),
        ([expression(1, "train", "a", annotation=[[10]])], r"\[0\] \(ref_id 1\) has no usable ann_id"),
        ([expression(1, "train", "a", annotation=[True])], r"\[0\] \(ref_id 1\) has no usable ann_id"),
        ([expression(1, "train", "a", annotation=[10, 20])], r"\[0\] means annotation 20 of image 1, which"),
        ([expression(1, "train", "a", image=9, annotation=[-1])], r"\[0\] means image 9, which"),
        ([GREFS[0], GREFS[0]], r"\[1\] has sentence 1-100, which is another's too"),
    ],
)
def test_records_of_grefcoco_at_fault(grefcoco, refs, message):
    with pytest.raises(DataFault, match=rf"grefs\(unc\)\.json: {message}") as told:
        RefCOCO(grefcoco(refs), version="grefcoco")
    assert len(told.value.faults) == 1


def test_an_annotation_of_the_others_is_a_number(refcoco):
    for annotation in ([10], -1):
        root = refcoco([expression(1, "train", "a", annotation=annotation)])
        with pytest.raises(DataFault, match=r"\[0\] .*ann_id|means annotation -1"):
            RefCOCO(root)


def test_grefcoco_is_told_by_its_files_and_checked(grefcoco):
    from maskgym.data.check import check, detect

    root = grefcoco()
    assert detect(root) == "expressions" and detect(root / "grefcoco") == "grefcoco"
    report = check("grefcoco", root)
    assert report.ok and report.counts["train"] == {"samples": 3, "images": 3, "instances": 2}
    assert "split train has 3 sentences; its authors' files have 209,344" in report.notes
    assert "split train has 1 photos without fault; its authors state 16,994" in report.notes
    with pytest.raises(UserError, match=r"no grefcoco/grefs\(google\)\.json \(expressions in .*: grefs\(unc\)\.json\)"):
        RefCOCO(root, version="grefcoco", split_by="google")


def test_expressions_are_instances_to_refer(refcoco):
    data = RefCOCO(refcoco(), task="refer")
    assert len(data) == 2 and data[0].masks[0].shape == (1, *SHAPE) and data.shown == "refer"
