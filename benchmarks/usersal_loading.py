"""Measure the share of a UserSal update that waits for samples, with 0, 1 and 2 processes that load (data.workers).

Run ``python benchmarks/usersal_loading.py``. Photos are scenes written as JPEG files of 400 x 300 pixels, the usual
size in DUTS, with masks as PNG files; batches are the paper's input, 352 x 352, times 16. The network is a Swin of one
block per stage with random weights, so its step is far shorter than that of the published VST. The numbers of processes
are measured in alternating rounds, in one process, and each batch is read from the files.

    wait       seconds per update until the batch is there
    step       seconds per update of forward pass, backward pass and optimizer
    share      wait / (wait + step)
    ratio      (wait + step), relative to no process

A GPU's step is shorter and leaves the cores free: ``--step 0.2`` sleeps for 0.2 s in place of the network. The last
line has the seconds per batch of loading alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from transformers import SwinConfig

from maskgym import policies
from maskgym.agents.masks.batches import Batch, Batches, loading
from maskgym.agents.masks.supervised import UserSalAgent
from maskgym.data.readers.folder import Folder
from maskgym.data.scenes import Scenes
from maskgym.envs.base import SAMPLE_BYTES
from maskgym.envs.need import UserNeedVectorEnv
from maskgym.policies.needs.hub_backbone import SwinBackbone
from maskgym.policies.needs.usersal import UserSal

SIZE = (400, 300)  # width and height of a photo, in pixels
WORKERS = (0, 1, 2)


def write_photos(folder: Path, count: int) -> None:
    """Write photos and masks as a folder of pairs."""
    scenes = Scenes("sod", "train", size=count, image_size=SIZE[0])
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index in range(count):
        sample = scenes[index]
        photo, mask = sample.images[0][: SIZE[1]], sample.union()[: SIZE[1]]
        mask[0, 0] = True  # what is cropped may be all of it, and an empty mask is a fault
        Image.fromarray(photo).save(folder / "images" / f"{index}.jpg", quality=90)
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")


def make_agent(folder: Path, env: UserNeedVectorEnv, batch: int) -> UserSalAgent:
    """Build an agent with a small Swin of random weights."""
    sizes = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 11}
    SwinConfig(image_size=352, patch_size=4, mlp_ratio=2.0, **sizes).save_pretrained(folder)
    backbone = SwinBackbone(folder, pretrained=False, width=16, heads=2)
    policy = UserSal(backbone, policies.make_need_encoder("bag_of_words"), skip_empty_need=False)
    return UserSalAgent(policy, env, output=folder, batch_size=batch)


def updates(
    learn: Callable[[Batch], None], batches: Batches, numbers: range, workers: int
) -> tuple[list[float], list[float]]:
    """Make updates; return the seconds that each waits and computes, without the first."""
    waits, steps = [], []
    with loading(batches, numbers, workers) as loaded:
        for _ in numbers:
            begun = time.perf_counter()
            batch = next(loaded)
            there = time.perf_counter()
            learn(batch)
            waits.append(there - begun)
            steps.append(time.perf_counter() - there)
    return waits[1:], steps[1:]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="samples per update")
    parser.add_argument("--side", type=int, default=352, help="side of the input, pixels")
    parser.add_argument(
        "--updates", type=int, default=4, help="per round and number of processes, after one that warms up"
    )
    parser.add_argument("--step", type=float, metavar="SECONDS", help="sleep in place of the network")
    parser.add_argument("--rounds", type=int, default=2, help="alternating rounds")
    given = parser.parse_args()
    torch.manual_seed(0)
    each = given.updates + 1
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_photos(folder, each * given.batch)  # each photo once per round, so that none is found decoded
        dataset = Folder(folder, splits="train")
        env = UserNeedVectorEnv(given.batch, dataset, image_size=given.side, autoreset_mode="Disabled")
        agent = make_agent(folder, env, given.batch)

        def learn(batch: Batch) -> None:
            if given.step is None:
                agent.learn(batch, epoch=0)  # returns numbers on the CPU, so a GPU is waited for
            else:
                time.sleep(given.step)

        found: dict[int, tuple[list[float], list[float]]] = {workers: ([], []) for workers in WORKERS}
        for number in range(given.rounds):
            for workers in WORKERS:  # a new copy of the environment has decoded nothing
                new = Batches([env], given.batch, seed=number)
                for kept, values in zip(found[workers], updates(learn, new, range(each), workers), strict=True):
                    kept += values
        alone = Batches([env], given.batch, seed=given.rounds)
        with loading(alone, range(each), 0) as loaded:
            begun = time.perf_counter()
            made = sum(1 for _ in loaded)
            seconds = (time.perf_counter() - begun) / made
    print(
        f"{given.side} x {given.side} x {given.batch}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    )
    print(f"cache of decoded samples per process: {SAMPLE_BYTES >> 20} MiB\n")
    print("| data.workers | wait, s | step, s | share | ratio |\n|---|---|---|---|---|")
    medians = {workers: [statistics.median(values) for values in kept] for workers, kept in found.items()}
    for workers, (wait, step) in medians.items():
        whole = wait + step
        print(f"| {workers} | {wait:.3f} | {step:.3f} | {wait / whole:.3f} | {whole / sum(medians[0]):.2f} |")
    print(f"\nloading alone: {seconds:.3f} s a batch in one process")


if __name__ == "__main__":
    main()
