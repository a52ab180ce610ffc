"""Rationales from a file: which sample gets which, and what is no such file."""

from __future__ import annotations

import json
import os

import pytest

from maskgym import data
from maskgym.data.layout.images import DataFault
from maskgym.data.rationales import WithRationales
from maskgym.envs.reasoning import ReasoningVectorEnv
from maskgym.errors import UserError


class Keyed(data.Dataset):
    """Counts what is read of another data set, whose keys it knows."""

    def __init__(self, dataset) -> None:
        self.dataset, self.task, self.split, self.read = dataset, dataset.task, dataset.split, 0
        self.keys = tuple(dataset[index].key for index in range(len(dataset)))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        self.read += 1
        return self.dataset[index]


@pytest.fixture
def write(tmp_path):
    def write(*rows) -> str:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows]
        (tmp_path / "rows.jsonl").write_bytes(b"".join(lines))
        return str(tmp_path / "rows.jsonl")

    return write


def row(key: str, rationale: str = "because", task: str = "sis", **more) -> dict:
    return {"key": key, "task": task, "rationale": rationale, **more}


def test_samples_get_their_rationales_in_the_order_of_the_data(photos, write):
    rows = [row("photo2", "two"), row("photo0", "zero\u2028\U0001f600"), row("photo1", task="sod"), row("elsewhere")]
    found = WithRationales(photos(), write(*rows))
    assert (found.task, found.split, len(found), found.keys) == ("sis", "train", 2, ("photo0", "photo2"))
    assert [found[i].rationale for i in range(2)] == ["zero\u2028\U0001f600", "two"]
    assert found[1].images[0] is photos().samples[2].images[0] or found[1].images[0].shape == (32, 32, 3)
    assert [found[i].key for i in range(2)] == ["photo0", "photo2"]


def test_keys_that_are_known_spare_reading(photos, write):
    known = Keyed(photos())
    found = WithRationales(known, write(row("photo1")))
    assert known.read == 0 and found[0].rationale == "because" and known.read == 1


def test_which_samples_have_a_rationale_is_known_and_those_left_out_are_counted(photos, write):
    found = WithRationales(photos(), write(row("photo1"), row("photo0")))
    assert found.with_rationale == (0, 1)
    file = write(row("photo1"), row("photo0"))
    assert found.describe() == [f"{len(photos()) - 2} of {len(photos())} samples are left out: no rationale in {file}"]
    assert photos().with_rationale == tuple(range(len(photos())))
    scenes = data.make("scenes", task="sod", size=9)
    assert scenes.with_rationale == tuple(range(9)) == Keyed(scenes).with_rationale
    assert data.make("scenes", task="need", size=9).with_rationale == ()
    assert data.few_shot(WithRationales(photos(), file), 1).with_rationale == (0,)


def test_environments_hand_them_out_in_training(write):
    scenes = data.make("scenes", task="sis", size=3)
    found = WithRationales(scenes, write(row(scenes[1].key, "<think>why</think><answer><ins>a star</ins></answer>")))
    env = ReasoningVectorEnv(2, "sis", found, image_size=32, autoreset_mode="Disabled")
    _, infos = env.reset(options={"index": [0, 0]})
    assert env.num_samples == 1
    assert list(infos["rationale"]) == ["<think>why</think><answer><ins>a star</ins></answer>"] * 2
    assert list(infos["sample_key"]) == [scenes[1].key] * 2


def test_groups_that_are_cut_otherwise_are_told(photos, write):
    rows = [row("group2", task="cosod", images=["a", "b"]), row("group3", task="cosod", images=["a", "b"])]
    found = WithRationales(photos("cosod"), write(*rows))
    assert found[0].rationale == "because"
    with pytest.raises(UserError, match="the rationale for 'group3' is of 2 images, the sample has 3: expected groups"):
        found[1]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("photo0"), b'{"key": "photo1", "ta'], "line 2: no JSON"),
        ([b"\xff\xfe\n"], "line 1: no JSON"),
        ([b"[" * 100_000 + b"\n"], "line 1: no JSON"),
        ([b"[1]\n"], "line 1: a list in place of a JSON object"),
        ([{"key": "photo0", "task": "sis"}], "line 1: 'rationale' is null: expected a text"),
        ([row("photo0", "")], "line 1: 'rationale' is \"\": expected a text"),
        ([{**row("photo0"), "key": 7}], "line 1: 'key' is 7: expected a text"),
        ([row("photo0", "<think>\ud800</think>")], "line 1: 'rationale' has half of a surrogate pair"),
        ([row("photo0"), row("photo0")], "line 2: a second rationale for 'photo0'"),
    ],
)
def test_lines_that_are_none_are_told_by_number(photos, write, rows, expected):
    file = write(*rows)
    with pytest.raises(DataFault) as error:
        WithRationales(photos(), file)
    assert str(error.value).startswith(f"{file}: ") and expected in str(error.value)


@pytest.mark.parametrize("rows", [[], [row("elsewhere")], [row("photo0", task="sod")], [b"\n"]])
def test_a_file_for_other_data_is_refused(photos, write, rows):
    with pytest.raises(UserError, match="none of them for the 3 samples of the train split"):
        WithRationales(photos(), write(*rows))


def test_a_file_that_is_not_there_is_told(photos, tmp_path):
    with pytest.raises(UserError, match="nowhere.jsonl: cannot be read: No such file"):
        WithRationales(photos(), tmp_path / "nowhere.jsonl")


def test_what_is_no_file_does_not_block(photos, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataFault, match="pipe.jsonl: not a regular file"):
        WithRationales(photos(), tmp_path / "pipe.jsonl")
