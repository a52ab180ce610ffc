from __future__ import annotations

import math

import pytest

from maskgym.errors import UserError
from maskgym.experiments.wiring import run_folder


def test_a_column_may_appear_late(tmp_path):
    metrics = run_folder.Metrics(tmp_path / "metrics.csv")
    metrics.add(0, {"held_out/iou": 0.25})
    metrics.add(1, {"reward": 0.5})
    metrics.add(2, {"reward": math.nan, "loss, sum": 1e-7})
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header == 'step,wall_s,held_out/iou,reward,"loss, sum"'
    assert [line.split(",")[0] for line in lines] == ["0", "1", "2"]
    rows = run_folder.read_metrics(tmp_path / "metrics.csv")
    assert [row.get("held_out/iou") for row in rows] == [0.25, None, None]
    assert rows[2]["loss, sum"] == 1e-7 and math.isnan(rows[2]["reward"])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]  # no temporary file is left


def test_a_resumed_run_replaces_the_rows_it_reaches_again_and_goes_on_counting_seconds(tmp_path):
    first = run_folder.Metrics(tmp_path / "metrics.csv")
    first._spent = 100.0
    for step in range(4):
        first.add(step, {"reward": float(step)})
    second = run_folder.Metrics(tmp_path / "metrics.csv")
    second.add(2, {"reward": 20.0})
    second.add(2, {"held_out/iou": 0.5})  # an evaluation after the same update
    second.add(2, {"held_out/iou": 0.7})
    rows = run_folder.read_metrics(tmp_path / "metrics.csv")
    assert [(row["step"], row.get("reward"), row.get("held_out/iou")) for row in rows] == [
        (0, 0.0, None),
        (1, 1.0, None),
        (2, 20.0, None),
        (2, None, 0.7),
    ]
    assert [row["wall_s"] for row in rows] == sorted(row["wall_s"] for row in rows)
    assert 100 <= second.wall_s < 130


def test_an_evaluation_of_the_beginning_that_is_made_again_leaves_the_rows_of_updates(tmp_path):
    first = run_folder.Metrics(tmp_path / "metrics.csv")
    for step in range(3):
        first.add(step, {"reward": float(step)})
    second = run_folder.Metrics(tmp_path / "metrics.csv")
    second.add(0, {"held_out/iou": 0.5})
    rows = run_folder.read_metrics(tmp_path / "metrics.csv")
    assert [(row["step"], row.get("held_out/iou")) for row in rows] == [(0, None), (0, 0.5), (1, None), (2, None)]
    assert [row["wall_s"] for row in rows] == sorted(row["wall_s"] for row in rows)


BROKEN = (
    "",
    "17",
    "step,wall_s\n1,x\n",
    "wall_s\n1\n",
    "step,wall_s\n1,2,3,4\n",
    "step,wall_s\n1,2\n2,3.",
    "step,wall_s\n1\n",
)


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_metrics_file_is_named(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.csv: cannot be read"):
        run_folder.read_metrics(tmp_path / "metrics.csv")


def test_json_has_no_nan(tmp_path):
    run_folder.write_json(tmp_path / "a" / "b.json", {"x": [math.nan, math.inf, 1.5], "y": ("é", None)})
    assert run_folder.read_json(tmp_path / "a" / "b.json") == {"x": [None, None, 1.5], "y": ["é", None]}


DEEP = "[" * 100_000
RESULTS = (
    "1",
    "[]",
    '{"before": {}}',
    '{"before": [], "after": {}}',
    '{"before": {"x": "1"}, "after": {}}',
    "\xff",
    DEEP,
)
ROW = '{"task": "sis", "key": "a", "index": 0, "before": {"answer": "", "reward": 0}, "after": '


@pytest.mark.parametrize("text", RESULTS)
def test_results_of_wrong_types_are_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"results\.json: "):
        run_folder.read_results(tmp_path)


@pytest.mark.parametrize("text", ["1", "[]", "{}", ROW + "3}", ROW + '{"answer": ""}}', "{", DEEP])
def test_answers_of_wrong_types_are_named(tmp_path, text):
    file = tmp_path / "samples" / "answers.jsonl"
    file.parent.mkdir()
    whole = ROW + '{"answer": "", "reward": null}}\n'
    file.write_text(whole)
    assert run_folder.read_answers(tmp_path)[0]["key"] == "a"
    file.write_text(whole + text)
    with pytest.raises(UserError, match=r"answers\.jsonl: (line 2|cannot be read)"):
        run_folder.read_answers(tmp_path)


def config(**changes):
    return {"env": {"name": "sis"}, "algo": {"name": "random"}, "seed": 4, "out": None, **changes}


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder.time, "strftime", lambda form: "now")
    made = [run_folder.create(config()) for _ in range(3)]
    assert [folder.name for folder in made] == ["seed4-now", "seed4-now-2", "seed4-now-3"]
    assert {folder.parent for folder in made} == {tmp_path / "runs" / "sis" / "random"}
    assert all(folder.is_dir() and not any(folder.iterdir()) for folder in made)


def test_a_folder_with_a_run_and_one_that_cannot_be_written_are_refused(tmp_path):
    folder = run_folder.create(config(out=str(tmp_path / "a" / "b")))
    assert folder == tmp_path / "a" / "b"
    (folder / "config.yaml").touch()
    with pytest.raises(UserError, match=r"holds a run: continue it with resume="):
        run_folder.check_unused(run_folder.create(config(out=str(folder))))
    with pytest.raises(UserError, match=r"out=.*: cannot be written"):
        run_folder.create(config(out=str(folder / "config.yaml")))


def test_whole_numbers_of_a_log_that_is_continued_stay_whole(tmp_path):
    file = tmp_path / "metrics.csv"
    run_folder.Metrics(file).add(1, {"epoch": 0, "loss": 0.5, "reward": -2})
    first = file.read_text()
    run_folder.Metrics(file).add(2, {"epoch": 0})
    assert file.read_text().startswith(first) and file.read_text().splitlines()[1].endswith(",0,0.5,-2")
