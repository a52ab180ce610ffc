"""Measure the peak memory and the time of a training step of SAMed with less at a time, beside the whole batch.

Run ``python benchmarks/baselines.py`` (some two minutes on one core, 4 GB of memory). The network has the shape of
SAM's ViT-B with random weights and an input of 224 pixels in place of 1,024: one window of its attention. Each variant
is a process of its own: two steps, of which the second is measured, so that optimizer states are resident before it.
The peak is that of resident memory above the level before the step (Linux's ``/proc``), the time that of the CPU. The
losses of both steps are compared with those of the whole batch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import torch
from cgpo import Meter
from embeddings import RandomSam
from segment_anything.modeling import Sam

from maskgym.data import Sample
from maskgym.policies.few_shot import SAMed
from maskgym.segmenters.points.sam import PUBLISHED

BATCH = 8
VARIANTS = {
    "whole batch": {},
    "micro-batches of 2": {"micro_batch": 2},
    "checkpointing": {"checkpointing": True},
    "both": {"micro_batch": 2, "checkpointing": True},
}


class SmallInput(RandomSam):
    """A SAM of the shape of ViT-B with a smaller input and random weights; arguments as of `RandomSam`."""

    def __init__(self, side: int) -> None:
        super().__init__("vit_b", "float32")
        self.own_config = replace(PUBLISHED["vit_b"], image_size=side)

    def load(self, dtype: torch.dtype) -> Sam:
        """Build the network."""
        return self._load().to(dtype)


class Measured(SAMed):
    """SAMed whose second step is measured."""

    meter = Meter("cpu")

    def _accumulate(self, *batch) -> float:
        self.meter.start_memory()
        self.meter.start_step()
        loss = super()._accumulate(*batch)
        self.meter.end_step()
        return loss


def measure(name: str, side: int) -> dict[str, float | list[float]]:
    """Run two steps in this process; return the peak in bytes, the seconds and the losses."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    samples = []
    for number in range(BATCH):
        mask = np.zeros((1, side, side), bool)
        mask[0, number * 8 : number * 8 + side // 2, : side // 2] = True
        samples.append(Sample(str(number), (rng.integers(0, 256, (side, side, 3), dtype=np.uint8),), (mask,)))
    model = Measured(SmallInput(side), steps=2, batch_size=BATCH, **VARIANTS[name])
    losses = model.fit(samples)
    return {"peak": model.meter.peak(), "seconds": model.meter.seconds[-1], "losses": losses}


def measure_apart(name: str, side: int) -> dict[str, float | list[float]]:
    """Run `measure` in a fresh process."""
    # A fixed threshold gives large blocks back to the system at once, so the peak is that of tensors.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, __file__, "--only", name, "--side", str(side)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print each variant as ratios to the whole batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=224, help="input of the network, pixels (%(default)s)")
    parser.add_argument("--only", choices=VARIANTS, help="one variant, as JSON")
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.only, given.side)))
        return
    found = {name: measure_apart(name, given.side) for name in VARIANTS}
    whole = found["whole batch"]
    print(f"{BATCH} images of {given.side} pixels\n\n| | peak | | time of a step | | largest difference of a loss |")
    print("|---|---|---|---|---|---|")
    for name, one in found.items():
        peak, seconds = f"{one['peak'] / 2**20:,.0f} MiB", f"{one['seconds']:.1f} s"
        ratios = [f"{one[key] / whole[key]:.2f}" for key in ("peak", "seconds")]
        difference = max(abs(a - b) for a, b in zip(one["losses"], whole["losses"], strict=True))
        print(f"| {name} | {peak} | {ratios[0]} | {seconds} | {ratios[1]} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
