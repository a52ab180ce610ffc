"""Single-stream Policy Optimization (SPO) on TRL: one answer per prompt, compared with a running value of the prompt.

Choices that the paper leaves open, and departures from it:

- *Continuous rewards.* The tracker is a Beta distribution over success: ``alpha`` counts successes and ``beta``
  failures. A reward in [0, 1] adds to both, so the value is a running mean of rewards, and ``alpha + beta`` is its
  effective number of answers.
- *Forgetting.* In the paper, the factor is between 0.875 and 0.96 and depends on the KL divergence since the last
  answer to the prompt, so each prompt's last answer must be scored again. Here the factor is constant.
- *First value.* The paper estimates it from 8 answers to every prompt before training. Here it is the mean reward of
  the previous batch, with the weight of ``prior_weight`` answers; the first batch uses its own mean.
- *Prioritized sampling* of prompts is left out, so that every method sees the samples in the same order.
- *Mean of the loss.* The mean is over tokens, then over answers, as in CGPO, so that only the advantages differ. The
  authors' script averages over all tokens, and clips at 0.2 and 0.28.

References:
    Xu and Ding, Single-stream Policy Optimization, arXiv 2509.13232.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import nanstd

from maskgym.agents.text.trainer import ResumableTrainer, Row, TextConfig, check_range
from maskgym.aliases import Settings
from maskgym.errors import UserError


@dataclass
class SPOConfig(TextConfig, GRPOConfig):
    """Settings of :class:`SPOTrainer`: those of ``GRPOConfig``, and the ones below.

    Args:
        forgetting: Factor on an answer's weight with each later answer to the same prompt, 0 to 1; 1 forgets nothing.
        prior_weight: Weight of the first value of a prompt, in answers.
        key_columns: Columns that together identify a prompt; if prompts differ only in their images, ``prompt`` does
            not suffice.

    Raises:
        UserError: If a value is out of range or not supported.
    """

    num_generations: int | None = field(default=1, metadata={"help": "Answers per prompt; SPO supports only one."})
    loss_type: str = field(default="grpo", metadata={"help": "Mean over tokens, then over answers."})
    scale_rewards: str = field(default="none", metadata={"help": "No effect, because SPO has no groups."})
    forgetting: float = field(default=0.9, metadata={"help": "Factor on a prompt's counts per answer."})
    prior_weight: float = field(default=1.0, metadata={"help": "Weight of a first value, in answers."})
    key_columns: list[str] = field(default_factory=lambda: ["prompt"], metadata={"help": "Identify a prompt."})

    supported: ClassVar[Settings] = {
        "num_generations": 1,
        "scale_rewards": "none",
        "multi_objective_aggregation": "sum_then_normalize",
    }

    def check(self) -> None:
        """Check the settings of the tracker."""
        check_range(self, ["forgetting"], lambda value: 0 <= value <= 1, "0 to 1")
        check_range(self, ["prior_weight"], lambda value: value > 0, "more than 0")


class ValueTracker:
    """Expected reward of each prompt, as a Beta distribution with decaying counts.

    Args:
        forgetting: Factor on a prompt's counts with each answer to it.
        prior_weight: Sum of the counts of a prompt without an answer.

    Example:
        >>> tracker = ValueTracker(forgetting=0.5, prior_weight=2.0)
        >>> tracker.observe(["a", "b"], [1.0, 0.0])  # first batch: both start at its mean, 0.5
        [0.5, 0.5]
        >>> tracker.observe(["a", "c"], [1.0, 1.0])  # a: (0.5 * 1 + 1) / (0.5 * 2 + 1); c: mean of the previous batch
        [0.75, 0.5]
    """

    def __init__(self, forgetting: float, prior_weight: float) -> None:
        self.forgetting, self.prior_weight = forgetting, prior_weight
        self.counts: dict[str, tuple[float, float]] = {}
        self.mean: float | None = None

    def observe(self, keys: list[str], rewards: list[float]) -> list[float]:
        """Compute the value of each prompt before a batch, and update the counts with the batch's rewards.

        Args:
            keys: Names of the prompts, which may repeat.
            rewards: In [0, 1]; NaN (an answer that could not be scored) changes no counts.
        """
        scored = [reward for reward in rewards if reward == reward]
        batch_mean = sum(scored) / len(scored) if scored else 0.5
        start = batch_mean if self.mean is None else self.mean
        prior = (self.prior_weight * start, self.prior_weight * (1 - start))
        found = [self.counts.get(key, prior) for key in keys]
        for key, reward in zip(keys, rewards, strict=True):
            if reward == reward:
                alpha, beta = self.counts.get(key, prior)
                self.counts[key] = (self.forgetting * alpha + reward, self.forgetting * beta + 1 - reward)
        self.mean = batch_mean if scored else self.mean
        return [alpha / (alpha + beta) for alpha, beta in found]


def normalized(advantages: Tensor) -> Tensor:
    """Scale advantages (B,) to mean 0 and standard deviation 1 over the batch; NaN becomes 0."""
    scaled = (advantages - advantages.nanmean()) / (nanstd(advantages) + 1e-4)  # TRL also adds 1e-4.
    return scaled.nan_to_num(nan=0.0)


class SPOTrainer(ResumableTrainer, GRPOTrainer):
    """Train a language model by SPO; arguments are those of ``GRPOTrainer``, and rewards should lie in [0, 1].

    Further logged scalars: ``spo/value`` (mean value that rewards were compared with), ``spo/advantage_abs`` (before
    normalisation) and ``spo/share_known`` (share of answers to prompts with an earlier answer). Checkpoints include
    the tracker.
    """

    _tag_names: ClassVar = ["trl", "spo"]
    _name = "SPO"
    _paper: ClassVar = {"title": "Single-stream Policy Optimization", "id": "2509.13232"}
    config_class: ClassVar[type[SPOConfig]] = SPOConfig

    @cached_property
    def tracker(self) -> ValueTracker:
        """Running values of the prompts."""
        return ValueTracker(self.args.forgetting, self.args.prior_weight)

    def _generate_and_score_completions(self, inputs: Sequence[Row | int]) -> dict[str, Tensor]:
        rows = self._read(inputs)
        missing = set(self.args.key_columns) - set(rows[0])
        if missing:
            raise UserError(f"key_columns: rows lack {', '.join(sorted(missing))}; they have {', '.join(rows[0])}")
        outputs = super()._generate_and_score_completions(rows)
        self._current_metrics.pop("frac_reward_zero_std")  # It is of groups, and these have one answer.
        if not self.model.training:
            return outputs
        keys = gather_object(["/".join(str(row[name]) for name in self.args.key_columns) for row in rows])
        advantages = self._advantages(keys, self._total_rewards())
        self._logs["advantages"].extend(advantages.tolist())  # The parent's compare an answer with itself.
        return {**outputs, "advantages": self._local(advantages, len(rows))}

    def _advantages(self, keys: list[str], rewards: Tensor) -> Tensor:
        """Compute ``r - v``, normalised over all devices' batch (B,), and update the tracker."""
        known = sum(key in self.tracker.counts for key in keys) / len(keys)
        values = torch.tensor(self.tracker.observe(keys, rewards.tolist()), device=rewards.device)
        advantages = rewards - values
        self._current_metrics["spo/value"].append(values.mean().item())
        self._current_metrics["spo/advantage_abs"].append(advantages.abs().nanmean().item())
        self._current_metrics["spo/share_known"].append(known)
        return normalized(advantages)

    def extra_state(self) -> Settings:
        """Collect the tracker's state."""
        return {"counts": self.tracker.counts, "mean": self.tracker.mean}

    def load_extra_state(self, state: Settings) -> None:
        """Load the tracker's state."""
        self.tracker.counts, self.tracker.mean = state["counts"], state["mean"]
