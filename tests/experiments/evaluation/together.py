"""Compare what one process evaluates with what all that torchrun started evaluate together: ``together.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from maskgym.experiments.evaluation import evaluation
from maskgym.experiments.wiring import build, composition
from maskgym.experiments.wiring.process import seed_everything

RUNS = (
    ("env=sis", "algo=cgpo", "algo.max_new_tokens=40"),
    ("env=refer", "algo=random"),
    ("env=user_need", "algo=usersal"),
    ("env=ranking", "algo=random"),
)


def main(folder: Path) -> None:
    """Compare each run's scores."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for run in RUNS:
        seed_everything(1)
        config = composition.compose([*run, "env.num_envs=3", "seed=1"])
        (task,) = config["env"]["gym_ids"]
        parts = build.make_parts(config)
        env = build.make_held_out_env(config, task, parts)
        agent = build.make_agent(config, folder, env, parts)
        whole = evaluation.evaluate(agent, env, range(8))
        together = evaluation.evaluate_together(agent, env, range(8))
        assert together == (None if dist.get_rank() else whole), run
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
