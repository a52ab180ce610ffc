"""Which cluster of Ray a command joins, how it is refused, what it does without a head, and the CPUs of its workers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from maskgym.errors import UserError
from maskgym.experiments.wiring import cluster, composition
from maskgym.experiments.wiring.cluster import connected

ray = pytest.importorskip("ray")


@pytest.mark.e2e
def test_without_an_address_the_cluster_of_somebody_else_is_left_alone(monkeypatch):
    from ray.cluster_utils import Cluster

    theirs = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"theirs": 1}})
    try:
        monkeypatch.setenv("RAY_ADDRESS", theirs.address)
        with connected(None):
            assert "theirs" not in ray.cluster_resources()
        with connected(theirs.address):
            assert "theirs" in ray.cluster_resources()
    finally:
        theirs.shutdown()


def test_an_address_where_nobody_answers_is_named():
    with (
        pytest.raises(UserError, match=r"^scale\.address=127\.0\.0\.1:9: no cluster answers"),
        connected("127.0.0.1:9"),
    ):
        pass


@pytest.fixture
def server():
    """Return a function that opens a port, which answers each connection with some bytes, and its number."""
    opened = []

    def serve(answer: bytes) -> int:
        listening = socket.create_server(("127.0.0.1", 0))
        opened.append(listening)

        def accept() -> None:
            while True:
                try:
                    link, _ = listening.accept()
                except OSError:
                    return
                opened.append(link)
                link.sendall(answer)

        threading.Thread(target=accept, daemon=True).start()
        return listening.getsockname()[1]

    yield serve
    for one in opened:
        one.close()


@pytest.mark.parametrize(
    ("answer", "expected"), [(b"HTTP/1.0 400 Bad Request\r\n", "this port is not Ray's"), (b"", "timed out")]
)
def test_a_port_that_is_not_rays_is_refused_at_once(server, monkeypatch, answer, expected):
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    address = f"127.0.0.1:{server(answer)}"
    with (
        pytest.raises(UserError, match=f"^scale.address={address}: no cluster answers: {expected}"),
        connected(address),
    ):
        pass


@pytest.mark.parametrize("address", ["10.0.0.1:", "ray://head", "head:ray"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UserError, match="expected auto, HOST:PORT or ray://HOST:PORT"), connected(address):
        pass


def test_a_token_that_is_asked_for_is_told_without_the_lines_of_ray(monkeypatch, capfd):
    def refuse(**settings: object) -> None:
        os.write(2, b"[W 1 1] gcs_client.cc:210: RPC error: InvalidAuthToken: token is missing or incorrect\n" * 3)
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")

    monkeypatch.setattr(cluster, "_check_answers", lambda host, port: None)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match=r"^scale\.address=10\.0\.0\.1:6379: asks for another token: expected RAY_AUTH"):
        cluster._join("10.0.0.1:6379", "scale.address")
    assert capfd.readouterr().err == ""


ALONE = """
import contextlib, socket, threading, time
from maskgym.experiments.wiring import cluster
cluster.WATCH_S, cluster.HEAD_S, cluster.CONNECT_S = 0.1, 1, 0.5
head = socket.create_server(("127.0.0.1", 0))
def answer():
    with contextlib.suppress(OSError):
        while True:
            head.accept()[0].sendall(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
threading.Thread(target=answer, daemon=True).start()
with cluster._watched(*head.getsockname(), "scale.address=HEAD", lambda: "continue with resume=runs/a"):
    time.sleep(2)
    print("still here", flush=True)
    head.shutdown(socket.SHUT_RDWR)
    head.close()
    time.sleep(60)
"""


def test_a_head_that_goes_away_ends_the_command_with_one_line():
    ended = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120)
    told = "scale.address=HEAD: the head of the cluster has not answered for 1 s: continue with resume=runs/a"
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (2, "still here\n", f"error: {told}")


SMALL, LARGE = (2, 0), (64, 8)


@pytest.mark.parametrize(
    ("machines", "asked", "expected"),
    [
        ([SMALL], ["scale.num_workers=2"], 1),
        ([SMALL], ["scale.num_workers=1"], 2),
        ([SMALL], ["scale.num_workers=3"], 1),  # which is refused elsewhere
        ([SMALL, (16, 0)], ["scale.num_workers=2"], 8),
        ([SMALL, (16, 0)], ["scale.num_workers=2", "scale.reward_actors=2"], 4),
        ([LARGE], ["scale.num_workers=8", "scale.use_gpu=true"], 8),
        ([LARGE], ["scale.num_workers=2", "scale.use_gpu=true"], 32),
        ([LARGE], ["scale.num_workers=6", "scale.use_gpu=true", "scale.reward_actors=2"], 8),
        ([SMALL, LARGE, LARGE], ["scale.num_workers=2", "scale.use_gpu=true"], 32),
        ([SMALL, LARGE, LARGE], ["scale.num_workers=16", "scale.use_gpu=true"], 8),
        ([LARGE], ["scale.num_workers=2", "scale.cpus_per_worker=5"], 5),
        ([LARGE], ["env=point_prompt", "algo=ppo", "scale.num_workers=2", "scale.use_gpu=true"], 16),  # and 2 learners
    ],
)
def test_the_cpus_of_the_machines_are_dealt_out(monkeypatch, machines, asked, expected):
    config = composition.compose(["env=sis", "algo=cgpo", "scale=ray", *asked])
    monkeypatch.setattr(cluster, "_machines", lambda: list(machines))
    assert cluster.cpus_per_worker(config) == (5 if expected == 5 else 1)  # without a cluster
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    assert cluster.cpus_per_worker(config) == expected
