"""Shared training code: the resumable loop, the learning rate schedule, the mask loss, and rendered scenes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm, trange

from maskgym import files
from maskgym.agents.common.checkpoints import fitting, read_checkpoint
from maskgym.errors import UserError

CHECKPOINT_EVERY_S = 60.0
STATE = "state.pt"


def training(
    out: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, rate: float, warmup: int = 200
) -> Iterator[tuple[int, tqdm]]:
    """Set the learning rate of each step, and yield the step's number with the progress bar.

    Training continues from ``out/state.pt``, which is written every minute and at the end.

    Args:
        out: Folder of the model, whose name labels the progress bar.
        model: Model to train.
        optimizer: Optimizer of the model.
        steps: Total number of steps.
        rate: Peak learning rate, reached by a linear warm-up and followed by a cosine to 2 %.
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
    """Take one optimizer step, with the gradient norm clipped to 1.

    Raises:
        UserError: If the loss is not finite; the weights are not changed.
    """
    if not torch.isfinite(loss):
        raise UserError(f"the loss is {loss.item()}: the last checkpoint holds finite weights")
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def learning_rate_factor(step: int, steps: int, warmup: int = 200) -> float:
    """Compute the factor of a linear warm-up followed by a cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def resume(out: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load ``out/state.pt`` into model and optimizer, if it exists; return the number of finished steps.

    Raises:
        UserError: If the file is damaged, or holds another model.
    """
    path = out / STATE
    if not path.exists():
        return 0
    state = read_checkpoint(path)
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError, AttributeError, TypeError):
        raise UserError(f"{path}: holds another model: expected one folder per model") from None
    with fitting(path):
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])


def save(out: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, name: str = STATE) -> None:
    """Write the state before a step to a file in ``out``, atomically."""
    with files.replacing(out / name) as temporary:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary)


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Compute binary cross-entropy plus Dice over (P, h, w); masks may hold fractions."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks)
    probabilities = logits.sigmoid()
    overlap = (probabilities * masks).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (probabilities.sum((1, 2)) + masks.sum((1, 2)) + 1)
    return 5 * cross_entropy + dice.mean()


def overlaps(logits: Tensor, masks: Tensor) -> Tensor:
    """Compute the IoU of each prediction, float (P,), from logits and masks (P, …); empty pairs give 0."""
    found, wanted = (logits > 0).flatten(1), (masks > 0.5).flatten(1)
    return (found & wanted).sum(1) / (found | wanted).sum(1).clamp(min=1)


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Resize uint8 (H, W, 3) to a square, bilinearly."""
    return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def covered_shares(masks: np.ndarray, side: int) -> np.ndarray:
    """Compute the share of each cell of a square grid that a mask covers, times 255, uint8 (n, side, side)."""
    coarse = F.interpolate(torch.from_numpy(masks[None]).float(), (side, side), mode="area")[0]
    return (coarse * 255).round().byte().numpy()
