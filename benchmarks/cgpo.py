"""Measure time and memory of a CGPO step against TRL's GRPOTrainer and against a minimal training loop.

    python benchmarks/cgpo.py                                    # about six minutes on one idle core
    python benchmarks/cgpo.py --device cuda --model 7b-random --methods cgpo grpo grpo_no_kl dr_grpo dapo gspo
                                                                 # the paper's shape: all rows of its Table 2

Every method trains the same model on the same prompts with the same reward; answers have a fixed length, so the work
does not depend on what is sampled. Each measurement is a process of its own: two warm-up steps, then the timed ones.
Rounds alternate between the methods, and the medians over all steps are compared.

- *cgpo*: ``CGPOTrainer``, one answer per prompt, with its supervised steps, two in each cycle of five (Section 4.2).
  Warm-up and timing cover whole cycles, and the time of a step is the mean over a cycle. A supervised step imitates
  as many texts as a policy update has answers, of the same length.
- *cgpo_rl*: the same without supervised steps, which the paper's Table 2 may mean: it does not say.
- *grpo*: ``GRPOTrainer``, eight answers per prompt, ``beta=0.04``; all answers in one forward pass.
- *grpo_passes*: the same, in eight passes of CGPO's batch (gradient accumulation): what a user short of memory does.
- *grpo_no_kl*: *grpo* with ``beta=0``.
- *dr_grpo*, *dapo*, *gspo*, *rloo*, *spo*: our agents' trainers with their defaults; *spo* answers once, as CGPO.
- *floor*: a plain loop with the cycle of *cgpo*: processor, generation, reward, one forward and backward pass and the
  optimizer, once each; supervised steps without generation and reward. It computes all logits of the answers. Its
  vision encoder is outside autograd, as ours; that of TRL's trainers is inside, with adapters and checkpointing.

On the CPU, time is processor time of one thread (other programs' load does not count) and memory is resident memory,
read from Linux's ``/proc``; on CUDA, wall-clock time and allocated memory. Memory is the peak of the steps above the
level before the first, so weights do not count and optimizer states do.

The paper's figures (Saliency-R1, Table 2, one H20) are 50.6 s and 38.7 GB for CGPO, 213.8 s and 92.4 GB for GRPO with
KL. Its memory counts the weights, and it states no batch, length, image size or rank: compare ratios, and these
loosely. For ``7b-random`` we take 8 prompts, one 448-pixel image each, 256 new tokens, LoRA of rank 16 and gradient
checkpointing (TRL's default) for all methods.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, ProcessorMixin, TrainerControl, TrainerState, TrainingArguments

    from maskgym.aliases import JsonObject

GENERATIONS = 8
WARM_UP = 2
BARS = {"time": 0.24, "memory": 0.42}  # the paper's CGPO over its GRPO
FLOOR_BAR = 1.15
CYCLE, SUPERVISED = 5, 2  # steps of a cycle, and supervised ones at its end
CYCLIC = ("cgpo", "floor")  # methods with supervised steps
OURS = ("cgpo", "cgpo_rl", "dr_grpo", "dapo", "gspo", "rloo", "spo")  # agents of text
METHODS = ("cgpo", "floor", "grpo", "grpo_passes", "grpo_no_kl", *OURS[1:])
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|> "
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@dataclass(frozen=True)
class Shape:
    """Model and batch sizes of a measurement."""

    text: JsonObject
    vision: JsonObject
    image_size: int  # pixels
    prompts: int
    new_tokens: int
    lora_rank: int | None
    gradient_checkpointing: bool
    dtype: str


SHAPES = {
    "tiny": Shape(
        text={
            "vocab_size": 512,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4},
        },
        vision={
            "depth": 4,
            "hidden_size": 128,
            "num_heads": 4,
            "intermediate_size": 384,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [0, 1, 2, 3],
        },
        image_size=112,
        prompts=64,
        new_tokens=40,
        lora_rank=None,
        gradient_checkpointing=False,
        dtype="float32",
    ),
    "7b-random": Shape(
        text={
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        },
        vision={
            "depth": 32,
            "hidden_size": 1280,
            "num_heads": 16,
            "intermediate_size": 3420,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        image_size=448,
        prompts=8,
        new_tokens=256,
        lora_rank=16,
        gradient_checkpointing=True,
        dtype="bfloat16",
    ),
}


def build_policy(shape: Shape, folder: str, device: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Return a Qwen2.5-VL with random weights, its vision encoder frozen, and its processor.

    Without LoRA the model comes from a checkpoint in ``folder``, where GRPO finds the weights of its reference model.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    words = ["<pad>", "<eos>", "<unk>", *VISION]
    words += [f"w{index}" for index in range(shape.text["vocab_size"] - len(words))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        padding_side="left",
    )
    pixels = shape.image_size**2
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=pixels, max_pixels=pixels),
        video_processor=Qwen2VLVideoProcessor(min_pixels=pixels, max_pixels=pixels),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
    )
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(VISION))
    config = Qwen2_5_VLConfig(
        text_config={**shape.text, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None},
        vision_config=shape.vision,
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=getattr(torch, shape.dtype))
    if shape.lora_rank is None:
        model.save_pretrained(folder)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=shape.dtype).to(device)
    model.model.visual.requires_grad_(False)
    return model, processor


def build_rows(shape: Shape) -> Dataset:
    """Build one batch of prompts, each with a noise image."""
    import numpy as np
    from datasets import Dataset
    from PIL import Image

    generator = np.random.default_rng(0)
    size = (shape.image_size, shape.image_size, 3)
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": " ".join(f"w{index * 16 + k}" for k in range(16))}],
                "images": [Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8))],
            }
            for index in range(shape.prompts)
        ]
    )


def build_examples(shape: Shape) -> Dataset:
    """Build the rows of supervised steps: the prompts, with texts of ``new_tokens`` tokens, the end token included."""
    text = " ".join(f"w{number}" for number in range(shape.new_tokens - 1))
    rows = build_rows(shape)
    return rows.add_column("completion", [text] * len(rows))


def reward(completions: list[list[JsonObject]], **_: list) -> list[float]:
    """Compute the share of an answer's words with an even number, a cheap reward that varies."""
    texts = [completion[0]["content"].split() for completion in completions]
    return [sum(word[-1] in "02468" for word in words) / max(len(words), 1) for words in texts]


