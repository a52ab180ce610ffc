"""Measure scaling: environment steps and scores per second in one and two processes, and an estimate for N workers.

    python benchmarks/scaling.py                     # about five minutes on two cores
    python benchmarks/scaling.py --bandwidth 5e10    # bandwidth of the assumed network, bytes per second

Every process has one thread. Rounds with one and with two processes alternate, and medians are compared. The efficiency
is the rate of two processes over twice the rate of one, from one run on one machine. Two hyper-threads of one core
share its arithmetic, so their efficiency is that of the core.

- *environment steps*: random clicks in ``maskgym/PointPrompt-v0``, 16 sub-environments per process.
- *scores*: rationales of ``maskgym/SIS-v0``, segmented and scored by reward actors, each phrase for the first time.
- *held-out samples*: 512 scenes of ``maskgym/SIS-v0``, answered by the bundled policy and scored as in a run, the two
  processes as workers that share the samples; their numbers are compared with those of one.
- *maps*: ``maskgym evaluate MAPS --truth MASKS``, 5,019 maps of 352 x 352 pixels, as many as DUTS-TE has, with
  ``--jobs 1`` and with ``--jobs 2``: the whole command, the start of its processes included; the tables are compared.
- *overhead of an actor*: additional milliseconds per answer for scoring through Ray instead of in this process.
- *bytes*: size of a request with its answer, and of the gradients that a worker sends and receives per update.

The estimate draws, for N workers with their own prompts (the global batch grows with N), the slowest of N measured
times of one worker's updates of the same kind, policy or supervised. It adds the time of a ring all-reduce: 2 (N - 1) /
N times the gradients' bytes at the network's bandwidth, and 2 (N - 1) times its latency. It assumes that actors grow
with N, that workers' times are independent, that the sum does not overlap with the backward pass, that rank 0 does not
evaluate meanwhile, and that nothing fails.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ray
import torch.distributed as dist
from evaluation import make_pairs  # the benchmark beside this one

from maskgym.agents.common import parallel
from maskgym.aliases import Config
from maskgym.experiments.evaluation import evaluation
from maskgym.experiments.evaluation.evaluation import Evaluation
from maskgym.experiments.on_ray import reward_pool
from maskgym.experiments.training import train
from maskgym.experiments.wiring import build, composition, run_folder

STEPS, ANSWERS, UPDATES, HELD_OUT = 60, 64, 30, 512
MAPS = (352, 5019)  # pixels of a side, number
SIZES = (1, 2, 8, 64, 512, 1000)
CLICKS = ("env=point_prompt", "algo=ppo", "env.num_envs=16", "env.label_source=positive")
TEXT = ("env=sis", "algo=cgpo", "algo.batch_size=16")


@ray.remote(num_cpus=1)
class Player:
    """Player that steps an environment with random clicks."""

    def __init__(self) -> None:
        config = composition.compose(CLICKS)
        self.env = build.make_train_envs(config, build.make_parts(config))["point_prompt"]
        self.env.reset(seed=0)
        self.play()

    def play(self) -> int:
        """Step the environment; return the number of steps over all sub-environments."""
        for _ in range(STEPS):
            _, _, terminated, truncated, _ = self.env.step(self.env.action_space.sample())
            if (over := terminated | truncated).any():
                self.env.reset(options={"reset_mask": over})
        return STEPS * self.env.num_envs


def rates(one: Callable[[int], list[ray.ObjectRef]], rounds: int) -> dict[int, float]:
    """Measure the rates per second of one and two processes, as medians over alternating rounds.

    Args:
        one: Function from the number of processes to Ray references of their counts.
        rounds: Number of rounds per measurement.
    """
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for count, values in found.items():
            start = time.perf_counter()
            done = sum(ray.get(one(count)))
            values.append(done / (time.perf_counter() - start))
    return {count: statistics.median(values) for count, values in found.items()}


def show(name: str, found: dict[int, float]) -> None:
    """Print rates and their efficiency."""
    print(f"{name}: {found[1]:.1f} a second, two {found[2]:.1f}, efficiency {found[2] / found[1] / 2:.2f}", flush=True)


def steps(rounds: int) -> None:
    """Measure environment steps."""
    players = [Player.remote() for _ in range(2)]
    ray.get([player.play.remote() for player in players])
    show("environment steps", rates(lambda count: [player.play.remote() for player in players[:count]], rounds))
    for player in players:
        ray.kill(player)


def scores(rounds: int) -> None:
    """Measure the scoring rate of actors and the overhead per request."""
    config = composition.compose([*TEXT, "scale=ray", "scale.reward_actors=2"])
    answers = rationales(config, 2 * ANSWERS * (2 * rounds + 1))
    taken = iter(range(0, len(answers), ANSWERS))

    def batch() -> tuple[list[int], list[str]]:
        place = next(taken)
        indices, texts = zip(*answers[place : place + ANSWERS], strict=True)
        return list(indices), list(texts)

    with reward_pool.started(config) as actors:

        def ask(count: int) -> list[ray.ObjectRef]:
            return [counted.remote(actor.score.remote(0, *batch())) for actor in actors[:count]]

        ray.get(ask(2))
        show("scores", rates(ask, rounds))
        # From the second time on, all masks are cached, so the rest is the metrics and the way to the actor and back.
        indices, texts = (list(column) for column in zip(*answers[:ANSWERS], strict=True))
        local = reward_pool.Scorer(config, os.getcwd())
        ways = {
            "here": lambda: local.score_all([(0, indices, texts)]),
            "actor": lambda: ray.get(actors[0].score.remote(0, indices, texts)),
        }
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(2 * rounds + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                spent[name].append(time.perf_counter() - start)
        here, there = (1000 * statistics.median(spent[name][1:]) / ANSWERS for name in ways)
        print(f"an answer whose masks are known: {here:.2f} ms here, {there - here:+.2f} ms through an actor")
        sent = len(pickle.dumps((0, indices, texts))) + len(pickle.dumps(ways["actor"]()))
        print(f"a request of {ANSWERS} answers and its reply: {sent / ANSWERS:.0f} bytes an answer", flush=True)


@ray.remote(num_cpus=1)
class Evaluator:
    """Worker that evaluates the bundled policy, alone or together with the others."""

    def __init__(self, rank: int, size: int, meeting: str) -> None:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        config = composition.compose(TEXT)
        parts = build.make_parts(config)
        self.env = build.make_held_out_env(config, "sis", parts)
        self.agent = build.make_agent(config, Path(meeting).parent, self.env, parts)
        self.found: dict[bool, Evaluation | None] = {}

    def evaluate(self, together: bool) -> int:
        """Evaluate the held-out samples; return the number of those of this worker."""
        act = evaluation.evaluate_together if together else evaluation.evaluate
        self.found[together] = act(self.agent, self.env, range(HELD_OUT))
        return len(parallel.share(HELD_OUT, self.env.num_envs)) if together else HELD_OUT

    def agrees(self) -> bool:
        """Check that both ways have the same numbers, to the last digit."""
        return self.found[True] == self.found[False]


def evaluations(rounds: int) -> None:
    """Measure the evaluation of held-out samples."""
    with tempfile.TemporaryDirectory() as folder:
        workers = [Evaluator.remote(rank, 2, f"{folder}/meeting") for rank in range(2)]
        ray.get([worker.evaluate.remote(True) for worker in workers])

        def ask(count: int) -> list[ray.ObjectRef]:
            return [worker.evaluate.remote(count > 1) for worker in workers[:count]]

        show("held-out samples", rates(ask, rounds))
        print(f"numbers of both equal: {ray.get(workers[0].agrees.remote())}", flush=True)
        for worker in workers:
            ray.kill(worker)


def maps(rounds: int) -> None:
    """Measure the scoring of a folder of maps."""
    with tempfile.TemporaryDirectory() as folder:
        make_pairs(Path(folder), [], *MAPS)
        asked = [f"{folder}/pred", "--truth", f"{folder}/gt"]
        spent: dict[int, list[float]] = {1: [], 2: []}
        command = [sys.executable, "-m", "maskgym.experiments.cli", "evaluate", *asked, "--jobs"]
        tables = set()
        for _ in range(rounds):
            for jobs, seconds in spent.items():
                start = time.perf_counter()
                tables.add(subprocess.run([*command, str(jobs)], check=True, capture_output=True).stdout)
                seconds.append(time.perf_counter() - start)
        show("maps", {jobs: MAPS[1] / statistics.median(seconds) for jobs, seconds in spent.items()})
        print(f"tables of both equal: {len(tables) == 1}", flush=True)


@ray.remote(num_cpus=0)
def counted(scored: tuple[reward_pool.Scores, tuple[int, int]]) -> int:
    """Count the scored answers."""
    return len(scored[0][0])


def rationales(config: Config, count: int) -> list[tuple[int, str]]:
    """Build samples with their reference answers, each once."""
    env = build.make_train_envs(config, build.make_parts(config))["sis"]
    base = env.unwrapped
    return [(index, base.dataset[index % base.num_samples].rationale) for index in range(min(count, base.num_samples))]


def update_times() -> tuple[list[list[float]], int]:
    """Measure the seconds of one worker's updates of CGPO, by kind, and the bytes of its gradients."""
    config = composition.compose([*TEXT, f"algo.updates={UPDATES}", "evaluation.samples=1", "evaluation.pictures=0"])
    with tempfile.TemporaryDirectory() as folder:
        train.run(config, Path(folder))
        rows = run_folder.read_metrics(Path(folder) / run_folder.METRICS)
        agent = build.untrained(config, Path(folder)).agent
    updates = [row for row in rows if "loss" in row]
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for last, row in itertools.pairwise(updates):
        kinds["reward" in row].append(row["wall_s"] - last["wall_s"])
    trained = sum(value.numel() for value in agent.policy.model.parameters() if value.requires_grad)
    return [seconds for seconds in kinds.values() if seconds], 4 * trained


