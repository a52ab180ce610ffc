"""Measure speed and memory of the point environment, beside Gymnasium's vector environments and the decoder alone.

Run ``python benchmarks/point_env.py`` (about two minutes on two cores). Every row plays whole episodes on the same
samples, which are encoded beforehand. Steps per second are medians over alternating rounds. *floor* only decodes the
same numbers of points for the same number of images.

    native       PointPromptVectorEnv
    sync, async  Gymnasium's vector environments of the scalar one. async has one process per environment and runs only
                 with --processes: 64 processes take minutes to start and some 50 GB. The bars hold without them.
    sb3          Stable-Baselines3's DummyVecEnv of the scalar one
    adaptor      the native one behind the adaptor to Stable-Baselines3

With ``--segmenter vit_b|vit_l|vit_h``, the published sizes with random weights are measured, for native and floor only.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import gymnasium as gym
import numpy as np
import torch
from embeddings import RandomSam
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import maskgym  # noqa: F401  (registers the environments)
from maskgym import data
from maskgym.agents.clicks.sb3 import SampleVecEnv
from maskgym.aliases import Settings
from maskgym.envs.point import PointPromptEnv
from maskgym.experiments.wiring.process import keep_freed_memory
from maskgym.segmenters.points.embeddings import EmbeddingCache
from maskgym.segmenters.points.sam import PUBLISHED, SamSegmenter, sam_tiny

SAMPLES, HORIZON = 32, 15
BARS = {"sync": 3.0, "floor": 1.15}  # at 16 sub-environments: native over sync at least, over the floor's time at most


def settings(segmenter: SamSegmenter) -> Settings:
    """Return the arguments of every environment."""
    scenes = data.make("scenes", task="sod", size=SAMPLES)
    return {"segmenter": segmenter, "dataset": scenes, "label_source": "positive", "horizon": HORIZON}


def warm(env: VectorEnv, count: int) -> None:
    """Encode every sample before anything is measured."""
    for start in range(0, SAMPLES, count):
        env.reset(options={"index": np.arange(start, start + count) % SAMPLES})


def play(env: VectorEnv | VecEnv, actions: np.ndarray) -> None:
    """Step a vector environment that restarts by itself, Gymnasium's or Stable-Baselines3's."""
    for row in actions:
        env.step(row)


def floor(segmenter: SamSegmenter, embeddings: torch.Tensor, actions: np.ndarray) -> None:
    """Decode what the environment decodes: two points at the start of an episode, one more per step."""
    count = actions.shape[1]
    points, labels = np.full((count, HORIZON + 2, 2), 8.0, np.float32), np.ones((count, HORIZON + 2), int)
    for step in range(len(actions)):
        used = step % HORIZON + 3
        segmenter.decode(embeddings, points[:, :used], labels[:, :used])
        if step % HORIZON == HORIZON - 1:
            segmenter.decode(embeddings, points[:, :2], labels[:, :2])


def scalar(segmenter: SamSegmenter) -> PointPromptEnv:
    """Build a scalar environment with every sample encoded."""
    env = PointPromptEnv(**settings(segmenter))
    for index in range(SAMPLES):
        env.reset(options={"index": index})
    return env


def scalar_of_one_thread(segmenter: SamSegmenter) -> PointPromptEnv:
    """Build a scalar environment limited to one thread, so that processes do not compete for cores."""
    torch.set_num_threads(1)
    return scalar(segmenter)


def contenders(
    segmenter: SamSegmenter, count: int, published: bool, processes: bool
) -> dict[str, Callable[[np.ndarray], None]]:
    """Build the environments to measure, by name."""
    native = gym.make_vec(
        "maskgym/PointPrompt-v0", num_envs=count, vectorization_mode="vector_entry_point", **settings(segmenter)
    )
    warm(native, count)
    native.reset(seed=0)
    embeddings = segmenter.encode([data.make("scenes", task="sod")[i % SAMPLES].images[0] for i in range(count)])
    found = {"native": partial(play, native), "floor": partial(floor, segmenter, embeddings)}
    if published:
        return found
    each = [partial(scalar, segmenter)] * count
    sync = SyncVectorEnv(each, autoreset_mode=AutoresetMode.SAME_STEP)
    dummy, adaptor = DummyVecEnv(each), SampleVecEnv(native)
    sync.reset(seed=0)
    dummy.reset()
    found |= {"sync": partial(play, sync), "sb3": partial(play, dummy), "adaptor": partial(play, adaptor)}
    if processes:  # Forked processes would deadlock on the threads that PyTorch started before.
        apart = [partial(scalar_of_one_thread, segmenter)] * count
        asynchronous = AsyncVectorEnv(apart, context="spawn", autoreset_mode=AutoresetMode.SAME_STEP)
        asynchronous.reset(seed=0)
        found["async"] = partial(play, asynchronous)
    return found


def measure(runs: dict[str, Callable[[np.ndarray], None]], count: int, rounds: int) -> dict[str, float]:
    """Measure the seconds per episode of all sub-environments, the median over alternating rounds."""
    actions = np.random.default_rng(0).integers(64, size=(HORIZON, count))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            run(actions)
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def memory(segmenter: SamSegmenter, images: int = 512, bound: int = 16 * 2**20) -> str:
    """Measure the memory of scene embeddings, without a bound and with one."""
    scenes, taken = data.make("scenes", task="sod", size=images), []
    for most in (2**40, bound):
        cache = EmbeddingCache(segmenter, most)
        for index in range(images):
            cache([scenes[index].images[0]])
        taken.append(cache.kept.bytes / 2**20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    bounded = f"{taken[1]:.1f} MiB where at most {bound / 2**20:.0f} are allowed"
    return f"{images} embeddings take {taken[0]:.0f} MiB, and {bounded}; the process's peak was {peak:.0f} MiB"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segmenter", choices=("tiny", *PUBLISHED), default="tiny")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=6, help="the first warms up")
    parser.add_argument("--processes", action="store_true", help="AsyncVectorEnv too")
    given = parser.parse_args()
    if given.rounds < 2:
        raise SystemExit(f"error: --rounds {given.rounds}: expected at least 2, because the first warms up")
    keep_freed_memory()  # as a run does; all rows gain
    published = given.segmenter != "tiny"
    print(f"{given.segmenter}, {torch.get_num_threads()} threads, steps a second (time over the floor's)")
    for count in given.envs:
        segmenter = RandomSam(given.segmenter, batch_size=count) if published else sam_tiny()
        found = measure(contenders(segmenter, count, published, given.processes), count, given.rounds)
        cells = [f"{name} {count * HORIZON / s:.0f} ({s / found['floor']:.2f})" for name, s in found.items()]
        outside = max(0.0, 1 - found["floor"] / found["native"])
        print(f"{count:4d} envs: {', '.join(cells)}; {outside:.0%} of native's time is outside the decoder")
        if count == 16 and not published:
            ratios = {"sync": found["sync"] / found["native"], "floor": found["native"] / found["floor"]}
            print(f"      native is {ratios['sync']:.1f}x as fast as sync (at least {BARS['sync']})")
            print(f"      native takes {ratios['floor']:.2f}x the floor's time (at most {BARS['floor']})")
    if not published:
        print(memory(sam_tiny()))
    observation = gym.make("maskgym/PointPrompt-v0").observation_space
    size = sum(space.dtype.itemsize * int(np.prod(space.shape)) for space in observation.values())
    print(f"an observation is {size / 1024:.0f} KiB; a whole embedding of the published SAM is 4096 KiB")


if __name__ == "__main__":
    main()
