"""Scoring in processes, and again where it was stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from maskgym.data.layout.images import DataFault
from maskgym.experiments import cli
from maskgym.experiments.evaluation import predictions, presets, scoring

PRESET = presets.find("pysodmetrics")


@pytest.fixture
def pairs(tmp_path):
    """Return 120 pairs of maps and masks, three chunks of them."""
    rng, found = np.random.default_rng(0), []
    for number in range(120):
        files = [tmp_path / side / f"{number:03d}.png" for side in ("pred", "gt")]
        for file in files:
            file.parent.mkdir(exist_ok=True)
            noise = rng.integers(0, 256, (10, 14), dtype=np.uint8)
            Image.fromarray(noise if file is files[0] else np.uint8(255) * (noise > 150)).save(file)
        found.append(predictions.Pair(f"{number:03d}", *files))
    return found


def test_processes_change_no_number(pairs):
    work = predictions.Maps(pairs, PRESET)
    alone, together = scoring.score(work), scoring.score(work, jobs=2)
    assert alone == together
    assert alone.scores["images"] == 120 and [row["key"] for row in alone.per_image] == [pair.key for pair in pairs]
    assert alone.convention == PRESET.note


def test_a_second_call_measures_only_what_is_left(pairs, tmp_path, monkeypatch):
    whole = scoring.score(predictions.Maps(pairs, PRESET))
    calls = []

    def measure(work, index):
        calls.append(index)
        if len(calls) == 70:
            raise KeyboardInterrupt
        return original(work, index)

    original = predictions.Maps.measure
    monkeypatch.setattr(predictions.Maps, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        scoring.score(predictions.Maps(pairs, PRESET), folder=tmp_path / "out")
    again = scoring.score(predictions.Maps(pairs, PRESET), folder=tmp_path / "out")
    assert calls == [*range(70), *range(50, 120)]
    assert again == whole
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("change", ["file", "preset", "pairs"])
def test_what_is_kept_of_other_work_is_not_used(pairs, tmp_path, change):
    kept = scoring._Kept(tmp_path / "parts", predictions.Maps(pairs, PRESET))
    kept.write(0, [{"key": "000", "notes": [], "mae": 0.5}])
    same = scoring._Kept(tmp_path / "parts", predictions.Maps(pairs, PRESET))
    assert same.read(3) == {0: [{"key": "000", "notes": [], "mae": 0.5}]}
    preset = presets.find("alignsam") if change == "preset" else PRESET
    if change == "file":
        Image.fromarray(np.zeros((10, 14), np.uint8)).save(pairs[7].prediction)
        os.utime(pairs[7].prediction, ns=(1, 1))
    other = scoring._Kept(tmp_path / "parts", predictions.Maps(pairs[1:] if change == "pairs" else pairs, preset))
    assert other.read(3) == {}


def test_every_file_that_cannot_be_read_is_named(pairs, tmp_path):
    for number in (3, 64):
        pairs[number].prediction.write_bytes(pairs[number].prediction.read_bytes()[:-30])
    with pytest.raises(DataFault) as caught:
        scoring.score(predictions.Maps(pairs, PRESET), jobs=2, folder=tmp_path / "out")
    assert [fault.split(":")[0][-7:] for fault in caught.value.faults] == ["003.png", "064.png"]
    kept = scoring._Kept(tmp_path / "out" / scoring.PARTS, predictions.Maps(pairs, PRESET))
    assert list(kept.read(3)) == [2]  # and what is whole need not be measured again


def test_a_killed_command_goes_on(pairs, tmp_path, capsys):
    def evaluate(name: str) -> str:
        assert cli.main([*command, str(tmp_path / name)]) == 0
        return capsys.readouterr().out

    command = ["evaluate", str(tmp_path / "pred"), "--jobs=1", "--truth", str(tmp_path / "gt"), "--out"]
    cold = [sys.executable, "-m", "maskgym.experiments.cli", *command, str(tmp_path / "killed")]
    process = subprocess.Popen(cold, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "killed" / scoring.PARTS / "00000.json").exists():
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert evaluate("killed") == evaluate("whole").replace(str(tmp_path / "whole"), str(tmp_path / "killed"))
    results = [(tmp_path / name / "results.json").read_text() for name in ("whole", "killed")]
    assert results[0] == results[1]


def test_a_long_list_is_cut():
    assert scoring.shorten("7 things", list("abcdefg")) == "7 things: a, b, c, d, e, …"
    assert scoring.shorten("2 things", ["a", "b"]) == "2 things: a, b"


def test_names_in_notes_are_escaped():
    assert scoring.shorten("1 of 2", ["a\x1b[2J\nb"]) == "1 of 2: a\\x1b[2J b"
