"""``maskgym evaluate RUN_DIR scale=ray``: the agent of a run answers in several workers, each on whole batches.

Every worker runs `maskgym.experiments.evaluation.evaluate_command.answer` with the same arguments; rank 0 scores.
"""

from __future__ import annotations

import os
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import timedelta
from io import TextIOBase

import torch.distributed as dist

from maskgym.errors import UserError
from maskgym.experiments.evaluation import evaluate_command
from maskgym.experiments.on_ray import room, workers
from maskgym.experiments.wiring import composition
from maskgym.experiments.wiring.cluster import connected, use_network_of_ray
from maskgym.experiments.wiring.process import beside

ASKED_S = 0.2  # interval at which what rank 0 writes is shown
GOES_ON = "the same command goes on with what is written"
STORE_S = 300  # timeout until the workers have met
LINES = "lines"  # key that counts the texts of rank 0; each has its number as key


def answer(given: Namespace) -> str:
    """Evaluate in the workers of ``given.scale``; arguments and result as of `evaluate_command.answer`.

    Raises:
        UserError: If Ray is not installed, its cluster does not answer or lacks resources, a worker dies, or as
            `evaluate_command.answer`.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    # Runs of older versions lack newer keys; each worker scores its own answers.
    scale = {**composition.option("scale", "ray"), **given.scale, "reward_actors": 0}
    workers.check(scale)
    with connected(scale["address"], advice=lambda: GOES_ON):
        count, gpus = scale["num_workers"], int(scale["use_gpu"])
        cpus = room.check(scale, count, gpus)
        host = ray.util.get_node_ip_address()
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        work = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_work)
        same = (count, host, store.port, os.getcwd(), sys.stderr.isatty(), given)
        tasks = [work.remote(rank, *same) for rank in range(count)]
        with _shown(store):
            left = list(tasks)
            try:
                while left:  # in the order of their ends, since the others wait for one that failed
                    done, left = ray.wait(left)
                    ray.get(done)
            except RayTaskError as error:
                raise workers.cause(error) from error
            except RayError as error:
                where = given.out or given.source
                raise UserError(f"{where}: a worker died; {GOES_ON}") from error
        return ray.get(tasks[0])


def _work(rank: int, count: int, host: str, port: int, directory: str, terminal: bool, given: Namespace) -> str:
    """Evaluate in one worker."""
    os.chdir(directory)  # paths are relative to the command's
    use_network_of_ray()
    store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=STORE_S))
    waits = timedelta(seconds=workers.BARRIER_S)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=waits)
    try:
        with redirect_stderr(sys.stderr if rank else _Relay(store, terminal)):
            return evaluate_command.answer(given)
    finally:
        dist.destroy_process_group()


class _Relay(TextIOBase):
    """Standard error of rank 0, which the command shows as its own.

    Args:
        store: Where the command finds it.
        terminal: Whether the command's standard error is a terminal, which shows progress bars.
    """

    def __init__(self, store: dist.Store, terminal: bool) -> None:
        self.store = store
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.store.set(str(self.store.add(LINES, 1)), text)
        return len(text)


@contextmanager
def _shown(store: dist.Store) -> Iterator[None]:
    """Show what rank 0 writes to its standard error."""

    def show(over: threading.Event) -> None:
        shown = 0
        while True:
            ended = over.wait(ASKED_S)
            for number in range(shown, store.add(LINES, 0)):
                sys.stderr.write(store.get(str(number + 1)).decode())
                shown = number + 1
            sys.stderr.flush()
            if ended:
                return

    with beside(show):
        yield
