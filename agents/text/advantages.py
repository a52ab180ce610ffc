"""Advantages of the same answers under each algorithm of text, for comparison.

Training computes them per batch elsewhere (TRL's trainers, `maskgym.agents.text.spo`, `maskgym.agents.text.cgpo`), and
the tests compare both. Settings are the algorithms' defaults. CISPO and SAPO
have GRPO's advantages.
"""

from __future__ import annotations

import torch
from torch import Tensor
from trl.trainer.utils import nanstd

from maskgym.agents.text.group_methods import GroupConfig, without_signal
from maskgym.agents.text.spo import SPOConfig, ValueTracker, normalized

DIVISION_GUARD = 1e-4  # TRL adds it to a standard deviation before dividing.


def advantages_by_algorithm(rewards: Tensor, confidences: Tensor, group_size: int) -> dict[str, Tensor]:
    """Compute the advantages of answers under each algorithm.

    DAPO drops zero-variance groups, so their answers have no advantage (NaN). SPO takes one answer per prompt at a
    time: the first answers to all prompts are one batch, the second ones the next, and so on.

    Args:
        rewards: (B,) in [0, 1], with the answers to a prompt adjacent; NaN is ignored.
        confidences: (B,), see `maskgym.agents.text.response_types.confidence`.
        group_size: Answers per prompt, at least 2, a divisor of B.

    Returns:
        float64 (B,) by name of the algorithm; NaN for an answer without an advantage.
    """
    groups = rewards.double().view(-1, group_size)  # (P, G)
    centred = groups - groups.nanmean(1, keepdim=True)
    scaled = centred / (nanstd(groups, dim=1, keepdim=True) + DIVISION_GUARD)
    others = (groups.nansum(1, keepdim=True) - groups) / ((~groups.isnan()).sum(1, keepdim=True) - 1)
    flat = without_signal(groups.flatten(), group_size, GroupConfig.signal_tolerance).unsqueeze(1)  # (P, 1)
    found = {
        "grpo": scaled,
        "dr_grpo": centred,
        "dapo": scaled.masked_fill(flat, torch.nan),
        "gspo": scaled,
        "rloo": groups - others,
        "spo": _single_stream(groups),
        "cgpo": groups - confidences.double().view_as(groups),
    }
    # Without rounding, the tiny differences that equal rewards leave would get different ranks.
    return {name: values.flatten().round(decimals=9) for name, values in found.items()}


def share_within_prompts(advantages: Tensor, group_size: int) -> float:
    """Compute the share of the advantages' mean square that distinguishes answers to one prompt, in [0, 1].

    The rest is the same for all answers to a prompt. Its expected gradient is 0 under any policy, so it is noise, which
    a baseline of each prompt's mean reward would remove.

    Args:
        advantages: (B,), with the answers to a prompt adjacent; NaN is ignored.
        group_size: Answers per prompt, at least 2, a divisor of B.
    """
    groups = advantages.double().view(-1, group_size)  # (P, G)
    within = groups - groups.nanmean(1, keepdim=True)
    return (within.square().nanmean() / groups.square().nanmean()).item()


def _single_stream(groups: Tensor) -> Tensor:
    """Compute SPO's advantages (P, G), whose tracker sees one column at a time."""
    tracker, prompts = ValueTracker(SPOConfig.forgetting, SPOConfig.prior_weight), [str(n) for n in range(len(groups))]
    batches = [batch - torch.tensor(tracker.observe(prompts, batch.tolist())).double() for batch in groups.unbind(1)]
    advantages = torch.stack([normalized(batch) for batch in batches], dim=1)
    return advantages.masked_fill(groups.isnan(), torch.nan)
