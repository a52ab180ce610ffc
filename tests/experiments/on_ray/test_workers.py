"""Runs on Ray: real workers that train as one process does, die, are interrupted, and are refused in one line."""

from __future__ import annotations

import contextlib
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
from maskgym.experiments.on_ray import room
from maskgym.experiments.on_ray import workers as ray_run
from maskgym.experiments.wiring import cluster, composition
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
                config = composition.compose([*arguments, "scale=ray"])
                room.check(config["scale"], *cluster.processes(config))
    finally:
        ray.shutdown()


def test_room_is_counted_on_each_machine(monkeypatch):
    monkeypatch.setattr(cluster, "_machines", lambda: [(3, 0), (2, 0)])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 5.0})
    assert room.lacking(2, 2, 0) is None
    told = "takes 4 CPUs on one machine for each of 1, and the machines have room for 0"
    assert room.lacking(1, 4, 0) == told


def test_what_is_not_free_in_time_is_told_in_one_line(monkeypatch):
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 5.0})
    config = composition.compose([*TINY, "scale=ray", "scale.timeout_s=20"])
    told = r"^scale\.num_workers=2: no room within 20 s \(scale\.timeout_s\): 1 of 5 CPUs are free$"
    with pytest.raises(UserError, match=told):
        ray_run._fault(ControllerError(WorkerGroupStartupTimeoutError(2)), config)


def test_workers_that_die_too_often_end_a_run_in_one_line(monkeypatch, tmp_path):
    from ray.train import WorkerGroupError

    config = composition.compose([*TINY, "scale=ray"])
    died: list[Exception] = [RuntimeError("A worker health check failed"), RuntimeError("Mine")]

    def fail(*given: object) -> None:
        raise WorkerGroupError("died", {0: died[0]})

    monkeypatch.setattr(ray_run, "_fit", fail)
    told = f"scale.max_failures=3: workers died more often than that ({ray_run.KILLED}): start again"
    assert ray_run._attempt(config, tmp_path, resume=False, last=False) == ray_run.KILLED
    with pytest.raises(UserError, match=re.escape(told)):
        ray_run._attempt(config, tmp_path, resume=False, last=True)
    died[0] = RuntimeError("Connection closed by peer")
    monkeypatch.setattr(
        ray_run, "_fit", lambda *given: (_ for _ in ()).throw(ray.exceptions.ActorUnavailableError("gone", b"1" * 16))
    )
    assert ray_run._attempt(config, tmp_path, resume=False, last=False) == ray_run.KILLED  # the controller is gone
    monkeypatch.setattr(ray_run, "_fit", fail)
    died[0] = RuntimeError("Mine")  # what code raised is shown whole
    with pytest.raises(WorkerGroupError):
        ray_run._attempt(config, tmp_path, resume=False, last=True)


def test_a_worker_that_sees_another_folder_is_named(monkeypatch, tmp_path):
    mark = ray_run._marked(tmp_path)
    ray_run._check_marked(tmp_path, mark)
    monkeypatch.setattr(ray_run, "SEEN_S", 0)
    for folder, expected in ((tmp_path, "another"), (tmp_path / "elsewhere", mark)):
        with pytest.raises(UserError, match=f"^out={folder}: machine .* does not see this folder: expected a folder"):
            ray_run._check_marked(folder, expected)


def test_sigterm_ends_a_run_as_ctrl_c_does(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_run, "connected", lambda address, advice: contextlib.nullcontext())
    before = signal.getsignal(signal.SIGTERM)
    config = composition.compose([*TINY, "scale=ray"])
    with pytest.raises(KeyboardInterrupt), ray_run._joined(config, tmp_path, again=False):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) == before


def test_gloo_uses_the_network_of_ray(monkeypatch):
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "theirs")
    cluster.use_network_of_ray()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "theirs"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    cluster.use_network_of_ray()
    assert os.environ.pop("GLOO_SOCKET_IFNAME").startswith("lo")


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
        ([*TINY, "scale.cpus_per_worker=0"], "scale.cpus_per_worker=0: expected at least 1"),
        ([*TINY, "scale.timeout_s=0"], "scale.timeout_s=0: expected at least 1"),
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