def lora(shape: Shape) -> LoraConfig | None:
    """Return the LoRA settings for the language part, or None."""
    from peft import LoraConfig

    if shape.lora_rank is None:
        return None
    return LoraConfig(r=shape.lora_rank, target_modules=r".*language_model.*\.(q|k|v|o)_proj", task_type="CAUSAL_LM")


class Meter:
    """Meter of the seconds per step and of the peak memory above the level before the first step."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.seconds: list[float] = []

    def start_memory(self) -> None:
        """Set the present level as the baseline and reset the peak."""
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.level = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM (man 5 proc)
            self.level = self._status("VmRSS")

    def peak(self) -> int:
        """Return the peak since :meth:`start_memory` in bytes."""
        if self.cuda:
            import torch

            return torch.cuda.max_memory_allocated() - self.level
        return self._status("VmHWM") - self.level

    def start_step(self) -> None:
        """Start the clock."""
        self.started = self._now()

    def end_step(self) -> None:
        """Stop the clock."""
        self.seconds.append(self._now() - self.started)

    def _now(self) -> float:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    @staticmethod
    def _status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def run_trainer(method: str, shape: Shape, folder: str, device: str, steps: int, meter: Meter) -> None:
    """Train by TRL or by CGPO in epochs of one step, so that the time includes reading the rows."""
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from maskgym import agents
    from maskgym.agents.text.training import METHODS

    class Clock(TrainerCallback):
        def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_) -> None:
            meter.start_memory()

        def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_) -> None:
            meter.start_step()

        def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_) -> None:
            meter.end_step()

    model, processor = build_policy(shape, folder, device)
    settings = {
        "output_dir": folder,
        "max_completion_length": shape.new_tokens,
        "generation_kwargs": {"min_new_tokens": shape.new_tokens},
        "max_steps": steps,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "bf16": shape.dtype == "bfloat16",
        "gradient_checkpointing": shape.gradient_checkpointing,
    }
    if method in OURS:
        agent = agents.get(method.removesuffix("_rl"))
        own = {
            "cgpo": {"isr_period": CYCLE, "isr_sft_steps": SUPERVISED},
            "cgpo_rl": {"isr_sft_steps": 0},
            "spo": {"key_columns": ["prompt"]},
        }
        kind = METHODS[agent.method]
        batch_size = shape.prompts * kind.config.num_generations
        trainer_class = kind.trainer
        config = kind.config(per_device_train_batch_size=batch_size, **agent.defaults | own.get(method, {}), **settings)
    else:
        passes = GENERATIONS if method == "grpo_passes" else 1
        trainer_class = GRPOTrainer
        config = GRPOConfig(
            per_device_train_batch_size=shape.prompts * GENERATIONS // passes,
            gradient_accumulation_steps=passes,
            num_generations=GENERATIONS,
            beta=0.0 if method == "grpo_no_kl" else 0.04,
            loss_type="grpo",
            **settings,
        )
    data = {"isr_dataset": build_examples(shape)} if method == "cgpo" else {}
    trainer_class(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=build_rows(shape),
        processing_class=processor,
        peft_config=lora(shape),
        callbacks=[Clock()],
        **data,
    ).train()


def run_floor(shape: Shape, folder: str, device: str, steps: int, meter: Meter) -> None:
    """Train by a minimal loop that does each part of a CGPO step once."""
    import torch
    from peft import get_peft_model

    from maskgym.policies.text.mllm import detach_frozen_vision

    model, processor = build_policy(shape, folder, device)
    detach_frozen_vision(model)
    rows = build_examples(shape)
    if lora(shape) is not None:
        model = get_peft_model(model, lora(shape))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, betas=(0.9, 0.95))
    suppressed = processor.tokenizer.convert_tokens_to_ids(list(VISION))
    if shape.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    meter.start_memory()
    for step in range(steps):
        supervised = step % CYCLE >= CYCLE - SUPERVISED
        meter.start_step()
        batch = [rows[index] for index in range(shape.prompts)]
        messages = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["prompt"][0]["content"]}]}]
            for row in batch
        ]
        texts = processor.apply_chat_template(messages, tokenize=False)
        inputs = processor(text=texts, images=[row["images"] for row in batch], padding=True, return_tensors="pt")
        inputs = inputs.to(device)
        if supervised:
            texts = [f"{row['completion']} {processor.tokenizer.eos_token}" for row in batch]
            answers = torch.tensor(processor.tokenizer(texts)["input_ids"], device=device)  # (B, T)
            ids = torch.cat([inputs["input_ids"], answers], dim=1)
        else:
            model.eval()  # generation keeps no activations and may use its cache
            with torch.no_grad():
                ids = model.generate(
                    **inputs,
                    do_sample=True,
                    min_new_tokens=shape.new_tokens,
                    max_new_tokens=shape.new_tokens,
                    suppress_tokens=suppressed,
                )
            answers = ids[:, inputs["input_ids"].size(1) :]  # (B, T)
            words = processor.batch_decode(answers, skip_special_tokens=True)
            rewards = torch.tensor(reward([[{"content": text}] for text in words]), device=device)
        model.train()
        zeros = torch.zeros_like(answers)
        inputs["input_ids"] = ids
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], zeros + 1], dim=1)
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], zeros], dim=1)
        logits = model(**inputs, logits_to_keep=shape.new_tokens + 1, use_cache=False).logits[:, :-1]
        chosen = logits.float().log_softmax(-1).gather(2, answers.unsqueeze(2)).squeeze(2)  # (B, T)
        if supervised:
            loss = -chosen.mean()
        else:
            advantages = rewards - chosen.detach().exp().mean(1)  # (B,)
            loss = -((chosen - chosen.detach()).exp() * advantages.unsqueeze(1)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        meter.end_step()


def measure(method: str, shape: Shape, device: str, steps: int) -> dict[str, list[float] | int]:
    """Run ``method`` in this process; return the seconds of its timed steps and its peak of memory."""
    import torch

    torch.set_num_threads(1)
    meter = Meter(device)
    length = CYCLE if method in CYCLIC else 1
    warm_up = max(WARM_UP, length)
    with tempfile.TemporaryDirectory() as folder:
        if method == "floor":
            run_floor(shape, folder, device, warm_up + steps * length, meter)
        else:
            run_trainer(method, shape, folder, device, warm_up + steps * length, meter)
    timed = meter.seconds[warm_up:]
    cycles = [statistics.mean(timed[start : start + length]) for start in range(0, len(timed), length)]
    return {"seconds": cycles, "peak": meter.peak()}


def measure_apart(method: str, arguments: list[str]) -> dict[str, list[float] | int]:
    """Run :func:`measure` in a fresh process."""
    command = [sys.executable, __file__, *arguments, "--only", method]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{method} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(results: dict[str, dict[str, list[float]]]) -> str:
    """Format the table of medians and the ratios."""
    medians = {
        method: (statistics.median(values["seconds"]), statistics.median(values["peak"]))
        for method, values in results.items()
    }
    lines = [f"{'method':<12} {'traces':>6} {'s a step':>9} {'peak MB':>9}"]
    for method, (seconds, peak) in medians.items():
        traces = 1 if method in ("cgpo", "cgpo_rl", "spo", "floor") else GENERATIONS
        lines.append(f"{method:<12} {traces:>6} {seconds:>9.2f} {peak / 1e6:>9.0f}")
    seconds, peak = medians["cgpo"]
    for method in (method for method in medians if method not in ("cgpo", "floor")):
        other_seconds, other_peak = medians[method]
        bars = f"  (paper: {BARS['time']}x, {BARS['memory']}x)" if method == "grpo" else ""
        lines.append(f"cgpo / {method}: {seconds / other_seconds:.2f}x time, {peak / other_peak:.2f}x memory{bars}")
    if "floor" in medians:
        floor_seconds, floor_peak = medians["floor"]
        ratios = f"{seconds / floor_seconds:.2f}x time, {peak / floor_peak:.2f}x memory"
        lines.append(f"cgpo / floor: {ratios}  (bar: {FLOOR_BAR}x time)")
    return "\n".join(lines)


def main() -> None:
    """Measure every method in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["cgpo", "floor", "grpo"])
    parser.add_argument("--steps", type=int, default=2, help="timed steps per process, whole cycles of cgpo and floor")
    parser.add_argument("--rounds", type=int, default=2, help="processes per method")
    parser.add_argument("--only", choices=METHODS, help=argparse.SUPPRESS)  # the child process
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, SHAPES[arguments.model], arguments.device, arguments.steps)))
        return
    if "cgpo" not in arguments.methods:
        parser.error("--methods needs cgpo, which the others are compared with")
    passed_on = ["--device", arguments.device, "--model", arguments.model, "--steps", str(arguments.steps)]
    results: dict[str, dict[str, list[float]]] = {m: {"seconds": [], "peak": []} for m in arguments.methods}
    for turn in range(arguments.rounds):
        for method in arguments.methods:
            print(f"round {turn + 1} of {arguments.rounds}: {method}", file=sys.stderr, flush=True)
            result = measure_apart(method, passed_on)
            results[method]["seconds"] += result["seconds"]
            results[method]["peak"].append(result["peak"])
    print(report(results))


if __name__ == "__main__":
    main()
