"""Methods that compare several answers to one prompt: GRPO, Dr. GRPO, GSPO and RLOO, on TRL's trainers.

The first three are settings of one trainer, which `maskgym.agents.text.language` names. This module adds the share of
zero-variance groups. Rewards are continuous, so a group has no signal when its standard deviation is *small*, while TRL
counts only groups whose standard deviation is exactly 0.

RLOO is TRL's own ``RLOOTrainer``, whose data path is the same. Its ratio is that of whole answers, and the KL
divergence from the reference model, if there is one, is part of the reward.

References:
    Shao et al., DeepSeekMath, arXiv 2402.03300 (GRPO). Liu et al., Understanding R1-Zero-Like Training, arXiv
    2503.20783 (Dr. GRPO). Zheng et al., Group Sequence Policy Optimization, arXiv 2507.18071 (GSPO). Ahmadian et al.,
    Back to Basics, arXiv 2402.14740 (RLOO).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import nanstd

from maskgym.agents.text.trainer import ResumableTrainer, Row, TextConfig, check_range, weighted_sums
from maskgym.errors import UserError


@dataclass
class ComparingConfig(TextConfig):
    """Mixin of the configs of trainers that compare answers.

    Args:
        num_generations: Answers per prompt, at least 2.
        signal_tolerance: Least standard deviation of rewards in a group with signal.
    """

    num_generations: int | None = field(default=8, metadata={"help": "Answers per prompt."})
    signal_tolerance: float = field(default=1e-3, metadata={"help": "Least standard deviation of a signal."})

    def check(self) -> None:
        """Check the settings of groups."""
        if (self.num_generations or 0) < 2:
            raise UserError(f"group_size={self.num_generations}: expected at least 2 answers to compare")
        check_range(self, ["signal_tolerance"], lambda value: value >= 0, "at least 0")


@dataclass
class GroupConfig(ComparingConfig, GRPOConfig):
    """Settings of :class:`GroupTrainer`, with GRPO's loss as the default.

    By default, TRL multiplies the KL divergence by the ratio (``use_bias_correction_kl``). As published, it is a
    separate term.
    """

    loss_type: str = field(default="grpo", metadata={"help": "Mean over tokens, then over answers."})
    use_bias_correction_kl: bool = field(default=False, metadata={"help": "Multiply the KL divergence by the ratio."})


@dataclass
class LeaveOneOutConfig(ComparingConfig, RLOOConfig):
    """Settings of :class:`LeaveOneOutTrainer`."""


def without_signal(rewards: Tensor, group_size: int, tolerance: float) -> Tensor:
    """Find the zero-variance groups: those whose rewards have a smaller standard deviation than a tolerance.

    Args:
        rewards: (B,), with the rewards of a group adjacent; NaN (an answer that could not be scored) is ignored.
        group_size: Answers per group, a divisor of B.
        tolerance: Least sample standard deviation of a group with signal.

    Returns:
        bool (B / group_size,), also True for a group with fewer than two rewards.
    """
    return ~(nanstd(rewards.view(-1, group_size), dim=1) >= tolerance)


class ComparingTrainer(ResumableTrainer):
    """Mixin of the trainers that compare answers; logs ``group/share_without_signal``, see :func:`without_signal`."""

    def _generate_and_score_completions(self, inputs: Sequence[Row | int]) -> dict[str, Tensor]:
        outputs = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self._log_signal()
        return outputs

    def _compared(self, rewards_of_terms: Tensor) -> Tensor:
        """Compute the rewards (B,) whose standard deviation is a group's signal."""
        return weighted_sums(rewards_of_terms, self.reward_weights)

    def _log_signal(self) -> None:
        flat = without_signal(self._compared(self._rewards_of_terms), self.num_generations, self.args.signal_tolerance)
        self._current_metrics["group/share_without_signal"].append(flat.float().mean().item())


class GroupTrainer(ComparingTrainer, GRPOTrainer):
    """Train a language model by GRPO or one of its variants; arguments are those of ``GRPOTrainer``."""

    _name = "GRPO"
    config_class: ClassVar[type[GRPOConfig]] = GroupConfig


class LeaveOneOutTrainer(ComparingTrainer, RLOOTrainer):
    """Train a language model by RLOO; arguments are those of ``RLOOTrainer``."""

    _name = "RLOO"
    config_class: ClassVar[type[RLOOConfig]] = LeaveOneOutConfig

    def _generate_and_score_completions(self, inputs: Sequence[Row | int]) -> dict[str, Tensor]:
        outputs = super()._generate_and_score_completions(inputs)
        # The parent keeps only sums over tokens. The policy scores its answers before the reference model does.
        return {**outputs, "old_per_token_logps": self._log_probabilities[0]}
