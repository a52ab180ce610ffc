"""The whole stack at the paper's shape without its weights: make the folders, load them as a user would, take one step.

Run ``python benchmarks/paper_shape.py DIR``. It writes a randomly initialised Qwen2.5-VL of the 3B configuration
(bfloat16, 7.5 GB; ``--layers`` cuts its depth) and an EVF-SAM of the official configuration (half precision, 2.6 GB) as
the published ones are laid out, then calls the run by their paths: one CGPO update with LoRA, rank 16. The tokenizers
have the published numbers of ids, and merges trained on texts of maskgym. Random weights write no well-formed answer,
so the segmenter is also asked for one phrase by itself.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from maskgym import segmenters
from maskgym.experiments import run
from maskgym.experiments.planning.published import POLICIES
from maskgym.experiments.reproduce.miniature_models import SEGMENTER, write_policy, write_segmenter


def make_policy(folder: Path, layers: int) -> None:
    """Write a randomly initialised Qwen2.5-VL of the 3B configuration, ``layers`` of its 36 text layers deep."""
    write_policy(folder, replace(POLICIES["3b"], layers=layers))
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"max_pixels": 224**2}))


def main() -> None:
    """Make what is missing and take the step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=36, help="text layers of the policy; the 3B configuration has 36")
    arguments = parser.parse_args()
    policy, segmenter = arguments.folder / f"qwen-{arguments.layers}", arguments.folder / "evf_sam"
    if not policy.exists():
        make_policy(policy, arguments.layers)
    if not segmenter.exists():
        write_segmenter(segmenter, SEGMENTER)
    begun = time.perf_counter()
    model = segmenters.make("evf_sam", checkpoint=str(segmenter), dtype="bfloat16")
    masks = model.segment([np.zeros((96, 128, 3), np.uint8)], [["a red star"]])
    print(f"segment: one phrase, mask {masks[0].shape}, {time.perf_counter() - begun:.0f} s with loading")
    del model
    begun = time.perf_counter()
    status = run.main(
        [
            *("env=sis", "algo=cgpo", "policy=qwen2_5_vl", f"policy.path={policy}", "policy.lora_rank=16"),
            *("policy.dtype=bfloat16", "segmenter=evf_sam", f"segmenter.checkpoint={segmenter}"),
            *("segmenter.dtype=bfloat16", "env.num_envs=1", "env.image_size=224", "evaluation.samples=1"),
            *("evaluation.pictures=1", "algo.updates=1", "algo.batch_size=2", "algo.max_new_tokens=16"),
            f"out={arguments.folder / f'run-{int(time.time())}'}",
        ]
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"run: status {status}, {time.perf_counter() - begun:.0f} s, peak memory {peak:.1f} GB")


if __name__ == "__main__":
    main()
