"""The memory that a worker's GPU needs, computed: model x algorithm x image size, in GiB.

    python benchmarks/memory.py

Parameters are counted on models of the published sizes that hold no weights. What is assumed:

- bfloat16 weights and gradients; AdamW's two moments in the weights' type; the vision encoder frozen. Adapters of rank
  16 are float32, as PEFT makes them, and the weights below them have neither gradients nor moments.
- CGPO keeps a second pair of moments for its supervised steps, has one answer per prompt and no reference
  model. GRPO answers eight times, and without adapters keeps a copy of the weights for its KL term.
- 8 prompts of one square image and 100 tokens of text, answers of 256 tokens, one forward pass for CGPO's 8 answers,
  and for as many of GRPO's 64 at a time (``algo.micro_batch_size=8``); the cache of keys and values is for all of them.
- Gradient checkpointing: a layer's input is kept, and one layer at a time is computed again: its input projections,
  attention and feed-forward activations. Logits of answers, twice in float32: themselves and their gradient.
- FSDP shards weights, gradients and moments over N workers and gathers one layer at a time.
- EVF-SAM in half precision beside it, 2.6 GB, unless actors hold it (``scale.reward_actors``). The CUDA context, about
  half a GiB, and what the allocator wastes, come on top.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from cgpo import SHAPES
from paper_shape import QWEN_3B_TEXT, QWEN_3B_VISION
from peft import LoraConfig, get_peft_model
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from maskgym.aliases import JsonObject
from maskgym.policies.text.mllm import LORA_TARGETS

GIB = 2**30
MODELS = {"3B": (QWEN_3B_TEXT, QWEN_3B_VISION), "7B": (SHAPES["7b-random"].text, SHAPES["7b-random"].vision)}
SIZES = (448, 896, 1344)  # pixels along a side
PROMPTS, TEXT, ANSWER, RANK, GROUP = 8, 100, 256, 16, 8
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
    text, vision = MODELS[name]
    with torch.device("meta"):
        tied = text.get("tie_word_embeddings", False)
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
        model = Qwen2_5_VLForConditionalGeneration(config)
        total = sum(value.numel() for value in model.parameters())
        seeing = sum(value.numel() for value in model.model.visual.parameters())
        adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"))
        adapters = sum(value.numel() for value in adapted.parameters() if value.requires_grad)
    return Model(text, total, total - seeing, adapters)


def states(model: Model, algorithm: str, lora: bool) -> float:
    """Compute the bytes of weights, gradients and moments, which FSDP shards."""
    pairs = 2 if algorithm == "cgpo" else 1
    trained, size = (model.adapters, 4) if lora else (model.language, 2)
    learned = trained * size * (1 + 2 * pairs) + trained * size * lora  # adapters come on top of the weights
    reference = 2 * model.total if algorithm == "grpo" and not lora else 0
    return 2 * model.total + learned + reference


def activations(model: Model, algorithm: str, image: int) -> float:
    """Compute the activation bytes of one update: the maximum over generation and the training pass."""
    text = model.text
    hidden, layers = text["hidden_size"], text["num_hidden_layers"]
    head = hidden // text["num_attention_heads"]
    tokens = (image // PATCH) ** 2 + TEXT + ANSWER
    answers = PROMPTS * (GROUP if algorithm == "grpo" else 1)
    cache = answers * tokens * layers * 2 * text["num_key_value_heads"] * head * 2
    kept = PROMPTS * tokens * hidden * layers * 2
    again = PROMPTS * tokens * (8 * hidden + 4 * text["intermediate_size"]) * 2
    logits = PROMPTS * ANSWER * text["vocab_size"] * 4 * 2
    return max(cache, kept + again + logits)


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print("| | " + " | ".join(f"{size} pixels" for size in SIZES) + " | weights and states | dealt out among 8 |")
    print("|---" * (len(SIZES) + 3) + "|")
    for name in MODELS:
        model = count(name)
        for algorithm in ("cgpo", "grpo"):
            for lora in (True, False):
                held = states(model, algorithm, lora)
                sizes = [held + activations(model, algorithm, size) + SEGMENTER for size in SIZES]
                cells = [f"{value / GIB:.0f}" for value in (*sizes, held, held / 8)]
                title = f"{name}, {algorithm}, {'rank 16' if lora else 'all of the language part'}"
                print(f"| {title} | " + " | ".join(cells) + " |")
        print(f"{name}: {model.total / 1e9:.2f} billion, adapters {model.adapters / 1e6:.1f} million")


if __name__ == "__main__":
    main()
