"""The command, as it is typed."""

from __future__ import annotations

import json

import pytest

from maskgym.experiments import cli
from maskgym.experiments.annotation.needs import dig as module


def test_from_nothing_to_a_data_set(tmp_path, capsys, contents):
    folder = tmp_path / "p"
    given = ["data", "dig", str(folder), "--dataset", "scenes", "--samples", "2", "--segmenter", "annotations"]
    assert cli.main([*given, "--device", "cpu"]) == 0
    assert "share_rejected" in capsys.readouterr().out
    before = contents(folder)
    assert cli.main(["data", "dig", str(folder)]) == 0  # all that was said is remembered
    assert contents(folder) == before
    assert cli.main(["data", "dig", str(folder), "--stage", "export", "figures", "--include", "all"]) == 0
    assert f"{folder / 'export'}: 2 images, " in capsys.readouterr().out
    assert json.loads((folder / "export" / "annotations.json").read_text())["annotations"][0]["needs"]


def test_names_move_no_cursor(tmp_path, capsys):
    folder = tmp_path / "a\x1b[2J\x07\nb"
    given = ["data", "dig", str(folder), "--dataset", "scenes", "--samples", "1", "--segmenter", "annotations"]
    assert cli.main([*given, "--stage", "detect", "segment", "needs", "export", "--include", "all"]) == 0
    assert cli.main(["data", "dig", str(folder), "--dataset", "scenes", "--images", "x\x1b[2J"]) == 2
    out, error = capsys.readouterr()
    assert "a\\x1b[2J\\x07 b/export: 1 images" in out and "\\x1b[2J" in error
    assert "\x1b[2J" not in out + error and "\x07" not in out + error


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "expected --images DIR or --dataset scenes"),
        (["--images", "nowhere"], "no such folder"),
        (["--dataset", "scenes", "--needs", "many"], "argument --needs: invalid int value: 'many'"),
        (["--dataset", "scenes", "--stage", "paint"], "invalid choice: 'paint'"),
        (["--dataset", "scenes", "--stage", "segment"], "run --stage detect first"),
        (["--dataset", "scenes", "--stage", "correct"], "nothing is detected yet: run --stage detect first"),
        (["--dataset", "scenes", "--stage", "export"], "nothing is detected yet"),
        (["--dataset", "scenes", "--detector", "nowhere/at-all/x"], "nowhere/at-all/x"),
        (["--dataset", "scenes", "--samples", "1", "--segmenter", "samm"], "unknown segmenter 'samm'"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(tmp_path, capsys, options, expected):
    assert cli.main(["data", "dig", str(tmp_path / "p"), *options]) == 2
    error = capsys.readouterr().err
    (line,) = (line for line in error.replace("\r", "\n").splitlines() if line.startswith("error: "))
    assert expected in line and "Traceback" not in error


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    from maskgym.experiments.annotation.needs import stages

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(stages.STAGES, "segment", interrupted)
    assert cli.main(["data", "dig", str(tmp_path / "p"), "--dataset", "scenes", "--samples", "1"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert (tmp_path / "p" / "detect" / "scene-train-00000.json").exists()


def test_help_names_every_stage_and_says_what_the_default_segmenter_is(capsys):
    with pytest.raises(SystemExit):
        module.main(["--help"])
    text = capsys.readouterr().out
    assert all(stage in text for stage in module.STAGES) and "its masks from boxes are poor" in " ".join(text.split())
