"""Ablations of CGPO: each restores what the method removes or replaces one of its choices.

- ``confidence``: the exponential of the mean log-probability in place of the mean probability (Eq. 10).
- ``full_gradient``: Eq. 11 itself in place of Eq. 13 and 14.
- ``center_advantage``: the advantage minus its mean over the batch. OURS, not the paper's.
- ``beta``: a KL divergence from the policy before training (Eq. 8) in place of ISR.
- ``isr_shared_optimizer``: one AdamW state for updates and supervised steps.

References:
    Li et al., Saliency-R1, Eq. 8 and 10 to 14.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from maskgym.agents.text.cgpo import (
    SUPPORTED,
    Answers,
    CGPOConfig,
    CGPOTrainer,
    InterleavedOptimizer,
    clipped_objective,
)
from maskgym.agents.text.response_types import CONFIDENCES, masked_mean
from maskgym.aliases import Settings
from maskgym.errors import UserError

# Settings that select this trainer when they differ from CGPO's own value.
ABLATIONS = {
    "confidence": "mean_probability",
    "full_gradient": False,
    "center_advantage": False,
    "beta": 0.0,
    "isr_shared_optimizer": False,
}
EDGE = 1e-6  # Eq. 11 is infinite at confidences 0 and 1.


@dataclass
class AblatedCGPOConfig(CGPOConfig):
    """Settings of :class:`AblatedCGPOTrainer`: those of ``CGPOConfig`` and the ablations.

    ``beta``, a setting of TRL, weighs the KL divergence from the policy before training (Eq. 8), which replaces ISR.

    Args:
        confidence: ``mean_probability`` (Eq. 10) or ``exp_mean_log``, the exponential of the mean log-probability.
        full_gradient: Whether to minimise Eq. 11, whose gradient has Eq. 12 as a factor and is unstable near the
            confidences 0 and 1. It has no ratio, so each answer serves one update.
        center_advantage: Whether to subtract the mean advantage of each forward pass, over all devices. OURS.
        isr_shared_optimizer: Whether supervised steps use the AdamW state of the policy updates.

    Raises:
        UserError: If a value is out of range, or two settings exclude each other.
    """

    confidence: str = field(default="mean_probability", metadata={"help": "Or exp_mean_log."})
    full_gradient: bool = field(default=False, metadata={"help": "Minimise Eq. 11 itself."})
    center_advantage: bool = field(default=False, metadata={"help": "Subtract the batch's mean advantage (ours)."})
    isr_shared_optimizer: bool = field(default=False, metadata={"help": "One optimizer state for both kinds."})

    supported: ClassVar[Settings] = SUPPORTED

    def check(self) -> None:
        """Check that the ablations agree with each other."""
        super().check()
        if self.beta and self.isr_sft_steps:
            raise UserError(f"beta={self.beta}: takes the place of ISR: expected isr_sft_steps=0 beside it")
        if self.confidence not in CONFIDENCES:
            raise UserError(f"confidence={self.confidence!r}: expected one of {', '.join(CONFIDENCES)}")
        if self.full_gradient and (self.center_advantage or self.num_iterations > 1 or self.use_vllm):
            told = "center_advantage=False, num_iterations=1 and use_vllm=False"
            raise UserError(f"full_gradient=True: expected {told} beside it")


class SharedOptimizer(InterleavedOptimizer):
    """One optimizer for both kinds of step, each with its own learning rate."""

    def _make_isr(self) -> torch.optim.Optimizer:
        return self.policy

    @property
    def states(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizer, whose state a checkpoint holds once."""
        return {"policy": self.policy}

    def step(self, closure: None = None) -> None:
        """Step the optimizer; the scheduler's learning rate is restored after a supervised step."""
        rates = [group["lr"] for group in self.policy.param_groups]
        super().step(closure)
        for group, rate in zip(self.policy.param_groups, rates, strict=True):
            group["lr"] = rate


class AblatedCGPOTrainer(CGPOTrainer):
    """Train a language model by CGPO with ablations; see :class:`CGPOTrainer` for arguments and logged scalars.

    With ``beta``, ``kl`` (mean over tokens) is logged too. With ``full_gradient``, the advantages are logged but not
    used.
    """

    config_class: ClassVar[type[CGPOConfig]] = AblatedCGPOConfig

    def policy_loss(self, answers: Answers) -> Tensor:
        """Compute the loss of the answers of one forward pass, with the ablations that the settings ask for."""
        confidence_of = CONFIDENCES[self.args.confidence]
        confidences = confidence_of(answers.old, answers.mask)  # (B,)
        advantages = answers.rewards - confidences  # (B,)
        if self.args.center_advantage:
            advantages = advantages - self.accelerator.gather(advantages).nanmean()
        advantages = advantages.nan_to_num(nan=0.0)
        log_ratio = answers.log_probabilities - answers.old  # (B, T)
        objective, clipped = clipped_objective(log_ratio, advantages, self.epsilon_low, self.epsilon_high)  # (B, T)
        self._log_update(answers, confidences, advantages, clipped)
        if self.args.full_gradient:
            believed = confidence_of(answers.log_probabilities, answers.mask)
            of_answers = calibration_objective(answers.rewards, believed)  # (B,)
        else:
            of_answers = masked_mean(answers.weighted(objective), answers.mask)  # (B,)
        if answers.reference is not None:
            divergence = kl_divergence(answers.log_probabilities, answers.reference)
            of_answers = of_answers - self.beta * masked_mean(divergence, answers.mask)
            self._log_tokens(answers.mask, {"kl": divergence})
        return -of_answers.mean()

    def _interleave(self, optimizer: torch.optim.Optimizer) -> InterleavedOptimizer:
        kind = SharedOptimizer if self.args.isr_shared_optimizer else InterleavedOptimizer
        return kind(optimizer, self.args.isr_learning_rate)


def calibration_objective(rewards: Tensor, confidences: Tensor) -> Tensor:
    """Compute ``r log c + (1 - r) log(1 - c)``, Eq. 11 with its sign reversed, (B,).

    Its derivative with respect to the confidence is Eq. 12, ``(r - c) / (c (1 - c))``, and 0 within 1e-6 of 0 and 1.

    Args:
        rewards: (B,) in [0, 1]; the objective of NaN is 0.
        confidences: (B,) in [0, 1].
    """
    confidences = confidences.clamp(EDGE, 1 - EDGE)
    known = rewards.nan_to_num(nan=0.0)
    objective = known * confidences.log() + (1 - known) * (1 - confidences).log()
    return torch.where(rewards.isnan(), torch.zeros_like(objective), objective)


def kl_divergence(log_probabilities: Tensor, reference: Tensor) -> Tensor:
    """Estimate the KL divergence from the reference per token (Eq. 8), (B, T), at least 0.

    Args:
        log_probabilities: (B, T), under the policy.
        reference: (B, T), under the reference model.
    """
    log_ratio = reference - log_probabilities
    return log_ratio.exp() - log_ratio - 1
