"""Evaluation by several workers: whole batches are dealt out, and the result is that of one process, bit by bit."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from maskgym.agents.common import parallel
from maskgym.experiments.evaluation import evaluation
from maskgym.experiments.wiring import build, composition
from maskgym.experiments.wiring.process import seed_everything

RUNS = (
    ("env=sis", "algo=cgpo", "algo.max_new_tokens=40"),
    ("env=refer", "algo=random"),
    ("env=user_need", "algo=usersal"),
    ("env=ranking", "algo=random"),
)


def evaluate(rank: int, size: int, meeting: str) -> None:
    """Compare, in one of several processes, what one of them computes with what all compute together."""
    torch.set_num_threads(1)
    waits = timedelta(seconds=240)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=waits)
    for run in RUNS:
        seed_everything(1)
        config = composition.compose([*run, "env.num_envs=3", "seed=1"])
        (task,) = config["env"]["gym_ids"]
        parts = build.make_parts(config)
        env = build.make_held_out_env(config, task, parts)
        agent = build.make_agent(config, Path(meeting).parent, env, parts)
        whole = evaluation.evaluate(agent, env, range(8))
        together = evaluation.evaluate_together(agent, env, range(8))
        assert together == (None if rank else whole), run
    dist.destroy_process_group()


@pytest.mark.e2e(seconds=30)
def test_two_workers_find_what_one_finds(tmp_path):
    start = multiprocessing.get_context("spawn").Process
    workers = [start(target=evaluate, args=(rank, 2, str(tmp_path / "meeting"))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(280)
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_whole_batches_are_dealt_out(monkeypatch):
    shares = {}
    for size in (1, 2, 3, 5):
        monkeypatch.setattr(parallel, "size", lambda size=size: size)
        for rank in range(size):
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            shares[size, rank] = list(parallel.share(10, 4))
    assert shares[1, 0] == list(range(10))
    assert (shares[2, 0], shares[2, 1]) == ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9])
    assert [len(shares[3, rank]) for rank in range(3)] == [4, 4, 2]
    assert sorted(len(shares[5, rank]) for rank in range(5)) == [0, 0, 2, 4, 4]
