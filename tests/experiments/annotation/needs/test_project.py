from __future__ import annotations

import json
import os
import signal

import pytest

from maskgym.errors import UserError
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
