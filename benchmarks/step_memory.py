"""Measure the peak memory of training steps on the CPU: supervised ones, and those with a frozen vision encoder.

    python benchmarks/step_memory.py            # the head: about 16 GB and ten minutes; --examples 4 needs a quarter
    python benchmarks/step_memory.py vision     # the vision encoder

- *head*: one supervised step of CGPO's trainer on the real number of words (152,064), 2 layers of width 256, adapters
  of rank 16 on the language part, 16 prompts with completions of 400 tokens, in one forward pass, in float32. The code
  of this tree is compared with that of ``--before``, a commit of this repository, which is unpacked beside it.
- *vision*: one policy update with adapters and gradient checkpointing, 16 prompts with an image of 448 pixels and
  answers of 16 tokens, where the encoder has 16 layers of width 320. The same code runs twice: as it is, and with the
  encoder inside autograd, as TRL leaves it.

Each measurement is a process of its own: two steps, of which the second is measured, so optimizer states are resident
before it. The peak is that of resident memory above the level before the step, read from Linux's ``/proc``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cgpo import SHAPES, Meter, Shape, build_policy, build_rows, lora, reward

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "bf8781e"  # supervised steps computed all logits then
TOKENS = 400
TEXT = {
    **SHAPES["tiny"].text,
    "vocab_size": 152064,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
SEEING = {**SHAPES["tiny"].vision, "depth": 16, "hidden_size": 320, "fullatt_block_indexes": list(range(3, 16, 4))}
HEAD = replace(SHAPES["tiny"], text=TEXT, vision={**SHAPES["tiny"].vision, "out_hidden_size": 256}, lora_rank=16)
VISION = replace(
    SHAPES["tiny"], vision=SEEING, image_size=448, prompts=16, new_tokens=16, lora_rank=16, gradient_checkpointing=True
)
KINDS = {"head": ("before", "now"), "vision": ("inside", "outside")}  # what is compared, per measurement


def train(shape: Shape, isr_steps: int, meter: Meter) -> None:
    """Run two steps of CGPO's trainer, supervised ones if ``isr_steps`` is 1, and measure the second."""
    from datasets import Dataset
    from transformers import TrainerCallback

    from maskgym.agents.text.cgpo import CGPOConfig, CGPOTrainer

    class Clock(TrainerCallback):
        def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_) -> None:
            meter.start_memory()

    with tempfile.TemporaryDirectory() as folder:
        model, processor = build_policy(shape, folder, "cpu")
        rows = build_rows(shape)
        words = " ".join(f"w{number}" for number in range(TOKENS - 1))
        CGPOTrainer(
            model=model,
            reward_funcs=reward,
            args=CGPOConfig(
                output_dir=folder,
                per_device_train_batch_size=shape.prompts,
                max_completion_length=shape.new_tokens,
                generation_kwargs={"min_new_tokens": shape.new_tokens},
                isr_period=1,
                isr_sft_steps=isr_steps,
                max_steps=2,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=shape.gradient_checkpointing,
            ),
            train_dataset=rows,
            isr_dataset=Dataset.from_list([{**row, "completion": words} for row in rows]) if isr_steps else None,
            processing_class=processor,
            peft_config=lora(shape),
            callbacks=[Clock()],
        ).train()


def measure(name: str, examples: int) -> int:
    """Run one measurement in this process; return the peak in bytes."""
    import torch

    from maskgym.agents.text import trainer

    torch.set_num_threads(1)
    if name == "inside":
        trainer.detach_frozen_vision = lambda model: None
    meter = Meter("cpu")
    in_head = name in KINDS["head"]
    train(replace(HEAD, prompts=examples) if in_head else replace(VISION, prompts=examples), int(in_head), meter)
    return meter.peak()


def measure_apart(name: str, examples: int, package: Path) -> int:
    """Run :func:`measure` in a fresh process, on the package below a folder."""
    paths = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    # A fixed threshold gives large blocks back to the system at once, so the peak is that of tensors.
    environment["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    command = [sys.executable, __file__, "--only", name, "--examples", str(examples)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def with_packages(before: str, act: Callable[[dict[str, Path]], None]) -> None:
    """Call a function with the folders that hold the package ``maskgym``, now and at a commit."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in ("now", "before")}
        for folder in folders.values():
            folder.mkdir()
        (folders["now"] / "maskgym").symlink_to(ROOT, target_is_directory=True)
        (folders["before"] / "maskgym").mkdir()
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", before], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folders["before"] / "maskgym")], input=archive, check=True)
        act(folders)


def main() -> None:
    """Measure both sides of a comparison and print the peaks and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=tuple(KINDS), default="head")
    parser.add_argument("--examples", type=int, default=16, help="prompts of the step")
    parser.add_argument("--before", default=BEFORE, help="commit to compare the head with (default: %(default)s)")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the child process
    arguments = parser.parse_args()
    if arguments.only:
        print(measure(arguments.only, arguments.examples))
        return

    def compare(folders: dict[str, Path]) -> None:
        names = KINDS[arguments.kind]
        peaks = [measure_apart(name, arguments.examples, folders.get(name, folders["now"])) for name in names]
        for name, peak in zip(names, peaks, strict=True):
            print(f"{arguments.kind}, {name:<8} {peak / 1e6:>8.0f} MB above the level before the step")
        print(f"{names[1]} / {names[0]}: {peaks[1] / peaks[0]:.3f}")

    with_packages(arguments.before, compare)


if __name__ == "__main__":
    main()
