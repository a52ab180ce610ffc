"""The policy that starts hard levels: the tiny one after terse annotators, who hardly ever say where an object is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from maskgym.data.scenes import Scenes
from maskgym.experiments.pretraining.loop import descend, training
from maskgym.experiments.pretraining.policy import answers_batch
from maskgym.policies.text.mllm import TINY, TINY_TERSE, tiny_policy

BATCH = 128
SEEN = "visual."  # names of the frozen weights, which are those of the tiny policy
WEIGHTS, LANGUAGE = "model.safetensors", "language.safetensors"


def train_terse_policy(out: Path, steps: int, rate: float) -> None:
    """Train the language part of the tiny policy on the answers of terse annotators to instances.

    Args:
        out: Folder for the weights, ``state.pt``, and a copy of the tiny policy, whose vision the weights need.
        steps: Number of steps.
        rate: Peak learning rate.
    """
    policy = tiny_policy(device="cpu")
    model, processor = policy.model.train(), policy.processor
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    scenes = Scenes("sis", "train", size=10**6, level="discovery")
    for step, bar in training(out, model, optimizer, steps, rate, warmup=1):
        chosen = np.random.default_rng([4, step]).integers(len(scenes), size=BATCH)
        loss = model(**answers_batch(processor, [scenes[int(index)] for index in chosen], "sis", reasoning=True)).loss
        descend(model, optimizer, loss)
        bar.set_postfix({"loss": f"{loss.item():.3f}"})
    folder = out / TINY_TERSE.name
    model.half().save_pretrained(folder)
    for file in TINY.glob("*"):
        if file.name != WEIGHTS:
            shutil.copyfile(file, folder / file.name)
    shutil.copytree(TINY, out / TINY.name, dirs_exist_ok=True)
    share_vision(folder)


def share_vision(folder: Path) -> None:
    """Leave the frozen weights out of a folder of weights, by an index that takes them from the tiny policy beside it.

    The index names the file of every weight, as that of a large checkpoint does. transformers reads all weights of each
    file, in alphabetical order, so that those of the language part replace the tiny policy's.
    """
    state = load_file(folder / WEIGHTS)
    own = {name: weight for name, weight in state.items() if not name.startswith(SEEN)}
    save_file(own, folder / LANGUAGE, {"format": "pt"})
    (folder / WEIGHTS).unlink()
    places = {name: LANGUAGE if name in own else f"../{TINY.name}/{WEIGHTS}" for name in sorted(state)}
    size = sum(weight.numel() * weight.element_size() for weight in state.values())
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=1)
    (folder / f"{WEIGHTS}.index.json").write_text(f"{text}\n")
