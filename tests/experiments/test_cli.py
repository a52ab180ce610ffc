from __future__ import annotations

import json

import pytest
from PIL import Image

from maskgym.experiments import cli


def test_without_a_command_it_lists_them(capsys):
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    for words in cli.COMMANDS:
        assert f"maskgym {' '.join(words)} " in listed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nope"], "unknown command 'nope': expected one of run, plan, evaluate, study"),
        (["data"], "unknown command 'data'"),
        (["data", "check"], "required: DIR"),
        (["data", "check", "nowhere"], "nowhere"),
        (["rewards", "audit", "--task", "x"], "invalid choice: 'x'"),
        (["evaluate", "nowhere"], "nowhere: no such folder"),
        (["export", "nowhere", "out"], "nowhere/config.yaml: no such file"),
        (["data", "show", "nowhere"], "data.root=nowhere: no such folder"),
        (["data", "check", ".", "--data", "nope"], "unknown data set 'nope'"),
        (["data", "check", ".", "--data", "folder", "size=3"], "argument 'size': data=folder takes root, task"),
        (["data", "show", ".", "--out", "sheet.jpg"], "expected a name that ends in .png"),
        (["data", "show", ".", "--samples", "0"], "--samples 0: expected at least 1"),
        (["run", "env=nope"], "unknown env 'nope'"),
        (["segmenter", "finetune", "steps"], "argument 'steps'"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(capsys, arguments, expected):
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line


def test_data_check(capsys, photo_folder):
    assert cli.main(["data", "check", str(photo_folder)]) == 0
    assert "no faults" in capsys.readouterr().out
    (photo_folder / "masks" / "000.png").unlink()
    assert cli.main(["data", "check", str(photo_folder), "--json", "--data", "folder", "--task", "sod"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["total"]["samples"] == 39
    assert any("000" in fault for fault in report["faults"])


def test_arguments_of_the_reader(capsys, photo_folder):
    assert cli.main(["data", "check", str(photo_folder), "splits=test", "exclude=['000', '001']"]) == 0
    assert capsys.readouterr().out.split("test")[-1].split()[:3] == ["38", "38", "38"]


def test_data_show(capsys, photo_folder, tmp_path):
    sheet = tmp_path / "sheet.png"
    assert cli.main(["data", "show", str(photo_folder), "--samples", "7", "--out", str(sheet)]) == 0
    assert capsys.readouterr().out == f"{sheet}: 7 samples\n"
    wide, high = Image.open(sheet).size
    assert wide >= 1600 and 224 < high < 3 * 300


def test_rewards_audit(capsys):
    assert cli.main(["rewards", "audit", "--task", "cosod", "--samples", "3"]) == 0
    table = capsys.readouterr().out
    assert "cosod, 3 samples" in table and "the truth" in table


def test_evaluate_repeats_what_the_run_found(capsys, finished_run):
    folder = finished_run("cgpo")
    capsys.readouterr()
    assert cli.main(["evaluate", str(folder)]) == 0
    scores = json.loads(capsys.readouterr().out)
    results = json.loads((folder / "results.json").read_text())
    assert scores.pop("provenance")["held_out"] == results["provenance"]["held_out"]
    assert scores == results["after"]
