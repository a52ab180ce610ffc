"""Runs on Ray: real workers that train as one process does, die, are interrupted, and are refused in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from maskgym.errors import UserError
from maskgym.experiments import run
from maskgym.experiments.on_ray import workers as ray_run
from maskgym.experiments.wiring import composition
from maskgym.experiments.wiring.run_folder import read_metrics

ray = pytest.importorskip("ray")

RUN = Path(run.__file__)
TINY = ("env=user_need", "algo=usersal", "algo.batch_size=4", "evaluation.samples=2", "evaluation.pictures=0")
PATIENCE_S = 240


def start(*arguments: str) -> subprocess.Popen:
    """Start the command as a user would: Ray and its workers belong to it, not to the process of the tests."""
    return subprocess.Popen(
        [sys.executable, str(RUN), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # whatever the tests were run by
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    try:
        out, error = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    return process.returncode, out, error


def wait_for(folder: Path, updates: int) -> None:
    limit = time.monotonic() + PATIENCE_S
    while time.monotonic() < limit:
        if (folder / "metrics.csv").exists() and read_metrics(folder / "metrics.csv")[-1]["step"] >= updates:
            return
        time.sleep(0.1)
    raise AssertionError(f"{folder}: never came to {updates} updates")


def losses(folder: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(folder / "metrics.csv") if "train/loss" in row]


@pytest.fixture(scope="session")  # not of the module, whose tests are dealt out one by one
def alone(tmp_path_factory):
    """Return the losses and scores of the run that one process makes."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert run.main([*TINY, "algo.updates=12", f"out={folder}"]) == 0
    return losses(folder), json.loads((folder / "results.json").read_text())


@pytest.mark.e2e(seconds=300)
def test_a_run_with_a_killed_worker_that_is_interrupted_and_resumed_is_the_one_of_one_process(
    alone, tmp_path, worker_of
):
    process = start(*TINY, "algo.updates=12", "algo.save_every=2", "scale=ray", f"out={tmp_path}/run")
    wait_for(tmp_path / "run", 3)
    os.kill(worker_of(process.pid, "ray::RayTrainWorker"), signal.SIGKILL)
    wait_for(tmp_path / "run", 8)
    process.send_signal(signal.SIGINT)
    status, _, error = finish(process)
    assert (status, error.splitlines()[-1]) == (130, f"interrupted: continue with resume={tmp_path}/run")
    assert "one was killed, or its machine went away" in error
    damaged = tmp_path / "run" / ray_run.STORAGE / "run" / "checkpoint_manager_snapshot.json"
    damaged.parent.mkdir(parents=True)
    damaged.touch()  # as Ray leaves it if the command is killed while it writes
    status, out, error = finish(start(f"resume={tmp_path}/run"))
    assert status == 0, error
    assert "report.html" in out
    expected, results = alone
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-5)
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["after"]["s_measure"] == pytest.approx(results["after"]["s_measure"], abs=1e-3)


@pytest.mark.e2e(seconds=60)
def test_ray_is_told_what_each_update_logged_and_where_the_checkpoint_is(alone, tmp_path, capsys):
    config = composition.compose([*TINY, "algo.updates=3", "algo.save_every=2", "scale=ray", "scale.num_workers=1"])
    with ray_run.connected(None):
        result = ray_run._fit(config | {"out": str(tmp_path)}, tmp_path, False)
    assert result.metrics["step"] == 3
    assert result.metrics["train/loss"] == pytest.approx(alone[0][2], abs=1e-5)
    with result.checkpoint.as_directory() as place:
        told = json.loads((Path(place) / ray_run.POINTER).read_text())
    assert Path(told["path"]) == tmp_path / "checkpoints"


@pytest.mark.e2e(seconds=90)
def test_episodes_are_played_on_when_the_only_player_is_killed(tmp_path, worker_of):
    given = ("env.num_envs=4", "env.horizon=3", "algo.updates=4", "algo.save_every=2", "algo.epochs=2")
    given += ("evaluation.samples=2", "evaluation.pictures=0", "scale=ray", "scale.num_workers=1")
    process = start(f"out={tmp_path}/run", "env=point_prompt", "algo=ppo", *given)
    wait_for(tmp_path / "run", 1)
    os.kill(worker_of(process.pid, "ray::RolloutRunner"), signal.SIGKILL)
    status, out, error = finish(process)
    assert status == 0, error
    assert len(losses(tmp_path / "run")) == 4
    assert "report.html" in out


@pytest.mark.e2e(seconds=90)
def test_what_stops_the_first_worker_stops_all_in_one_line(tmp_path):
    given = ("algo.updates=6", "algo.learning_rate=1e36", "scale=ray", f"out={tmp_path}/run")
    status, _, error = finish(start(*TINY, *given))
    assert status == 2, error
    assert error.splitlines()[-1] == "error: update 2: train/loss is nan: stopped; before the first checkpoint"
    assert "started again" not in error and "Traceback" not in error


@pytest.mark.e2e(seconds=30)
def test_what_a_cluster_lacks_is_told_in_one_line():
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        for arguments, expected in (
            ([*TINY, "scale.num_workers=64"], "scale.num_workers=64: takes 64 CPUs, and there are 2"),
            ([*TINY, "scale.use_gpu=true"], "scale.num_workers=2: takes 2 GPUs, and there are 0"),
            (["env=point_prompt", "algo=ppo", "scale.use_gpu=true"], "scale.num_workers=2: takes 4 GPUs"),
            (["env=sis", "algo=cgpo", "scale.reward_actors=1"], "scale.reward_actors=1: takes 3 CPUs"),
        ):
            with pytest.raises(UserError, match=expected):
                ray_run._check_resources(composition.compose([*arguments, "scale=ray"]))
    finally:
        ray.shutdown()


def test_ray_takes_the_cluster_that_the_page_describes():
    util = pytest.importorskip("ray.autoscaler._private.util")
    page = (RUN.parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
    cluster = yaml.safe_load(re.search(r"```yaml\n(cluster_name:.*?)```", page, re.DOTALL)[1])
    util.validate_config(util.prepare_config(cluster))
    with pytest.raises(Exception, match="head_ips"):
        util.validate_config(util.prepare_config(cluster | {"head_ips": []}))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*TINY, "scale.address=127.0.0.1:1"], "scale.address=127.0.0.1:1: no cluster answers"),
        ([*TINY, "scale.num_workers=0"], "scale.num_workers=0: expected at least 1"),
        ([*TINY, "scale.size=3"], "unknown key 'scale.size': scale=ray has algo_aliases, num_workers"),
        (["env=sis", "algo=grpo", "+algo.fsdp=true", "evaluation.every=2"], "evaluation.every: with algo.fsdp"),
        (["env=user_need", "algo=grpo"], "env=user_need scale=ray takes usersal, usersal_plus"),
        (["env=point_prompt", "algo=grpo"], "env=point_prompt scale=ray takes ppo_rllib"),
        (["env=point_prompt", "algo=ppo", "algo.normalize_advantage=false"], "algo=ppo_rllib has"),
    ],
)
def test_what_needs_no_cluster_to_be_refused(maskgym_run, tmp_path, arguments, expected):
    status, _, error = maskgym_run(*arguments, "scale=ray", f"out={tmp_path}/run")
    assert (status, len(error)) == (2, 1)
    assert expected in error[0]
    assert not (tmp_path / "run").exists()
