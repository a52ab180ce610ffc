"""Sweeps: which runs a wandb file asks for, one table of them however often it is stopped, the command wandb builds."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given as drawn
from hypothesis import strategies as st
from PIL import Image

from maskgym.errors import UserError
from maskgym.experiments import run
from maskgym.experiments.grids import sweep, sweep_table
from maskgym.experiments.grids.runner import RunSpec
from maskgym.experiments.training import train
from maskgym.experiments.wiring import composition

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


def drawing(given):
    """Return a random sweep whose seed is drawn so."""
    return {"method": "random", "run_cap": 2, "parameters": {"seed": given}}


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
        train,
        "run",
        lambda config, folder, resume: asked.append(config) or {"before": {}, "after": {}, "samples": {}, "wall_s": 0},
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


@pytest.mark.e2e(seconds=35)
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


@pytest.mark.e2e(seconds=60)
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


NUMBERS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C"])) | st.sampled_from(
    ["null", "true", "1e-5", "a,b", "it's", "x\\", "{a: 1}", "[1]", "choice(1,2)", "a=b", "~", "nan", "sis"]
)
VALUES = st.recursive(
    NUMBERS | WORDS.filter(lambda word: "${" not in word),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z_]+", fullmatch=True), inner),
    max_leaves=6,
)


@drawn(VALUES)
def test_a_run_gets_the_value_of_the_file(value):
    """The row of a file, as YAML gives it, is the value in the config of its run, in type and in every digit."""
    row = yaml.load(json.dumps({"values": [value]}, ensure_ascii=False), sweep.files.Loader)  # JSON is YAML
    assert repr(row["values"]) == repr([value])
    try:
        argument = sweep.argument("+policy.mine", row["values"][0])
    except UserError as error:
        assert "cannot be written as an argument" in str(error)
        assert isinstance(value, dict | list)  # such as a dictionary whose key is "true"
        return
    found = composition.compose(["env=sis", argument])["policy"]["mine"]
    assert found == value and repr(found) == repr(value)


def test_neighbouring_values_are_two_runs_and_two_rows(tmp_path):
    parameters = SMALL["parameters"] | {
        "algo": {"value": "ppo"},
        "env.task": {"value": "glass"},
        "seed": {"value": 0},
        "algo.learning_rate": {"values": [1.00001e-5, 1.00002e-5, 0.99995, 1]},
        "+policy.mine": {"values": ["null", None]},
    }
    content = sweep.load(str(write(tmp_path, parameters=parameters)))
    found = sweep.rows(content)
    specs = [sweep.spec(content, row) for row in found]
    rates = [spec.config["algo"]["learning_rate"] for spec in specs]
    assert rates == [1.00001e-5] * 2 + [1.00002e-5] * 2 + [0.99995] * 2 + [1] * 2
    assert [spec.config["policy"]["mine"] for spec in specs] == ["null", None] * 4
    assert len({spec.folder(tmp_path) for spec in specs}) == 8
    sweep_table.write(tmp_path, "small", "two", found, [{"iou": 0.5} for _ in found])
    lines = (tmp_path / "small.md").read_text().splitlines()[2:]
    assert len(set(lines)) == len(lines) == 10
    assert '| 1.00001e-05 | "null" | 0.5 |' in lines and "| 1 | null | 0.5 |" in lines


def test_numbers_as_people_write_them(tmp_path):
    file = tmp_path / "small.yaml"
    text = yaml.safe_dump(SMALL | {"parameters": {**SMALL["parameters"], "algo": {"value": "ppo"}}})
    file.write_text(f"{text}  algo.learning_rate: {{values: [1e-5, '1e-5', 1E+2, 3.e-4]}}\n")
    content = yaml.load(file.read_text(), sweep.files.Loader)
    assert content["parameters"]["algo.learning_rate"]["values"] == [1e-5, "1e-5", 100.0, 3e-4]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "bayes"}, "method: bayes: expected grid or random"),
        ({"metric": {"name": "loss"}}, "expected a name that begins with held_out/"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate: here every run goes to its end: remove it"),
        ({"metric": {"name": "held_out/iou"}}, "metric: held_out/iou: expected goal: maximize"),
        ({"metric": {"name": "held_out/iouu", "goal": "maximize"}}, "measure 'iouu': expected one of reward, mae"),
        ({"metric": {"name": "held_out/iasm", "goal": "maximize"}}, "measure 'iasm': expected one of reward, mae"),
        ({"metric": {"name": "held_out/iou@5", "goal": "maximize"}}, "measure 'iou@5': expected one of"),
        ({"run_cap": 0}, "run_cap: 0: expected how many runs to draw"),
        (drawing({"values": [1, 2], "probabilities": [0.5, 0.6]}), "expected 2 numbers, one per value, that add up"),
        (drawing({"values": [1, 2], "probabilities": [1.0]}), "expected 2 numbers, one per value, that add up"),
        (drawing({"values": [1, 2], "probabilities": ["a", 1]}), "expected 2 numbers, one per value, that add up"),
        (drawing({"values": [1, 2], "probabilities": [2, -1]}), "expected 2 numbers, one per value, that add up"),
        (drawing({"distribution": "int_uniform", "min": 0.5, "max": 2}), "expected whole numbers"),
        (drawing({"distribution": "normal", "sigma": -1}), "expected numbers, sigma not below 0"),
        ({"parameters": {"seed": {"values": [1], "probabilities": [1]}}}, "a grid draws nothing: expected values"),
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
    spec = RunSpec(("env=point_prompt", "algo=random"), measure="beauty")
    folder = spec.folder(tmp_path)
    folder.mkdir()
    (folder / "results.json").write_text('{"after": {"iou": 1.0}}')
    with pytest.raises(UserError, match="measure 'beauty': expected one of iou"):
        spec.value(tmp_path)
