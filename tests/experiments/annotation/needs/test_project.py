from __future__ import annotations

import json
import os
import signal

import pytest

from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import review
from maskgym.experiments.annotation.needs.project import Project, Settings, digest, write_changed


def test_options_are_remembered_and_replaced(tmp_path):
    assert Project(tmp_path / "p", {"dataset": "scenes", "samples": 7, "prices": [1, 2]}).settings.samples == 7
    again = Project(tmp_path / "p", {"needs": 2}).settings
    assert (again.dataset, again.samples, again.needs, again.prices) == ("scenes", 7, 2, (1, 2))
    assert Project(tmp_path / "p", {"samples": 9}).settings.samples == 9


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "expected --images DIR or --dataset scenes"),
        ({"images": "a", "dataset": "scenes"}, "expected --images DIR or --dataset scenes"),
        ({"dataset": "scenes", "needs": 0}, "--needs 0: expected at least 1"),
        ({"dataset": "scenes", "threshold": 2.0}, "--threshold 2.0: expected 0 to 1"),
        ({"dataset": "scenes", "pause": -1.0}, "--pause -1.0: expected at least 0"),
        ({"dataset": "scenes", "timeout": float("nan")}, "--timeout nan"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, settings, expected):
    with pytest.raises(UserError, match=expected):
        Project(tmp_path / "p", settings)
    assert not (tmp_path / "p").exists()


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other things"):
        Project(tmp_path, {"dataset": "scenes"})
    Project(tmp_path / "p", {"dataset": "scenes"})
    with pytest.raises(UserError, match="another folder for --images"):
        Project(tmp_path / "p", {"images": str(tmp_path)})
    (tmp_path / "p" / "project.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="is not a project of this version"):
        Project(tmp_path / "p")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, killed):
    write_changed(tmp_path / "a.json", "old")

    def act():
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        write_changed(tmp_path / "a.json", "new" * 1000)

    killed(act)
    assert (tmp_path / "a.json").read_text() == "old"
    write_changed(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_two_at_a_time_are_one_too_many_and_a_kill_lets_go(tmp_path, killed):
    project = Project(tmp_path / "p", {"dataset": "scenes"})

    def act():
        with project.alone("dig"):
            os.kill(os.getpid(), signal.SIGKILL)

    killed(act)
    with project.alone("dig"), project.alone("correct"):
        with pytest.raises(UserError, match=r"another process is at work here \(dig\)"), project.alone("dig"):
            pass


def test_a_digest_follows_what_is_said():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert len({digest(1), digest("1"), digest([1]), digest(1, None)}) == 4


def test_every_setting_is_in_the_file(tmp_path):
    Project(tmp_path / "p", {"dataset": "scenes"})
    kept = json.loads((tmp_path / "p" / "project.json").read_text())["settings"]
    assert set(kept) == set(Settings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("samples", "x"), ("samples", 2.5), ("samples", True), ("images", 5), ("detector", "annotations")),
        *(("detector", [1]), ("threshold", None), ("threshold", "0.5"), ("prices", ["a", "b"]), ("device", {})),
    ],
)
def test_remembered_settings_of_a_wrong_type_are_named(tmp_path, name, value):
    file = Project(tmp_path / "p", {"dataset": "scenes"}).folder / "project.json"
    content = json.loads(file.read_text())
    content["settings"][name] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"project\.json: {name}: .*: expected "):
        Project(tmp_path / "p")


@pytest.mark.parametrize(
    "content",
    [
        *("5", "[]", "{}", '{"objects": 5}', '{"objects": [5]}', '{"objects": [{}]}', "{", "[" * 9999),
        '{"objects": [{"id": "a", "segmentation": {"size": [2, 2], "counts": "0"}}]}',
    ],
)
@pytest.mark.parametrize("stage", ["detect", "segment", "needs"])
def test_a_damaged_record_is_named(project, source, stage, content):
    project.file(stage, source.items[1].name).write_text(content)
    with pytest.raises(UserError, match=rf"{stage}/{source.items[1].name}\.json: "):
        review.candidates(project, source)
