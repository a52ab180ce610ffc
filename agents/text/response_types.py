"""Response types: which answers a method learns from (Saliency-R1, Fig. 4).

A reward or a confidence is high or low if it is among the top or the bottom 20 % of a batch. Answers that are extreme
in both have one of four types. Two types deserve an update: a high reward at low confidence (``hrlc``: right, but not
yet explored) and a low reward at high confidence (``lrhc``: overconfident). The other two (``hrhc``, ``lrlc``) do not.

Every trainer of text logs the share of each type and the advantage that the method gives it
(`maskgym.agents.text.trainer`). ``maskgym response_study`` plots them for many answers of one policy.

References:
    Li et al., Saliency-R1, Eq. 10, Fig. 4 and Section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

TYPES = ("hrhc", "hrlc", "lrhc", "lrlc")  # r: reward, c: confidence, h: high, l: low
EXTREME_SHARE = 0.2  # Fig. 4 calls the top and the bottom 20 % high and low


def confidence(log_probabilities: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean probability of an answer's tokens (Eq. 10), which is not the exponential of the mean logarithm.

    Args:
        log_probabilities: (B, T), of the sampled tokens at the sampling temperature.
        mask: (B, T), 1 on the answer's tokens, its end token included.

    Returns:
        (B,) in [0, 1]; 0 if the mask is empty.
    """
    return masked_mean(log_probabilities.exp(), mask)


def geometric_confidence(log_probabilities: Tensor, mask: Tensor) -> Tensor:
    """Compute the exponential of the mean log-probability, (B,); see `confidence` for arguments."""
    return masked_mean(log_probabilities, mask).exp() * mask.any(1)


# Forms of confidence by the value of the setting ``confidence``.
CONFIDENCES = {"mean_probability": confidence, "exp_mean_log": geometric_confidence}


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average ``values`` (B, T) over each row's ``mask`` (B, T): (B,), 0 for an empty mask."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def thresholds(values: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the 20 % and the 80 % quantile of ``values`` (B,); both are NaN if there are no values."""
    values = values.float() if len(values) else torch.full((1,), torch.nan)
    return torch.quantile(values, EXTREME_SHARE), torch.quantile(values, 1 - EXTREME_SHARE)


def response_types(rewards: Tensor, confidences: Tensor) -> dict[str, Tensor]:
    """Find the answers of each type in a batch.

    A value is high if it is at or above the 80 % quantile of the batch, and low if it is at or below the 20 % quantile.
    If the quantiles are equal, it is neither.

    Args:
        rewards: (B,); NaN (an answer that could not be scored) is ignored.
        confidences: (B,).

    Returns:
        bool (B,) by name, in the order of `TYPES`. Most answers have no type.
    """
    scored, sides = ~rewards.isnan(), []
    for values in (rewards.float(), confidences.float()):
        low, high = thresholds(values[scored])
        sides.append({"h": scored & (values >= high) & (high > low), "l": scored & (values <= low) & (high > low)})
    return {name: sides[0][name[0]] & sides[1][name[2]] for name in TYPES}


def shares(types: Mapping[str, Tensor]) -> dict[str, float]:
    """Compute each type's share of the answers that have a type, as in the figure; NaN if no answer has one."""
    counts = {name: int(chosen.sum()) for name, chosen in types.items()}
    total = sum(counts.values())
    return {name: count / total if total else float("nan") for name, count in counts.items()}


def mean_by_type(values: Tensor, types: Mapping[str, Tensor]) -> dict[str, float]:
    """Average ``values`` (B,), except NaN, over the answers of each type; NaN for a type without values."""
    return {name: values[chosen].nanmean().item() for name, chosen in types.items()}


def rank_normalized(values: Tensor) -> Tensor:
    """Rank ``values`` (B,), evenly spaced from -1 to 1; equal values share the mean of their ranks, and NaN stays NaN.

    Ranks compare methods whose advantages have different scales.

    Example:
        >>> rank_normalized(torch.tensor([0.3, 7.0, 0.3, -2.0, 0.9]))
        tensor([-0.2500,  1.0000, -0.2500, -1.0000,  0.5000])
    """
    ranks, known = torch.full_like(values, torch.nan), ~values.isnan()
    _, place, counts = values[known].unique(return_inverse=True, return_counts=True)
    middles = counts.cumsum(0) - (counts + 1) / 2  # mean rank, from 0, of each set of equal values
    last = len(place) - 1
    ranks[known] = ((2 * middles[place] - last) / max(last, 1)).to(ranks.dtype)
    return ranks
