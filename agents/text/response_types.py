"""Response types: which answers a method learns from (Saliency-R1, Fig. 4).

A reward or a confidence is high or low if it is among the top or the bottom 20 % of a batch. Answers that are extreme
in both are of one of four types. Two are worth an update: a high reward at low confidence (``hrlc``: right, but not yet
explored) and a low reward at high confidence (``lrhc``: overconfident). The other two (``hrhc``, ``lrlc``) are not.

The shares of the types, and the advantage that a method gives each, are logged live by every trainer of text
(`maskgym.agents.text.trainer`) and drawn for many answers of one policy by ``maskgym response_study``.

References:
    Li et al., Saliency-R1, Eq. 10, Fig. 4 and Section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

TYPES = ("hrhc", "hrlc", "lrhc", "lrlc")  # r: reward, c: confidence, h: high, l: low
EXTREME_SHARE = 0.2  # Fig. 4 calls the top and the bottom 20 % high and low


def confidence(
    log_probabilities: torch.Tensor, mask: torch.Tensor, form: str = "mean_probability", differentiate: bool = False
) -> torch.Tensor:
    """Return the mean probability of an answer's tokens (Eq. 10): not the exponential of the mean logarithm.

    Args:
        log_probabilities: (B, T) of the sampled tokens, at the sampling temperature.
        mask: (B, T), 1 on the answer's tokens, its end token included.
        form: ``exp_mean_log`` is the exponential of the mean logarithm after all.
        differentiate: Keep the gradient.

    Returns:
        (B,) in [0, 1], without gradient unless asked for; 0 where the mask is empty.
    """
    log_probabilities = log_probabilities if differentiate else log_probabilities.detach()
    if form == "exp_mean_log":
        return masked_mean(log_probabilities, mask).exp() * mask.any(1)
    return masked_mean(log_probabilities.exp(), mask)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of ``values`` (B, T) over each row's ``mask`` (B, T): (B,), 0 where a row has none."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def thresholds(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 20 % and the 80 % quantile of ``values`` (B,); NaN of none."""
    values = values.float() if len(values) else torch.full((1,), torch.nan)
    return torch.quantile(values, EXTREME_SHARE), torch.quantile(values, 1 - EXTREME_SHARE)


def response_types(rewards: torch.Tensor, confidences: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return which answers of a batch are of each type.

    A value is high if it is at or above the 80 % quantile of the batch, low if at or below its 20 % quantile, and
    neither where the two coincide.

    Args:
        rewards: (B,); NaN (an answer that could not be scored) is left out.
        confidences: (B,).

    Returns:
        bool (B,) by name, in the order of `TYPES`. Most answers are of no type.
    """
    scored, sides = ~rewards.isnan(), []
    for values in (rewards.float(), confidences.float()):
        low, high = thresholds(values[scored])
        sides.append({"h": scored & (values >= high) & (high > low), "l": scored & (values <= low) & (high > low)})
    return {name: sides[0][name[0]] & sides[1][name[2]] for name in TYPES}


def shares(types: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return each type's share of the answers that are of any, as in the figure; NaN where none is."""
    counts = {name: int(chosen.sum()) for name, chosen in types.items()}
    total = sum(counts.values())
    return {name: count / total if total else float("nan") for name, count in counts.items()}


def mean_by_type(values: torch.Tensor, types: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the mean of ``values`` (B,), NaN left out, over the answers of each type; NaN where there is none."""
    return {name: values[chosen].nanmean().item() for name, chosen in types.items()}


def rank_normalized(values: torch.Tensor) -> torch.Tensor:
    """Return the ranks of ``values`` (B,), spread evenly from -1 to 1; equal values share the mean of their ranks.

    So methods are compared whose advantages have other scales. NaN has no rank and stays NaN.

    Example:
        >>> rank_normalized(torch.tensor([0.3, 7.0, 0.3, -2.0, 0.9]))
        tensor([-0.2500,  1.0000, -0.2500, -1.0000,  0.5000])
    """
    ranks, known = torch.full_like(values, torch.nan), ~values.isnan()
    _, place, counts = values[known].unique(return_inverse=True, return_counts=True)
    middles = counts.cumsum(0) - (counts + 1) / 2  # of the ranks, from 0, that equal values take up
    last = len(place) - 1
    ranks[known] = ((2 * middles[place] - last) / max(last, 1)).to(ranks.dtype)
    return ranks