def guess(kinds: list[list[float]], gradients: int, bandwidth: float, latency: float) -> None:
    """Estimate and print the throughput of N workers from the times of one."""
    rng, alone = np.random.default_rng(0), np.mean(np.concatenate(kinds))
    shown = " and ".join(f"{len(own)} of {np.mean(own):.2f} s (deviation {np.std(own):.2f})" for own in kinds)
    print(f"updates of one worker: {shown}, {gradients:,} bytes of gradients")
    print("\n| workers | an update, s | of it the sum, s | efficiency |\n|---|---|---|---|")
    for size in SIZES:
        waits = [len(own) * rng.choice(own, (2000, size)).max(axis=1).mean() for own in kinds]
        slowest = sum(waits) / sum(map(len, kinds))
        summed = 2 * (size - 1) / size * gradients / bandwidth + 2 * (size - 1) * latency
        total = slowest + summed
        print(f"| {size} | {total:.2f} | {summed:.4f} | {alone / total:.2f} |")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bandwidth", type=float, default=5e10, help="bytes a second, each way (%(default)s)")
    parser.add_argument("--latency", type=float, default=2e-5, help="seconds a message (%(default)s)")
    given = parser.parse_args()
    ray.init(num_cpus=4, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    steps(given.rounds)
    scores(given.rounds)
    evaluations(given.rounds)
    ray.shutdown()
    maps(given.rounds)
    guess(*update_times(), given.bandwidth, given.latency)


if __name__ == "__main__":
    main()
