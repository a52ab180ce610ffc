"""Methods that compare several answers to one prompt: GRPO, Dr. GRPO, GSPO and RLOO, on TRL's trainers.

The first three are settings of one trainer, named in `maskgym.agents.text.language`. This module adds what TRL lacks:
the share of groups without signal. Rewards are continuous, so a group says nothing when its deviation is *small*, and
TRL logs only how many are exactly zero.

RLOO is TRL's own ``RLOOTrainer``: its data path is the same, so it takes the same base. Its ratio is that of whole
answers and the divergence from the reference model, where there is one, is part of the reward.

References:
    Shao et al., DeepSeekMath, arXiv 2402.03300 (GRPO). Liu et al., Understanding R1-Zero-Like Training, arXiv
    2503.20783 (Dr. GRPO). Zheng et al., Group Sequence Policy Optimization, arXiv 2507.18071 (GSPO). Ahmadian et al.,
    Back to Basics, arXiv 2402.14740 (RLOO).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import nanstd

from maskgym.agents.text.trainer import ResumableTrainer, check_as_trl_does, check_range, check_settings, weighted_sums
from maskgym.errors import UserError


@dataclass
class GroupConfig(GRPOConfig):
    """Settings of :class:`GroupTrainer`: those of ``GRPOConfig``, with GRPO's loss as the default.

    TRL's default multiplies the divergence by the ratio (``use_bias_correction_kl``); as published it is a term of its
    own.

    Args:
        signal_tolerance: A group whose rewards deviate by less has no signal.

    Raises:
        UserError: If a value is out of its range.
    """

    num_generations: int | None = field(default=8, metadata={"help": "Answers a prompt."})
    loss_type: str = field(default="grpo", metadata={"help": "Mean over tokens, then over answers."})
    use_bias_correction_kl: bool = field(default=False, metadata={"help": "Multiply the divergence by the ratio."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta, as Saliency-R1's."})
    signal_tolerance: float = field(default=1e-3, metadata={"help": "Less deviation than this is no signal."})

    def __post_init__(self) -> None:
        check_group(self)
        check_as_trl_does(self, super().__post_init__)


@dataclass
class LeaveOneOutConfig(RLOOConfig):
    """Settings of :class:`LeaveOneOutTrainer`: those of ``RLOOConfig``.

    Args:
        signal_tolerance: A group whose rewards deviate by less has no signal.

    Raises:
        UserError: If a value is out of its range.
    """

    num_generations: int | None = field(default=8, metadata={"help": "Answers a prompt."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta, as Saliency-R1's."})
    signal_tolerance: float = field(default=1e-3, metadata={"help": "Less deviation than this is no signal."})

    def __post_init__(self) -> None:
        check_group(self)
        check_as_trl_does(self, super().__post_init__)


def check_group(config: Any) -> None:
    """Raise a UserError if a setting of a method that compares answers is out of range."""
    check_settings(config, {})
    if config.num_generations < 2:
        raise UserError(f"group_size={config.num_generations}: expected at least 2 answers to compare")
    check_range(config, ["signal_tolerance"], lambda value: value >= 0, "at least 0")


def without_signal(rewards: torch.Tensor, group_size: int, tolerance: float) -> torch.Tensor:
    """Return which groups' rewards deviate by less than a tolerance.

    Args:
        rewards: (B,), groups in a row; NaN (an answer that could not be scored) is left out.
        group_size: Answers a group, a divisor of B.
        tolerance: Of the sample standard deviation.

    Returns:
        bool (B / group_size,), true too where fewer than two answers have a reward.
    """
    return ~(nanstd(rewards.view(-1, group_size), dim=1) >= tolerance)


class ComparingTrainer(ResumableTrainer):
    """Mixin of the trainers that compare answers. Logs ``group/share_without_signal``, see :func:`without_signal`."""

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        outputs = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self._log_signal()
        return outputs

    def _compared(self, rewards_of_terms: torch.Tensor) -> torch.Tensor:
        """Return the rewards (B,) whose deviation is a group's signal."""
        return weighted_sums(rewards_of_terms, self.reward_weights)

    def _log_signal(self) -> None:
        flat = without_signal(self._compared(self._rewards_of_terms), self.num_generations, self.args.signal_tolerance)
        self._current_metrics["group/share_without_signal"].append(flat.float().mean().item())


class GroupTrainer(ComparingTrainer, GRPOTrainer):
    """Train a language model by GRPO or one of its relatives. Takes what ``GRPOTrainer`` takes."""

    _name = "GRPO"
    config_class: ClassVar = GroupConfig


class LeaveOneOutTrainer(ComparingTrainer, RLOOTrainer):
    """Train a language model by RLOO. Takes what ``RLOOTrainer`` takes."""

    _name = "RLOO"
    config_class: ClassVar = LeaveOneOutConfig

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        outputs = super()._generate_and_score_completions(inputs)
        # The parent hands on their sums only. The policy scores its answers first, then the reference does.
        return {**outputs, "old_per_token_logps": self._log_probabilities[0]}
