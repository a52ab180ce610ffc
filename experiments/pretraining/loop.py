"""Shared training code: the resumable loop, the learning rate schedule, and the mask loss."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm, trange

from maskgym.errors import UserError

CHECKPOINT_EVERY_S = 60.0
STATE = "state.pt"


def training(
    out: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, rate: float, warmup: int = 200
) -> Iterator[tuple[int, tqdm]]:
    """Yield the number of each step with the progress bar, its learning rate set; go on from ``out/state.pt``.

    Every minute, and at the end, that file is written anew.

    Args:
        out: Folder; its name is the bar's.
        model: Model to train.
        optimizer: Optimizer of the model.
        steps: Total number of steps.
        rate: Peak learning rate: a linear warm-up, then a cosine to 2 %.
        warmup: Number of warm-up steps.
    """
    first = resume(out, model, optimizer)
    saved, bar = time.time(), trange(first, steps, initial=first, total=steps, desc=out.name, mininterval=10)
    for step in bar:
        optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, steps, warmup)
        yield step, bar
        if time.time() - saved > CHECKPOINT_EVERY_S or step == steps - 1:
            saved = time.time()
            save(out, model, optimizer, step + 1)


def descend(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step down the loss, with the gradient's norm bounded by 1."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def learning_rate_factor(step: int, steps: int, warmup: int = 200) -> float:
    """Return the factor of a linear warm-up followed by a cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def resume(out: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load ``out/state.pt`` into model and optimiser, if there; return the step to go on from.

    Raises:
        UserError: If it is of another model.
    """
    path = out / STATE
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError:
        raise UserError(f"{path}: is of another model: expected a folder for each") from None
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def save(out: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, name: str = STATE) -> None:
    """Write the state before a step to a file in ``out``, atomically."""
    out.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, out / "state.tmp")
    os.replace(out / "state.tmp", out / name)


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return binary cross-entropy plus Dice, both over (P, h, w) and masks that may be fractions."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks)
    probabilities = logits.sigmoid()
    overlap = (probabilities * masks).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (probabilities.sum((1, 2)) + masks.sum((1, 2)) + 1)
    return 5 * cross_entropy + dice.mean()
