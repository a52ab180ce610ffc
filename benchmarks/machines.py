"""Test scale=ray on two machines in one: each has its own network, processes, shared memory and Ray, but the same disk.

    python benchmarks/machines.py --tries 3            # as root, on Linux; three to five minutes a try on two cores

Network namespaces take the place of machines (iproute2, util-linux). Their names resolve to nothing, as on machines
without DNS. Every run has two workers, and its losses have to equal those
of two workers on one machine to 1e-5.

- *none*: one worker on each machine; nothing happens.
- *machine*: the second machine goes away with its workers; the first has room for both, and the run goes on.
- *head*: the first machine goes away, which the cluster's head runs on; the command on the second ends with status 2
  and one line, and is resumed on the next cluster.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskgym.experiments import run
from maskgym.experiments.wiring import run_folder

NETWORK = "10.77.13"
PORT = 6379
GIVEN = ("env=user_need", "algo=usersal", "algo.batch_size=4", "algo.updates=300", "algo.save_every=2")
GIVEN += ("evaluation.samples=2", "evaluation.pictures=0")
ON_RAY = ("scale=ray", f"scale.address={NETWORK}.1:{PORT}", "scale.cpus_per_worker=1")
FAULTS = ("none", "machine", "head")
PATIENCE_S = 900
LEFT_S = 100  # the command says 75 s after the head, plus what Ray and this machine need
HOLD = 'mount --bind "$0" /tmp/ray && mount -t tmpfs -o size=1g tmpfs /dev/shm && exec sleep infinity'
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
ENVIRONMENT["RAY_ADDRESS"] = ""


class Machine:
    """A network namespace with its own processes, /tmp/ray and /dev/shm.

    Args:
        number: Its number, from 1, which its address ends with.
        folder: Folder for its /tmp/ray.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.name, self.cable, self.address = f"maskgym{number}", f"maskgym-{number}", f"{NETWORK}.{number}"
        own = folder / f"ray{number}"
        own.mkdir()
        Path("/tmp/ray").mkdir(exist_ok=True)
        _ip("netns", "add", self.name)
        _ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self.cable, "master", "maskgym", "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", self.name, "link", "set", device, "up")
        apart = ("unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
        hold = ("sh", "-c", f"hostname {self.name} && {HOLD}", str(own))
        self.process = subprocess.Popen(["ip", "netns", "exec", self.name, *apart, *hold])
        time.sleep(1)

    def start(self, *command: str, **settings: object) -> subprocess.Popen:
        """Start a command on this machine."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        enter = ("nsenter", "--target", children[0], "--mount", "--pid", "--net", "--uts", f"--wdns={os.getcwd()}")
        return subprocess.Popen([*enter, *command], env=ENVIRONMENT, text=True, **settings)  # type: ignore[call-overload]

    def join(self, *where: str) -> None:
        """Start Ray on this machine."""
        ray = (sys.executable, "-m", "ray.scripts.scripts", "start", *where, f"--node-ip-address={self.address}")
        if self.start(*ray, "--num-cpus=2", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait():
            raise RuntimeError(f"{self.name}: Ray did not start")

    def go_away(self) -> None:
        """End all its processes at once; without them the namespace and its network are gone."""
        self.process.kill()
        self.process.wait()
        for words in (("link", "del", self.cable), ("netns", "del", self.name)):  # which go by themselves, but later
            subprocess.run(["ip", *words], stderr=subprocess.DEVNULL)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def cluster(folder: Path) -> Iterator[list[Machine]]:
    """Make two machines with a cluster of Ray; remove them at the end."""
    with ExitStack() as stack:
        _ip("link", "add", "maskgym", "type", "bridge")
        stack.callback(_ip, "link", "del", "maskgym")
        _ip("link", "set", "maskgym", "up")
        machines = []
        for number in (1, 2):
            machines.append(Machine(number, folder))
            stack.callback(machines[-1].go_away)
        machines[0].join("--head", f"--port={PORT}")
        machines[1].join(f"--address={NETWORK}.1:{PORT}")
        yield machines


def losses(folder: Path) -> list[float]:
    """Read the losses that a run has written so far."""
    file = folder / run_folder.METRICS
    rows = run_folder.read_metrics(file) if file.exists() else []
    return [row["train/loss"] for row in rows if "train/loss" in row]


def _last_line(process: subprocess.Popen, patience_s: float) -> str:
    """Wait for a command; return the last line of its standard error."""
    return (process.communicate(timeout=patience_s)[1].strip().splitlines() or [""])[-1]


def once(fault: str, folder: Path, expected: list[float], moment: float) -> str:
    """Run once with a fault; return what went wrong, empty if nothing did.

    Args:
        fault: One of `FAULTS`.
        folder: Folder for the run and for Ray's files.
        expected: Losses of the undisturbed run on one machine.
        moment: Moment of the fault, as a share of the updates.
    """
    out, command = folder / "run", (sys.executable, run.__file__)
    with tempfile.TemporaryDirectory(dir=folder) as place, cluster(Path(place)) as machines:
        driver = machines[1 if fault == "head" else 0]
        # One worker has a machine's CPUs; where a machine goes away, the other has to have room for both.
        each = ("scale.cpus_per_worker=2",) if fault == "none" else ()
        process = driver.start(*command, *GIVEN, *ON_RAY, *each, f"out={out}", stderr=subprocess.PIPE)
        while fault != "none" and len(losses(out)) < moment * len(expected) and process.poll() is None:
            time.sleep(0.1)
        if fault != "none":
            machines[0 if fault == "head" else 1].go_away()
        try:
            said = _last_line(process, LEFT_S if fault == "head" else PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return "the command did not end"
    if fault == "head":
        if process.returncode != 2 or not said.endswith(f"continue with resume={out}"):
            return f"status {process.returncode}: {said}"
        with tempfile.TemporaryDirectory(dir=folder) as place, cluster(Path(place)) as machines:
            process = machines[0].start(*command, f"resume={out}", stderr=subprocess.PIPE)
            said = _last_line(process, PATIENCE_S)
    if process.returncode:
        return f"status {process.returncode}: {said}"
    found = losses(out)
    if len(found) != len(expected):
        return f"{len(found)} updates of {len(expected)}"
    apart = np.abs(np.subtract(found, expected))
    return (
        ""
        if apart.max() <= 1e-5
        else f"losses differ by {apart.max():.1g}, first at update {np.argmax(apart > 1e-5) + 1}"
    )


def main() -> None:
    """Try each fault, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", help=f"of {', '.join(FAULTS)} (all)")
    parser.add_argument("--tries", type=int, default=3, help="of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    given = parser.parse_args()
    if unknown := set(given.faults) - set(FAULTS):
        parser.error(f"unknown fault {unknown.pop()}: expected {', '.join(FAULTS)}")
    moments = random.Random(given.seed)
    with tempfile.TemporaryDirectory(dir=Path.home()) as place:  # not under /tmp/ray
        alone = Path(place) / "alone"
        together = (*GIVEN, "scale=ray", "scale.cpus_per_worker=1")
        subprocess.run([sys.executable, run.__file__, *together, f"out={alone}"], env=ENVIRONMENT, check=True)
        print("| fault | tried | survived | what went wrong |\n|---|---|---|---|", flush=True)
        for fault in given.faults or FAULTS:
            wrong = []
            for _ in tqdm(range(given.tries), desc=fault, unit="try"):
                with tempfile.TemporaryDirectory(dir=place) as folder:
                    wrong.append(once(fault, Path(folder), losses(alone), moments.uniform(0.1, 0.8)))
            told = "; ".join(sorted({*wrong} - {""}))
            print(f"| {fault} | {given.tries} | {wrong.count('')} | {told} |", flush=True)


if __name__ == "__main__":
    main()
