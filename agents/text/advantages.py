"""The advantage that each algorithm of text gives the same answers: small formulas, and SPO's tracker.

Training computes them elsewhere (TRL's trainers, `maskgym.agents.text.spo`, `maskgym.agents.text.cgpo`), each for its
own batches; the tests compare both. Settings are the algorithms' defaults.
"""

from __future__ import annotations

import torch
from trl.trainer.utils import nanstd

from maskgym.agents.text.group_methods import GroupConfig, without_signal
from maskgym.agents.text.spo import SPOConfig, ValueTracker, normalized

DIVISION_GUARD = 1e-4  # TRL's, beside a deviation


def advantages_by_algorithm(
    rewards: torch.Tensor, confidences: torch.Tensor, group_size: int
) -> dict[str, torch.Tensor]:
    """Return the advantages of answers under each algorithm.

    DAPO drops groups without signal: their answers have none (NaN). SPO takes one answer a prompt at a time, so the
    first answers to all prompts are one batch, the second ones the next, and so on.

    Args:
        rewards: (B,) in [0, 1], the answers to a prompt in a row; NaN is left out.
        confidences: (B,), see `maskgym.agents.text.response_types.confidence`.
        group_size: Answers a prompt, at least 2, a divisor of B.

    Returns:
        float64 (B,) by name of the algorithm; NaN where there is none.
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
    # Equal rewards leave differences of rounding, which ranks would take for real ones.
    return {name: values.flatten().round(decimals=9) for name, values in found.items()}


def share_within_prompts(advantages: torch.Tensor, group_size: int) -> float:
    """Return the share of the mean square of advantages that tells the answers to one prompt apart, in [0, 1].

    The rest is the same for all answers to a prompt. Its expected gradient is 0, whatever the policy: noise, which a
    baseline that knew each prompt's mean reward would take away.

    Args:
        advantages: (B,), the answers to a prompt in a row; NaN is left out.
        group_size: Answers a prompt, at least 2, a divisor of B.
    """
    groups = advantages.double().view(-1, group_size)  # (P, G)
    within = groups - groups.nanmean(1, keepdim=True)
    return (within.square().nanmean() / groups.square().nanmean()).item()


def _single_stream(groups: torch.Tensor) -> torch.Tensor:
    """Return SPO's advantages (P, G), whose tracker sees a column at a time."""
    tracker, prompts = ValueTracker(SPOConfig.forgetting, SPOConfig.prior_weight), [str(n) for n in range(len(groups))]
    batches = [batch - torch.tensor(tracker.observe(prompts, batch.tolist())).double() for batch in groups.unbind(1)]
    advantages = torch.stack([normalized(batch) for batch in batches], dim=1)
    return advantages.masked_fill(groups.isnan(), torch.nan)
