"""The whole stack at the paper's shape without its weights: make the folders, load them as a user would, take one step.

Run ``python benchmarks/paper_shape.py DIR``. It writes a randomly initialised Qwen2.5-VL of the 3B configuration
(bfloat16, 7.5 GB; ``--layers`` cuts its depth) and an EVF-SAM of the official configuration (half precision, 2.6 GB) as
the published ones are laid out, then calls the run by their paths: one CGPO update with LoRA, rank 16. Words are those
of the bundled tokenizers; the embedding tables have the published number of rows. Random weights write no
well-formed answer, so the segmenter is also asked for one phrase by itself.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from maskgym import segmenters
from maskgym.data.scenes import vocabulary
from maskgym.experiments import run
from maskgym.policies.text.mllm import TINY
from maskgym.segmenters.phrases.evf_sam import EvfSam, EvfSamConfig, save_checkpoint
from maskgym.segmenters.text import word_tokenizer

QWEN_3B_TEXT = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": True,
}
QWEN_3B_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "out_hidden_size": 2048,
}


def make_policy(folder: Path, layers: int) -> None:
    """Write a randomly initialised Qwen2.5-VL of the 3B configuration, ``layers`` of its 36 text layers deep."""
    processor = AutoProcessor.from_pretrained(TINY)
    for part in (processor.image_processor, processor.video_processor):
        part.merge_size = 2
        part.size = {"shortest_edge": 224**2, "longest_edge": 224**2}
    tiny = json.loads((TINY / "config.json").read_text())
    tokens = {key: value for key, value in tiny.items() if key.endswith("_token_id") and isinstance(value, int)}
    text = {**QWEN_3B_TEXT, "num_hidden_layers": layers}
    text |= {key: tiny["text_config"][key] for key in ("eos_token_id", "pad_token_id")}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=QWEN_3B_VISION, tie_word_embeddings=True, **tokens)
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    print(f"policy: {sum(value.numel() for value in model.parameters()) / 1e9:.2f} billion parameters")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_segmenter(folder: Path) -> None:
    """Write a randomly initialised EVF-SAM of the official configuration."""
    torch.set_default_dtype(torch.float16)
    model = EvfSam(EvfSamConfig())
    torch.set_default_dtype(torch.float32)
    print(f"segmenter: {sum(value.numel() for value in model.parameters()) / 1e9:.2f} billion parameters")
    save_checkpoint(folder, model, word_tokenizer(vocabulary()), dtype=torch.float16)


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
        make_segmenter(segmenter)
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
