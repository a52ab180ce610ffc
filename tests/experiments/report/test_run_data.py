"""Run folders as reports read them."""

from __future__ import annotations

import pytest

from maskgym.errors import UserError
from maskgym.experiments.report import run_data
from maskgym.experiments.report.run_data import SECONDS


def test_scores_values_and_curves_are_those_of_the_files(folder):
    run = run_data.read(folder)
    assert run.main == ["reward", "iasm"]
    assert run.score("reward", "after") == 0.75 and run.score("reward", "gain") == 0.5
    assert (
        run.score("ap50", "after") == 0.5 and run.score("ap50", "gain") is None and run.values("ap50", "after") is None
    )
    assert run.values("iasm", "gain") == pytest.approx([0.5, 0.5])
    curves = run.curves()
    assert curves["reward"] == [(1, 0.25), (2, 0.25)] and curves[SECONDS] == [(1, 3.0), (2, 3.0)]
    assert "entropy" not in curves  # NaN at every step
    assert run.total("reward_calls") == 16 and run.total("steps") is None and run.peak_memory_mib == 502


def test_a_measure_with_the_prefix_of_a_task_is_that_of_its_samples(folder):
    run = run_data.read(folder)
    other = [{**row, "task": "sod", "key": f"sod{row['index']}"} for row in run.samples]
    several = run_data.Run(run.folder, run.config, run.results, run.rows, [*run.samples, *other])
    assert several.keys("sod/reward") == ("sod0", "sod1") and len(several.values("sis/reward", "after")) == 2


def test_a_picture_that_is_gone_or_lies_elsewhere_is_left_out(folder):
    run = run_data.read(folder)
    assert [run.picture(row) for row in run.samples] == [folder / "samples" / "sis-00.png", None]
    (folder / "secret.png").write_bytes(b"x")
    assert run.picture({"picture": "../secret.png"}) is None


def test_files_of_several_runs_and_lost_ends_are_told(make_run, tmp_path):
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other", seed=1)
    for name, change, words in (
        ("results.json", lambda text: (other / "results.json").read_text(), "of seed=1: expected seed=0"),
        ("metrics.csv", lambda text: text[: text.rindex("2,")], "ends after update 1 of 2"),
        (
            "results.json",
            lambda text: text.replace('"seed"', '"samples": {"sis": {"n": 3}}, "seed"'),
            "has 2 answers of 3",
        ),
    ):
        before = (run / name).read_bytes()
        (run / name).write_bytes(change(before.decode()).encode())
        with pytest.raises(UserError, match=rf"(metrics\.csv|results\.json|answers\.jsonl): .*{words}"):
            run_data.read(run)
        (run / name).write_bytes(before)


def test_what_is_no_finished_run_is_told_in_one_line(folder, tmp_path):
    (folder / "samples" / "answers.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"answers\.jsonl: cannot be read"):
        run_data.read(folder)
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match=r"its run is not finished: continue it with resume="):
        run_data.read(folder)
    with pytest.raises(UserError, match=r"no such file: expected the folder of a run"):
        run_data.read(tmp_path)
