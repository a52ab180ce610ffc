"""Sweeps: which runs a wandb file asks for, one table of them however often it is stopped, the command wandb builds."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from maskgym.errors import UserError
from maskgym.experiments import run
from maskgym.experiments.grids import sweep
from maskgym.experiments.grids.runner import RunSpec
from maskgym.experiments.training import train

NAMES = sorted(path.stem for path in sweep.SWEEPS.glob("*.yaml"))
SMALL = {
    "method": "grid",
    "metric": {"name": "held_out/iou", "goal": "maximize"},
    "parameters": {
        **{"env": {"value": "point_prompt"}, "algo": {"value": "random"}, "env.num_envs": {"value": 2}},
        **{"evaluation.samples": {"value": 2}, "evaluation.pictures": {"value": 0}, "logger": {"value": "wandb"}},
        **{"env.horizon": {"value": 1}, "env.task": {"values": ["glass", "shadow"]}, "seed": {"values": [0, 1]}},
    },
}

SWEEP = (sys.executable, "-m", "maskgym.experiments.cli", "sweep")


def write(tmp_path, **changes):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL | changes, sort_keys=False))
    return file


@pytest.mark.parametrize("name", NAMES)
def test_every_sweep_composes_and_says_how_to_run_it(name):
    assert (sweep.SWEEPS / f"{name}.yaml").read_text().startswith(f"# maskgym sweep {name}")
    content = sweep.load(name)
    found = sweep.rows(content)
    specs = {sweep.spec(content, row) for row in found}
    assert 1 < len(specs) == len(found)
    assert sweep.rows(content) == found
    assert not any("logger" in row for row in found)


@pytest.mark.parametrize("name", NAMES)
def test_wandb_takes_the_file(name):
    sweeps = pytest.importorskip("sweeps")  # wandb[sweeps]; it holds NumPy below 2
    content = yaml.safe_load((sweep.SWEEPS / f"{name}.yaml").read_text())
    assert sweeps.schema_violations_from_proposed_config(content) == []
    assert sweeps.schema_violations_from_proposed_config(content | {"method": "guess"}) != []


@pytest.mark.parametrize("name", NAMES)
def test_the_command_that_wandb_builds_is_one_of_ours(name, monkeypatch):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    content = yaml.safe_load((sweep.SWEEPS / f"{name}.yaml").read_text())
    args = {
        n: {"value": given.get("value", given.get("values", [1e-3])[0])} for n, given in content["parameters"].items()
    }
    words = create_sweep_command_args({"args": args})["args_no_hyphens"]
    template = create_sweep_command(list(content["command"]))
    assert template == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    assert (Path(run.__file__).parents[1] / content["program"]).samefile(run.__file__)
    asked = []
    monkeypatch.setattr(
        train, "run", lambda config, folder, resume: asked.append(config) or {"before": {}, "after": {}, "wall_s": 0}
    )
    assert run.main([*words, "logger.mode=offline"]) == 0
    assert asked[0]["algo"]["updates"] == content["parameters"]["algo.updates"]["value"]


def stamps(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("runs/*/results.json")}


def check_table(out: Path, shown: str) -> None:
    head, *body = csv.reader((out / "small.csv").open())
    assert head == ["env.task", "seed", "held_out/iou"]
    assert len(body) == 4 and len({tuple(row[:2]) for row in body}) == 4
    qualities = [float(row[2]) for row in body]
    assert qualities == sorted(qualities, reverse=True)
    assert shown.count("| shadow |") == 2
    with Image.open(out / "small.png") as picture:
        assert picture.width > 800


def test_a_sweep_that_was_stopped_ends_with_each_row_once(tmp_path, capsys, in_process):
    file, out, done = write(tmp_path), tmp_path / "out", []

    def stop_at_the_third(words, cold=False):
        done.append(words)
        if len(done) == 3:
            raise KeyboardInterrupt
        return in_process(words, cold)

    assert sweep.main([str(file), "--out", str(out)], stop_at_the_third) == 130
    assert "interrupted: the same command goes on" in capsys.readouterr().err
    before = stamps(out)
    assert 2 <= len(before) < 4
    assert sweep.main([str(file), "--out", str(out)], in_process) == 0
    after = stamps(out)
    assert before.items() <= after.items() and len(after) == 4
    check_table(out, capsys.readouterr().out)
    assert sweep.main([str(file), "--out", str(out)], in_process) == 0
    assert stamps(out) == after


@pytest.mark.e2e
def test_a_sweep_that_was_killed_ends_with_each_row_once(tmp_path, capsys):
    file, out = write(tmp_path), tmp_path / "out"
    process = subprocess.Popen([*SWEEP, str(file), "--out", str(out)], start_new_session=True)
    while not stamps(out):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = stamps(out)
    assert 0 < len(before) < 4
    assert sweep.main([str(file), "--out", str(out)]) == 0
    assert before.items() <= stamps(out).items()
    check_table(out, capsys.readouterr().out)


@pytest.mark.e2e
def test_rows_are_made_by_tasks_of_ray(tmp_path):
    pytest.importorskip("ray")
    file = write(tmp_path, parameters=SMALL["parameters"] | {"env.task": {"value": "glass"}})
    given = [*SWEEP, str(file), "--out", str(tmp_path / "out"), "--jobs", "2", "--ray", "here"]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out" / "small.csv").read_text().splitlines()) == 3
    assert '"device": "cpu, 1 threads"' in next((tmp_path / "out").glob("runs/*/results.json")).read_text()


def test_random_draws_are_of_their_distributions(tmp_path):
    parameters = {
        "policy.tokens": {"values": [1, 2], "probabilities": [0.0, 1.0]},
        "algo.updates": {"min": 3, "max": 4},
        "algo.learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1},
        "policy.kl_temperature": {"min": 0.5, "max": 2.0},
    }
    found = sweep.rows(sweep.load(str(write(tmp_path, method="random", run_cap=300, parameters=parameters))))
    assert len(found) == 300 and {row["policy.tokens"] for row in found} == {2}
    assert {row["algo.updates"] for row in found} == {3, 4}
    below = sum(row["algo.learning_rate"] < 1e-3 for row in found)
    assert 110 < below < 190  # half of them, in the logarithm
    assert all(0.5 <= row["policy.kl_temperature"] <= 2 for row in found)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "bayes"}, "method: bayes: expected grid or random"),
        ({"metric": {"name": "loss"}}, "expected a name that begins with held_out/"),
        ({"metric": {"name": "held_out/iou", "goal": "high"}}, "metric.goal: high: expected maximize or minimize"),
        ({"parameters": {}}, "parameters: expected a name and its values"),
        ({"parameters": {"seed": 3}}, "parameters.seed: 3: expected value, values, or min and max"),
        ({"parameters": {"seed": {"min": 1}}}, "expected max and min"),
        ({"parameters": {"seed": {"values": []}}}, "parameters.seed: values: []: expected a list"),
        ({"parameters": {"seed": {"min": 0, "max": 3}}}, "a grid has no int_uniform"),
        ({"parameters": {"seed": {"distribution": "beta"}}}, "distribution: beta: expected one of constant"),
        ({"method": "random"}, "run_cap: None: expected how many runs to draw"),
        ({"surprise": 1}, "is not a sweep: expected the keys method, metric, parameters"),
        ({"parameters": {"env.colour": {"value": 1}}}, "unknown key 'env.colour'"),
    ],
)
def test_what_cannot_run_is_told_in_one_line(tmp_path, capsys, changes, expected):
    assert sweep.main([str(write(tmp_path, **changes)), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not (tmp_path / "out").exists()


def test_a_measure_that_runs_lack_is_named(tmp_path):
    content = sweep.load(str(write(tmp_path, metric={"name": "held_out/beauty"})))
    spec = sweep.spec(content, sweep.rows(content)[0])
    folder = spec.folder(tmp_path)
    folder.mkdir()
    (folder / "results.json").write_text('{"after": {"iou": 1.0}}')
    with pytest.raises(UserError, match="measure 'beauty': expected one of iou"):
        spec.value(tmp_path)
    assert spec == RunSpec(spec.arguments, measure="beauty")
