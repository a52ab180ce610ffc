"""Advantages and the clipped loss of algorithms that score whole episodes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def group_advantages(returns: np.ndarray, group_size: int) -> Tensor:
    """Standardise returns by their group's mean and standard deviation (GRPO); a zero-variance group has 0.

    Args:
        returns: float (B,), with the returns of a group adjacent.
        group_size: Returns per group, a divisor of B.

    Returns:
        float32 (B,).
    """
    groups = returns.reshape(-1, group_size)
    centred = groups - groups.mean(axis=1, keepdims=True)
    return torch.tensor(centred / (groups.std(axis=1, keepdims=True) + 1e-4), dtype=torch.float32).flatten()


def confidence_advantages(
    returns: np.ndarray, limits: tuple[float, float], confidence: Tensor, center: bool = False
) -> Tensor:
    """Compute the return, scaled to [0, 1], minus the policy's confidence (CGPO: Saliency-R1, Eq. 13).

    Args:
        returns: Returns, float (B,).
        limits: Lowest and highest possible return.
        confidence: Mean probability of the actions, float32 (B,) in [0, 1] (Eq. 10).
        center: Whether to subtract the batch's mean; the paper does not.

    Returns:
        float32 (B,); in [-1, 1] without centring.
    """
    low, high = limits
    found = torch.tensor((returns - low) / (high - low), dtype=torch.float32) - confidence
    return found - found.mean() if center else found


def clipped_loss(log_probabilities: Tensor, old: Tensor, advantages: Tensor, clip_range: float) -> tuple[Tensor, float]:
    """Compute the clipped loss (Eq. 9 of AlignSAM, with PPO's ratio) and the share of clipped ratios.

    Args:
        log_probabilities: Log-probabilities (N,) under the policy that learns.
        old: Log-probabilities (N,) under the policy that acted.
        advantages: Advantages (N,).
        clip_range: Clip range ε.
    """
    ratio = (log_probabilities - old).exp()
    bounded = ratio.clamp(1 - clip_range, 1 + clip_range)
    out = ((ratio - 1).abs() > clip_range).float().mean().item()
    return -torch.minimum(ratio * advantages, bounded * advantages).mean(), out
