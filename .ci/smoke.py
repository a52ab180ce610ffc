"""Try an installed maskgym from any folder: make and play every environment, and train one policy."""

import sys
import tempfile
from pathlib import Path

import gymnasium as gym

import maskgym
from maskgym.experiments import cli

assert Path(maskgym.__file__).is_relative_to(sys.argv[1]), f"{maskgym.__file__}: expected the one in {sys.argv[1]}"
ids = [name for name in gym.registry if name.startswith("maskgym/")]
for name in ids:
    env = gym.make(name)
    env.reset(seed=0)
    env.action_space.seed(0)
    env.step(env.action_space.sample())
short = ("algo.updates=1", "algo.batch_size=2", "env.num_envs=2", "evaluation.samples=2", "evaluation.pictures=1")
with tempfile.TemporaryDirectory() as folder:
    status = cli.main(["run", "env=sod", "algo=cgpo", *short, f"out={folder}/run"])
    assert status == 0 and (Path(folder) / "run" / "report.html").is_file(), f"run: status {status}"
print(f"{len(ids)} environments, one run: ok")
