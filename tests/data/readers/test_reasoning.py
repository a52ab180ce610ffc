"""ReasonSeg: polygons over each other, several texts, ignored regions, and files at fault."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maskgym.data import make
from maskgym.data.check import check, detect
from maskgym.data.layout.images import DataFault
from maskgym.data.readers.reasoning import ReasonSeg
from maskgym.errors import UserError

SHAPE = (12, 16)


def square(label, x, y, side):
    """A shape whose outline belongs to it: (side + 1)² pixels."""
    return {"label": label, "points": [[x, y], [x + side, y], [x + side, y + side + 0.9], [x, y + side]]}


TARGET = square("target", 1, 1, 5)  # 36 pixels


@pytest.fixture
def reasonseg(tmp_path, photo):
    """Write photos of each split, one with ``content`` in place of a target; return the folder."""

    def write(**content):
        for name, texts in (("train/a", ["who barks", "what guards a house"]), ("val/b", ["it"]), ("test/c", ["it"])):
            path = photo(tmp_path / "ReasonSeg" / f"{name}.jpg", size=SHAPE)
            known = {"text": texts, "is_sentence": True, "shapes": [TARGET]}
            path.with_suffix(".json").write_text(json.dumps(known | (content if name == "train/a" else {})))
        return tmp_path / "ReasonSeg"

    return write


def test_a_text_is_a_sample(reasonseg):
    root = reasonseg()
    data = ReasonSeg(root)
    assert (data.keys, data.splits, data.notes) == (("train/a#0", "train/a#1"), ("train", "train"), ())
    assert [sample.need for sample in data] == ["who barks", "what guards a house"]
    first = data[0]
    assert first.masks[0].dtype == bool and first.masks[0].shape == (1, *SHAPE) and first.void is None
    assert first.masks[0].sum() == 36 and first.masks[0][0, 1:7, 1:7].all()
    assert [ReasonSeg(root, split=split).keys for split in ("validation", "test")] == [("val/b#0",), ("test/c#0",)]
    assert make("reasonseg", root=root.parent, task="refer", split="all").shown == "refer"
    assert len(ReasonSeg(root, split="all", exclude=["train/a"])) == 2


def test_the_smaller_polygon_lies_on_the_larger(reasonseg):
    inside = [TARGET, square("Ignore_1", 2, 2, 1), square("flag", 0, 0, 11)]
    sample = ReasonSeg(reasonseg(shapes=inside))[0]
    assert sample.masks[0].sum() == 36 - 4 and sample.void[0].sum() == 4 and sample.void[0][2:4, 2:4].all()
    around = [TARGET, square("ignore", 0, 0, 8)]
    sample = ReasonSeg(reasonseg(shapes=around))[0]
    assert sample.masks[0].sum() == 36 and sample.void[0].sum() == 81 - 36
    several = ReasonSeg(reasonseg(shapes=[TARGET, square("target", 10, 1, 1)]))[0]
    assert several.masks[0].shape[0] == 1 and several.masks[0].sum() == 36 + 4  # one region, not two instances


@pytest.mark.parametrize("shapes", [[], [square("ignore", 0, 0, 3)]])
def test_photos_without_a_target_are_left_out_or_asked_for(reasonseg, shapes):
    root = reasonseg(shapes=shapes)
    data = ReasonSeg(root, split="all")
    assert data.keys == ("test/c#0", "val/b#0")
    assert "1 photos without a target (data.no_target=true reads them) are left out: train/a" in data.describe()
    for asked in (ReasonSeg(root, no_target=True), ReasonSeg(root, task="refer")):
        assert len(asked) == 2 and asked[0].masks[0].shape == (0, *SHAPE) and not asked[0].union().any()
    assert len(ReasonSeg(root, split="all", task="refer", no_target=False)) == 2
    with pytest.raises(UserError, match="data.no_target=maybe: expected true, false or null"):
        ReasonSeg(root, no_target="maybe")


def test_texts_of_windows_are_read(reasonseg):
    path = reasonseg() / "train" / "a.json"
    path.write_bytes(json.dumps({"text": ["caf\xe9"], "shapes": [TARGET]}, ensure_ascii=False).encode("cp1252"))
    assert ReasonSeg(path.parents[1])[0].need == "caf\xe9"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"text": None}, r"text is 'None': expected a list of texts, at least one"),
        ({"text": "who"}, r"text is 'who': expected a list of texts"),
        ({"text": []}, r"text is '\[\]': expected a list of texts, at least one"),
        ({"text": ["who", " "]}, r"text is .*: expected a list of texts"),
        ({"shapes": {}}, r"shapes is '\{\}': expected a list of polygons"),
        ({"shapes": [3]}, r"shapes\[0\]: label is 'None': expected target or ignore"),
        ({"shapes": [TARGET, {"label": "target"}]}, r"shapes\[1\]: points is 'None': expected a polygon of three"),
        ({"shapes": [{"label": "target", "points": [[0, 0], [3, 3]]}]}, r"shapes\[0\]: 2 points: expected a polygon"),
        ({"shapes": [{"label": "target", "points": [[0, 0], [3, 3], [1]]}]}, r"a point is '\[1\]': expected x and y"),
        ({"shapes": [{"label": "target", "points": [[0, 0], [3, 3], [1, None]]}]}, r"a point is '\[1, None\]'"),
        ({"shapes": [{"label": "target", "points": [[0, 0], [3, 3], [1e300, 1]]}]}, r"a point is '\[1e\+300, 1\]'"),
        ({"shapes": [{"label": "target", "points": [[0, 0], [3, 3], [float("nan"), 1]]}]}, r"a point is '\[nan, 1\]'"),
        ({"shapes": [{"label": "target", "points": [[0, 0], [3, 3], [True, 1]]}]}, r"a point is '\[True, 1\]'"),
    ],
)
def test_json_at_fault(reasonseg, content, message):
    root = reasonseg(**content)
    with pytest.raises(DataFault, match=rf"train/a\.json: .*{message}") as told:
        ReasonSeg(root)
    assert "\n" not in str(told.value) and len(told.value.faults) == 1
    lenient = ReasonSeg(root, split="all", strict=False)
    assert len(lenient) == 2 and len(lenient.faults) == 1
    assert len(ReasonSeg(root, split="all", exclude=["train/a"])) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"[" * 100_000, b"\x81\x8d", b"\xff\xfe"])
def test_files_that_are_no_json_of_the_set(reasonseg, content):
    root = reasonseg()
    (root / "train" / "a.json").write_bytes(content)
    with pytest.raises(DataFault, match=r"a\.json: (not JSON|a list: expected an object|a int: expected an object)"):
        ReasonSeg(root)


def test_files_at_fault(reasonseg, photo, truncate):
    root = reasonseg()
    photo(root / "val" / "lonely.jpg")
    (root / "test" / "nobody.json").write_text("{}")
    with pytest.raises(DataFault) as told:
        ReasonSeg(root)
    assert told.value.faults == (
        f"{root}/test/nobody.json: no photo of this name beside it",
        f"{root}/val/lonely.jpg: no lonely.json beside it",
    )
    data = ReasonSeg(root, strict=False)
    truncate(root / "train" / "a.jpg")
    with pytest.raises(DataFault, match=r"a\.jpg: cannot be decoded"):
        data[0]
    outside = ReasonSeg(reasonseg(shapes=[square("target", 500, 500, 3)]), strict=False)
    with pytest.raises(DataFault, match=r"a\.json: no pixel of a\.jpg is target"):
        outside[0]


def test_no_photos_at_all(tmp_path):
    with pytest.raises(DataFault, match=r"no NAME.json beside NAME.jpg here or in train/, val/ or test/"):
        ReasonSeg(tmp_path)
    with pytest.raises(UserError, match="task=sod: data=reasoning reads need, refer"):
        ReasonSeg(tmp_path, task="sod")


def test_a_check_counts_photos_and_texts(reasonseg, tmp_path):
    root = reasonseg()
    report = check("reasonseg", root)
    assert report.ok and report.counts["train"] == {"samples": 2, "images": 2, "instances": 2}
    assert "split train has 1 photos without fault; its authors state 239" in report.notes
    assert detect(root) == "reasonseg" and detect(root.rename(tmp_path / "mine")) == "reasoning"


def test_the_region_can_be_drawn_at_any_place(reasonseg):
    """Corners may lie outside of the photo, and a polygon may be a line."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.integers(-100_000, 100_000, (5, 2)).tolist()
        data = ReasonSeg(reasonseg(shapes=[TARGET, {"label": "target", "points": points}]))
        assert data[0].masks[0].sum() >= 36
    line = {"label": "target", "points": [[2, 2], [2, 2], [2, 2]]}
    assert ReasonSeg(reasonseg(shapes=[line]))[0].masks[0].sum() == 1
