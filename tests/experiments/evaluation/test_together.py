"""Evaluation by several workers: whole batches are dealt out, and the result is that of one process, bit by bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maskgym.agents.common import parallel

SCRIPT = Path(__file__).parent / "together.py"


@pytest.mark.e2e(seconds=30)
def test_two_workers_find_what_one_finds(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launcher, str(SCRIPT), str(tmp_path)], check=True, timeout=280)


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
