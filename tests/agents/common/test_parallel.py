"""Several workers: the same training as one, on the same answers; sums, and what cannot be shared out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskgym import agents, policies
from maskgym.agents.common import parallel
from maskgym.errors import UserError

SCRIPT = Path(__file__).parent / "replayed.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
# Times; and of RLOO TRL logs the mean of the workers' means over tokens.
NOT_COMPARED = {"step_time", "scoring_seconds", "scoring_ms", "scoring_share", "kl"}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Return a function that gives what one worker and two logged, an update each, in some case of the script."""
    folders = {}
    for name, launcher in (("one", ()), ("two", TORCHRUN)):
        folders[name] = tmp_path_factory.mktemp(name)
        command = [sys.executable, *launcher, str(SCRIPT), str(folders[name])]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return lambda case: [json.loads((folders[name] / f"{case}.json").read_text()) for name in ("one", "two")]


@pytest.mark.e2e(seconds=18)
@pytest.mark.parametrize("case", ["cgpo", "sft", "spo", "grpo", "rloo", "dapo"])
def test_two_workers_train_as_one(logged, case):
    one, two = logged(case)
    assert len(one) == len(two) == 3
    for alone, together in zip(one, two, strict=True):
        assert set(alone) == set(together)
        for name in set(alone) - NOT_COMPARED:
            close = pytest.approx(alone[name], rel=0 if name == "loss" else 1e-4, abs=1e-5)
            assert together[name] == close, name
    assert any(row["grad_norm"] > 0.1 for row in one)


@pytest.mark.e2e
def test_each_worker_fills_its_share_up(logged):
    for rows in logged("dapo, filled up"):
        assert max(row["dapo/rounds"] for row in rows) > 1
        assert all(row["dapo/rounds"] == 10 or row["dapo/share_unfilled"] == 0 for row in rows)
        assert all(row["reward_calls"] % 4 == 0 for row in rows)


@pytest.mark.e2e
def test_weights_that_are_dealt_out_train_as_whole_ones(logged):
    one, two = logged("grpo, sharded")  # both resumed in the middle
    assert [row.get("lacking") for row in two] == [*[pytest.approx(0.5, abs=0.01)] * 3, None]
    for alone, together in zip(one, two, strict=True):
        for name in {"loss", "grad_norm", "moved", "kl"} & set(alone):
            assert together[name] == pytest.approx(alone[name], rel=1e-5, abs=1e-5), name
    assert one[-1]["moved"] > 0.1


def test_cpus_do_not_shard(tmp_path):
    policy = policies.make("qwen2_5_vl_tiny", device="cpu")
    agent = agents.make("grpo", policy=policy, output=tmp_path, batch_size=8, group_size=4, fsdp=True)
    with pytest.raises(UserError, match=r"algo\.fsdp: accelerate shards on GPUs only"):
        agent.check_training()


def test_a_process_on_its_own_is_one_worker():
    assert (parallel.rank(), parallel.size(), parallel.total([1.5, 2])) == (0, 1, [1.5, 2])


def test_a_batch_that_workers_cannot_share_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "size", lambda: 3)
    policy = policies.make("qwen2_5_vl_tiny", device="cpu")
    with pytest.raises(UserError, match=r"algo\.batch_size=8: expected a multiple of the 3 workers"):
        agents.make("cgpo", policy=policy, output=tmp_path, batch_size=8)
    with pytest.raises(UserError, match=r"algo\.micro_batch_size=4: expected a divisor of a worker's 3 answers"):
        agents.make("cgpo", policy=policy, output=tmp_path, batch_size=9, micro_batch_size=4)
