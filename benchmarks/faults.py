"""Test fault tolerance: Ray runs of one to two minutes, each hit by a fault at a random moment.

    python benchmarks/faults.py --tries 10 driver worker      # two to four minutes a try on two cores

A run survives if it continues by itself or by ``resume`` and its losses equal those of the undisturbed run to 1e-5.
With reward actors, sums depend on the batching of requests, so the run only has to end.

- *driver*: the command is killed (kill -9), and resumed.
- *worker*: a worker is killed (kill -9).
- *actor*: a reward actor is killed (kill -9).
- *hang*: a reward actor is stopped (kill -STOP), until ``scale.timeout_s`` has it restarted.
- *player*: a process that plays episodes for RLlib's PPO is killed (kill -9).
- *interrupt*: Ctrl-C; the command ends with status 130, and is resumed.
- *disk*: the disk is full from then on; the command ends with status 2 and one line, and is resumed with room. Needs
  the right to mount a small file system.
- *wandb*: wandb's service is killed (kill -9); it logs offline.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskgym.experiments import run
from maskgym.experiments.wiring import run_folder

NO_PICTURES = ("evaluation.samples=2", "evaluation.pictures=0", "algo.save_every=2")
NEEDS = ("env=user_need", "algo=usersal", "algo.batch_size=4", "algo.updates=100", *NO_PICTURES)
TEXT = ("env=sis", "algo=grpo", "algo.batch_size=8", "algo.group_size=4", "algo.updates=15", *NO_PICTURES)
CLICKS = ("env=point_prompt", "algo=ppo", "env.num_envs=8", "algo.updates=30", "algo.epochs=2", *NO_PICTURES)
RAY = "scale=ray"
ACTOR = (*TEXT, RAY, "scale.num_workers=1", "scale.reward_actors=1")
PATIENCE_S = 600
DISK = "size=256m"


@dataclass(frozen=True)
class Fault:
    """A fault and the run that it hits.

    Attributes:
        run: Arguments of `run.py`.
        victim: Prefix of the name of the process to kill; empty for the command itself.
        signal: Signal that the victim receives.
        status: Exit status of the command; the run is resumed if it is not 0.
        same: Whether the losses must equal those of the undisturbed run.
    """

    run: tuple[str, ...] = (*NEEDS, RAY)
    victim: str = ""
    signal: int = signal.SIGKILL
    status: int = 0
    same: bool = True


FAULTS = {
    "driver": Fault(status=-signal.SIGKILL),
    "worker": Fault(victim="ray::RayTrainWorker"),
    "actor": Fault(ACTOR, victim="ray::Scorer", same=False),
    "hang": Fault((*ACTOR, "scale.timeout_s=60"), victim="ray::Scorer", signal=signal.SIGSTOP, same=False),
    "player": Fault((*CLICKS, RAY), victim="ray::RolloutRunner", same=False),
    "interrupt": Fault(signal=signal.SIGINT, status=130),
    "disk": Fault(signal=0, status=2),
    "wandb": Fault((*NEEDS, "logger=wandb", "logger.mode=offline"), victim="wandb-core"),
}


def start(*arguments: str) -> subprocess.Popen:
    """Start the command as a user would."""
    return subprocess.Popen(
        [sys.executable, run.__file__, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for the command; return its status and last output."""
    try:
        error = process.communicate(timeout=PATIENCE_S)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return -1, f"did not end within {PATIENCE_S} s"
    return process.returncode, (error.strip().splitlines() or [""])[-1]


def process_of(pid: int, name: str) -> int | None:
    """Find a child process by the prefix of its name; return its id or None."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    family = {pid}
    while more := {int(row[0]) for row in rows if int(row[1]) in family} - family:
        family |= more
    names = {int(row[0]): Path(row[-1].split()[0]).name if "/" in row[-1] else row[-1] for row in rows}
    return next((number for number in family if names.get(number, "").startswith(name)), None)


def losses(folder: Path) -> list[float]:
    """Read the losses that a run has written so far."""
    file = folder / run_folder.METRICS
    rows = run_folder.read_metrics(file) if file.exists() else []
    return [row.get("train/loss", row.get("loss")) for row in rows if "train/loss" in row or "loss" in row]


def once(fault: Fault, folder: Path, expected: list[float], moment: float) -> str:
    """Run once with a fault; return the failure, empty if the run survived.

    Args:
        fault: The fault.
        folder: Folder of the run; on a small file system where the disk is to be full.
        expected: Losses of the undisturbed run.
        moment: Moment of the fault, as a share of the updates.
    """
    process = start(*fault.run, f"out={folder}")
    while len(losses(folder)) < max(1, moment * len(expected)):
        if process.poll() is not None:
            return f"ended before: {finish(process)[1]}"
        time.sleep(0.05)
    ballast = folder.parent / "ballast"
    if fault.signal == 0:
        with contextlib.suppress(OSError), ballast.open("wb") as stream:
            while True:
                stream.write(bytes(2**16))
    else:
        victim = process_of(process.pid, fault.victim) if fault.victim else process.pid
        if victim is None:
            process.kill()
            return f"no process {fault.victim}"
        os.kill(victim, fault.signal)
    status, said = finish(process)
    if status != fault.status:
        return f"status {status}: {said}"
    if fault.status:
        ballast.unlink(missing_ok=True)
        time.sleep(5)  # Ray's processes notice by themselves that the command is gone
        status, said = finish(start(f"resume={folder}"))
        if status:
            return f"resumed, status {status}: {said}"
    found = losses(folder)
    if len(found) != len(expected):
        return f"{len(found)} updates of {len(expected)}"
    return "" if not fault.same or np.allclose(found, expected, rtol=0, atol=1e-5) else "other losses"


@contextlib.contextmanager
def place(small: bool) -> Iterator[Path]:
    """Make a folder for runs, on a small file system if ``small``."""
    with tempfile.TemporaryDirectory() as folder:
        if small:
            subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            if small:
                subprocess.run(["umount", folder], check=True)


def main() -> None:
    """Try each fault, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", help=f"of {', '.join(FAULTS)} (all)")
    parser.add_argument("--tries", type=int, default=10, help="of each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    given = parser.parse_args()
    if unknown := [name for name in given.faults if name not in FAULTS]:
        parser.error(f"unknown fault {unknown[0]}: expected {', '.join(FAULTS)}")
    moments, expected = random.Random(given.seed), {}
    print("| fault | tried | survived | what went wrong |\n|---|---|---|---|", flush=True)
    for name in given.faults or FAULTS:
        fault, wrong = FAULTS[name], []
        for _ in tqdm(range(given.tries), desc=name, unit="try"):
            with place(fault.signal == 0) as folder:
                if fault.run not in expected:
                    status, said = finish(start(*fault.run, f"out={folder / 'whole'}"))
                    if status:
                        sys.exit(f"{name}: the run that nothing happened to: status {status}: {said}")
                    expected[fault.run] = losses(folder / "whole")
                wrong.append(once(fault, folder / "run", expected[fault.run], moments.uniform(0.05, 0.9)))
                if wrong[-1]:
                    tqdm.write(f"{name}, try {len(wrong)}: {wrong[-1]}", file=sys.stderr)
        kept = wrong.count("")
        print(f"| {name} | {given.tries} | {kept} | {'; '.join(sorted({*wrong} - {''}))} |", flush=True)


if __name__ == "__main__":
    main()
