"""The example packages: one installed beside maskgym as a user would, the other imported, checked and trained."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml

from maskgym import agents, data, policies
from maskgym.experiments import cli
from maskgym.experiments.conformance.check_command import check
from maskgym.experiments.grids import benchmark
from maskgym.experiments.grids.processes import Finished
from maskgym.experiments.wiring import composition

ROOT = Path(__file__).parents[1]
REINFORCE = ROOT / "examples" / "maskgym_reinforce" / "maskgym_reinforce"


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """Return a function that runs Python with the example installed, and gives what it printed."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path_factory.mktemp("source") / "maskgym_circles"
    subprocess.run(["cp", "-r", str(ROOT / "examples" / "maskgym_circles"), str(source)], check=True)
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)

    def run(*arguments, cwd):
        path = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_gymnasium_makes_its_environment(beside, tmp_path):
    script = (
        "import gymnasium as gym, maskgym\n"
        "from maskgym import data, rewards, segmenters\n"
        "parts = dict(dataset=data.make('circles'), segmenter=segmenters.make('threshold'))\n"
        "env = gym.make('circles/Circles-v0', image_size=64, reward=rewards.make('iou'), **parts)\n"
        "observation, _ = env.reset(seed=0)\n"
        "print(observation['instruction'][:18])\n"
        "print(env.step('<think>x</think><answer><rg>the bright part</rg></answer>')[1])\n"
    )
    words, reward = beside("-c", script, cwd=tmp_path).splitlines()
    assert words == "There is a circle." and float(reward) == 1


def test_the_command_line_finds_every_part(beside, tmp_path):
    given = ("env=circles", "algo=first_words", "data=circles", "segmenter=threshold", "reward=tidy")
    beside("-m", "maskgym.experiments.cli", "run", *given, "out=run", cwd=tmp_path)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["env"], results["algo"], results["steps"]) == ("circles", "first_words", 3)
    assert results["before"]["iou"] < 0.3 and results["after"]["iou"] == 1 and results["after"]["tidiness"] == 1
    assert "radius: 6" in (tmp_path / "run" / "config.yaml").read_text()
    helped = beside("-m", "maskgym.experiments.cli", "run", "--help", cwd=tmp_path)
    assert "circles" in helped and "first_words" in helped


@pytest.fixture
def reinforce(monkeypatch):
    """Register the algorithms of the second package for one test, with their options."""
    own = agents.names.__self__
    monkeypatch.setattr(own, "_targets", dict(own._targets))
    monkeypatch.setattr(own, "_presets", dict(own._presets))
    monkeypatch.syspath_prepend(REINFORCE.parent)
    monkeypatch.delitem(sys.modules, "maskgym_reinforce", raising=False)
    importlib.import_module("maskgym_reinforce")
    caches = [composition.folders, composition.groups, composition.option]
    monkeypatch.setattr(composition, "plugin_folders", lambda: (REINFORCE,))
    for cached in caches:
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


def small_env(name, count, reward, **settings):
    shown = data.make("scenes", task="sod", size=16, image_size=64)
    mode = {"vectorization_mode": "vector_entry_point", "autoreset_mode": "Disabled"}
    return gym.make_vec(f"maskgym/{name}-v0", count, **mode, dataset=shown, image_size=64, reward=reward, **settings)


def rewards_of(agent, env, updates):
    found = []
    agent.train([env], updates, lambda number, values: found.append(values["reward"]))
    return found


def names_red(transition):
    return float("red" in transition.action)


@pytest.mark.parametrize("file", ["text.py", "clicks.py"])
def test_an_example_agent_is_short(file):
    assert (REINFORCE / file).read_text(encoding="utf-8").count("\n") <= 60


def test_reinforce_learns_what_to_write(reinforce, tmp_path):
    env = small_env("SOD", 16, names_red)
    made = agents.make(
        "reinforce",
        policy=policies.make("qwen2_5_vl_tiny"),
        env=env,
        output=tmp_path,
        learning_rate=1e-3,
        max_new_tokens=24,
    )
    found = rewards_of(made, env, 8)
    assert np.mean(found[-2:]) > np.mean(found[:2]) + 0.15, found


def test_reinforce_learns_where_to_click(reinforce, tmp_path):
    settings = {"horizon": 2, "label_source": "positive", "initial_prompts": "none"}
    env = small_env("PointPrompt", 16, "foreground_hit", **settings)
    policy = policies.make("point_actor_critic", channels=16)
    made = agents.make("reinforce_clicks", policy=policy, env=env, output=tmp_path, learning_rate=1e-2)
    found = rewards_of(made, env, 30)
    assert np.mean(found[-5:]) > np.mean(found[:5]) + 0.5, found  # a return from -2 to 2


def test_clicks_that_an_untrained_module_would_label_are_refused(reinforce, capsys):
    assert cli.main(["check", "agent", "reinforce_clicks"]) == 2
    assert "expected env.label_source=policy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "settings"), [("reinforce", {}), ("reinforce_clicks", {"env.label_source": "policy"})]
)
def test_reinforce_keeps_the_contract(reinforce, name, settings):
    assert list(check("agent", name, settings, ["sod", "point_prompt"])) == []


@pytest.mark.e2e
def test_benchmark_takes_reinforce(reinforce, tmp_path):
    short = ["env=sod", "evaluation.samples=2", "evaluation.pictures=0", "env.num_envs=2", "algo.updates=1"]
    section = {
        **{"title": "one update", "about": "of both", "base": short, "against": "cgpo", "seeds": [0]},
        "columns": {"sod": {"with": [], "measures": ["s_measure"]}},
        "rows": {"reinforce": {"with": ["algo=reinforce"]}, "cgpo": {"with": ["algo=cgpo", "algo.batch_size=2"]}},
    }
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"title": "mine", "about": "", "sections": [section]}, sort_keys=False))

    def run(words, cold=False):
        return Finished(cli.main(list(words)), "", "")

    assert benchmark.main([str(file), "--out", str(tmp_path), "--runs", str(tmp_path / "runs")], run) == 0
    table = (tmp_path / "mine.md").read_text()
    assert "reinforce" in table and "cgpo" in table
