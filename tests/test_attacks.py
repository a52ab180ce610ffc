"""The harness of attacks at small counts, and whether it notices what must not happen."""

from __future__ import annotations

import os
import pickle
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from maskgym.benchmarks import attacks
from maskgym.benchmarks.attacked import code, damage, parts, runs, sets
from maskgym.benchmarks.attacked.harness import Broken, Row, Stage, check_line, run
from maskgym.data.check import Report, check
from maskgym.errors import UserError

pytest.importorskip("starlette")

SMALL = {  # cases that need no training of text, whose libraries take seconds to import
    **{"pickles": 8, "yaml": 4, "token": 4, "players": 1, "reviewers": 1, "vectors": 7, "metrics": 100, "play": 15},
    **{"page": 15, "hf": 6, "dig": 6, "sets": 65, "answers": 1000, "code": 9, "runs": 1, "kill": 1, "interrupt": 1},
    **{"disk": 1, "files": 8},
}
SLOW = {"checkpoint": 3, "start": 2, "code": 20, "files": 6, "kill": 4, "disk": 2, "long": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("attacked")


@pytest.fixture
def stage(place, monkeypatch):
    """Return a stage whose runs are shared, without those of text; what rows change outside of it is restored."""
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
    return Stage(place, ("ppo",))


def test_every_row_is_tried():
    assert {*SMALL, *SLOW} == {*attacks.ROWS}


@pytest.mark.parametrize("name", SMALL)
def test_attacks_are_survived(stage, name):
    tally = run(name, attacks.ROWS[name], stage, 1, SMALL[name])
    assert not tally.failures and tally.tried >= SMALL[name]
    assert tally.told or name in ("players", "answers", "kill")


@pytest.mark.e2e(seconds=25)
@pytest.mark.parametrize("name", SLOW)
def test_attacks_on_text_and_slow_ones_are_survived(place, stage, name):
    tally = run(name, attacks.ROWS[name], Stage(place, ("text", "ppo", "usersal_plus", "refer")), 1, SLOW[name])
    assert not tally.failures


def failures(stage: Stage, name: str, count: int) -> str:
    return "\n".join(run(name, attacks.ROWS[name], stage, 1, count).failures)


def test_a_check_that_finds_nothing_is_noticed(stage, monkeypatch):
    monkeypatch.setattr(sets, "check", lambda name, root, task: Report(name, str(root), "sod", {}, (), ()))
    found = failures(stage, "sets", 14)
    assert "--seed 1 sets, number " in found and "no fault was found" in found


def test_a_reader_that_runs_code_is_noticed(stage, monkeypatch):
    monkeypatch.setattr(code, "read_pickle", lambda file: pickle.loads(file.read_bytes()))
    assert "its code ran" in failures(stage, "pickles", 6)


def test_a_command_that_swallows_damage_is_noticed(stage, monkeypatch):
    readers = damage._readers
    monkeypatch.setattr(damage, "_evaluated", lambda folder: ("", (folder / "results.json").exists()))
    monkeypatch.setattr(damage, "_readers", lambda stage, kind: {"evaluate": readers(stage, kind)["evaluate"]})
    monkeypatch.setattr(damage, "DAMAGES", {"removed": damage.DAMAGES["removed"]})
    assert "results.json removed: silently other" in failures(stage, "files", 60)


def test_a_resumed_run_that_ends_otherwise_is_noticed(stage, monkeypatch):
    ended = runs.ended
    monkeypatch.setattr(runs, "ended", lambda folder: ended(folder) | ({"seed": 7} if folder.name == "case" else {}))
    assert "silently other: seed" in failures(stage, "kill", 1)


def test_a_wrong_score_and_another_exception_are_noticed(stage, monkeypatch):
    monkeypatch.setitem(parts.METRICS, "iou", lambda one, two: 0.5)
    found = failures(stage, "metrics", 500)
    assert "iou, NaN as" in found and "scored 0.5" in found and "mae" not in found

    def refuse(text: str, task: str) -> None:
        raise ValueError("too bad")

    monkeypatch.setattr(parts, "parse", refuse)
    assert "ValueError: too bad (" in failures(stage, "answers", 1000)


def test_hangs_lines_and_memory_are_noticed(stage):
    def row(act: Callable[[], str]) -> Row:
        return Row("x", 1, lambda stage: lambda chance, number: act(), bound_s=0.2)

    def wait() -> str:
        time.sleep(5)
        return ""

    def two_lines() -> str:
        raise UserError("one\ntwo")

    told = [run("x", row(act), stage, 0, 1).failures for act in (wait, two_lines)]
    assert "Hang: not done after" in told[0][0] and "not in a printable line" in told[1][0]
    for line in ("", "a\x1b[2J", "a" * 2000):
        with pytest.raises(Broken, match="told in"):
            check_line(line)


@pytest.mark.parametrize(
    ("name", "samples", "instances"),
    [("refcocog", 4, 4), ("grefcoco", 5, 4), ("reasonseg", 4, 4), ("cod10k", 4, 2), ("camo", 4, 4), ("dis5k", 4, 4)],
)
def test_the_published_layouts_that_are_attacked_are_read_whole(tmp_path, name, samples, instances):
    sets.SETS[name](tmp_path)
    report = check(name, tmp_path, sets.TASKS.get(name))
    total = report.as_dict()["counts"]["total"]
    assert report.ok and (total["samples"], total["instances"]) == (samples, instances)


def test_cases_are_repeated_by_their_seed(stage, tmp_path):
    def drawn(seed: int) -> list[float]:
        seen: list[float] = []

        def draw(chance: random.Random, number: int) -> str:
            seen.append(chance.random())
            return ""

        run("x", Row("x", 3, lambda stage: draw), stage, seed, 3)
        return seen

    assert drawn(1) == drawn(1) and drawn(1) != drawn(2) and len(set(drawn(1))) == 3
    sets.SETS["coco"](tmp_path / "a")
    sets.SETS["coco"](tmp_path / "b")
    assert sets.damage_set(tmp_path / "a", random.Random(4)) == sets.damage_set(tmp_path / "b", random.Random(4))


def test_the_command_prints_a_table_and_fails_if_a_case_did(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["attacks.py", "pickles", "--counts", "pickles=1"])
    monkeypatch.setattr(attacks.resource, "setrlimit", lambda *arguments: None)
    assert attacks.main() == 0
    assert "| RefCOCO pickles | 1 | 1 |" in capsys.readouterr().out
    monkeypatch.setattr(code, "read_pickle", lambda file: pickle.loads(Path(file).read_bytes()))
    assert attacks.main() == 1
    assert "| RefCOCO pickles | 1 | 0 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["attacks.py", "nothing"])
    with pytest.raises(SystemExit):
        attacks.main()
