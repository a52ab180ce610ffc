"""Connections to a Ray cluster: bounded in time, refused in one line, and watched; and the CPUs of its machines."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import inf

from maskgym.aliases import Config, Settings
from maskgym.errors import UserError, one_line

CONNECT_S = 10  # timeout of a connection, since Ray itself tries for minutes
TRIES = "3"  # tries of Ray, at least a second each, to be let in by a cluster that answers; Ray's default is 20
WATCH_S = 5  # interval between two looks at the head of the cluster
HEAD_S = 75  # a head that has not answered for so long is gone; by then the workers have ended: Ray gives them 60 s
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # RFC 9113, 3.4: with no setting
SETTINGS, HEADER = 4, 9  # type of the frame that such a server answers with, and the bytes of a frame's header
# Words of Ray about a token that it lacks or that is another's.
TOKEN = ("InvalidAuthToken", "AuthenticationError", "Unauthenticated")
TOKEN_TOLD = (
    "asks for another token: expected RAY_AUTH_MODE=token, and what `ray get-auth-token` prints on its head in "
    "RAY_AUTH_TOKEN"
)


@contextmanager
def connected(
    address: str | None, option: str = "scale.address", advice: Callable[[], str] = lambda: "start again"
) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine if the address is None; disconnect at the end.

    Where the head goes away for good, the process ends with one line and status 2: Ray's own calls would wait for it,
    and then end the process without a word of ours.

    Args:
        address: ``HOST:PORT``, ``auto``, ``ray://HOST:PORT``, or None for a new one, even where another one runs or
            ``RAY_ADDRESS`` names one.
        option: Name of the option that set the address, for error messages.
        advice: Says how to go on after the head went away.

    Raises:
        UserError: If Ray is not installed, or no cluster answers.
    """
    # Ray reads both when it is imported. This process has to outlive `HEAD_S`, to tell what happened.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(2 * HEAD_S))
    if address:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", TRIES)
    try:
        import ray
    except ImportError as error:
        raise UserError("Ray is not installed: pip install 'maskgym[ray]'") from error
    _join(address, option)
    head = address if address and "://" in address else ray.get_runtime_context().gcs_address
    with _watched(*_split(head), f"{option}={address}" if address else "Ray on this machine", advice):
        try:
            yield
        finally:
            ray.shutdown()  # watched too, because it may wait for the head


def cpus_per_worker(config: Config) -> int:
    """Look up the CPUs of each worker and reward actor of a run, or split those of the machines: see `cpus_each`."""
    return cpus_each(config["scale"], *processes(config))


def cpus_each(scale: Settings, count: int, gpus: int) -> int:
    """Look up the CPUs of each process, or split those of the machines evenly, at least 1 each.

    Machines are counted whole, also if others use the cluster. Without a cluster, as where an agent only acts: 1.

    Args:
        scale: Settings of ``scale=ray``.
        count: Number of processes.
        gpus: GPUs of each.
    """
    asked, ray = scale["cpus_per_worker"], sys.modules.get("ray")
    if asked is not None or ray is None or not ray.is_initialized():
        return asked or 1
    machines = _machines()
    if gpus:  # the fewest machines with so many GPUs, because Ray packs the processes
        machines.sort(key=lambda own: own[1], reverse=True)
        before = list(itertools.accumulate((own[1] for own in machines), initial=0))
        machines = [own for own, others in zip(machines, before, strict=False) if others < count]
    most = max((int(cpus) for cpus, _ in machines), default=1)
    return next((cpus for cpus in range(most, 1, -1) if room(cpus, gpus, machines) >= count), 1)


def processes(config: Config) -> tuple[int, int]:
    """Count the processes of a run on Ray that are given CPUs, and the GPUs of each."""
    from maskgym import agents

    scale = config["scale"]
    count = scale["num_workers"] + scale["reward_actors"]
    if scale["use_gpu"] and scale["num_workers"] > 1 and agents.get(config["algo"]["name"]).starts_workers:
        count *= 2  # such agents use one GPU for rollouts and one for learning
    return count, int(scale["use_gpu"])


def room(cpus: int, gpus: int, machines: Sequence[tuple[float, float]] | None = None) -> float:
    """Count the processes with so many CPUs and GPUs each that machines have room for.

    Args:
        cpus: CPUs of each process.
        gpus: GPUs of each.
        machines: CPUs and GPUs of each machine; None means all machines of the cluster.
    """
    found = _machines() if machines is None else machines
    return sum(min(own[0] // cpus, own[1] // gpus if gpus else inf) for own in found)


def _machines() -> list[tuple[float, float]]:
    """List the CPUs and GPUs of each machine that is alive."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(found.get("CPU", 0), found.get("GPU", 0)) for found in alive]


def use_network_of_ray() -> None:
    """Let gloo use the interface of this machine's address in the cluster, unless ``GLOO_SOCKET_IFNAME`` names one.

    By itself gloo takes the address that the machine's name stands for, which is often one that others cannot reach:
    127.0.1.1 on Debian.
    """
    import psutil
    import ray

    own = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.family in (socket.AF_INET, socket.AF_INET6) and one.address == own for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _join(address: str | None, option: str) -> None:
    """Connect to the cluster.

    Raises:
        UserError: If none answers.
    """
    import ray

    local = {"include_dashboard": False} if address is None else {}
    where = "local" if address is None else address  # with None, Ray joins whatever cluster it finds
    with tempfile.TemporaryFile() as heard:
        try:
            if address and ":" in address:
                _check_answers(*_split(address))
            with _collected(heard.fileno()) if address else nullcontext():
                ray.init(address=where, logging_level=logging.ERROR, log_to_driver=False, **local)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            heard.seek(0)
            words = f"{error} {heard.read().decode(errors='replace')}"
            if any(sign in words for sign in TOKEN):
                raise UserError(f"{option}={address}: {TOKEN_TOLD}") from error
            said = " ".join(str(error).split())[:200]
            raise UserError(f"{option}={address}: no cluster answers: {said}") from error


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        raise ValueError("expected auto, HOST:PORT or ray://HOST:PORT")
    return host.strip("[]"), int(port)


def _check_answers(host: str, port: int) -> None:
    """Raise an OSError if no server of Ray's kind (gRPC, that is HTTP/2) answers; Ray would wait for ten minutes."""
    with socket.create_connection((host, port), CONNECT_S) as link:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return
        link.sendall(HELLO)
        frame = link.recv(HEADER)
    if len(frame) < HEADER or frame[3] != SETTINGS:
        raise OSError("this port is not Ray's")


@contextmanager
def _collected(file: int) -> Iterator[None]:
    """Collect in a file what Ray's C++ parts write to standard error: a line per try."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _watched(host: str, port: int, asked: str, advice: Callable[[], str]) -> Iterator[None]:
    """End the process with one line once the head has not answered for `HEAD_S` seconds."""
    over = threading.Event()

    def watch() -> None:
        answered = time.monotonic()
        while not over.wait(WATCH_S):
            try:
                _check_answers(host, port)
                answered = time.monotonic()
            except OSError:
                if time.monotonic() - answered > HEAD_S:
                    told = f"{asked}: the head of the cluster has not answered for {HEAD_S} s: {advice()}"
                    os.write(2, f"\nerror: {one_line(told)}\n".encode())
                    os._exit(2)  # Ray would wait for the head to disconnect from it

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
