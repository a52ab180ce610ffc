"""Protocols end to end: baselines, a submission beside them, and the gate, by real runs of few updates."""

from __future__ import annotations

import json

import pytest
import yaml

from maskgym.errors import UserError
from maskgym.experiments.grids import benchmark, compare, gate, protocol, results_table
from maskgym.experiments.wiring import run_folder

BRIEF = ["env.num_envs=2", "algo.batch_size=8", "algo.max_new_tokens=40", "algo.updates=2"]
PROTOCOL = {
    "title": "Small",
    "version": 1,
    "about": "What it is.",
    "sections": [
        {
            "title": "Answers",
            "about": "One level.",
            "base": ["evaluation.samples=2", "evaluation.pictures=0", "evaluation.every=1", "env.num_envs=2"],
            "unit": "generated_tokens",
            "columns": {"sis": {"with": ["env=sis"], "measures": ["iasm"], "budget": 100}},
            "rows": {
                "grpo": {"with": ["algo=grpo", *BRIEF[1:]]},
                "random": {"with": ["algo=random"]},
                "oracle": {"with": ["algo=oracle"]},
            },
            "floor": "random",
            "ceiling": "oracle",
            "against": "grpo",
            "gate": "grpo",
            "seeds": [0, 1, 2],
        }
    ],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, in_process):
    """Make the baselines of a small protocol once; return its file and folder."""
    folder = tmp_path_factory.mktemp("protocol")
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(PROTOCOL, sort_keys=False))
    assert benchmark.main([str(file), "--out", str(folder / "out"), "--runs", str(folder / "runs")], in_process) == 0
    return file, folder


@pytest.mark.e2e
def test_the_baselines_are_kept_beside_the_protocol_with_the_scores_of_each_sample(made):
    _, folder = made
    assert (folder / "out" / "small.md").exists() and not (folder / "out" / "small.jsonl.gz").exists()
    rows = results_table.read(folder / "small.jsonl.gz")
    trained = [row for row in rows.values() if row["algo"] == "grpo"]
    assert sorted(row["seed"] for row in trained) == [0, 1, 2] and len(rows) == 9
    for row in trained:
        assert row["wall_s"] > 0
        assert sum(row["per_sample"]["iasm"]) / 2 == pytest.approx(row["after"]["iasm"], abs=1e-5)
        assert row["updates"]["env_steps"] == [8]  # the first update spends the budget


@pytest.mark.e2e
def test_an_algorithm_runs_on_the_levels_and_is_compared(made, in_process, capsys):
    file, folder = made
    out = folder / "mine"
    command = [f"protocol={file}", "algo=rloo", *BRIEF[1:], "--seeds", "0", "1", "--out", str(out)]
    assert benchmark.main(command, in_process) == 0
    told = capsys.readouterr().out
    assert "2 runs: about 0.0 h with --jobs 1" in told and "against | levels | seeds | rloo" in told
    assert {file.name for file in out.iterdir()} == {
        *("comparison.md", "marl_eval.json", "protocol.json", "runs", "scores.csv", "sis.png")
    }
    assert list(json.loads((out / "marl_eval.json").read_text())["maskgym"]["sis"]) == ["rloo", "grpo"]
    before = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/results.json")}
    assert benchmark.main(command, in_process) == 0 and "0 runs" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in before} and len(before) == 2
    newer = folder / "newer.yaml"
    newer.write_text(yaml.safe_dump({**PROTOCOL, "version": 2}, sort_keys=False))
    for again in (
        lambda: benchmark.main([f"protocol={newer}", *command[1:]]),
        lambda: compare.main([str(out), "--protocol", str(newer)]),
    ):
        assert again() == 2
        assert "the runs are of 'Small', version 1: expected 'Small', version 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["algo=grpo", "reward=iasm"], "reward=iasm: the protocol chooses it: expected algo=NAME and algo.KEY=VALUE"),
        (["algo.updates=2"], "protocol=NAME: expected algo=NAME too"),
        (["algo=ppo"], "env=sis algo=ppo: not a pair"),
        (["algo=grpo", "--level", "sis_hrad"], "level 'sis_hrad': expected one of sis"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(tmp_path, capsys, arguments, told):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(PROTOCOL, sort_keys=False))
    assert benchmark.main([f"protocol={file}", *arguments, "--out", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_settings_are_for_a_protocol_only(capsys):
    assert benchmark.main(["refer", "algo=grpo"]) == 2
    assert "settings algo=grpo: is for protocol=NAME" in capsys.readouterr().err


def test_the_prediction_interval_is_that_of_students_t():
    low, high = gate.prediction_interval([0.4, 0.5, 0.6])
    # t of 2 degrees of freedom at 99.5 % is 9.925; the standard deviation 0.1
    assert (low + high) / 2 == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(9.925 * 0.1 * (4 / 3) ** 0.5, rel=1e-3)


@pytest.mark.e2e
def test_the_gate_lets_the_code_as_it_was_pass_and_tells_of_a_change(made, in_process, capsys):
    file, folder = made
    assert gate.run(str(file), None, folder / "gate", 1, in_process) == 0
    assert "sis, grpo, seed=0: iasm" in capsys.readouterr().out
    (run,) = (folder / "gate").glob("*/results.json")
    assert run_folder.read_json(run)["steps"] == 1  # up to the first evaluation
    rows = results_table.read(folder / "small.jsonl.gz")
    for row in rows.values():
        row["held_out"]["iasm"] = [value + 5 for value in row["held_out"]["iasm"]]
    other = folder / "other.jsonl.gz"
    results_table.write(other, rows)
    assert gate.run(str(file), other, folder / "gate", 1, in_process) == 1
    assert "OUTSIDE" in capsys.readouterr().out


def test_a_gate_without_runs_says_what_it_lacks(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(PROTOCOL, sort_keys=False))
    with pytest.raises(UserError, match="sis, grpo: 0 runs: expected at least 3"):
        gate.run(str(file), None, tmp_path / "gate", 1)


def test_every_baseline_of_the_shipped_protocol_reaches_its_budget():
    results = protocol.results(compare.DEFAULT)
    for level in protocol.levels(results.matrix).values():
        floor, ceiling = protocol.bounds(results, level)
        for row in level.section["rows"]:
            runs = results.read(level.section, row, level.name)
            assert sorted(run["seed"] for run in runs) == level.section["seeds"]
            assert all(len(run["per_sample"][level.measure]) == 256 for run in runs)
            assert all(floor - 0.05 < protocol.at_budget(level, run) <= ceiling + 1e-9 for run in runs)


@pytest.mark.e2e
def test_training_goes_as_the_shipped_baselines_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert benchmark.main(["gate"]) == 0
    assert "refer, grpo, seed=0: instance_iou" in capsys.readouterr().out
