"""The memory that a worker's GPU needs, computed: model x algorithm x image size, in GiB.

    python benchmarks/memory.py

Parameters are counted on models of the published sizes that hold no weights. What is assumed:

- With adapters of rank 16, the weights are bfloat16 and have neither gradients nor moments; the adapters, their
  gradients and AdamW's two moments are float32. Without adapters, all weights are float32, as training asks for, and so
  are the gradients and moments of the language part. The vision encoder is frozen and outside autograd.
- CGPO keeps a second pair of moments for its supervised steps and has no reference model. GRPO without adapters keeps a
  copy of the weights for its KL term.
- A worker's 128 answers (the default ``algo.batch_size`` on one GPU) of up to 768 tokens, to prompts of one square
  image and 100 tokens of text; 8 answers per forward pass (``algo.micro_batch_size=8``) in bfloat16. The cache of keys
  and values is for all answers at once.
- Gradient checkpointing: a layer's input is kept, and one layer at a time is computed again: its input projections,
  attention and feed-forward activations. Of the logits, one tile of TRL's head is in memory: 4,096 tokens, 32,768
  words.
- FSDP shards weights, gradients and moments over N workers and gathers one layer at a time.
- EVF-SAM in half precision beside it, 2.6 GB, unless actors hold it (``scale.reward_actors``). The CUDA context, about
  half a GiB, and what the allocator wastes, come on top.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from maskgym.aliases import JsonObject
from maskgym.experiments.reproduce.miniature_models import POLICIES, policy_config
from maskgym.policies.text.mllm import linear_layers

GIB = 2**30
MODELS = {"3B": POLICIES["3b"], "7B": POLICIES["7b"]}
SIZES = (448, 896, 1344)  # pixels along a side
ANSWERS, PASS, TEXT, ANSWER, RANK = 128, 8, 100, 768, 16
TILE = (4096, 32768)  # tokens and words of a tile of TRL's head
PATCH = 28  # pixels of a visual token's side, merged
SEGMENTER = 2.6e9


@dataclass(frozen=True)
class Model:
    """Parameter counts of a model.

    Attributes:
        text: Sizes of the language part.
        total: Parameters.
        language: Parameters of the language part.
        adapters: Parameters of adapters of rank 16.
    """

    text: JsonObject
    total: int
    language: int
    adapters: int


def count(name: str) -> Model:
    """Count a model's parameters on the model without weights."""
    text = policy_config(MODELS[name])
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**text))
        total = sum(value.numel() for value in model.parameters())
        seeing = sum(value.numel() for value in model.model.visual.parameters())
        adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules=linear_layers(model), task_type="CAUSAL_LM"))
        adapters = sum(value.numel() for value in adapted.parameters() if value.requires_grad)
    return Model(text, total, total - seeing, adapters)


def states(model: Model, algorithm: str, lora: bool) -> float:
    """Compute the bytes of weights, gradients and moments, which FSDP shards."""
    pairs = 2 if algorithm == "cgpo" else 1
    trained, size = (model.adapters, 2) if lora else (model.language, 4)  # size: bytes of a weight
    learned = 4 * trained * (1 + 2 * pairs) + 4 * trained * lora  # adapters come on top of the weights
    reference = size * model.total if algorithm == "grpo" and not lora else 0
    return size * model.total + learned + reference


def activations(model: Model, image: int) -> float:
    """Compute the activation bytes of one update: the maximum over generation and the training pass."""
    text = model.text
    hidden, layers = text["hidden_size"], text["num_hidden_layers"]
    head = hidden // text["num_attention_heads"]
    tokens = (image // PATCH) ** 2 + TEXT + ANSWER
    cache = ANSWERS * tokens * layers * 2 * text["num_key_value_heads"] * head * 2
    kept = PASS * tokens * hidden * layers * 2
    again = PASS * tokens * (8 * hidden + 4 * text["intermediate_size"]) * 2
    return max(cache, kept + again + TILE[0] * TILE[1] * 2)


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print("| | " + " | ".join(f"{size} pixels" for size in SIZES) + " | weights and states | sharded over 8 |")
    print("|---" * (len(SIZES) + 3) + "|")
    for name in MODELS:
        model = count(name)
        for algorithm in ("cgpo", "grpo"):
            for lora in (True, False):
                held = states(model, algorithm, lora)
                sizes = [held + activations(model, size) + SEGMENTER for size in SIZES]
                cells = [f"{value / GIB:.0f}" for value in (*sizes, held, held / 8)]
                title = f"{name}, {algorithm}, {'rank 16' if lora else 'all of the language part'}"
                print(f"| {title} | " + " | ".join(cells) + " |")
        print(f"{name}: {model.total / 1e9:.2f} billion, adapters {model.adapters / 1e6:.1f} million")


if __name__ == "__main__":
    main()
