"""Processes of commands: what a server forks behaves as a command that was started cold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from maskgym.experiments.grids import processes, study
from maskgym.experiments.grids.processes import ForkServer
from maskgym.experiments.grids.runner import RunSpec, compute

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are cold elsewhere")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(found, limit_s: float = 60):
    """Wait until a function returns something true, and return it."""
    limit = time.monotonic() + limit_s
    while not (value := found()):
        assert time.monotonic() < limit
        time.sleep(0.02)
    return value


@pytest.fixture(scope="module")
def server():
    with ForkServer(1, []) as running:
        yield running


@pytest.fixture
def blocked(tmp_path):
    """Return the words of a command that reads from a pipe until the test ends."""
    os.mkfifo(tmp_path / "results.json")
    return ["summary", str(tmp_path)]


def command_of(server: ForkServer) -> int | None:
    """Find the process of the command that a server runs: a child of the process that waits for it."""
    waiting = children(server._server.pid) if server._server else []
    return next((child for one in waiting for child in children(one)), None)


@pytest.mark.parametrize("words", [["nonsense"], ["summary", "--help"], ["run", "env=mars"]])
def test_a_forked_command_ends_as_a_cold_one(server, words):
    forked = server(words)
    assert forked == server(words, cold=True)
    assert forked.status == (0 if "--help" in words else 2)


def test_a_forked_command_has_the_directory_and_environment_of_its_caller(server, tmp_path, monkeypatch):
    run = {"env": "sis", "algo": "cgpo", "seed": 0, "wall_s": 1, "before": {"reward": 0.0}, "after": {"reward": 0.5}}
    (tmp_path / "results.json").write_text(json.dumps(run))
    monkeypatch.chdir(tmp_path)
    assert "| reward | | 0.000 | 0.500 |" in server(["summary", "."]).out
    monkeypatch.setenv("MASKGYM_UPDATES", "few")
    assert "MASKGYM_UPDATES=few: expected a whole number" in server(["run", "env=sis"]).error


def test_threads_that_the_user_sets_stand(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processes._environment(7)["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert processes._environment(7)["OMP_NUM_THREADS"] == "7"


def test_a_killed_command_is_reported_and_the_server_goes_on(server, blocked):
    server(["nonsense"])  # starts the server
    found = []
    thread = threading.Thread(target=lambda: found.append(server(blocked)))
    thread.start()
    os.kill(wait_for(lambda: command_of(server)), signal.SIGKILL)
    thread.join()
    assert found[0].status == -signal.SIGKILL
    assert server(["nonsense"]).status == 2


def test_a_server_that_dies_is_started_again(server):
    server(["nonsense"])
    first = server._server
    first.kill()
    first.wait()
    assert server(["nonsense"]).status == 2
    assert server._server is not first


def test_ctrl_c_interrupts_commands_and_a_server_ends_with_its_client(blocked):
    script = f"""
from maskgym.experiments.grids.processes import ForkServer
from maskgym.experiments.grids.runner import RunSpec, compute
with ForkServer(1, []) as server:
    server(["nonsense"])
    print(server._server.pid, flush=True)
    try:
        print(server({blocked!r}))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    input()
"""
    client = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    server = int(client.stdout.readline())
    command = wait_for(lambda: next((child for one in children(server) for child in children(one)), None))
    os.killpg(client.pid, signal.SIGINT)
    assert client.stdout.readline() == "interrupted\n"
    wait_for(lambda: not Path(f"/proc/{command}").exists())
    assert Path(f"/proc/{server}").exists()
    client.kill()
    client.wait()
    wait_for(lambda: not Path(f"/proc/{server}").exists() or "Z" in Path(f"/proc/{server}/stat").read_text().split()[2])


def test_nothing_starts_after_ctrl_c_that_reached_the_server_while_it_imported(tmp_path, monkeypatch, capfd):
    (tmp_path / "slow.py").write_text(f"open({str(tmp_path / 'begun')!r}, 'w').close()\nimport time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(processes, "run_cold", lambda *given: pytest.fail("a command was started"))
    with ForkServer(1, ["slow"]) as server:
        found = []
        threads = [threading.Thread(target=lambda: found.append(server(["nonsense"]))) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_for(lambda: (tmp_path / "begun").exists())
        os.kill(server._server.pid, signal.SIGINT)
        for thread in threads:
            thread.join()
    assert found == [processes.Finished(130, "", "interrupted")] * 2
    assert "Traceback" not in capfd.readouterr().err
    assert server(["nonsense"]).status == 130


def test_a_signal_that_comes_twice_leaves_no_run_behind(request):
    """As `timeout --signal=INT` sends it: to the command, and to its group."""
    ended = threading.Event()

    def run(words, cold=False):
        threading.Thread(target=interrupt).start()
        time.sleep(0.6)  # a run that stops at its next checkpoint
        ended.set()
        return processes.Finished(130, "", "interrupted")

    def interrupt():
        for pause in (0.2, 0.05):
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)

    specs = [RunSpec(("env=sis", "algo=random", f"seed={seed}")) for seed in range(2)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were run by
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt):
        compute(specs, Path("nowhere"), run=run)
    assert ended.is_set()


def test_a_study_forks_its_runs_from_one_server(tmp_path, monkeypatch, capsys):
    """The one study of real processes: its runs have their share of the threads, and its server has one thread."""
    servers, threads = [], []

    class Watched(ForkServer):
        def __call__(self, words, cold=False):
            finished = super().__call__(words, cold)
            servers.append(self._server)
            threads.append(len(list(Path(f"/proc/{self._server.pid}/task").iterdir())))
            return finished

    monkeypatch.setattr("maskgym.experiments.grids.runner.ForkServer", Watched)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    file, given = tmp_path / "small.yaml", ("evaluation.samples=2", "evaluation.pictures=0", "env.num_envs=2")
    file.write_text(
        f"title: Small\nbase: [env=point_prompt, algo=random, env.horizon=2, {', '.join(given)}]\n"
        "columns: {iou: {measure: iou}}\nrows: {ours: {}, short: {evaluate: [env.horizon=1]}}\nseeds: [0, 1]\n"
    )
    assert study.main([str(file), "--out", str(tmp_path), "--jobs", "2"]) == 0
    assert "| ours |" in capsys.readouterr().out
    assert len(servers) == 4 and len(set(map(id, servers))) == 1 and set(threads) == {1}
    results = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/results.json")]
    assert [found["device"] for found in results] == ["cpu, 1 threads"] * 2
    assert servers[0].poll() is not None


def test_commands_are_cold_elsewhere_than_on_linux(monkeypatch):
    monkeypatch.setattr(processes.sys, "platform", "darwin")
    with ForkServer(1, []) as server:
        assert server(["nonsense"]).status == 2
        assert server._server is None


def test_commands_are_cold_where_an_import_used_a_gpu(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("class cuda:\n    is_initialized = lambda: True\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with ForkServer(1, ["torch"]) as server:
        assert server(["nonsense"]).status == 2
        assert server._server.wait() == 1
