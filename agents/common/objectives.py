"""What algorithms of whole episodes share, whatever their actions are: advantages, and the clipped loss."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def group_advantages(returns: np.ndarray, group_size: int) -> Tensor:
    """Return the return less its group's mean, over its group's deviation (GRPO); a group of equal returns has 0.

    Args:
        returns: float (B,), those of a group in a row.
        group_size: A divisor of B.

    Returns:
        float32 (B,).
    """
    groups = returns.reshape(-1, group_size)
    centred = groups - groups.mean(axis=1, keepdims=True)
    return torch.tensor(centred / (groups.std(axis=1, keepdims=True) + 1e-4), dtype=torch.float32).flatten()


def confidence_advantages(
    returns: np.ndarray, limits: tuple[float, float], confidence: Tensor, center: bool = False
) -> Tensor:
    """Return the return, brought to [0, 1], less how sure the policy was (CGPO: Saliency-R1, Eq. 13).

    Args:
        returns: float (B,).
        limits: The lowest and the highest return there can be.
        confidence: float32 (B,) in [0, 1], the mean probability of what was done (Eq. 10).
        center: Subtract the batch's mean: ours, not the paper's.

    Returns:
        float32 (B,) in [-1, 1], centred or not.
    """
    low, high = limits
    found = torch.tensor((returns - low) / (high - low), dtype=torch.float32) - confidence
    return found - found.mean() if center else found


def clipped_loss(log_probabilities: Tensor, old: Tensor, advantages: Tensor, clip_range: float) -> tuple[Tensor, float]:
    """Return the clipped loss (Eq. 9 of AlignSAM, with PPO's ratio) and the share of ratios out of bounds.

    Args:
        log_probabilities: (N,), under the policy that learns.
        old: (N,), under the one that acted.
        advantages: (N,).
        clip_range: ε.
    """
    ratio = (log_probabilities - old).exp()
    bounded = ratio.clamp(1 - clip_range, 1 + clip_range)
    out = ((ratio - 1).abs() > clip_range).float().mean().item()
    return -torch.minimum(ratio * advantages, bounded * advantages).mean(), out
